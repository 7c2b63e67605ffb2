//! A node whose straight way to the root is cut, and nothing else: its answers go over its parents and come out as if nothing
//! had happened, and go straight again when that works.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use banyan_engine::{Engine, fake};
use banyan_etcd::{Registry, embedded::Server};
use banyan_node::{Config, Node};
use banyan_proto::{
    NodeName, QueryId,
    v1::{self, inspect_client::InspectClient, root_client::RootClient},
};
use futures::future::join_all;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

const CUT_OFF: &str = "the-one-that-is-cut-off";
const INNER: &str = "the-one-in-the-middle";

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

async fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// Passes on what comes to `listener`. While `cut`, nothing passes on connections that `CUT_OFF` opened, and nobody is told:
/// which are its own shows in the first name that is said on them.
async fn root_side(listener: TcpListener, root: String, cut: Arc<AtomicBool>) {
    while let Ok((mut from, _)) = listener.accept().await {
        let (root, cut) = (root.clone(), cut.clone());
        tokio::spawn(async move {
            let mut to = TcpStream::connect(root).await.unwrap();
            let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            let (mut heard, mut theirs) = (Vec::new(), None);
            loop {
                let (read, upward) = tokio::select! {
                    read = from.read(&mut up) => (read.unwrap_or(0), true),
                    read = to.read(&mut down) => (read.unwrap_or(0), false),
                };
                if read == 0 {
                    return;
                }
                if upward && theirs.is_none() {
                    heard.extend_from_slice(&up[..read]);
                    let has = |name: &str| heard.windows(name.len()).any(|window| window == name.as_bytes());
                    theirs = if has(CUT_OFF) { Some(true) } else { has(INNER).then_some(false) };
                }
                if theirs == Some(true) && cut.load(Ordering::Relaxed) {
                    // A cut that heals is another connection's.
                    return std::future::pending().await;
                }
                let passed = match upward {
                    true => to.write_all(&up[..read]).await,
                    false => from.write_all(&down[..read]).await,
                };
                if passed.is_err() {
                    return;
                }
            }
        });
    }
}

/// Counts to `last`; gives the numbers as they came, and the largest pause between two.
async fn count(mut root: RootClient<tonic::transport::Channel>, id: QueryId, last: u32) -> (String, Duration) {
    let generation = v1::Generation {
        prompt: Some(v1::generation::Prompt::Text(format!("[[count {last}]]"))),
        max_tokens: 2 * last,
        sampling: Some(v1::Sampling { top_p: 1.0, repetition_penalty: 1.0, ..Default::default() }),
        ..Default::default()
    };
    let header = v1::Header { id: id.to_wire(), remaining_ms: 60_000, tokens_max: 2 * last, ..Default::default() };
    let question =
        v1::Question { header: header.encode_to_vec().into(), payload: generation.encode_to_vec().into(), ..Default::default() };
    let mut answers = root.ask(question).await.unwrap().into_inner();
    let (mut text, mut at, mut pause) = (String::new(), None, Duration::ZERO);
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.kind.unwrap() {
            v1::answer::Kind::Placed(_) | v1::answer::Kind::Accepted(_) => {}
            v1::answer::Kind::Tokens(tokens) => {
                let before = at.replace(Instant::now());
                pause = pause.max(before.map_or(Duration::ZERO, |before| before.elapsed()));
                text.push_str(&v1::Chunk::decode(tokens.chunk).unwrap().text);
            }
            v1::answer::Kind::End(end) => {
                text.push_str(&v1::Finish::decode(end.finish).unwrap().text);
                return (text, pause);
            }
            v1::answer::Kind::Failed(failed) => panic!("{failed:?}"),
        }
    }
    panic!("the stream ended without an end");
}

async fn until(address: &str, what: &str, wanted: impl Fn(&v1::NodeStatus) -> bool) {
    let mut inspect = InspectClient::connect(format!("http://{address}")).await.unwrap();
    let looking = async {
        while !wanted(&inspect.status(v1::Target::default()).await.unwrap().into_inner()) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), looking).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_go_over_the_parents_while_the_straight_way_is_cut() {
    let server = Server::start(loopback().await, None).await.unwrap();
    let config = banyan_etcd::Config::new(vec![format!("http://{}", server.address())], name("test"));
    let registry = Registry::connect(config).await.unwrap();
    let (root_listener, proxy) = (loopback().await, loopback().await);
    let (root_address, cut) = (root_listener.local_addr().unwrap().to_string(), Arc::new(AtomicBool::new(false)));
    let config = Config { advertise: Some(proxy.local_addr().unwrap().to_string()), ..Config::root(name("root")) };
    tokio::spawn(root_side(proxy, root_address.clone(), cut.clone()));
    let root = Node::start(config, registry.clone(), None, root_listener).await.unwrap();
    let mut nodes = Vec::new();
    for (node, parent) in [(INNER, "root"), (CUT_OFF, INNER)] {
        let config = Config { busy_at: Some(1), ..Config::child(name(node), name(parent)) };
        let options = fake::Options { batch_max: 4, token_time: Duration::from_millis(10), ..fake::Options::default() };
        let node = Node::start(config, registry.clone(), Some(Engine::fake(options)), loopback().await).await.unwrap();
        node.ready().await;
        nodes.push(node);
    }
    let leaf = nodes[1].address().to_owned();
    let client = RootClient::connect(format!("http://{root_address}")).await.unwrap();
    // The first runs in the middle, and the others below.
    let ids: Vec<QueryId> = (0..4).map(|_| QueryId::new()).collect();
    let load = tokio::spawn(join_all(ids.iter().map(|&id| count(client.clone(), id, 400)).collect::<Vec<_>>()));
    until(&leaf, "the leaf works", |status| status.running >= 1).await;

    cut.store(true, Ordering::Relaxed);
    until(&leaf, "it delivers through its parent", |status| status.delivers_through == INNER).await;
    // What comes now goes that way as well, and so do cancels and the like.
    let (text, _) = count(client.clone(), QueryId::new(), 3).await;
    assert_eq!(text, "1 2 3");
    cut.store(false, Ordering::Relaxed);
    until(&leaf, "it delivers straight again", |status| status.delivers_through.is_empty() && status.state != "detached").await;

    let wanted: Vec<String> = (1..=400).map(|number: u32| number.to_string()).collect();
    for (text, pause) in load.await.unwrap() {
        assert_eq!(text, wanted.join(" "));
        assert!(pause < Duration::from_secs(4), "{pause:?}");
    }
    let mut inspect = InspectClient::connect(format!("http://{root_address}")).await.unwrap();
    for id in ids {
        let way = inspect.why(v1::WhyRequest { id: id.to_string() }).await.unwrap().into_inner();
        // One that still waits when the other node is done is taken back and goes there.
        let (_, before) = way.tries.split_last().expect("it was sent");
        assert!(before.iter().all(|one| one.outcome == "returned"), "nothing was sent twice: {way:?}");
    }
    nodes.pop().unwrap().stop().await;
    nodes.pop().unwrap().stop().await;
    root.stop().await;
    server.stop().await;
}
