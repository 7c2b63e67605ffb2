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

/// Runs npm's clients: a script of `tests/node` with the packages that `./test --all` installed.
///
/// # Panics
/// When they are not installed.
pub async fn node(script: &str, arguments: &[&str]) -> Finished {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = packages();
    let mut command = Command::new("node");
    command.env("BANYAN_TEST_NODE", packages).arg(here.join("node").join(script)).args(arguments);
    finished(command.kill_on_drop(true).output().await.expect("node starts"))
}

/// Where `./test --all` puts npm's packages.
///
/// # Panics
/// When it has not.
pub fn packages() -> PathBuf {
    let packages = target().join("test-node");
    assert!(packages.exists(), "{} is missing: `./test --all` installs it", packages.display());
    packages
}

/// Lets schemathesis ask whatever the document at `url` allows, and some that it does not.
///
/// # Panics
/// When it is not installed.
pub async fn schemathesis(url: &str, flags: &[&str]) -> Finished {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(venv("schemathesis"));
    command.env("SCHEMATHESIS_HOOKS", "schema_hooks").env("PYTHONPATH", here.join("python")).current_dir(target());
    command.arg("run").arg(url).args(flags);
    finished(command.kill_on_drop(true).output().await.expect("schemathesis is installed by `./test --all`"))
}

/// Runs a script of `tests/python` with the packages that `./test --all` installed.
///
/// # Panics
/// When they are not installed.
pub async fn python(script: &str, arguments: &[&str]) -> Finished {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = venv("python");
    assert!(python.exists(), "{} is missing: `./test --all` installs it", python.display());
    let ran = Command::new(python).arg(here.join("python").join(script)).args(arguments).kill_on_drop(true).output().await;
    finished(ran.expect("Python starts"))
}

/// A command of the Python that `./test --all` puts beside the build's own files.
fn venv(command: &str) -> PathBuf {
    target().join("test-venv/bin").join(command)
}

fn target() -> PathBuf {
    let own = std::env::current_exe().expect("a process knows its own path");
    own.ancestors().nth(3).expect("test binaries lie in target/<profile>/deps").to_owned()
}

fn finished(output: std::process::Output) -> Finished {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Finished { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}
