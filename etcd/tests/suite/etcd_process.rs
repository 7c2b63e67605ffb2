//! A real etcd of one member, and its tools.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use super::suite::server::{Server, free_port};

pub(crate) fn etcd() -> Server {
    let (program, peer_port) = (installed("etcd"), free_port());
    Server::new(true, move |port, folder| {
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
        let mut command = Command::new(&program);
        command.args(["--logger", "zap", "--log-level", "error", "--data-dir"]).arg(folder.join("etcd"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    })
}

/// Where a program of etcd's is installed.
pub(crate) fn installed(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("there is no {program}: apt-get install etcd-server etcd-client"))
}
