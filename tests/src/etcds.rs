//! A real etcd of one member or of three, to use and to do harm to. `./test --all` installs it.

use std::{
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{eventually::eventually, forest::free_port, process::Finished, real::etcdctl};

/// An etcd. Killed when dropped.
pub struct Etcds {
    members: Vec<Member>,
    data: TempDir,
    cluster: String,
    token: String,
}

struct Member {
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

impl Etcds {
    /// Starts so many members, and waits until all are healthy.
    ///
    /// # Panics
    /// When etcd is not installed or does not get ready.
    pub async fn start(count: usize) -> Etcds {
        static CLUSTERS: AtomicU64 = AtomicU64::new(0);
        let members: Vec<Member> =
            (0..count).map(|_| Member { client_port: free_port(), peer_port: free_port(), process: None }).collect();
        let peers: Vec<String> = members
            .iter()
            .enumerate()
            .map(|(index, member)| format!("member-{index}=http://127.0.0.1:{}", member.peer_port))
            .collect();
        let token = format!("banyan-{}-{}", std::process::id(), CLUSTERS.fetch_add(1, Ordering::Relaxed));
        let data = tempfile::tempdir().expect("a folder for etcd's data");
        let mut etcds = Etcds { members, data, cluster: peers.join(","), token };
        for index in 0..count {
            etcds.start_member(index);
        }
        etcds.healthy().await;
        etcds
    }

    /// How many members there are, running or not.
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// All client URLs, as `--etcd` takes them.
    pub fn urls(&self) -> String {
        let urls = self.members.iter().map(|member| format!("http://127.0.0.1:{}", member.client_port));
        urls.collect::<Vec<_>>().join(",")
    }

    /// The port on which a member serves clients, at every address of the machine.
    pub fn client_port(&self, index: usize) -> u16 {
        self.members[index].client_port
    }

    /// Starts a member that was killed, with the data that it had.
    ///
    /// # Panics
    /// When etcd is not installed.
    pub fn start_member(&mut self, index: usize) {
        let member = &self.members[index];
        let (client, peer) = (member.client_port, member.peer_port);
        let spawned = Command::new("etcd")
            .args(["--name", &format!("member-{index}"), "--data-dir"])
            .arg(self.data.path().join(index.to_string()))
            .args(["--listen-client-urls", &format!("http://0.0.0.0:{client}")])
            .args(["--advertise-client-urls", &format!("http://127.0.0.1:{client}")])
            .args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer}")])
            .args(["--initial-advertise-peer-urls", &format!("http://127.0.0.1:{peer}")])
            .args(["--initial-cluster", &self.cluster, "--initial-cluster-token", &self.token])
            .args(["--logger", "zap", "--log-level", "error", "--unsafe-no-fsync"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let child = spawned.unwrap_or_else(|error| panic!("failed to start etcd: {error}; `./test --all` installs it"));
        self.members[index].process = Some(child);
    }

    /// Kills a member.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn kill_member(&mut self, index: usize) {
        let mut child = self.members[index].process.take().expect("the member runs");
        child.kill().await.expect("what runs can be killed");
    }

    /// Sends a signal to a member, such as STOP or CONT.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn signal_member(&self, index: usize, signal: &str) {
        let pid = self.members[index].process.as_ref().and_then(Child::id).expect("the member runs");
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().await;
        assert!(sent.is_ok_and(|status| status.success()), "failed to send {signal} to etcd");
    }

    /// Waits until every member is healthy.
    pub async fn healthy(&self) {
        eventually("etcd gets healthy", || async { (self.etcdctl(&["endpoint", "health"]).await.code == 0).then_some(()) }).await;
    }

    /// Runs etcdctl on all members.
    pub async fn etcdctl(&self, words: &[&str]) -> Finished {
        etcdctl(&self.urls().replace("http://", ""), words).await
    }

    /// Revokes the lease of a key, with which the key goes. False where there is none.
    pub async fn revoke_lease_of(&self, key: &str) -> bool {
        let read = self.etcdctl(&["get", key, "-w", "json"]).await;
        let read: Value = serde_json::from_str(&read.out).unwrap_or_default();
        let Some(lease) = read["kvs"][0]["lease"].as_i64() else { return false };
        self.etcdctl(&["lease", "revoke", &format!("{lease:x}")]).await.code == 0
    }

    /// Forgets everything but the present state, so that no watch can go on from before. False where nobody answers.
    pub async fn compact(&self) -> bool {
        let read = self.etcdctl(&["get", "nothing", "-w", "json"]).await;
        let read: Value = serde_json::from_str(&read.out).unwrap_or_default();
        let Some(revision) = read["header"]["revision"].as_i64() else { return false };
        let compacted = self.etcdctl(&["compact", &revision.to_string()]).await;
        // Nothing has changed since the last time.
        compacted.code == 0 || compacted.err.contains("has been compacted")
    }
}
