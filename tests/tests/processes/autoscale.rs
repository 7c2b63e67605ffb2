//! `banyan autoscale` with real processes: nodes come under load and leave after it, and no query fails.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use banyan_tests::{
    Banyan, eventually,
    http::Http,
    process::{banyan, binary},
};
use serde_json::json;

use super::grove;

/// Nodes that commands have started, which nobody else ends.
struct Strays(PathBuf);

impl Drop for Strays {
    fn drop(&mut self) {
        for process in fs::read_to_string(&self.0).unwrap_or_default().lines() {
            let _ = Command::new("kill").args(["-KILL", process]).status();
        }
    }
}

fn script(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("there is room");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("one's own file");
    path.display().to_string()
}

async fn names(etcd: &str) -> Vec<String> {
    let listed = banyan(&format!("node list -o name --etcd {etcd}")).await;
    listed.out.split_whitespace().filter(|name| *name != "root").map(str::to_owned).collect()
}

/// Asks again and again until told to end.
async fn ask(http: Http, tokens: u32, ends: Arc<AtomicBool>, answered: Arc<AtomicUsize>) {
    while !ends.load(Ordering::Relaxed) {
        let body = json!({ "model": "fake", "prompt": format!("[[count {tokens}]]"), "max_tokens": 2 * tokens });
        let answer = http.post("/v1/completions", &body).await;
        assert!(answer.status.is_success(), "{}", answer.text());
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn nodes_come_under_load_and_leave_after_it_and_no_query_fails() {
    let (_registry, _root, etcd) = grove().await;
    let folder = tempfile::tempdir().expect("a folder");
    let _strays = Strays(folder.path().join("processes"));
    // As an operator's command: it is told who the node is by its environment.
    let up = script(
        folder.path(),
        "up",
        &format!(
            "echo $$ >> {0}/processes\nexec {1} node run --parent root --engine fake --batch 2 --token-time 20ms --drain 5s \
             --listen 127.0.0.1:0 > {0}/$BANYAN_NAME.log 2>&1",
            folder.path().display(),
            binary().display()
        ),
    );
    let down = script(folder.path(), "down", &format!("echo $BANYAN_NAME >> {}/left", folder.path().display()));
    let scaler = Banyan::start(&format!(
        "autoscale --model fake --min 1 --max 3 --prefix n --up {up} --down {down} --high-for 1s --low-for 2s --cooldown 1s \
         --drain 10s --etcd {etcd}"
    ));
    eventually("the minimum is there", || async { (names(&etcd).await == ["n-0"]).then_some(()) }).await;
    let api = Banyan::start(&format!("api run --listen 127.0.0.1:0 --etcd {etcd}"));
    let http = api.api().await;
    eventually("the API is ready", || async { http.get("/readyz").await.status.is_success().then_some(()) }).await;

    let answered = Arc::new(AtomicUsize::new(0));
    let crowd = |clients: usize, tokens| {
        let ends = Arc::new(AtomicBool::new(false));
        let asking: Vec<_> =
            (0..clients).map(|_| tokio::spawn(ask(http, tokens, Arc::clone(&ends), Arc::clone(&answered)))).collect();
        (ends, asking)
    };
    let (steady_ends, steady) = crowd(1, 10);
    let (rush_ends, rush) = crowd(8, 40);
    eventually("it grows to its most", || async { (names(&etcd).await == ["n-0", "n-1", "n-2"]).then_some(()) }).await;
    rush_ends.store(true, Ordering::Relaxed);
    for asking in rush {
        asking.await.expect("no query fails under load");
    }
    eventually("it shrinks to its least", || async { (names(&etcd).await == ["n-0"]).then_some(()) }).await;
    let left = eventually("both are given back", || async {
        let left = fs::read_to_string(folder.path().join("left")).ok()?;
        (left.lines().count() == 2).then_some(left)
    })
    .await;
    assert_eq!(left, "n-2\nn-1\n");
    steady_ends.store(true, Ordering::Relaxed);
    for asking in steady {
        asking.await.expect("no query fails while nodes leave");
    }
    assert!(answered.load(Ordering::Relaxed) > 10);
    let told = scaler.printed("remove n-1").await;
    assert!(told.contains("add n-0") && told.contains("places are busy"), "{told}");
    scaler.signal("TERM").await;
    assert_eq!(scaler.finished().await.code, 0);
    assert_eq!(names(&etcd).await, ["n-0"], "its nodes go on without it");
}

#[tokio::test]
async fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let (_registry, _root, etcd) = grove().await;
    let scaler = Banyan::start(&format!("autoscale --model fake --max 2 --dry-run -o json --etcd {etcd}"));
    let told = scaler.printed("\"action\":\"add\"").await;
    assert!(told.contains("\"node\":\"auto-0\"") && told.contains("\"dry_run\":true"), "{told}");
    assert!(names(&etcd).await.is_empty());
    scaler.signal("INT").await;
    assert_eq!(scaler.finished().await.code, 0);
    for line in ["--max 2 --min 3 --up true", "--max 2 --up true --low 0.9"] {
        let wrong = banyan(&format!("autoscale --model fake --etcd {etcd} {line}")).await;
        assert_eq!(wrong.code, 2, "{}", wrong.err);
    }
}
