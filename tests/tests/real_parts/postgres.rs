//! The store over a real PostgreSQL: the same suite as over SQLite, and the server's death.

use banyan_store::{Error, Store, Target};
use banyan_tests::{
    Banyan, eventually,
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
