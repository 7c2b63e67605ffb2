//! A real PostgreSQL, to use and to do harm to: Debian's, in a folder of its own. `./test --all` installs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{authority::Certificate, eventually::eventually, forest::free_port, process::Finished};

/// Debian's own, as PostgreSQL refuses to run as root.
const USER: &str = "postgres";

/// A server. Killed when dropped.
pub struct Postgres {
    programs: PathBuf,
    port: u16,
    data: TempDir,
    process: Option<Child>,
}

impl Postgres {
    /// Makes a server's folder, starts it, and waits until it answers.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not get ready.
    pub async fn start() -> Postgres {
        Postgres::begin(None).await
    }

    /// The same with TLS, and for those only who use it.
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub async fn start_with_tls(certificate: &Certificate) -> Postgres {
        Postgres::begin(Some(certificate)).await
    }

    async fn begin(certificate: Option<&Certificate>) -> Postgres {
        let programs = programs();
        let data = tempfile::tempdir().expect("a folder for PostgreSQL's data");
        if is_root() {
            run(&mut Command::new("chown"), &[&format!("{USER}:"), &data.path().display().to_string()]).await;
        }
        let mut postgres = Postgres { programs, port: free_port(), data, process: None };
        let folder = postgres.folder();
        let init = ["-D", &folder, "-U", "banyan", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"];
        // As most servers have it: texts in the order of a language, where `~` comes before `a`.
        let language: &[&str] = match version(&postgres.programs) {
            ..15 => &[],
            15.. => &["--locale-provider=icu", "--icu-locale=en-US"],
        };
        run(&mut postgres.program("initdb"), &[&init[..], language].concat()).await;
        if let Some(certificate) = certificate {
            postgres.write("server.crt", &certificate.certificate).await;
            postgres.write("server.key", &certificate.key).await;
            postgres.write("postgresql.auto.conf", "ssl = on\n").await;
            postgres.write("pg_hba.conf", "hostssl all all 127.0.0.1/32 trust\n").await;
        }
        postgres.restart().await;
        postgres
    }

    /// Starts it again after it was killed, with the data that it had.
    ///
    /// # Panics
    /// When it does not get ready.
    pub async fn restart(&mut self) {
        let mut server = self.program("postgres");
        server.args(["-D", &self.folder(), "-h", "127.0.0.1", "-k", &self.folder(), "-p", &self.port.to_string()]);
        // The machine lives on; what is tested is the server's death.
        server.args(["-c", "fsync=off", "-c", "max_connections=64"]);
        server.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        self.process = Some(server.spawn().expect("PostgreSQL starts"));
        eventually("PostgreSQL answers", || async { (self.sql("postgres", "SELECT 1").await.code == 0).then_some(()) }).await;
    }

    /// Kills it, as a machine dies.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn kill(&mut self) {
        let mut server = self.process.take().expect("PostgreSQL runs");
        // At SIGQUIT it ends all its processes at once and writes nothing more.
        let pid = server.id().expect("PostgreSQL runs").to_string();
        run(&mut Command::new("kill"), &["-QUIT", &pid]).await;
        server.wait().await.expect("a child can be waited for");
    }

    /// The URL of a new, empty database.
    ///
    /// # Panics
    /// When it can't be made.
    pub async fn database(&self) -> String {
        static DATABASES: AtomicU64 = AtomicU64::new(0);
        let name = format!("banyan_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let made = self.sql("postgres", &format!("CREATE DATABASE {name}")).await;
        assert_eq!(made.code, 0, "{made:?}");
        format!("postgres://banyan:secret@127.0.0.1:{}/{name}", self.port)
    }

    /// As its own user's, whom alone it believes with its key.
    async fn write(&self, name: &str, text: &str) {
        let path = Path::new(&self.folder()).join(name);
        fs::write(&path, text).expect("there is room for a file");
        let path = path.display().to_string();
        if is_root() {
            run(&mut Command::new("chown"), &[&format!("{USER}:"), &path]).await;
        }
        run(&mut Command::new("chmod"), &["600", &path]).await;
    }

    async fn sql(&self, database: &str, sql: &str) -> Finished {
        let port = self.port.to_string();
        let ran = self
            .program("psql")
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "banyan", "-d", database, "-X", "-A", "-t", "-c", sql])
            .output()
            .await
            .expect("psql runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Finished { code: ran.status.code().unwrap_or(-1), out: text(&ran.stdout), err: text(&ran.stderr) }
    }

    fn folder(&self) -> String {
        self.data.path().join("data").display().to_string()
    }

    /// One of its programs, by a user that is not root.
    fn program(&self, name: &str) -> Command {
        let path = self.programs.join(name);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", USER, "--regid", USER, "--clear-groups", "--"]).arg(path);
            command
        } else {
            Command::new(path)
        };
        // Clients look for certificates at home, and another user's is closed to them.
        command.current_dir(self.data.path()).env("HOME", self.data.path()).stdin(Stdio::null());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(pid) = self.process.as_ref().and_then(Child::id) {
            // Its own processes go with it.
            let _ = std::process::Command::new("kill").args(["-QUIT", &pid.to_string()]).status();
        }
    }
}

async fn run(command: &mut Command, arguments: &[&str]) {
    let ran = command.args(arguments).output().await.unwrap_or_else(|error| panic!("failed to run {command:?}: {error}"));
    assert!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Debian keeps the server's programs out of the path, in a folder for each version; the newest will do.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let found = versions.filter(|path| path.join("initdb").is_file()).max_by_key(|path| version(path));
    found.expect("there is no PostgreSQL: apt-get install postgresql, or ./test --all, which does")
}

fn version(path: &Path) -> u32 {
    path.iter().find_map(|part| part.to_str()?.parse().ok()).unwrap_or(0)
}
