//! A tree in this process for a benchmark: every part over loopback sockets, engines without weights.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use banyan_engine::{Engine, fake};
use banyan_etcd::Registry;
use banyan_node::{Config, LaneLimits, Routing};
use banyan_proto::{
    MESSAGE_BYTES_MAX, NodeName, QueryId, dial,
    v1::{self, answer::Kind, root_client::RootClient},
};
use prost::Message as _;
use tokio::{net::TcpListener, time::Instant};
use tonic::{Streaming, transport::Channel};

use crate::{exit::Failure, fleet::Fleet};

/// A tree that may take a while to be attached has a fault.
const READY: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(60);

/// How long a blocker runs at most; longer than any benchmark.
const BLOCKED: Duration = Duration::from_secs(3600);
const BLOCKED_TOKENS: u32 = 1 << 16;

/// A running tree.
pub(crate) struct Testbed {
    fleet: Fleet,
    /// Answers that keep nodes busy for as long as they are held.
    _blockers: Vec<Streaming<v1::Answer>>,
    /// The root's gRPC address.
    pub(crate) root: String,
    pub(crate) api: SocketAddr,
}

/// A node to be.
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) parent: String,
    pub(crate) engine: fake::Options,
    pub(crate) busy_at: Option<u32>,
    /// Busy with one endless answer from its start on, so that it passes everything on.
    pub(crate) blocked: bool,
}

impl Plan {
    /// A node that runs one sequence, for ever, and slowly enough to cost nothing.
    pub(crate) fn blocked(name: String, parent: String) -> Plan {
        let engine = fake::Options {
            batch_max: 1,
            token_time: Duration::from_secs(1),
            context: 2 * BLOCKED_TOKENS,
            ..fake::Options::default()
        };
        Plan { name, parent, engine, busy_at: Some(1), blocked: true }
    }
}

impl Testbed {
    /// Starts a root and the nodes below it, in that order, and waits until the tree answers.
    pub(crate) async fn start(plans: Vec<Plan>, routing: Routing, lanes: LaneLimits) -> Result<Testbed, Failure> {
        let mut fleet = Fleet::default();
        match Self::fill(&mut fleet, plans, routing, lanes).await {
            Ok((root, api, blockers)) => Ok(Testbed { fleet, _blockers: blockers, root, api }),
            Err(failure) => {
                fleet.stop().await;
                Err(failure)
            }
        }
    }

    async fn fill(fleet: &mut Fleet, plans: Vec<Plan>, routing: Routing, lanes: LaneLimits) -> Result<Filled, Failure> {
        let etcd = fleet.start_registry(loopback().await?).await?.address();
        let cluster = "bench".parse().expect("a valid name");
        let registry = Registry::connect(banyan_etcd::Config::new(vec![format!("http://{etcd}")], cluster)).await?;
        let root = Config { routing, lanes, ..Config::root(name("root")) };
        let address = fleet.start_node(root, registry.clone(), None, loopback().await?).await?.address().to_owned();
        let asker = Asker::dial(&address).await?;
        let mut blockers = Vec::new();
        for plan in plans {
            let child = Config::child(name(&plan.name), name(&plan.parent));
            let config = Config { routing, busy_at: plan.busy_at, ..child };
            fleet.start_node(config, registry.clone(), Some(Engine::fake(plan.engine)), loopback().await?).await?;
            fleet.ready().await;
            if plan.blocked {
                blockers.push(asker.block(&plan.name).await?);
            }
        }
        let api = fleet.start_api(banyan_api::Config::default(), registry, loopback().await?).await?.address();
        // The first answer says that the tree is attached from top to bottom.
        let begun = Instant::now();
        while let Err(error) = asker.ask("ready?", 1).await {
            if begun.elapsed() > READY {
                return Err(error.context("the benchmark's tree did not get ready").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok((address, api, blockers))
    }

    pub(crate) async fn stop(self) {
        self.fleet.stop().await;
    }
}

/// The root's address, the API's, and what keeps nodes busy.
type Filled = (String, SocketAddr, Vec<Streaming<v1::Answer>>);

/// Asks a root as an API does.
#[derive(Clone)]
pub(crate) struct Asker {
    client: RootClient<Channel>,
}

impl Asker {
    pub(crate) async fn dial(root: &str) -> anyhow::Result<Asker> {
        let channel = dial::endpoint(root)?.connect().await.with_context(|| format!("failed to dial {root}"))?;
        Ok(Asker { client: RootClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX) })
    }

    /// Asks, reads the answer to its end, and says how long the first token took.
    pub(crate) async fn ask(&self, prompt: &str, max_tokens: u32) -> anyhow::Result<Duration> {
        let asked = Instant::now();
        let mut first = None;
        let mut answers = self.client.clone().ask(question(prompt, max_tokens, DEADLINE)).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            match answer.kind {
                Some(Kind::Tokens(_)) => first = first.or_else(|| Some(asked.elapsed())),
                Some(Kind::End(_)) => {
                    // The stream's end comes right behind: read, it costs nothing; dropped, it costs a reset.
                    answers.message().await?;
                    return first.context("an answer came to its end without a token");
                }
                Some(Kind::Failed(failed)) => anyhow::bail!("the tree refused: {}", failed.message),
                Some(Kind::Placed(_) | Kind::Accepted(_)) | None => {}
            }
        }
        anyhow::bail!("an answer broke off")
    }

    /// Has one node answer without end; the others that have room are busy already.
    async fn block(&self, node: &str) -> anyhow::Result<Streaming<v1::Answer>> {
        let prompt = format!("[[count {BLOCKED_TOKENS}]]");
        let question = question(&prompt, BLOCKED_TOKENS, BLOCKED);
        let mut answers = self.client.clone().ask(question).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            match answer.kind {
                Some(Kind::Placed(placed)) if placed.running => {
                    anyhow::ensure!(placed.node == node, "{} runs what was meant for {node}", placed.node);
                    return Ok(answers);
                }
                Some(Kind::Failed(failed)) => anyhow::bail!("the tree refused: {}", failed.message),
                _ => {}
            }
        }
        anyhow::bail!("an answer broke off")
    }
}

fn question(prompt: &str, max_tokens: u32, deadline: Duration) -> v1::Question {
    let sampling = v1::Sampling { top_p: 1.0, repetition_penalty: 1.0, seed: 1, ..v1::Sampling::default() };
    let generation = v1::Generation {
        prompt: Some(v1::generation::Prompt::Text(prompt.to_owned())),
        max_tokens,
        sampling: Some(sampling),
        ..v1::Generation::default()
    };
    let header = v1::Header {
        id: QueryId::new().to_wire(),
        owner: "bench".to_owned(),
        remaining_ms: deadline.as_millis() as u64,
        tokens_max: max_tokens,
        ..v1::Header::default()
    };
    v1::Question { header: header.encode_to_vec().into(), payload: generation.encode_to_vec().into(), ..Default::default() }
}

fn name(text: &str) -> NodeName {
    text.parse().expect("benchmarks name their nodes well")
}

pub(crate) async fn loopback() -> anyhow::Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0").await.context("failed to listen on loopback")
}
