//! What operators see of running processes: metrics and logs.

use std::collections::BTreeSet;

use banyan_tests::{Banyan, eventually, http::Http, otlp::Otlp, process::banyan};
use futures::future::join_all;
use hyper::{StatusCode, header};
use serde_json::{Value, json};

use super::grove;

/// What nobody but client and engine should ever see.
const SECRET: &str = "xylophone";

/// The value of a series, by the beginning of its line; `None`: there is none.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

async fn scrape(http: Http) -> String {
    let answer = http.get("/metrics").await;
    assert_eq!(answer.status, StatusCode::OK);
    let kind = answer.headers[header::CONTENT_TYPE].to_str().expect("text");
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    String::from_utf8(answer.body.to_vec()).expect("metrics are text")
}

#[tokio::test]
async fn metrics_count_what_happened_under_names_of_a_bounded_set() {
    let up = Banyan::up("--nodes 2 --busy-at 1 --batch 2 --token-time 1ms --metrics 127.0.0.1:0").await;
    let (api, metrics) = (up.api().await, up.metrics().await);
    let ask = |model: String| async move {
        let body = json!({ "model": model, "prompt": format!("{SECRET} [[count 9]]"), "max_tokens": 9 });
        api.post("/v1/completions", &body).await.status
    };
    let ok = join_all((0..6).map(|_| ask("fake".to_owned()))).await;
    assert_eq!(ok, [StatusCode::OK; 6]);
    let unknown = join_all((0..100).map(|number| ask(format!("{SECRET}-{number}")))).await;
    assert_eq!(unknown, [StatusCode::NOT_FOUND; 100]);

    // What ended is counted behind the answer.
    let text = eventually("all is counted", || async {
        let text = scrape(metrics).await;
        (value(&text, &format!("banyan_api_queries_under_way{{replica=\"{}\"}}", api.0))? == 0.0).then_some(text)
    })
    .await;
    for (series, wanted) in [
        ("banyan_api_queries_total{model=\"fake\",outcome=\"ok\"}", 6.0),
        ("banyan_api_queries_total{model=\"unknown\",outcome=\"invalid\"}", 100.0),
        ("banyan_api_requests_total{endpoint=\"/v1/completions\",status=\"200\"}", 6.0),
        ("banyan_api_output_tokens_total{model=\"fake\"}", 54.0),
        ("banyan_api_time_to_first_token_seconds_count{model=\"fake\"}", 6.0),
        ("banyan_api_time_per_output_token_seconds_count{model=\"fake\"}", 6.0),
        ("banyan_api_limited_total{limit=\"tokens\"}", 0.0),
        ("banyan_root_queries_total{node=\"root\",model=\"fake\",outcome=\"finished\"}", 6.0),
        ("banyan_root_queries_total{node=\"root\",model=\"unknown\",outcome=\"unknown_model\"}", 100.0),
        ("banyan_root_output_tokens_total{node=\"root\"}", 54.0),
        ("banyan_root_live_queries{node=\"root\"}", 0.0),
        ("banyan_root_query_duration_seconds_count{node=\"root\",model=\"fake\"}", 6.0),
        ("banyan_registry_connected{node=\"node-1\"}", 1.0),
        ("banyan_node_registered{node=\"node-2\"}", 1.0),
        ("banyan_node_attachments_total{node=\"node-1\"}", 1.0),
        ("banyan_node_state{node=\"node-1\",state=\"ready\"}", 1.0),
        ("banyan_node_children{node=\"root\",state=\"open\"}", 2.0),
    ] {
        assert_eq!(value(&text, series), Some(wanted), "{series} in: {text}");
    }
    let per_node = |name: &str| {
        let of = |node: &str| value(&text, &format!("banyan_{name}_total{{node=\"{node}\"}}")).expect("it is there");
        of("node-1") + of("node-2")
    };
    assert_eq!(per_node("node_output_tokens"), 54.0);
    assert!(!text.contains(SECRET), "neither prompts nor what clients invent: {text}");

    let elsewhere = metrics.get("/").await;
    assert_eq!(elsewhere.status, StatusCode::NOT_FOUND);
    assert!(
        scrape(api).await.contains("banyan_root_queries_total"),
        "an API that only this machine reaches shows its process too"
    );
}

#[tokio::test]
async fn an_api_that_others_reach_shows_its_metrics_on_an_address_of_their_own_only() {
    let (_registry, root, etcd) = grove().await;
    let api = Banyan::start(&format!("api run --listen 127.0.0.1:0 --host chat.example.com --metrics 127.0.0.1:0 --etcd {etcd}"));
    let refused = api.api().await.get("/metrics").await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    assert!(String::from_utf8_lossy(&refused.body).contains("--metrics HOST:PORT"));
    assert_eq!(value(&scrape(api.metrics().await).await, "banyan_api_limited_total{limit=\"requests\"}"), Some(0.0));
    drop(root);
}

#[tokio::test]
async fn logs_are_json_where_they_should_be_and_prompts_are_never_in_them() {
    let logged = |line: &str| Banyan::start(&format!("{line} --listen 127.0.0.1:0 --log trace --log-format json"));
    let registry = logged("registry serve");
    let etcd = registry.fact("etcd").await;
    let root = logged(&format!("node run root --etcd {etcd}"));
    root.printed("is ready").await;
    let a = logged(&format!("node run a --parent root --engine fake --etcd {etcd}"));
    a.printed("is ready").await;
    let api = logged(&format!("api run --etcd {etcd}"));
    let http = api.api().await;
    eventually("it is ready", || async { http.get("/readyz").await.status.is_success().then_some(()) }).await;
    let prompt = format!("Do you play the {SECRET}?");
    for body in [
        json!({ "model": "fake", "messages": [{ "role": "user", "content": prompt }], "max_tokens": 4 }),
        json!({ "model": "fake", "messages": [{ "role": "user", "content": prompt }], "max_tokens": 4, "stream": true }),
        json!({ "model": "none", "messages": [{ "role": "user", "content": prompt }] }),
        json!({ "model": "fake", "messages": [{ "role": "user", "content": format!("[[fail]] {SECRET}") }] }),
    ] {
        http.ask("POST", "/v1/chat/completions", &[("x-request-id", "mine-7")], body.to_string()).await;
    }
    let mut fields = BTreeSet::new();
    for process in [api, a, root, registry] {
        process.signal("TERM").await;
        let finished = process.finished().await;
        assert_eq!(finished.code, 0, "{}", finished.err);
        assert!(!finished.err.contains(SECRET), "a prompt is in the log: {}", finished.err);
        // Notes to whoever is at the terminal are no log.
        for line in finished.err.lines().filter(|line| line.starts_with('{')) {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            for field in ["timestamp", "level", "target"] {
                assert!(line[field].is_string(), "{field} is missing in {line}");
            }
            fields.extend(line.as_object().into_iter().flat_map(|line| line.keys().cloned()));
            if line["message"] == "answered" && line["path"] == "/v1/chat/completions" {
                assert_eq!(line["request"], "mine-7", "{line}");
            }
        }
    }
    for field in ["message", "node", "query", "request", "status"] {
        assert!(fields.contains(field), "nobody logs {field}: {fields:?}");
    }
}

#[tokio::test]
async fn a_log_filter_that_is_none_is_a_usage_error() {
    let refused = banyan("node list --log banyan=loud").await;
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("is no log filter"), "{}", refused.err);
}

#[tokio::test]
async fn one_trace_goes_through_every_process_to_the_engine() {
    let receiver = Otlp::start().await;
    let registry = Banyan::start("registry serve --listen 127.0.0.1:0");
    let etcd = registry.fact("etcd").await;
    let start = |line: &str| Banyan::start(&format!("{line} --listen 127.0.0.1:0 --etcd {etcd} --otlp {}", receiver.url()));
    let root = start("node run root");
    root.printed("is ready").await;
    let node = |name: &str, parent: &str| {
        start(&format!("node run {name} --parent {parent} --engine fake --busy-at 1 --batch 1 --token-time 5ms"))
    };
    let (a, b) = (node("a", "root"), node("b", "a"));
    a.printed("is ready").await;
    b.printed("is ready").await;
    let api = start("api run --replica front");
    let http = api.api().await;
    eventually("it is ready", || async { http.get("/readyz").await.status.is_success().then_some(()) }).await;

    // While `a` is busy, what comes goes on to `b`.
    let long = json!({ "model": "fake", "prompt": "[[count 3000]]", "max_tokens": 3000, "stream": true });
    let mut busy = http.stream("/v1/completions", &long).await;
    busy.next_text().await;
    eventually("the root knows that a is busy", || async {
        let nodes = banyan(&format!("node tree -o json --etcd {etcd}")).await.json();
        (nodes.as_array()?.iter().find(|node| node["name"] == "root")?["room"] == 1).then_some(())
    })
    .await;
    let (trace, parent) = (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128, 0xb7ad_6b71_6920_3331_u64);
    let ask = |trace: u128, flags: &'static str| async move {
        let place = format!("00-{trace:032x}-{parent:016x}-{flags}");
        let body = json!({ "model": "fake", "prompt": format!("[[count 5]] {SECRET}"), "max_tokens": 5 });
        let headers = [("traceparent", place.as_str()), ("tracestate", "vendor=7")];
        http.ask("POST", "/v1/completions", &headers, body.to_string()).await
    };
    let unseen = ask(7, "00").await;
    assert_eq!((unseen.status, unseen.headers.get("traceresponse")), (StatusCode::OK, None));
    let seen = ask(trace, "01").await;
    assert_eq!(seen.status, StatusCode::OK);
    let response = seen.headers["traceresponse"].to_str().expect("text").to_owned();
    drop(busy);
    for process in [api, b, a, root] {
        process.signal("TERM").await;
        assert_eq!(process.finished().await.code, 0);
    }

    let spans = receiver.trace(trace);
    let found = |name: &str| {
        let mut found = spans.iter().filter(|seen| seen.span.name == name);
        match (found.next(), found.next()) {
            (Some(one), None) => one.clone(),
            _ => panic!("there should be one span {name} among {spans:?}"),
        }
    };
    let mut above = parent.to_be_bytes().to_vec();
    for (name, service, instance) in [
        ("request", "banyan-api", "front"),
        ("ask", "banyan-api", "front"),
        ("root", "banyan-node", "root"),
        ("attempt", "banyan-node", "root"),
        ("forward", "banyan-node", "a"),
        ("hold", "banyan-node", "b"),
    ] {
        let seen = found(name);
        assert_eq!((&seen.service[..], &seen.instance[..]), (service, instance), "{name}");
        assert_eq!(seen.span.parent_span_id, above, "{name} has another parent");
        assert_eq!(seen.span.trace_state, "vendor=7", "{name}");
        assert!(seen.span.start_time_unix_nano <= seen.span.end_time_unix_nano);
        above = seen.span.span_id;
    }
    for name in ["queue", "prefill", "decode"] {
        let seen = found(name);
        assert_eq!((&seen.instance[..], &seen.span.parent_span_id), ("b", &above), "{name}");
    }
    assert_eq!(spans.len(), 9, "{spans:?}");
    assert_eq!(found("attempt").text("banyan.holder"), Some("b"));
    let request = found("request").span.span_id;
    let hex: String = request.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(response, format!("00-{trace:032x}-{hex}-01"));
    assert!(receiver.trace(7).is_empty(), "what is not to be seen is not sent");
    assert!(!receiver.everything().contains(SECRET), "prompts are in no span");
}
