//! Batches: complete, each line once, whoever is killed meanwhile.

use std::{collections::BTreeMap, time::Duration};

use banyan_store::{LineState, Store, Target, unix_ms};
use banyan_tests::{Banyan, eventually, eventually::within, forest::free_port, http::Http};
use serde_json::{Value, json};
use tokio::time::sleep;

fn line(number: usize, body: &Value) -> String {
    json!({ "custom_id": format!("line-{number}"), "method": "POST", "url": "/v1/completions", "body": body }).to_string()
}

async fn begin(api: Http, lines: &[String]) -> Value {
    let file = api.upload(&[], &lines.join("\n")).await.json();
    assert_eq!((&file["object"], &file["purpose"]), (&json!("file"), &json!("batch")), "{file}");
    let body = json!({ "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h" });
    api.post("/v1/batches", &body).await.json()
}

async fn seen(api: Http, id: &str) -> Option<Value> {
    Some(api.try_get(&format!("/v1/batches/{id}")).await.ok()?.json()).filter(|batch| batch["status"].is_string())
}

/// Lines of a batch's file, by their names.
async fn content(api: Http, file: &Value) -> BTreeMap<String, Value> {
    let Some(id) = file.as_str() else { return BTreeMap::new() };
    let answer = api.get(&format!("/v1/files/{id}/content")).await;
    let text = String::from_utf8(answer.body.to_vec()).expect("a text");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let all = lines.len();
    let named: BTreeMap<String, Value> =
        lines.into_iter().map(|line| (line["custom_id"].as_str().expect("a name").to_owned(), line)).collect();
    assert_eq!(named.len(), all, "no line comes twice");
    named
}

fn lines_wanted() -> usize {
    if std::env::var_os("BANYAN_TEST_LONG").is_some() { 10_000 } else { 600 }
}

/// The lines of a batch that are answered for good, by their positions, and when that was looked at.
struct Finished {
    at_ms: i64,
    answers: BTreeMap<u32, String>,
}

impl Finished {
    async fn of(store: &Store, batch: &str) -> Finished {
        let mut answers = BTreeMap::new();
        for state in [LineState::Completed, LineState::Failed] {
            answers.extend(store.answers(batch, state, 0, u32::MAX).await.expect("the store can be read beside the API"));
        }
        Finished { at_ms: unix_ms(), answers }
    }
}

/// Lines that were asked of the tree, by their requests' names: when each was.
async fn asked(store: &Store, batch: &str) -> BTreeMap<u32, Vec<i64>> {
    let (mut asked, mut before): (BTreeMap<u32, Vec<i64>>, _) = (BTreeMap::new(), None);
    loop {
        let log = store.request_log(before, 1000, None).await.expect("the log can be read");
        let Some(last) = log.last() else { return asked };
        before = Some(last.number);
        for entry in log {
            let line = entry.request_id.strip_prefix(batch).and_then(|rest| rest.strip_prefix('-'));
            let position = line.and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("{entry:?} is no line's"));
            asked.entry(position).or_default().push(entry.at_ms);
        }
    }
}

/// Kills a process, and waits until its port is free.
async fn kill(victim: &mut Banyan) {
    victim.signal("KILL").await;
    while victim.runs() {
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_comes_out_complete_though_every_process_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    // Whoever is started again takes its name back by being where it was.
    let [registry_port, port, root_port, node_port] = [free_port(), free_port(), free_port(), free_port()];
    let (file, path) = (folder.path().join("registry"), folder.path().join("store.db"));
    let etcd = format!("http://127.0.0.1:{registry_port}");
    let start_registry =
        || Banyan::start(&format!("registry serve --listen 127.0.0.1:{registry_port} --file {}", file.display()));
    let start_root = || Banyan::start(&format!("node run root --listen 127.0.0.1:{root_port} --etcd {etcd}"));
    let start_node = || {
        Banyan::start(&format!(
            "node run a --parent root --engine fake --token-time 1ms --batch 16 --listen 127.0.0.1:{node_port} --etcd {etcd}"
        ))
    };
    let start_api = || Banyan::start(&format!("api run --listen 127.0.0.1:{port} --etcd {etcd} --store {}", path.display()));
    let mut registry = start_registry();
    registry.printed("is ready").await;
    let mut root = start_root();
    root.printed("is ready").await;
    let mut node = start_node();
    node.printed("is ready").await;
    let mut api = start_api();
    let http = api.api().await;
    eventually("the API is ready", || async { http.get("/readyz").await.status.is_success().then_some(()) }).await;

    let wanted = lines_wanted();
    let lines: Vec<String> = (0..wanted)
        .map(|number| {
            // One in a hundred is refused.
            let temperature = if number % 100 == 50 { 9 } else { 0 };
            let prompt = format!("[[count {}]]", number % 7 + 1);
            line(number, &json!({ "model": "fake", "prompt": prompt, "max_tokens": 16, "temperature": temperature }))
        })
        .collect();
    let batch = begin(http, &lines).await;
    let id = batch["id"].as_str().unwrap_or_else(|| panic!("{batch}")).to_owned();
    kill(&mut api).await;
    api = start_api();
    let store = Store::open(Target::File(path.clone())).await.expect("the store has room for another reader");

    // Each in the middle of it.
    let mut seen_finished = Vec::new();
    for number in 0..4 {
        let (part, patience) = (wanted * (number + 1) / 5, Duration::from_secs(120));
        let far = within(patience, || async {
            let batch = seen(http, &id).await?;
            (batch["request_counts"]["completed"].as_u64()? >= part as u64).then_some(())
        });
        assert!(far.await.is_some(), "{:?}\n{}", seen(http, &id).await, api.last_words());
        seen_finished.push(Finished::of(&store, &id).await);
        let victim = match number {
            0 => &mut node,
            1 => &mut registry,
            2 => &mut root,
            _ => &mut api,
        };
        kill(victim).await;
        *victim = match number {
            0 => start_node(),
            1 => start_registry(),
            2 => start_root(),
            _ => start_api(),
        };
    }
    let ended =
        within(Duration::from_secs(180), || async { seen(http, &id).await.filter(|batch| batch["status"] == "completed") });
    let Some(batch) = ended.await else {
        panic!("{:?}\n{}\n{}\n{}", seen(http, &id).await, api.last_words(), node.last_words(), root.last_words());
    };
    let refused = (0..wanted).filter(|number| number % 100 == 50).count();
    assert_eq!(batch["request_counts"], json!({ "total": wanted, "completed": wanted - refused, "failed": refused }));
    let answers = content(http, &batch["output_file_id"]).await;
    let errors = content(http, &batch["error_file_id"]).await;
    assert_eq!((answers.len(), errors.len()), (wanted - refused, refused));
    for (name, answer) in &answers {
        let number: usize = name.trim_start_matches("line-").parse().expect("a number");
        let expected = (1..=number % 7 + 1).map(|number| number.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(answer["response"]["body"]["choices"][0]["text"], expected.as_str(), "{answer}");
    }
    for error in errors.values() {
        assert_eq!(error["response"]["status_code"], 400, "{error}");
        assert_eq!(error["response"]["body"]["error"]["param"], "temperature", "{error}");
    }

    // What was finished when somebody was killed stayed as it was, and was never asked again.
    let last = Finished::of(&store, &id).await.answers;
    let asked = asked(&store, &id).await;
    assert!(asked.len() > wanted / 2, "the log knows of {} lines", asked.len());
    for Finished { at_ms, answers } in &seen_finished {
        assert!(!answers.is_empty());
        for (position, answer) in answers {
            assert_eq!(&last[position], answer, "line {position} has another answer");
            let again = asked.get(position).into_iter().flatten().any(|asked_ms| asked_ms > at_ms);
            assert!(!again, "line {position} was finished at {at_ms}, and asked again: {asked:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_behind_everybody_else_and_can_be_cancelled_or_be_too_late() {
    let up = Banyan::up("--nodes 1 --token-time 20ms --batch 2").await;
    let api = up.api().await;
    let long = json!({ "model": "fake", "prompt": "[[count 150]]", "max_tokens": 200 });
    let lines: Vec<String> = (0..20).map(|number| line(number, &long)).collect();
    let batch = begin(api, &lines).await;
    let id = batch["id"].as_str().unwrap_or_else(|| panic!("{batch}")).to_owned();
    eventually("its lines are being answered", || async {
        seen(api, &id).await.filter(|batch| batch["status"] == "in_progress")
    })
    .await;
    let quick = api.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[count 2]]" })).await;
    assert_eq!(quick.text(), "1 2");
    let batch = seen(api, &id).await.expect("a batch");
    let before = batch["request_counts"]["completed"].as_u64().expect("a number");
    assert!(before <= 5, "a person waits for what runs, and for one more line at most: {batch}");
    let cancelled = api.post(&format!("/v1/batches/{id}/cancel"), &json!({})).await.json();
    assert_eq!(cancelled["status"], "cancelling");
    let batch =
        eventually("it is cancelled", || async { seen(api, &id).await.filter(|batch| batch["status"] == "cancelled") }).await;
    let (answers, errors) = (content(api, &batch["output_file_id"]).await, content(api, &batch["error_file_id"]).await);
    assert_eq!(answers.len() + errors.len(), 20, "{batch}");
    assert_eq!(errors["line-19"]["error"]["code"], "batch_cancelled");

    let file = api.upload(&[], &lines.join("\n")).await.json();
    let body = json!({ "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "1s" });
    let late = api.post("/v1/batches", &body).await.json()["id"].as_str().expect("an id").to_owned();
    let batch =
        eventually("it is too late", || async { seen(api, &late).await.filter(|batch| batch["status"] == "expired") }).await;
    assert_eq!(batch["request_counts"]["failed"], 20, "{batch}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_no_good_is_told_line_by_line() {
    let up = Banyan::up("--nodes 1").await;
    let api = up.api().await;
    let good = json!({ "model": "fake", "prompt": "a" });
    let mut other = serde_json::from_str::<Value>(&line(2, &good)).expect("JSON");
    other["url"] = "/v1/chat/completions".into();
    let lines = [line(1, &good), "no json".into(), line(1, &good), String::new(), other.to_string(), "[]".into()];
    let id = begin(api, &lines).await["id"].as_str().expect("an id").to_owned();
    let batch = eventually("it fails", || async { seen(api, &id).await.filter(|batch| batch["status"] == "failed") }).await;
    let told: Vec<(&Value, &Value)> =
        batch["errors"]["data"].as_array().expect("a list").iter().map(|error| (&error["line"], &error["code"])).collect();
    let expected = [(2, "invalid_json_line"), (3, "duplicate_custom_id"), (5, "invalid_request"), (6, "invalid_request")];
    let expected = expected.map(|(line, code)| (json!(line), json!(code)));
    assert_eq!(told, expected.iter().map(|(line, code)| (line, code)).collect::<Vec<_>>());
    assert_eq!(api.get("/v1/batches/none").await.status, 404);
    let none = api.post("/v1/batches", &json!({ "input_file_id": "none", "endpoint": "/v1/completions" })).await;
    assert_eq!(none.status, 404, "{none:?}");
    let listed = api.get("/v1/batches?limit=1").await.json();
    assert_eq!((&listed["data"][0]["id"], &listed["has_more"]), (&json!(id), &json!(false)));
    for wrong in ["-1", "0", "10001", "99999999999"] {
        let refused = api.get(&format!("/v1/batches?limit={wrong}")).await;
        assert_eq!((refused.status.as_u16(), &refused.json()["error"]["param"]), (400, &json!("limit")), "{wrong}");
    }
}
