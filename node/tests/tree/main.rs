//! Random trees, loads, joins and losses through the production router and ledger, with messages that arrive in any order
//! between links and in order on each. No clock, no tasks: a case replays from its seed.

mod world;

use banyan_node::Routing;
use proptest::prelude::*;

use self::world::World;

const MODELS: [&str; 2] = ["small", "large"];

/// One thing that happens next; the numbers pick among what is possible then.
#[derive(Clone, Debug)]
enum Step {
    Ask {
        model: u8,
        owner: u8,
        tokens: u8,
    },
    ClientLeaves(u8),
    Deliver(u16),
    Compute(u8),
    Report(u8),
    Join {
        below: u8,
        model: u8,
        busy_at: u8,
        batch: u8,
    },
    Kill(u8),
    /// A node's Deliver stream breaks and comes back.
    Blip(u8),
    /// A node's engine fails with all that it runs.
    Fail(u8),
    /// Another Deliver stream of a node takes over from one that was cut: of what was on its way, so much still arrives.
    Detour(u8, u8),
    /// A node begins to leave.
    Drain(u8),
    /// The deadline of one that is leaving passes.
    Leave(u8),
    /// A node attaches to another parent before it lets go of its own.
    Move(u8, u8),
    /// The root dies, and another one takes its place.
    Failover,
    /// The root's key is lost and taken again.
    Reign,
    /// A client loses its stream, or attaches again.
    Detach(u8),
    Time,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<u8>(), 0u8..3, 1u8..6).prop_map(|(model, owner, tokens)| Step::Ask { model, owner, tokens }),
        1 => any::<u8>().prop_map(Step::ClientLeaves),
        20 => any::<u16>().prop_map(Step::Deliver),
        10 => any::<u8>().prop_map(Step::Compute),
        6 => any::<u8>().prop_map(Step::Report),
        1 => (any::<u8>(), any::<u8>(), 1u8..4, 0u8..4).prop_map(|(below, model, busy_at, more)| Step::Join {
            below,
            model,
            busy_at,
            batch: busy_at + more
        }),
        1 => any::<u8>().prop_map(Step::Kill),
        1 => any::<u8>().prop_map(Step::Blip),
        1 => any::<u8>().prop_map(Step::Fail),
        1 => any::<(u8, u8)>().prop_map(|(which, arrive)| Step::Detour(which, arrive)),
        1 => any::<u8>().prop_map(Step::Drain),
        1 => any::<u8>().prop_map(Step::Leave),
        1 => any::<(u8, u8)>().prop_map(|(which, below)| Step::Move(which, below)),
        1 => Just(Step::Failover),
        1 => Just(Step::Reign),
        1 => any::<u8>().prop_map(Step::Detach),
        1 => Just(Step::Time),
    ]
}

fn routing() -> impl Strategy<Value = Routing> {
    prop_oneof![Just(Routing::RoundRobin), Just(Routing::Weighted), Just(Routing::LeastBusy), Just(Routing::Classic)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_query_is_answered_once_in_order_and_none_waits_while_a_node_idles(
        routing in routing(),
        nodes in proptest::collection::vec((any::<u8>(), any::<u8>(), 1u8..4, 0u8..4), 1..8),
        steps in proptest::collection::vec(step(), 1..400),
    ) {
        let mut world = World::new(routing);
        for (below, model, busy_at, more) in nodes {
            world.join(below, model, busy_at, busy_at + more);
        }
        for step in steps {
            world.step(step);
        }
        world.settle();
        world.nobody_waits_while_a_node_idles();
        world.run_dry();
    }
}
