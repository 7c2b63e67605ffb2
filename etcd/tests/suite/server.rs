//! Servers as processes of their own: started, killed, started again where they were, frozen and thawed.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

/// A server's process, killed when this is dropped.
pub(crate) struct Server {
    port: u16,
    remembers: bool,
    launch: Launch,
    child: Option<Child>,
    folder: tempfile::TempDir,
}

/// Makes the command for a port and a folder for data. If its output is piped, it says `listening` when it is.
type Launch = Box<dyn Fn(u16, &Path) -> Command + Send + Sync>;

impl Server {
    /// Starts a new one; `remembers` says whether what it holds is there again after a restart.
    pub(crate) fn new(remembers: bool, launch: impl Fn(u16, &Path) -> Command + Send + Sync + 'static) -> Server {
        let folder = tempfile::tempdir().expect("a folder for the server");
        let mut server = Server { port: free_port(), remembers, launch: Box::new(launch), child: None, folder };
        server.start();
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn remembers(&self) -> bool {
        self.remembers
    }

    /// Starts it (again), with its data and on its port.
    pub(crate) fn start(&mut self) {
        let mut child = (self.launch)(self.port, self.folder.path()).spawn().expect("the server's process starts");
        if let Some(stdout) = child.stdout.take() {
            let mut lines = BufReader::new(stdout).lines();
            let listening = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("listening")));
            assert!(listening.is_some(), "the server says that it listens");
            std::thread::spawn(move || lines.count());
        }
        self.child = Some(child);
    }

    /// Ends it as a power failure would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the process is ours");
            child.wait().expect("and ends");
        }
    }

    /// Freezes it: connections stay, answers don't come.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().expect("it runs").id();
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {id}")]).stdin(Stdio::null()).status();
        assert!(sent.expect("there is a shell").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    listener.local_addr().expect("it has a number").port()
}
