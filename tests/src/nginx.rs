//! Debian's nginx with the configuration of deploy/, on ports of the test's choice. `./test --all` installs it.

use std::{net::SocketAddr, path::Path, process::Stdio};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{forest::free_port, http::Http};

/// An nginx. Killed when dropped.
pub struct Nginx {
    address: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl Nginx {
    /// Starts it before the APIs at these ports, five at most.
    ///
    /// # Panics
    /// When it is not installed, or the configuration can't be adapted.
    pub async fn start(ports: &[u16]) -> Nginx {
        let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nginx.conf");
        let mut conf = std::fs::read_to_string(conf).expect("deploy/nginx.conf is in the repository");
        let (folder, own) = (tempfile::tempdir().expect("a folder"), free_port());
        let mut replace = |from: String, to: String| {
            assert!(conf.contains(&from), "{from:?} is no longer in deploy/nginx.conf");
            conf = conf.replace(&from, &to);
        };
        for (number, port) in ports.iter().enumerate() {
            replace(format!("127.0.0.1:{}", 8081 + number), format!("127.0.0.1:{port}"));
        }
        replace("listen 8080;".to_owned(), format!("listen 127.0.0.1:{own};"));
        replace("worker_processes auto;".to_owned(), "worker_processes 1;".to_owned());
        replace("/dev/stdout".to_owned(), folder.path().join("access.log").display().to_string());
        let path = folder.path().join("nginx.conf");
        std::fs::write(&path, conf).expect("a write");
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind};", folder.path().display()))
            .join(" ");
        // Its settings that are outside of `http`; those inside have to be put there.
        let inside =
            std::fs::read_to_string(&path).expect("it was written").replacen("http {", &format!("http {{ {temporary}"), 1);
        std::fs::write(&path, inside).expect("a write");
        let log = folder.path().join("error.log");
        let global = format!("daemon off; pid {}/pid; error_log {} info;", folder.path().display(), log.display());
        // Debian's is not in everybody's path.
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists());
        let program = program.expect("there is no nginx: apt-get install nginx, or ./test --all, which does");
        let mut command = Command::new(program);
        command.args(["-p", &folder.path().display().to_string(), "-c", &path.display().to_string(), "-g", &global]);
        // At SIGTERM the master ends its workers too; at SIGKILL they would stay.
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("nginx starts");
        Nginx { address: SocketAddr::from(([127, 0, 0, 1], own)), process, _folder: folder }
    }

    /// Where it listens.
    pub fn api(&self) -> Http {
        Http(self.address)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(pid) = self.process.id() {
            let _ = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status();
        }
    }
}
