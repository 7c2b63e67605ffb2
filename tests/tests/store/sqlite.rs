//! The store's suite over SQLite, and what is particular to a file.

use banyan_store::{Error, Store, Target};
use banyan_tests::store::{self, Place};

macro_rules! over_sqlite {
    ($($scenario:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $scenario() {
            let folder = tempfile::tempdir().expect("a folder");
            store::$scenario(&Place(Target::File(folder.path().join("new/store.db")))).await;
        })*
    };
}

banyan_tests::store_scenarios!(over_sqlite);

#[tokio::test]
async fn a_store_outlives_its_process_and_only_its_owner_reads_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.db");
    let store = Store::open(Target::File(path.clone())).await.expect("it opens");
    let one = store.create_conversation("me", "kept").await.expect("it is written");
    drop(store);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("it is there").permissions());
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    let again = Store::open(Target::File(path)).await.expect("it opens again");
    assert_eq!(again.conversation("me", &one.id).await.expect("it is there").title, "kept");
}

#[tokio::test]
async fn what_is_no_store_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.db");
    std::fs::write(&path, "no database, but a text that somebody wrote\n".repeat(100)).expect("a write");
    let refused = Store::open(Target::File(path.clone())).await.expect_err("it is no database");
    assert!(matches!(refused, Error::Strange(_)), "{refused:?}");
    let refused = Store::open(Target::File(folder.path().to_owned())).await.expect_err("it is a folder");
    assert!(matches!(refused, Error::Unavailable(_)), "{refused:?}");
}

#[tokio::test]
async fn the_memory_is_a_store_too() {
    let store = Store::open(Target::Memory).await.expect("it opens");
    let one = store.create_conversation("me", "a").await.expect("it is written");
    assert_eq!(store.conversation("me", &one.id).await.expect("it is there").title, "a");
}
