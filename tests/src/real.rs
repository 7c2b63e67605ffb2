//! Programs that others made: etcdctl, and Python with PyPI's packages. `./test --all` installs them, and etcd (`etcds.rs`).

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::process::Finished;

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
