//! `etcdctl` against the embedded server: a person can look into it, and change it, with the tool they know.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use super::etcd::installed;

/// `etcdctl` for one server.
pub(crate) struct Etcdctl {
    endpoint: String,
}

impl Etcdctl {
    pub(crate) fn new(endpoint: String) -> Etcdctl {
        Etcdctl { endpoint }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(installed("etcdctl"));
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What it prints, having read `input`.
    fn says(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut child = self.command(arguments).spawn().expect("etcdctl starts");
        child.stdin.take().expect("it was piped").write_all(input.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints text");
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    fn prints(&self, arguments: &[&str]) -> String {
        self.says(arguments, "").unwrap_or_else(|error| panic!("etcdctl {arguments:?}: {error}"))
    }

    /// Everything that the README promises.
    pub(crate) fn try_everything(&self) {
        assert_eq!(self.prints(&["put", "/a/1", "one"]), "OK\n");
        assert_eq!(self.prints(&["put", "/a/2", "two"]), "OK\n");
        assert_eq!(self.prints(&["put", "--prev-kv", "/a/2", "zwei"]), "OK\n/a/2\ntwo\n");
        assert_eq!(self.prints(&["get", "/a/1"]), "/a/1\none\n");
        assert_eq!(self.prints(&["get", "--prefix", "/a/"]), "/a/1\none\n/a/2\nzwei\n");
        assert_eq!(self.prints(&["get", "--prefix", "--keys-only", "--order=DESCEND", "/a/"]), "/a/2\n\n/a/1\n\n");
        assert_eq!(self.prints(&["get", "--prefix", "--print-value-only", "--limit=1", "/a/"]), "one\n");
        assert!(self.prints(&["get", "-w", "fields", "--prefix", "/a/"]).contains("\"Count\" : 2"));

        let transaction = "version(\"/a/1\") = \"1\"\n\nput /a/3 three\nget /a/1\n\nget /a/2\n\n";
        assert_eq!(self.says(&["txn"], transaction).expect("a transaction"), "SUCCESS\n\nOK\n\n/a/1\none\n");
        let failing = "value(\"/a/1\") = \"eins\"\n\nput /a/4 four\n\nget /a/2\n\n";
        assert_eq!(self.says(&["txn"], failing).expect("a transaction"), "FAILURE\n\n/a/2\nzwei\n");

        let granted = self.prints(&["lease", "grant", "600"]);
        let lease = granted.split(' ').nth(1).expect("lease 1234 granted with TTL(600s)");
        assert!(granted.ends_with("granted with TTL(600s)\n"), "{granted}");
        assert_eq!(self.prints(&["put", "--lease", lease, "/l", "leased"]), "OK\n");
        assert!(self.prints(&["lease", "timetolive", "--keys", lease]).contains("attached keys([/l])"));
        assert!(self.prints(&["lease", "keep-alive", "--once", lease]).contains("keepalived with TTL(600)"));
        assert!(self.prints(&["lease", "list"]).contains(lease));
        assert!(self.prints(&["lease", "revoke", lease]).contains("revoked"));
        assert_eq!(self.prints(&["get", "/l"]), "");
        assert!(self.says(&["lease", "revoke", lease], "").expect_err("it is gone").contains("requested lease not found"));

        assert_eq!(self.prints(&["del", "/a/1"]), "1\n");
        assert_eq!(self.prints(&["del", "--prefix", "--prev-kv", "/a/"]), "2\n/a/2\nzwei\n/a/3\nthree\n");
        self.watch();

        assert!(self.prints(&["member", "list"]).contains("started, banyan"));
        let status = self.prints(&["endpoint", "status"]);
        assert!(status.contains("3.4.0+banyan") && status.contains("true"), "a leader: {status}");
        assert!(self.says(&["endpoint", "health"], "").is_ok());
        let revision = self.prints(&["put", "-w", "fields", "/c", "1"]);
        let revision = revision.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).expect("it has a revision");
        assert_eq!(self.prints(&["compaction", revision]), format!("compacted revision {revision}\n"));
        let again = self.says(&["compaction", revision], "").expect_err("it is done");
        assert!(again.contains("required revision has been compacted"), "{again}");
        let refused = self.says(&["snapshot", "save", "/dev/null/none"], "").expect_err("not here");
        assert!(!refused.is_empty());
        let refused = self.says(&["defrag"], "").expect_err("not here");
        assert!(refused.contains("use etcd for it"), "{refused}");
        let refused = self.says(&["user", "list"], "").expect_err("not here");
        assert!(refused.contains("Unimplemented"), "{refused}");
    }

    /// A watch from a past revision hears the past, then what is new.
    fn watch(&self) {
        let first = self.prints(&["put", "-w", "fields", "/w/a", "1"]);
        let revision = first.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).expect("it has a revision");
        let mut watch = self.command(&["watch", "--prefix", "--prev-kv", "--rev", revision, "/w/"]).spawn().expect("it starts");
        let mut lines = BufReader::new(watch.stdout.take().expect("it was piped")).lines().map_while(Result::ok);
        let mut hears = |expected: &[&str]| {
            for line in expected {
                assert_eq!(lines.next().as_deref(), Some(*line));
            }
        };
        hears(&["PUT", "/w/a", "1"]);
        self.prints(&["put", "/w/a", "2"]);
        hears(&["PUT", "/w/a", "1", "/w/a", "2"]);
        self.prints(&["del", "/w/a"]);
        hears(&["DELETE", "/w/a", "2", "/w/a", ""]);
        watch.kill().expect("the process is ours");
        watch.wait().expect("and ends");
    }
}
