//! The registry suite over a real etcd, and the embedded server against it and against `etcdctl`.
//!
//! Needs Debian's etcd-server and etcd-client.

mod conformance;
#[path = "suite/etcd_process.rs"]
mod etcd;
mod etcdctl;
mod suite;

use etcd::etcd;
use suite::scenarios;

/// A test per scenario, each over an etcd of its own.
macro_rules! over_etcd {
    ($($scenario:ident),* $(,)?) => {
        $(#[tokio::test]
        async fn $scenario() {
            scenarios::$scenario(&etcd()).await;
        })*
    };
}

over_etcd! {
    of_fifty_racing_names_exactly_one_wins,
    a_tree_has_one_root,
    two_moves_that_would_make_a_cycle_cant_both_succeed,
    a_missing_parent_is_named_and_can_be_waited_for,
    a_tree_is_at_most_32_deep,
    leaving_and_dropping_free_the_name,
    a_lost_lease_is_had_again_under_a_new_incarnation,
    a_key_that_was_deleted_by_hand_comes_back,
    what_others_write_under_our_keys_harms_nobody_else,
    a_view_survives_compactions,
    a_frozen_registry_is_noticed_and_waited_for,
}

#[tokio::test]
async fn everyone_goes_on_without_the_registry_and_reconciles_when_it_is_back() {
    scenarios::everyone_goes_on_without_the_registry_and_reconciles_when_it_is_back(&mut etcd()).await;
}

#[tokio::test]
async fn an_endpoint_without_a_registry_is_an_error_in_time() {
    scenarios::an_endpoint_without_a_registry_is_an_error_in_time(&mut etcd()).await;
}

#[tokio::test]
async fn the_embedded_server_answers_as_etcd_does() {
    let (embedded, etcd) = (in_process().await, etcd());
    conformance::compare(&format!("http://{}", embedded.address()), &etcd.url()).await;
    embedded.stop().await;
}

#[tokio::test]
async fn etcdctl_reads_writes_and_watches_the_embedded_server() {
    let embedded = in_process().await;
    let etcdctl = etcdctl::Etcdctl::new(embedded.address().to_string());
    tokio::task::spawn_blocking(move || etcdctl.try_everything()).await.expect("all is as expected");
    embedded.stop().await;
}

async fn in_process() -> banyan_etcd::embedded::Server {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    banyan_etcd::embedded::Server::start(listener, None).await.expect("it starts")
}
