//! How far the simulator's waiting times are from those of a real tree of processes with the same engines under the same
//! questions: `cargo run --release -p banyan-tests --example calibrate`, with the binary built before. Prints a
//! table.
//!
//! One figure of the simulator is fitted first: what client and root take for a question, by single questions to an idle
//! tree. Everything else is as its defaults say.

use std::time::Duration;

use banyan_engine::fake;
use banyan_proto::{QueryId, v1};
use banyan_tests::{
    Banyan, eventually,
    query::{Ended, channel, put_over, status},
    random::Random,
    simulator::{Plan, SECOND, Setup, Summary, Wish, World},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// A step of the engines.
const STEP: Duration = Duration::from_millis(20);
/// Sequences that a node runs together.
const SLOTS: u32 = 4;
/// Two branches of three nodes.
const NODES: [(&str, &str); 6] = [("a", "root"), ("b", "root"), ("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")];
const SHORT: u32 = 4;
const LONG: u32 = 40;
const ONE_LONG_IN: usize = 10;
const LOADS: [f64; 4] = [0.5, 0.7, 0.85, 0.95];
const SECONDS: f64 = 9.0;
const SEED: u64 = 20_26;
const SINGLES: usize = 40;

/// A question at a time.
#[derive(Clone, Copy)]
struct Arrival {
    at: Duration,
    tokens: u32,
}

/// Questions at random times that would keep this share of all slots busy.
fn arrivals(share: f64) -> Vec<Arrival> {
    let mut random = Random::new(SEED);
    let mean = (f64::from(SHORT) * (ONE_LONG_IN - 1) as f64 + f64::from(LONG)) / ONE_LONG_IN as f64;
    let rate = share * f64::from(SLOTS) * NODES.len() as f64 / (mean * STEP.as_secs_f64());
    let mut at = 0.0;
    let mut arrivals = Vec::new();
    loop {
        at += random.exponential(1.0 / rate);
        if at > SECONDS {
            return arrivals;
        }
        let tokens = if random.below(ONE_LONG_IN) == 0 { LONG } else { SHORT };
        arrivals.push(Arrival { at: Duration::from_secs_f64(at), tokens });
    }
}

fn singles() -> Vec<Arrival> {
    (0..SINGLES).map(|number| Arrival { at: Duration::from_millis(50 * number as u64), tokens: 1 }).collect()
}

/// Milliseconds from question to first token, less the one step that it takes at the least.
fn waits(firsts: impl IntoIterator<Item = Duration>) -> Summary {
    Summary::of(firsts.into_iter().map(|first| first.saturating_sub(STEP).as_secs_f64() * 1000.0))
}

async fn real(root: &str, arrivals: &[Arrival]) -> Summary {
    let begun = Instant::now();
    let mut asking = JoinSet::new();
    let root = channel(root).await;
    for (number, arrival) in arrivals.iter().copied().enumerate() {
        let root = root.clone();
        asking.spawn(async move {
            sleep_until(begun + arrival.at).await;
            let asked = Instant::now();
            let prompt = format!("[[count {}]]", arrival.tokens);
            let sampling = v1::Sampling { top_p: 1.0, repetition_penalty: 1.0, seed: number as u64, ..Default::default() };
            let generation = v1::Generation {
                prompt: Some(v1::generation::Prompt::Text(prompt)),
                max_tokens: arrival.tokens,
                sampling: Some(sampling),
                ..Default::default()
            };
            let mut answer = put_over(root, QueryId::new(), &generation).await;
            answer.read_tokens(1).await;
            let first = asked.elapsed();
            assert!(matches!(answer.end().await, Ended::Finished(_)), "an answer did not finish");
            first
        });
    }
    waits(asking.join_all().await)
}

/// On a thread of its own: within a runtime its channels would give way to other tasks now and then, of which there are none.
fn simulated(arrivals: &[Arrival], client: u64) -> Summary {
    std::thread::scope(|scope| scope.spawn(|| simulate(arrivals, client)).join().expect("the simulation does not panic"))
}

fn simulate(arrivals: &[Arrival], client: u64) -> Summary {
    let engine = fake::Options { batch_max: SLOTS, token_time: STEP, ..fake::Options::default() };
    let number =
        |name: &str| if name == "root" { 0 } else { 1 + NODES.iter().position(|(node, _)| *node == name).expect("a node") };
    let root = Plan { name: "root".parse().expect("a name"), parent: None, engine: None, busy_at: None };
    let node = |(name, parent): &(&str, &str)| Plan {
        name: name.parse().expect("a name"),
        parent: Some(number(parent)),
        engine: Some(engine.clone()),
        busy_at: None,
    };
    let plans: Vec<Plan> = std::iter::once(root).chain(NODES.iter().map(node)).collect();
    let mut world = World::new(Setup { client, ..Setup::new(SEED) }, &plans);
    assert!(world.run_until(30 * SECOND, World::is_settled), "the tree is attached");
    for arrival in arrivals {
        let wish = Wish { owner: 0, model: "", prompt_tokens: 2, tokens: arrival.tokens, deadline_ms: 60_000, priority: 0 };
        world.ask_later(arrival.at.as_nanos() as u64, wish);
    }
    world.run_for((SECONDS * 1.2) as u64 * SECOND);
    assert!(world.run_until(120 * SECOND, World::is_quiet), "all is answered");
    world.verdict().expect("nothing goes wrong");
    waits(world.figures.first_token.iter().map(|nanos| Duration::from_nanos(*nanos)))
}

#[tokio::main]
async fn main() {
    let registry = Banyan::start("registry serve --listen 127.0.0.1:0");
    let etcd = registry.fact("etcd").await;
    let root = Banyan::start(&format!("node run root --listen 127.0.0.1:0 --etcd {etcd}"));
    let ready = root.printed("is ready at ").await;
    let address = ready.split("is ready at ").nth(1).and_then(|rest| rest.split(": ").next()).expect("an address").to_owned();
    let mut nodes = Vec::new();
    for (name, parent) in NODES {
        let step = STEP.as_millis();
        nodes.push(Banyan::start(&format!(
            "node run {name} --parent {parent} --engine fake --token-time {step}ms --batch {SLOTS} --busy-at {SLOTS} \
             --listen 127.0.0.1:0 --etcd {etcd}"
        )));
    }
    let slots = SLOTS * NODES.len() as u32;
    eventually("all nodes are attached and report their room", || async {
        status(&address, "").await.filter(|status| status.room == slots).map(|_| ())
    })
    .await;
    real(&address, &singles()).await;

    let single = real(&address, &singles()).await;
    let bare = simulated(&singles(), 0);
    let client = ((single.p50 - bare.p50).max(0.0) * 1e6) as u64;
    println!(
        "A single question to an idle tree: {:.2} ms real, {:.2} ms simulated before, the rest is the client's.\n",
        single.p50, bare.p50
    );
    println!("| load | questions | | mean | p50 | p90 | p99 |");
    println!("|---|---|---|---|---|---|---|");
    for load in LOADS {
        let arrivals = arrivals(load);
        let (real, simulated) = (real(&address, &arrivals).await, simulated(&arrivals, client));
        let row = |what: &str, one: Summary| {
            let head = if what == "real" { format!("{:.0} % | {}", load * 100.0, one.count) } else { " | ".to_owned() };
            println!("| {head} | {what}, ms | {:.1} | {:.1} | {:.1} | {:.1} |", one.mean, one.p50, one.p90, one.p99);
        };
        row("real", real);
        row("simulated", simulated);
        let error =
            |real: f64, simulated: f64| format!("{:+.1} ms, {:+.0} %", simulated - real, 100.0 * (simulated / real - 1.0));
        println!(
            "| | | error | {} | {} | {} | {} |",
            error(real.mean, simulated.mean),
            error(real.p50, simulated.p50),
            error(real.p90, simulated.p90),
            error(real.p99, simulated.p99)
        );
    }
}
