//! The store over a real PostgreSQL: the same suite as over SQLite, and the server's death.

use banyan_store::{Error, Store, Target};
use banyan_tests::{
    Banyan,
    authority::Authority,
    eventually,
    postgres::Postgres,
    socket::Socket,
    store::{self, Place},
};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_keeps_what_sqlite_keeps_and_its_death_is_survived() {
    let mut server = Postgres::start().await;
    macro_rules! one_by_one {
        ($($scenario:ident),* $(,)?) => {
            $(
                eprintln!("{}", stringify!($scenario));
                store::$scenario(&Place(server.database().await.parse().expect("a URL"))).await;
            )*
        };
    }
    banyan_tests::store_scenarios!(one_by_one);

    let url = server.database().await;
    let up = Banyan::up(&format!("--nodes 1 --store {url}")).await;
    let api = up.api().await;
    let (mut socket, _) = Socket::open(api.0, "client_id=me", None).await.expect("it connects");
    let hello = json!({ "text": "Good morning", "max_tokens": 4 });
    assert_eq!(socket.turn(&hello).await.expect("an answer").0["history"], "kept");

    let target: Target = server.database().await.parse().expect("a URL");
    let store = Store::open(target).await.expect("it opens");
    let one = store.create_conversation("me", "kept").await.expect("it is written");
    server.kill().await;
    let lost = store.conversation("me", &one.id).await.expect_err("nobody answers");
    assert!(matches!(lost, Error::Unavailable(_)), "{lost:?}");
    // Chat goes on without history, and says so.
    let (done, _) = socket.turn(&json!({ "text": "[[count 3]]" })).await.expect("an answer");
    assert_eq!((&done["text"], &done["history"]), (&json!("1 2 3"), &json!("unavailable")));
    let plain = api.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[count 2]]" })).await;
    assert_eq!(plain.text(), "1 2");
    let lost = api.get("/v1/conversations").await;
    assert_eq!((lost.status.as_u16(), &lost.json()["error"]["code"]), (503, &json!("store_unavailable")));
    server.restart().await;
    let (done, _) = socket.turn(&hello).await.expect("an answer");
    assert_eq!(done["history"], "kept", "{done}");
    let found = api.get("/v1/conversations/search?q=count%203").await.json();
    assert_eq!(found["data"][0]["excerpt"], "[[count 3]]", "what was said meanwhile is kept too: {found}");
    let again = || async { store.conversation("me", &one.id).await.ok() };
    assert_eq!(eventually("the store answers again", again).await.title, "kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_is_reached_over_tls_and_an_impostor_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (Authority::default(), Authority::default());
    let (good, bad) = (ours.write(folder.path(), "ours.pem"), theirs.write(folder.path(), "theirs.pem"));
    let server = Postgres::start_with_tls(&ours.server(&["127.0.0.1"])).await;
    let url = server.database().await;
    let open = async |query: &str| Store::open(format!("{url}{query}").parse().expect("a URL")).await;
    let plain = open("").await.expect_err("it lets nobody in without TLS");
    assert!(matches!(plain, Error::Unavailable(_)), "{plain:?}");
    let verified = |path: &std::path::Path| format!("?sslmode=verify-full&sslrootcert={}", path.display());
    for query in ["?sslmode=require".to_owned(), verified(&good)] {
        let store = open(&query).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
        let made = store.create_conversation("me", "over TLS").await.expect("it is written");
        assert_eq!(store.conversation("me", &made.id).await.expect("it is read").title, "over TLS");
    }
    for (query, told) in [
        (verified(&bad), "certificate"),
        ("?sslmode=verify-full".to_owned(), "needs sslrootcert=FILE"),
        (verified(&folder.path().join("nowhere")), "failed to read the certificates"),
    ] {
        let error = open(&query).await.err().unwrap_or_else(|| panic!("{query} is believed"));
        assert!(format!("{error:?}").contains(told) || chain(&error).contains(told), "{query}: {error:?}");
    }
    // By another name it is another server.
    let other = url.replace("127.0.0.1", "localhost") + &verified(&good);
    let error = Store::open(other.parse().expect("a URL")).await.expect_err("the name is not in the certificate");
    assert!(chain(&error).contains("certificate"), "{error:?}");
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
