//! Commands that a person types beside a tree: chat, models, the doctor, completions, the manual.

use std::{fs, path::Path};

use banyan_tests::Banyan;
use serde_json::{Value, json};

use super::{failed, shell::shell};

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[tokio::test]
async fn chat_answers_what_comes_through_a_pipe_and_says_what_to_do_where_nobody_answers() {
    let (up, home) = (Banyan::up("--nodes 1 --token-time 1ms").await, home());
    let url = up.fact("page").await;
    let said = shell(home.path(), &format!("echo '[[count 3]]' | banyan chat --url {url}")).await;
    assert_eq!((said.code, said.out.as_str()), (0, "1 2 3\n"), "{}", said.err);
    let wrong = shell(home.path(), &format!("echo hello | banyan chat --model fakr --url {url}")).await;
    failed(&wrong, 3, &["fakr"]);
    failed(&shell(home.path(), &format!("banyan chat --url {url} </dev/null")).await, 2, &["nothing was said"]);
    failed(&shell(home.path(), "echo hello | banyan chat --url http://127.0.0.1:1").await, 5, &["banyan up", "--url"]);
}

#[tokio::test]
async fn models_are_imported_listed_served_verified_and_removed() {
    let home = home();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/banyan-tiny");
    let line = format!("banyan model import {} --name story && banyan model list -o name", tiny.display());
    let imported = shell(home.path(), &line).await;
    assert_eq!((imported.code, imported.out.as_str()), (0, "local/story\nlocal/story\n"), "{}", imported.err);
    failed(&shell(home.path(), &line).await, 4, &["banyan model rm local/story"]);
    let listed = shell(home.path(), "banyan model list -o json").await.json();
    assert_eq!((&listed[0]["name"], &listed[0]["whole"]), (&json!("local/story"), &json!(true)));
    let measured =
        shell(home.path(), "banyan bench engine --model local/story --batch 1 --new 4 --rounds 1 -o json").await.json();
    assert_eq!(measured["runs"][0]["model"], "story", "{measured}");

    let verified = shell(home.path(), "banyan model verify -o json").await.json();
    let verdicts: Vec<&Value> = verified.as_array().expect("files").iter().map(|file| &file["verdict"]).collect();
    assert!(verdicts.len() >= 3 && verdicts.iter().all(|verdict| *verdict == "good"), "{verified}");
    let hub = home.path().join(".cache/huggingface/hub/models--local--story/blobs");
    let blob = fs::read_dir(hub).expect("blobs").flatten().next().expect("a blob").path();
    fs::write(blob, "damaged").expect("there is room");
    failed(&shell(home.path(), "banyan model verify local/story").await, 1, &["is damaged", "banyan model import"]);

    failed(&shell(home.path(), "banyan model rm local/stroy").await, 3, &["did you mean `local/story`?"]);
    let removed = shell(home.path(), "banyan model rm local/story && banyan model list -o name").await;
    assert_eq!((removed.code, removed.out.as_str()), (0, ""), "{}", removed.err);
    failed(
        &shell(home.path(), "banyan up --model local/story --listen 127.0.0.1:0 --registry-listen 127.0.0.1:0").await,
        3,
        &["banyan model list"],
    );
}

#[tokio::test]
async fn the_doctor_finds_a_tree_well_and_says_what_to_start_where_there_is_none() {
    let (up, home) = (Banyan::up("--nodes 2").await, home());
    let (etcd, url) = (up.fact("registry").await, up.fact("page").await);
    let seen = shell(home.path(), &format!("banyan doctor --model banyan-tiny --etcd {etcd} --url {url} -o json")).await;
    let findings: Value = serde_json::from_str(&seen.out).unwrap_or_else(|error| panic!("{error}: {seen:?}"));
    let found = |what: &str| {
        let finding = findings.as_array().expect("findings").iter().find(|finding| finding["what"] == what);
        finding.unwrap_or_else(|| panic!("nothing about {what}: {findings}")).clone()
    };
    for what in ["registry", "nodes", "versions", "clock", "clocks", "API", "model", "cores"] {
        assert_ne!(found(what)["state"], "bad", "{findings}");
    }
    assert_eq!(found("nodes")["state"], "good", "{findings}");
    assert!(found("roots")["todo"].as_str().is_some_and(|todo| todo.contains("--standby")), "{findings}");
    let alone = shell(home.path(), "banyan doctor --model owner/none --etcd http://127.0.0.1:1 --url http://127.0.0.1:1").await;
    failed(&alone, 1, &["wrong"]);
    for text in ["banyan registry serve", "`banyan model pull owner/none` fetches it", "banyan api run"] {
        assert!(alone.out.contains(text), "{text}: {}", alone.out);
    }
}

#[tokio::test]
async fn shells_complete_the_manual_opens_and_typos_are_understood() {
    let home = home();
    let completed = r#"source <(banyan completions bash)
        COMP_WORDS=(banyan node r) COMP_CWORD=2
        "$(complete -p banyan | sed 's/.*-F \([^ ]*\).*/\1/')" banyan r node
        echo "${COMPREPLY[@]}""#;
    let completed = shell(home.path(), completed).await;
    assert_eq!(completed.out.trim(), "run", "{completed:?}");
    let pages = shell(home.path(), "banyan man | head -3 && banyan man --to pages && ls pages").await;
    assert!(pages.out.contains(".TH") && pages.out.contains("banyan-model-verify.1"), "{pages:?}");
    for (line, meant) in
        [("nod list", "node"), ("node lst", "list"), ("up --modle gpt2", "--model"), ("node list -o jsn", "json")]
    {
        failed(&shell(home.path(), &format!("banyan {line}")).await, 2, &[meant]);
    }
}
