//! Debian's Prometheus over a real tree: every panel of deploy/grafana's dashboard shows something, and the alerts of deploy/prometheus
//! are tested.

use std::process::Stdio;

use banyan_tests::{
    Banyan, eventually,
    prometheus::{Prometheus, deployed},
};
use serde_json::{Value, json};
use tokio::process::Command;

/// Ratios that may be of nothing and nothing, when nobody guesses or queues meanwhile.
const MAY_BE_IDLE: [&str; 3] = ["Guesses that were right", "Time in nodes' queues", "Prefix hits"];

#[tokio::test]
async fn alerts_go_off_when_they_should_and_only_then() {
    for arguments in
        [["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]]
    {
        let ran = Command::new("promtool").args(arguments).current_dir(deployed()).stdin(Stdio::null()).output().await;
        let ran = ran.expect("there is no promtool: apt-get install prometheus, or ./test --all, which does");
        let said = [ran.stdout, ran.stderr].concat();
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
    let tests = std::fs::read_to_string(deployed().join("alerts.test.yml")).expect("it is in the repository");
    let alerts = std::fs::read_to_string(deployed().join("alerts.yml")).expect("it is in the repository");
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} has no test");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_panel_of_the_dashboard_shows_something() {
    let registry = Banyan::start("registry serve --listen 127.0.0.1:0");
    let etcd = registry.fact("etcd").await;
    let start = |line: &str| Banyan::start(&format!("{line} --listen 127.0.0.1:0 --metrics 127.0.0.1:0 --etcd {etcd}"));
    let root = start("node run root");
    root.printed("is ready").await;
    let node = |name: &str, parent: &str| {
        start(&format!("node run {name} --parent {parent} --model banyan-tiny --threads 1 --busy-at 1 --batch 2"))
    };
    let (a, b) = (node("a", "root"), node("b", "a"));
    a.printed("is ready").await;
    b.printed("is ready").await;
    let api = start("api run");
    let http = api.api().await;
    let prometheus = Prometheus::start(&[&root, &a, &b], &[&api]).await;

    let load: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn(async move {
                let body = json!({ "model": "banyan-tiny", "prompt": "Once upon a time", "max_tokens": 16, "stream": true });
                loop {
                    if let Ok(Ok(stream)) = http.try_stream("/v1/completions", &body).await {
                        stream.rest().await;
                    }
                }
            })
        })
        .collect();

    let dashboard: Value = serde_json::from_str(include_str!("../../../deploy/grafana/dashboards/banyan.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut seen = 0;
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().expect("queries") {
            let expression = target["expr"].as_str().expect("an expression").replace("$__rate_interval", "10s");
            eventually(&format!("{title}: {expression}"), || async {
                let samples = prometheus.query(&expression).await;
                let number = |sample: &Value| sample["value"][1].as_str().and_then(|value| value.parse::<f64>().ok());
                let finite = samples.iter().filter_map(number).any(f64::is_finite);
                (finite || MAY_BE_IDLE.contains(&title) && !samples.is_empty()).then_some(())
            })
            .await;
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen} queries");
    for one in load {
        one.abort();
    }

    let rules = prometheus.ask("/api/v1/rules").await;
    for rule in rules["groups"][0]["rules"].as_array().expect("rules") {
        let rule = eventually(&format!("{} was evaluated", rule["name"]), || async {
            let rules = prometheus.ask("/api/v1/rules").await;
            let rules = rules["groups"][0]["rules"].as_array()?.clone();
            rules.into_iter().find(|other| other["name"] == rule["name"] && other["health"] != "unknown")
        })
        .await;
        // Under load somebody may wait just now; an alert goes off when that lasts.
        assert!(rule["health"] == "ok" && rule["state"] != "firing", "{rule}");
    }
    let targets = prometheus.ask("/api/v1/targets").await;
    let targets = targets["activeTargets"].as_array().expect("targets");
    assert!(targets.len() == 4 && targets.iter().all(|target| target["health"] == "up"), "{targets:?}");
}
