//! Parts that others made: etcd, etcdctl, and Python with PyPI's packages. `./test --all` installs them.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{eventually::eventually, process::Finished};

/// A real etcd of one member. Killed when dropped.
pub struct Etcd {
    url: String,
    _child: Child,
    _data: TempDir,
}

impl Etcd {
    /// Starts etcd, and waits until it answers.
    ///
    /// # Panics
    /// When it is not installed or does not get ready.
    pub async fn start() -> Etcd {
        let data = tempfile::tempdir().expect("a folder for etcd's data");
        let [client, peer] = [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
        let spawned = Command::new("etcd")
            .arg("--data-dir")
            .arg(data.path())
            .args(["--name", "test", "--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}"), "--logger", "zap", "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let child = spawned.unwrap_or_else(|error| panic!("failed to start etcd: {error}; `./test --all` installs it"));
        let etcd = Etcd { url: client, _child: child, _data: data };
        eventually("etcd gets healthy", || async { (etcd.etcdctl(&["endpoint", "health"]).await.code == 0).then_some(()) }).await;
        etcd
    }

    /// Its client URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs etcdctl on it.
    ///
    /// # Panics
    /// When etcdctl is not installed.
    pub async fn etcdctl(&self, words: &[&str]) -> Finished {
        etcdctl(&self.url, words).await
    }
}

/// Runs etcdctl on any server. Without the scheme, which etcdctl 3.4 would send as part of the HTTP/2 authority in some
/// commands; etcd lets that pass, and strict servers do not.
///
/// # Panics
/// When etcdctl is not installed.
pub async fn etcdctl(url: &str, words: &[&str]) -> Finished {
    let ran = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", url.trim_start_matches("http://")])
        .args(words)
        .output()
        .await;
    finished(ran.unwrap_or_else(|error| panic!("failed to run etcdctl: {error}; `./test --all` installs it")))
}

/// Runs a script of `tests/python` with the packages that `./test --all` installed.
///
/// # Panics
/// When they are not installed.
pub async fn python(script: &str, arguments: &[&str]) -> Finished {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = venv();
    assert!(python.exists(), "{} is missing: `./test --all` installs it", python.display());
    let ran = Command::new(python).arg(here.join("python").join(script)).args(arguments).kill_on_drop(true).output().await;
    finished(ran.expect("Python starts"))
}

/// Where `./test --all` puts Python; beside the build's own files.
fn venv() -> PathBuf {
    let own = std::env::current_exe().expect("a process knows its own path");
    let target = own.ancestors().nth(3).expect("test binaries lie in target/<profile>/deps");
    target.join("test-venv/bin/python")
}

fn finished(output: std::process::Output) -> Finished {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Finished { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}
