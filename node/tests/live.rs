//! A live tree of real nodes over real sockets, with engines without weights, whose recording is replayed: the same events
//! give the same actions in router, ledger and scheduler.

use std::time::Duration;

use banyan_engine::{Engine, fake, scheduler};
use banyan_etcd::{Registry, embedded::Server};
use banyan_node::{Config, Node, Record, Recording, ledger::Ledger, router::Router};
use banyan_proto::{NodeName, QueryId, v1, v1::root_client::RootClient};
use futures::{StreamExt as _, stream::FuturesUnordered};
use prost::Message as _;
use tokio::{net::TcpListener, time::timeout};

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

async fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn ask(mut root: RootClient<tonic::transport::Channel>, number: u64, tokens: u32) -> (String, Vec<u32>) {
    let generation = v1::Generation {
        // Some repeat themselves, so that several of their tokens come at once.
        prompt: Some(v1::generation::Prompt::Text(match number % 5 {
            0 => format!("query number {number} [[loop 100]]"),
            _ => format!("query number {number}"),
        })),
        max_tokens: tokens,
        ignore_eos: true,
        sampling: Some(v1::Sampling {
            seed: number,
            temperature: 1.0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            ..Default::default()
        }),
        ..Default::default()
    };
    let header = v1::Header {
        id: QueryId::new().to_wire(),
        owner: format!("owner-{}", number % 3),
        remaining_ms: 30_000,
        tokens_max: tokens,
        ..Default::default()
    };
    let question =
        v1::Question { header: header.encode_to_vec().into(), payload: generation.encode_to_vec().into(), ..Default::default() };
    let mut answers = root.ask(question).await.unwrap().into_inner();
    let (mut text, mut positions) = (String::new(), Vec::new());
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.kind.unwrap() {
            v1::answer::Kind::Placed(_) | v1::answer::Kind::Accepted(_) => {}
            v1::answer::Kind::Tokens(tokens) => {
                positions.extend((tokens.position..).take(tokens.ids.len()));
                text.push_str(&v1::Chunk::decode(tokens.chunk).unwrap().text);
            }
            v1::answer::Kind::End(end) => {
                text.push_str(&v1::Finish::decode(end.finish).unwrap().text);
                return (text, positions);
            }
            v1::answer::Kind::Failed(failed) => panic!("{failed:?}"),
        }
    }
    panic!("the stream ended without an end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_live_run_replays_to_exactly_its_actions() {
    let server = Server::start(loopback().await, None).await.unwrap();
    let registry = Registry::connect(banyan_etcd::Config {
        endpoints: vec![format!("http://{}", server.address())],
        cluster: name("test"),
        lease_ttl: Duration::from_secs(5),
        timeout: Duration::from_secs(5),
        tls: None,
    })
    .await
    .unwrap();

    let recordings: Vec<Recording> = (0..4).map(|_| Recording::default()).collect();
    let plans: Vec<scheduler::Recording> = (0..3).map(|_| scheduler::Recording::default()).collect();
    let config = Config { recording: Some(recordings[0].clone()), ..Config::root(name("root")) };
    let root = Node::start(config, registry.clone(), None, loopback().await).await.unwrap();
    let mut nodes = Vec::new();
    for (index, (node, parent)) in [("a", "root"), ("b", "a"), ("c", "a")].into_iter().enumerate() {
        let config = Config {
            recording: Some(recordings[index + 1].clone()),
            busy_at: Some(2),
            ..Config::child(name(node), name(parent))
        };
        let engine = Engine::fake(fake::Options {
            batch_max: 4,
            token_time: Duration::from_millis(1),
            recording: Some(plans[index].clone()),
            ..fake::Options::default()
        });
        let node = Node::start(config, registry.clone(), Some(engine), loopback().await).await.unwrap();
        node.ready().await;
        nodes.push(node);
    }

    let client = RootClient::connect(format!("http://{}", root.address())).await.unwrap();
    let mut asked: FuturesUnordered<_> =
        (0..200u64).map(|number| ask(client.clone(), number, 1 + (number % 24) as u32)).collect();
    let all = async {
        while let Some((text, positions)) = asked.next().await {
            assert!(!text.is_empty());
            assert_eq!(positions, (0..positions.len() as u32).collect::<Vec<_>>());
            if asked.len() == 100 {
                // A loss in the middle belongs to the recording.
                drop(nodes.pop());
            }
        }
    };
    timeout(Duration::from_secs(60), all).await.expect("every query is answered");
    for node in nodes {
        node.stop().await;
    }
    root.stop().await;
    server.stop().await;

    for recording in &recordings {
        replay(&recording.records());
    }
    for recording in &plans {
        scheduler::replay(recording.limits().unwrap(), &recording.records()).unwrap();
    }
}

#[tokio::test]
async fn a_cancel_that_overtakes_its_question_ends_it_when_it_comes() {
    let server = Server::start(loopback().await, None).await.unwrap();
    let config = banyan_etcd::Config::new(vec![format!("http://{}", server.address())], name("test"));
    let registry = Registry::connect(config).await.unwrap();
    let root = Node::start(Config::root(name("root")), registry, None, loopback().await).await.unwrap();
    let mut client = RootClient::connect(format!("http://{}", root.address())).await.unwrap();

    let (id, owner) = (QueryId::new().to_wire(), "o".to_owned());
    client.cancel(v1::AnswerRef { id: id.clone(), owner: owner.clone(), following: 0 }).await.unwrap();
    let header = v1::Header { id, owner, remaining_ms: 30_000, tokens_max: 4, ..Default::default() };
    let question = v1::Question { header: header.encode_to_vec().into(), resumable: true, ..Default::default() };
    let answer = client.ask(question.clone()).await.unwrap().into_inner().message().await.unwrap();
    let Some(v1::answer::Kind::Failed(failed)) = answer.unwrap().kind else { panic!("it was taken in") };
    assert_eq!(failed.reason(), v1::Failure::Cancelled);
    // Once: whoever asks again means it. There is no node, so it waits.
    let answer = client.ask(question).await.unwrap().into_inner().message().await.unwrap();
    assert!(matches!(answer.unwrap().kind, Some(v1::answer::Kind::Placed(_))));
    root.stop().await;
    server.stop().await;
}

/// Feeds what was recorded to fresh parts and compares what they do.
fn replay(records: &[Record]) {
    let (mut router, mut ledger) = (None, None);
    assert!(records.len() > 10, "hardly anything was recorded");
    for record in records {
        match record {
            Record::RouterStarted { settings } => router = Some(Router::new(settings.clone())),
            Record::LedgerStarted { settings } => ledger = Some(Ledger::new(settings.clone())),
            Record::Router { now, event, actions } => assert_eq!(router.as_mut().unwrap().handle(*now, event.clone()), *actions),
            Record::Ledger { now, event, actions } => assert_eq!(ledger.as_mut().unwrap().handle(*now, event.clone()), *actions),
        }
    }
    // What is written down reads back.
    let text = serde_json::to_string(records).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Record>>(&text).unwrap(), records);
}
