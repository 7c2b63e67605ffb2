//! Keys, their limits and their usage, over the built binary.

use banyan_tests::{
    Banyan, eventually,
    http::{Answer, Http},
    process::banyan,
};
use futures::future::join_all;
use serde_json::{Value, json};

fn bearer(secret: &str) -> String {
    format!("Bearer {}", secret.trim())
}

async fn complete(api: Http, authorization: &str, model: &str) -> Answer {
    let body = json!({ "model": model, "prompt": "[[count 3]]", "max_tokens": 8 });
    api.ask("POST", "/v1/completions", &[("authorization", authorization)], body.to_string()).await
}

fn header(answer: &Answer, name: &str) -> u64 {
    let value = answer.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", answer.headers));
    value.to_str().expect("a text").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_signs_in_with_a_key_that_it_never_sees_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = format!("--store {}", folder.path().join("store.db").display());
    let up = Banyan::up(&format!("--nodes 1 {store}")).await;
    let api = up.api().await;
    let session = async |headers: &[(&str, &str)]| api.ask("GET", "/v1/session", headers, "").await.json();
    let alone = session(&[]).await;
    assert_eq!((&alone["required"], &alone["keeps"]), (&json!(false), &json!("everybody")), "one person's machine, one history");
    let made = banyan(&format!("key create --name me -o json {store}")).await.json();
    let key = made["secret"].as_str().expect("a secret").trim().to_owned();
    eventually("a key is required", || async { (session(&[]).await["required"] == true).then_some(()) }).await;

    let (ours, theirs) = (format!("http://{}", api.0), "https://evil.example".to_owned());
    let json = ("content-type", "application/json");
    let sign_in = async |origin: &str, key: &str| {
        api.ask("POST", "/v1/session", &[("origin", origin), json], json!({ "key": key }).to_string()).await
    };
    assert_eq!(sign_in(&theirs, &key).await.status, 403);
    assert_eq!(sign_in(&ours, "sk-wrong").await.status, 401);
    let signed = sign_in(&ours, &key).await;
    assert_eq!(signed.status, 204);
    let cookie = signed.headers["set-cookie"].to_str().expect("a text").to_owned();
    assert!(cookie.contains("; HttpOnly; SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().expect("a pair");

    let mine = session(&[("cookie", cookie)]).await;
    assert_eq!((&mine["signed_in"], &mine["keeps"]), (&json!(true), &made["id"]), "a history of the key's own");
    assert_eq!(session(&[]).await.get("keeps"), None);
    assert_eq!(api.ask("GET", "/v1/models", &[("cookie", cookie)], "").await.status, 200);
    let ask = async |origin: Option<&str>| {
        let headers: Vec<(&str, &str)> =
            [json, ("cookie", cookie)].into_iter().chain(origin.map(|one| ("origin", one))).collect();
        let body = json!({ "model": "fake", "prompt": "[[count 3]]", "max_tokens": 8 });
        api.ask("POST", "/v1/completions", &headers, body.to_string()).await.status.as_u16()
    };
    assert_eq!(ask(Some(&ours)).await, 200);
    assert_eq!((ask(Some(&theirs)).await, ask(None).await), (403, 403), "a cookie alone is no permission");
    let out = api.ask("DELETE", "/v1/session", &[("origin", &ours), ("cookie", cookie)], "").await;
    assert!(out.headers["set-cookie"].to_str().expect("a text").starts_with("banyan-key=; Path=/; Max-Age=0"));
    assert_eq!(banyan(&format!("key revoke me {store}")).await.code, 0);
    eventually("the session ends with its key", || async {
        (session(&[("cookie", cookie)]).await["signed_in"] == false).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_there_is_a_key_every_request_needs_one_and_keeps_to_its_limits() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = format!("--store {}", folder.path().join("store.db").display());
    let up = Banyan::up(&format!("--nodes 1 {store}")).await;
    let api = up.api().await;
    assert_eq!(complete(api, "Bearer anything", "fake").await.status, 200, "there are no keys yet");

    let made = banyan(&format!("key create --name me --rpm 7 --models fake -o json {store}")).await.json();
    let me = bearer(made["secret"].as_str().expect("a secret"));
    let refused = eventually("keys are required", || async {
        Some(complete(api, "Bearer sk-wrong", "fake").await).filter(|answer| answer.status != 200)
    })
    .await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (401, &json!("invalid_api_key")));
    assert_eq!(api.get("/v1/models").await.status, 401);
    assert_eq!(api.get("/livez").await.status, 200);
    assert_eq!(api.get("/").await.status, 200);

    // Exactly as many get through as may, and all are told how they stand.
    let answers = join_all((0..100).map(|_| complete(api, &me, "fake"))).await;
    let (through, refused): (Vec<&Answer>, Vec<&Answer>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(through.len(), 7);
    let mut left: Vec<u64> = through.iter().map(|answer| header(answer, "x-ratelimit-remaining-requests")).collect();
    left.sort_unstable();
    assert_eq!(left, [0, 1, 2, 3, 4, 5, 6]);
    for answer in &refused {
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (429, &json!("rate_limit_exceeded")));
        assert_eq!(header(answer, "x-ratelimit-limit-requests"), 7);
        assert!((1..=9).contains(&header(answer, "retry-after")), "{:?}", answer.headers);
    }

    let usage = eventually("everything is written down", || async {
        let usage = banyan(&format!("usage --key me -o json {store}")).await.json();
        let sum = |name: &str| usage.as_array().expect("rows").iter().filter_map(|row| row[name].as_i64()).sum::<i64>();
        (sum("requests") == 100).then(|| (sum("failed"), sum("completion_tokens")))
    })
    .await;
    assert_eq!(usage.0, 93);
    let counted = through[0].json()["usage"]["completion_tokens"].as_i64().expect("a number");
    assert_eq!(usage.1, 7 * counted);
    let csv = banyan(&format!("usage -o csv {store}")).await.out;
    assert!(csv.contains("day,key,model,node,requests") && csv.contains(",me,fake,node-1,7,0,"), "{csv}");

    // Tokens: what is not used is there again.
    let made = banyan(&format!("key create --name words --tpm 100 {store}")).await;
    let words = bearer(&made.out);
    let first = eventually("the key is known", || async {
        Some(complete(api, &words, "fake").await).filter(|answer| answer.status == 200)
    })
    .await;
    let used = first.json()["usage"]["total_tokens"].as_u64().expect("a number");
    assert!(header(&first, "x-ratelimit-remaining-tokens") <= 100 - 8);
    let settled = eventually("what was reserved is settled", || async {
        let next = complete(api, &words, "fake").await;
        (next.status == 200).then(|| header(&next, "x-ratelimit-remaining-tokens"))
    })
    .await;
    assert!(settled > 100 - 3 * (used + 20), "{settled} left, {used} used at a time");

    // Models, owners, revocation.
    let other = banyan(&format!("key create --name other --models else {store}")).await;
    let other = bearer(&other.out);
    let missing = eventually("the key is known", || async {
        Some(complete(api, &other, "fake").await).filter(|answer| answer.status != 401)
    })
    .await;
    assert_eq!((missing.status.as_u16(), &missing.json()["error"]["code"]), (404, &json!("model_not_found")));
    let models = api.ask("GET", "/v1/models", &[("authorization", &other)], "").await.json();
    assert_eq!(models["data"], json!([]));
    let own: Value = api.ask("GET", "/v1/usage", &[("authorization", &other)], "").await.json();
    assert!(own["data"].as_array().expect("rows").iter().all(|row| row["key"] == "other"), "{own}");

    let listed = banyan(&format!("key list {store}")).await.out;
    assert!(listed.contains("me") && !listed.contains(&me["Bearer ".len() + 20..]), "{listed}");
    assert_eq!(banyan(&format!("key revoke words {store}")).await.code, 0);
    eventually("the key is no longer good", || async {
        let answer = complete(api, &words, "fake").await;
        (answer.status == 401 && answer.json()["error"]["message"].as_str()?.contains("revoked")).then_some(())
    })
    .await;
    assert_eq!(banyan(&format!("key revoke nobody {store}")).await.code, 3);
    assert!(!up.last_words().contains("sk-banyan"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_operators_key_changes_the_tree_and_sees_everybodys_usage() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = format!("--store {}", folder.path().join("store.db").display());
    let me = bearer(&banyan(&format!("key create --name me {store}")).await.out);
    let operator = bearer(&banyan(&format!("key create --name boss --operator {store}")).await.out);
    let up = Banyan::up(&format!("--nodes 1 {store}")).await;
    let api = up.api().await;
    let ask = async |method: &str, path: &str, who: &str| api.ask(method, path, &[("authorization", who)], "{}").await;
    assert_eq!(complete(api, &me, "fake").await.status, 200);
    for (method, path) in [
        ("GET", "/v1/keys"),
        ("GET", "/v1/usage?everyone=true"),
        ("GET", "/v1/tree/nodes/node-1/log"),
        ("POST", "/v1/tree/nodes/node-1/drain"),
    ] {
        let refused = ask(method, path, &me).await;
        assert_eq!(refused.status, 403, "{path}");
        assert!(refused.json()["error"]["message"].as_str().is_some_and(|text| text.contains("--operator")), "{path}");
        assert_eq!(api.ask(method, path, &[], "{}").await.status, 401, "{path}");
    }
    assert_eq!(ask("GET", "/v1/tree/nodes/node-1", &me).await.status, 200);
    let keys = ask("GET", "/v1/keys", &operator).await.json();
    let named: Vec<&Value> = keys["data"].as_array().expect("keys").iter().map(|key| &key["name"]).collect();
    assert_eq!(named, ["me", "boss"]);
    assert!(keys["data"][0].get("secret").is_none() && keys["data"][1]["operator"] == true);
    eventually("everybody's usage is there", || async {
        let used = ask("GET", "/v1/usage?everyone=true", &operator).await.json();
        used["data"].as_array()?.iter().any(|row| row["key"] == "me").then_some(())
    })
    .await;
    assert!(banyan(&format!("key list {store}")).await.out.contains("operator"));
    assert_eq!(ask("POST", "/v1/tree/nodes/node-1/drain", &operator).await.status, 200);
}

#[tokio::test]
async fn an_api_that_anybody_could_reach_does_not_start_without_a_key() {
    let registry = Banyan::start("registry serve --listen 127.0.0.1:0");
    let etcd = registry.fact("etcd").await;
    let folder = tempfile::tempdir().expect("a folder");
    let line = format!("api run --listen 0.0.0.0:0 --etcd {etcd} --store {}", folder.path().join("store.db").display());
    let refused = banyan(&line).await;
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.err.contains("banyan key create") && refused.err.contains("--open"), "{refused:?}");
    let open = Banyan::start(&format!("{line} --open"));
    open.printed("the API is ready").await;
    drop(open);
    let store = folder.path().join("store.db");
    assert_eq!(banyan(&format!("key create --name me --store {}", store.display())).await.code, 0);
    Banyan::start(&line).printed("the API is ready").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_for_some_models_gets_those_of_an_alias_and_texts_are_logged_where_somebody_said_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let aliases = folder.path().join("aliases.toml");
    std::fs::write(&aliases, "[aliases]\nfast = ['small', 'large']\n").expect("a write");
    let store = format!("--store {}", folder.path().join("store.db").display());
    let made = banyan(&format!("key create --name me --models large -o json {store}")).await.json();
    let me = bearer(made["secret"].as_str().expect("a secret"));
    let flags = format!("--nodes 1 --model small --model large --log-texts --aliases {} {store}", aliases.display());
    let up = Banyan::up(&flags).await;
    let api = up.api().await;

    let served = complete(api, &me, "fast").await;
    assert_eq!((served.status.as_u16(), &served.json()["model"]), (200, &json!("large")), "{:?}", served.json());
    let refused = complete(api, &me, "small").await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (404, &json!("model_not_found")));
    let listed = api.ask("GET", "/v1/models", &[("authorization", &me)], "").await.json();
    let names: Vec<&Value> = listed["data"].as_array().expect("a list").iter().map(|model| &model["id"]).collect();
    assert_eq!(names, ["fast", "large"]);

    let chat = json!({ "model": "fast", "n": 2, "messages": [{ "role": "user", "content": "[[count 2]]" }] });
    assert_eq!(api.ask("POST", "/v1/chat/completions", &[("authorization", &me)], chat.to_string()).await.status, 200);
    let log = eventually("both are logged", || async {
        let log = banyan(&format!("usage --requests 5 -o json {store}")).await.json();
        Some(log).filter(|log| log.as_array().is_some_and(|log| log.len() == 2))
    })
    .await;
    assert_eq!((&log[1]["prompt"], &log[1]["answer"]), (&json!("[[count 3]]"), &json!("1 2 3")), "{log}");
    let asked: Value = serde_json::from_str(log[0]["prompt"].as_str().expect("a text")).expect("messages");
    assert_eq!(asked, chat["messages"]);
    assert_eq!(log[0]["answer"], json!("[\"1 2\",\"1 2\"]"), "{log}");

    drop(up);
    let up = Banyan::up(&flags.replace("--log-texts", "")).await;
    assert_eq!(complete(up.api().await, &me, "large").await.status, 200);
    let log = eventually("it is logged", || async {
        let log = banyan(&format!("usage --requests 5 -o json {store}")).await.json();
        Some(log).filter(|log| log.as_array().is_some_and(|log| log.len() == 3))
    })
    .await;
    assert!(log[0].get("prompt").is_none() && log[0].get("answer").is_none(), "{log}");
}
