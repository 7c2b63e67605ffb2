//! A real etcd over TLS that knows its clients by their certificates, with the rights that docs/security.md gives.

use std::{path::Path, process::Stdio};

use banyan_proto::Role;
use banyan_tests::{Banyan, Finished, certified::Certified, eventually, forest::free_port, process::banyan};
use tokio::process::{Child, Command};

/// An etcd that takes nobody without a certificate. Killed when dropped.
struct Etcd {
    port: u16,
    _process: Child,
    _data: tempfile::TempDir,
}

impl Etcd {
    fn start(certified: &Certified) -> Etcd {
        let names = ["registry.banyan.internal", "127.0.0.1"].map(str::to_owned);
        let tls = certified.issue_for(Role::Registry, "etcd", banyan_ca::VALID, &names);
        let (port, peer, data) = (free_port(), free_port(), tempfile::tempdir().expect("a folder for etcd's data"));
        let (client, peer) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let process = Command::new("etcd")
            .args(["--logger", "zap", "--log-level", "error", "--unsafe-no-fsync", "--data-dir"])
            .arg(data.path().join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--client-cert-auth", "--trusted-ca-file"])
            .arg(tls.join("ca.crt"))
            .arg("--cert-file")
            .arg(tls.join("tls.crt"))
            .arg("--key-file")
            .arg(tls.join("tls.key"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let process = process.unwrap_or_else(|error| panic!("failed to start etcd: {error}; `./test --all` installs it"));
        Etcd { port, _process: process, _data: data }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Runs etcdctl as whoever the folder's certificate names.
    async fn etcdctl(&self, tls: &Path, words: &[&str]) -> Finished {
        let ran = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url(), "--cacert"])
            .arg(tls.join("ca.crt"))
            .arg("--cert")
            .arg(tls.join("tls.crt"))
            .arg("--key")
            .arg(tls.join("tls.key"))
            .args(words)
            .output()
            .await;
        let output = ran.unwrap_or_else(|error| panic!("failed to run etcdctl: {error}; `./test --all` installs it"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Finished { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

/// The commands that the guide gives.
fn documented() -> Vec<Vec<String>> {
    let guide = include_str!("../../../docs/security.md");
    let block = guide.split("```etcdctl\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the guide has the commands");
    let words = |line: &str| line.split_whitespace().skip(1).map(str::to_owned).collect();
    block.lines().map(words).collect()
}

#[tokio::test]
async fn members_have_the_rights_that_the_guide_gives_them_and_no_others() {
    let certified = Certified::new();
    let etcd = Etcd::start(&certified);
    let operator = certified.issue(Role::Operator, "root");
    eventually("etcd answers", || async { (etcd.etcdctl(&operator, &["endpoint", "health"]).await.code == 0).then_some(()) })
        .await;
    let mut commands = documented();
    assert!(commands.len() > 15, "{commands:?}");
    for line in ["user add root --no-password", "user grant-role root root", "auth enable"] {
        commands.push(line.split(' ').map(str::to_owned).collect());
    }
    for command in commands {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let ran = etcd.etcdctl(&operator, &words).await;
        assert_eq!(ran.code, 0, "{words:?}: {}", ran.err);
    }
    let url = etcd.url();
    let tls = |role, name: &str| certified.issue(role, name).display().to_string();
    // The whole way, each as itself: by the member's folder, and by files of etcd's own.
    let root_tls = tls(Role::Root, "root-1");
    let root = Banyan::start(&format!("node run root-1 --listen 127.0.0.1:0 --etcd {url} --tls-dir {root_tls}"));
    root.printed("is ready").await;
    let a = tls(Role::Node, "a");
    let files = format!("--etcd-ca {a}/ca.crt --etcd-cert {a}/tls.crt --etcd-key {a}/tls.key");
    let line = format!("node run a --parent root-1 --engine fake --listen 127.0.0.1:0 --etcd {url} --tls-dir {a} {files}");
    let node = Banyan::start(&line);
    node.printed("is ready").await;
    let api = tls(Role::Api, "api-1");
    let seen = banyan(&format!("node list -o name --etcd {url} --tls-dir {api}")).await;
    assert_eq!(seen.out.split_whitespace().collect::<Vec<_>>(), ["a", "root-1"], "{}", seen.err);
    // A node that comes to etcd as another one registers nothing.
    let b = tls(Role::Node, "b");
    let line = format!("node run b --parent root-1 --engine fake --listen 127.0.0.1:0 --etcd {url} --tls-dir {b} {files}");
    let refused = banyan(&line).await;
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("permission denied"), "{}", refused.err);
    for (who, key) in
        [("a", "roots/main"), ("a", "tokens/x"), ("a", "nodes/root-1"), ("api-1", "nodes/a"), ("root-1", "tokens/x")]
    {
        let role =
            [Role::Node, Role::Api, Role::Root][["a", "api-1", "root-1"].iter().position(|name| *name == who).unwrap_or(0)];
        let ran = etcd.etcdctl(&certified.issue(role, who), &["put", &format!("/banyan/default/{key}"), "mine"]).await;
        assert!(ran.code != 0 && ran.err.contains("permission denied"), "{who} may write {key}: {}", ran.err);
    }
    // Nobody without a certificate.
    let line = format!("node list --etcd {url} --etcd-ca {a}/ca.crt");
    assert_eq!(banyan(&line).await.code, 5);
    // The authority keeps its tokens there.
    let made = banyan(&format!("token create --dir {} --authority 127.0.0.1:1 --etcd {url}", certified.dir())).await;
    assert!(made.out.trim().starts_with("banyan-join-"), "{made:?}");
}
