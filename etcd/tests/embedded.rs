//! The registry suite over the embedded server. Needs nothing that cargo does not bring.

mod suite;

use std::{
    io::Read,
    path::PathBuf,
    process::{Command, Stdio},
};

use suite::{scenarios, server::Server};

/// Asks this binary to be a registry: its value is `address` or `address|file`.
const SERVE: &str = "BANYAN_TEST_SERVE";

/// The embedded server, in a process of this very binary.
fn embedded(with_file: bool) -> Server {
    Server::new(with_file, move |port, folder| {
        let mut command = Command::new(std::env::current_exe().expect("a test knows its binary"));
        let file = if with_file { format!("|{}", folder.join("registry").display()) } else { String::new() };
        command.args(["serve_until_killed", "--exact", "--nocapture"]).env(SERVE, format!("127.0.0.1:{port}{file}"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    })
}

/// Not a test of its own: the process in which the other tests' servers run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_until_killed() {
    let Ok(what) = std::env::var(SERVE) else { return };
    let (address, file) = what.split_once('|').map_or((what.as_str(), None), |(address, file)| (address, Some(file)));
    let listener = tokio::net::TcpListener::bind(address).await.expect("the port is free");
    let server = banyan_etcd::embedded::Server::start(listener, file.map(PathBuf::from)).await.expect("the registry starts");
    println!("listening on {}", server.address());
    // Until whoever started it is gone.
    let gone = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let _ = gone.await;
    server.stop().await;
}

/// A test per scenario, each over a server of its own.
macro_rules! over_the_embedded_server {
    ($($scenario:ident),* $(,)?) => {
        $(#[tokio::test]
        async fn $scenario() {
            scenarios::$scenario(&embedded(false)).await;
        })*
    };
}

over_the_embedded_server! {
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
async fn everyone_goes_on_without_a_registry_that_remembers() {
    scenarios::everyone_goes_on_without_the_registry_and_reconciles_when_it_is_back(&mut embedded(true)).await;
}

#[tokio::test]
async fn everyone_goes_on_without_a_registry_that_forgets() {
    scenarios::everyone_goes_on_without_the_registry_and_reconciles_when_it_is_back(&mut embedded(false)).await;
}

#[tokio::test]
async fn an_endpoint_without_a_registry_is_an_error_in_time() {
    scenarios::an_endpoint_without_a_registry_is_an_error_in_time(&mut embedded(false)).await;
}

/// Kills the server while it is written to, again and again.
#[tokio::test]
async fn what_was_answered_survives_a_crash() {
    let mut server = embedded(true);
    let mut answered = Vec::new();
    for crash in 0..3 {
        let client = etcd_client::Client::connect([server.url()], None).await.expect("a URL is a URL");
        let writing = async |writer: u32| {
            let mut kept = Vec::new();
            for number in 0.. {
                let key = format!("/crash/{crash}/{writer}/{number}");
                match client.clone().put(key.as_str(), "x", None).await {
                    Ok(put) => kept.push((key, put.header().expect("an answer has a header").revision())),
                    Err(_) => break,
                }
            }
            kept
        };
        let kill_soon = async {
            let several =
                || async { client.clone().get(format!("/crash/{crash}/0/40"), None).await.ok()?.kvs().first().map(|_| ()) };
            suite::eventually("some were written", several).await;
            server.kill();
        };
        let (first, second, ()) = tokio::join!(writing(0), writing(1), kill_soon);
        answered.extend(first.into_iter().chain(second));
        server.start();
    }
    let mut client = etcd_client::Client::connect([server.url()], None).await.expect("a URL is a URL");
    assert!(answered.len() > 200, "{}", answered.len());
    for (key, revision) in answered {
        let got = client.get(key.as_str(), None).await.expect("it answers");
        assert_eq!(got.kvs().first().map(|kv| kv.mod_revision()), Some(revision), "{key}");
    }
}
