//! The built binary as real processes: started, read, signalled, and never left behind.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    eventually::{PATIENCE, eventually},
    http::Http,
};

/// A `banyan` that runs. Killed when dropped.
pub struct Banyan {
    child: Child,
    line: String,
    out: Arc<Mutex<String>>,
    err: Arc<Mutex<String>>,
}

/// A `banyan` that ran.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it wrote to standard output.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
}

impl Finished {
    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

/// The binary that this build made.
///
/// # Panics
/// When there is none, with the command that makes it.
pub fn binary() -> PathBuf {
    // This test's own binary lies in target/<profile>/deps.
    let own = std::env::current_exe().expect("a process knows its own path");
    let profile = own.parent().and_then(|deps| deps.parent()).expect("test binaries lie two folders deep");
    let path = profile.join("banyan");
    assert!(path.exists(), "{} is missing: build it with `cargo build --release`, or run ./test, which does", path.display());
    path
}

/// Runs a command to its end.
///
/// # Panics
/// When it does not end.
pub async fn banyan(line: &str) -> Finished {
    Banyan::start(line).finished().await
}

impl Banyan {
    /// Starts `banyan` with the words of `line`.
    ///
    /// # Panics
    /// When there is no binary.
    pub fn start(line: &str) -> Banyan {
        Banyan::start_by::<&str>(&[], line)
    }

    /// Starts it by another command, which becomes it, such as `ip netns exec`.
    ///
    /// # Panics
    /// When there is no binary, or no such command.
    pub fn start_by<W: AsRef<OsStr>>(wrapper: &[W], line: &str) -> Banyan {
        let mut words: Vec<OsString> = wrapper.iter().map(|word| word.as_ref().to_owned()).collect();
        words.push(binary().into());
        let mut command = Command::new(&words[0]);
        let (mut flags, mut password) = (Vec::new(), None);
        let mut rest = line.split_whitespace().peekable();
        while let Some(word) = rest.next() {
            match rest.peek() {
                // A password is no flag.
                Some(url) if word == "--store" && url.contains("://") => password = rest.next(),
                _ => flags.push(word),
            }
        }
        command.args(&words[1..]).args(flags).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        // The suite's own environment is no part of what is tested.
        for (name, _) in std::env::vars_os() {
            let foreign = name.to_str().is_some_and(|name| name.starts_with("BANYAN_") || name.starts_with("HF_"));
            if foreign {
                command.env_remove(name);
            }
        }
        // Nor is what this user keeps; a test that wants more than memory says so.
        match password {
            Some(url) => {
                command.env("BANYAN_STORE", url);
            }
            None if !line.contains("--store") => {
                command.env("BANYAN_STORE", "memory");
            }
            None => {}
        }
        let mut child = command.spawn().expect("the binary starts");
        let out = collect(child.stdout.take().expect("standard output is piped"));
        let err = collect(child.stderr.take().expect("standard error is piped"));
        Banyan { child, line: line.to_owned(), out, err }
    }

    /// `banyan up` with engines without weights and ports of the system's choice, ready.
    pub async fn up(flags: &str) -> Banyan {
        let line = format!("up --engine fake --listen 127.0.0.1:0 --registry-listen 127.0.0.1:0 {flags}");
        let up = Banyan::start(&line);
        up.printed("Ctrl-C stops everything").await;
        up
    }

    /// Waits until standard output has a text.
    ///
    /// # Panics
    /// When it never has.
    pub async fn printed(&self, text: &str) -> String {
        let what = format!("`{}` prints {text:?}", self.line);
        eventually(&what, || async { self.read(&self.out, text) }).await
    }

    /// Waits until standard error has a text.
    ///
    /// # Panics
    /// When it never has.
    pub async fn told(&self, text: &str) -> String {
        let what = format!("`{}` tells {text:?}", self.line);
        eventually(&what, || async { self.read(&self.err, text) }).await
    }

    fn read(&self, stream: &Mutex<String>, text: &str) -> Option<String> {
        let read = stream.lock().expect("no reader panics").clone();
        read.contains(text).then_some(read)
    }

    /// The word that follows a label at the start of a printed line, such as `page` or `registry`.
    ///
    /// # Panics
    /// When there is none.
    pub async fn fact(&self, label: &str) -> String {
        let printed = self.printed(&format!("\n  {label} ")).await;
        let line = printed.lines().find_map(|line| line.trim().strip_prefix(label)?.strip_prefix(' '));
        line.and_then(|rest| rest.split_whitespace().next()).expect("a fact behind its label").to_owned()
    }

    /// The API that it serves.
    ///
    /// # Panics
    /// When it serves none.
    pub async fn api(&self) -> Http {
        let page = self.fact("page").await;
        let address = page.trim_start_matches("http://").trim_end_matches('/');
        Http(address.parse().unwrap_or_else(|error| panic!("{page}: {error}")))
    }

    /// Its metrics.
    ///
    /// # Panics
    /// When it serves none.
    pub async fn metrics(&self) -> Http {
        let url = self.fact("metrics").await;
        let address = url.trim_start_matches("http://").trim_end_matches("/metrics");
        Http(address.parse().unwrap_or_else(|error| panic!("{url}: {error}")))
    }

    /// The process's id.
    ///
    /// # Panics
    /// When it has ended.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the process runs")
    }

    /// Sends a signal, such as `INT`, `TERM` or `KILL`.
    ///
    /// # Panics
    /// When the process has ended.
    pub async fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.pid().to_string()).status().await;
        assert!(sent.is_ok_and(|status| status.success()), "failed to send {signal} to `{}`", self.line);
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal again and again until it ends, as a person does who has lost patience.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn signalled_to_its_end(mut self, signal: &str) -> Finished {
        let begun = Instant::now();
        while self.runs() {
            assert!(begun.elapsed() < PATIENCE, "`{}` does not end, however often it is told", self.line);
            self.signal(signal).await;
            sleep(Duration::from_millis(20)).await;
        }
        self.finished().await
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn finished(mut self) -> Finished {
        let status = self.end(PATIENCE).await;
        let text = |stream: &Mutex<String>| stream.lock().expect("no reader panics").clone();
        Finished { code: status.code().unwrap_or(-1), out: text(&self.out), err: text(&self.err) }
    }

    /// The last lines that it told, for who looks for the reason of a failure.
    pub fn last_words(&self) -> String {
        let told = self.err.lock().expect("no reader panics");
        let lines: Vec<&str> = told.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    async fn end(&mut self, patience: Duration) -> ExitStatus {
        let Ok(ended) = timeout(patience, self.child.wait()).await else {
            panic!("`{}` does not end; it told: {}", self.line, self.err.lock().expect("no reader panics"));
        };
        let status = ended.expect("a child can be waited for");
        // The readers see the ends of the pipes once they have read all.
        eventually("both streams are read", || async {
            (Arc::strong_count(&self.out) == 1 && Arc::strong_count(&self.err) == 1).then_some(())
        })
        .await;
        status
    }
}

/// Reads a stream to its end, into a text that can be looked at meanwhile.
fn collect(stream: impl AsyncRead + Unpin + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::from("\n")));
    let written = Arc::clone(&text);
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut text = written.lock().expect("no reader panics");
            text.push_str(&line);
            text.push('\n');
        }
    });
    text
}
