//! Lines as a user types them: run by a shell, with this build's binary, and a home of their own.

use std::path::Path;

use banyan_tests::{Finished, process::binary};
use tokio::process::Command;

/// Runs a line to its end; `home` is where its user keeps things, and stands in `$HOME`.
pub(crate) async fn shell(home: &Path, line: &str) -> Finished {
    let ran = command(home, line).output().await.expect("the shell starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Finished { code: ran.status.code().unwrap_or(-1), out: text(ran.stdout), err: text(ran.stderr) }
}

/// The line, not yet run.
pub(crate) fn command(home: &Path, line: &str) -> Command {
    let mut command = Command::new("bash");
    let folder = binary().parent().expect("a binary lies in a folder").to_owned();
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(["-c", line]).env("PATH", format!("{}:{path}", folder.display())).current_dir(home);
    for (name, _) in std::env::vars_os() {
        let foreign =
            name.to_str().is_some_and(|name| name.starts_with("BANYAN_") || name.starts_with("HF_") || name.starts_with("XDG_"));
        if foreign {
            command.env_remove(name);
        }
    }
    // No test asks a hub.
    command.env("HOME", home).env("HF_HUB_OFFLINE", "1").kill_on_drop(true);
    command
}
