//! A real Prometheus with the configuration of deploy/, that scrapes what a test names. `./test --all` installs it.

use std::{net::SocketAddr, path::PathBuf, process::Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{Banyan, eventually, forest::free_port, http::Http};

/// The folder of its configuration.
pub fn deployed() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus")
}

/// A Prometheus. Killed when dropped.
pub struct Prometheus {
    http: Http,
    _process: Child,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts it over the metrics of nodes and APIs, which it reads every second.
    ///
    /// # Panics
    /// When it is not installed, or the configuration can't be adapted.
    pub async fn start(nodes: &[&Banyan], apis: &[&Banyan]) -> Prometheus {
        let mut config = std::fs::read_to_string(deployed().join("prometheus.yml")).expect("it is in the repository");
        let mut replace = |from: &str, to: &str| {
            assert!(config.contains(from), "{from:?} is no longer in deploy/prometheus/prometheus.yml");
            config = config.replace(from, to);
        };
        replace("[\"127.0.0.1:9600\", \"127.0.0.1:9601\", \"127.0.0.1:9602\"]", &targets(nodes).await);
        replace("[\"127.0.0.1:9610\"]", &targets(apis).await);
        replace("interval: 15s", "interval: 1s");
        replace("scrape_timeout: 10s", "scrape_timeout: 1s");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("prometheus.yml"), config).expect("a write");
        std::fs::copy(deployed().join("alerts.yml"), folder.path().join("alerts.yml")).expect("a copy");
        let port = free_port();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("there is no prometheus: apt-get install prometheus, or ./test --all, which does");
        let http = Http(SocketAddr::from(([127, 0, 0, 1], port)));
        eventually("Prometheus is ready", || async { http.try_get("/-/ready").await.ok()?.status.is_success().then_some(()) })
            .await;
        Prometheus { http, _process: process, _folder: folder }
    }

    /// What it answers to a question, as its HTTP API has it: the part that is called `data`.
    ///
    /// # Panics
    /// When it is none.
    pub async fn ask(&self, path: &str) -> Value {
        let answer = self.http.get(path).await.json();
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].clone()
    }

    /// The samples that an expression has now.
    ///
    /// # Panics
    /// When it can't be read.
    pub async fn query(&self, expression: &str) -> Vec<Value> {
        let data = self.ask(&format!("/api/v1/query?query={}", encoded(expression))).await;
        data["result"].as_array().unwrap_or_else(|| panic!("{expression} is no vector: {data}")).clone()
    }
}

async fn targets(processes: &[&Banyan]) -> String {
    let mut targets = Vec::new();
    for process in processes {
        targets.push(process.metrics().await.0.to_string());
    }
    serde_json::to_string(&targets).expect("texts are JSON")
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
