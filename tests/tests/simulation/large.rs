//! Ten thousand nodes: a steady load, mass joins, mass losses, a lost rack, moves, slow nodes, links that flap and another root,
//! in one life; and what a query costs as trees grow.

use std::time::Instant;

use banyan_tests::random::Random;
use banyan_tests::simulator::{Figures, Lengths, Load, Plan, RECOVERY, ROOT, SECOND, Setup, Summary, Wish, World, balanced};

use super::engine;

const NODES: usize = 10_000;
/// Children of each node: 10,000 nodes are five levels of them.
const FAN_OUT: usize = 10;
const SLOTS: u32 = 2;
const STEP_MS: u64 = 200;
const TOKENS: Lengths = Lengths::Between(2, 10);
const SEED: u64 = 20_26;

/// Questions per second that keep this share of so many nodes' slots busy.
fn rate(nodes: usize, share: f64) -> f64 {
    let seconds = TOKENS.mean() * STEP_MS as f64 / 1000.0;
    share * nodes as f64 * f64::from(SLOTS) / seconds
}

fn plant(nodes: usize, fan_out: usize) -> World {
    let mut world = World::new(Setup::new(SEED), &balanced(nodes, fan_out, &engine("m", SLOTS, STEP_MS)));
    assert!(world.run_until(60 * SECOND, World::is_settled), "not everybody is attached: {:?}", world.unsettled());
    world
}

/// What happened since.
fn since(world: &World, before: &Figures, begun: Instant, what: &str) {
    let (figures, seconds) = (&world.figures, begun.elapsed().as_secs_f64());
    let events = figures.events - before.events;
    let asked = (figures.asked - before.asked).max(1);
    let first = Summary::of(figures.first_token[before.first_token.len()..].iter().map(|nanos| *nanos as f64 / 1e6));
    println!(
        "{what}: {events} events in {seconds:.1} s ({:.0}/s); {} asked, {:.1} messages each; first token after {:.0} ms p50, \
         {:.0} ms p99; {:?}",
        events as f64 / seconds,
        figures.asked - before.asked,
        (figures.messages - before.messages) as f64 / asked as f64,
        first.p50,
        first.p99,
        figures.failed,
    );
}

#[test]
fn ten_thousand_nodes_join_serve_die_move_flap_and_lose_nothing() {
    let begun = Instant::now();
    let mut world = plant(NODES, FAN_OUT);
    since(&world, &Figures::default(), begun, "ten thousand nodes join");
    let mut random = Random::new(SEED);
    let end = world.now() + 14 * SECOND;
    world.offer(Load { owners: 50, ..Load::new(rate(NODES, 0.3), end, TOKENS) });

    let stage = |world: &mut World, seconds: u64, what: &str| {
        let (before, begun) = (world.figures.clone(), Instant::now());
        world.run_for(seconds * SECOND);
        since(world, &before, begun, what);
    };
    stage(&mut world, 3, "a steady load");

    let mut alive = world.alive();
    let dying: Vec<usize> = (0..NODES / 10).map(|_| alive.swap_remove(random.below(alive.len()))).collect();
    dying.iter().for_each(|&node| world.kill(node));
    stage(&mut world, 3, "one node of ten dies at once");

    // A rack: a node of the second level with all below it.
    let rack = world.subtree(15.max(FAN_OUT + 1));
    rack.iter().for_each(|&node| world.kill(node));
    stage(&mut world, 2, "a rack dies");

    dying.iter().chain(&rack).for_each(|&node| world.restart(node));
    for _ in 0..100 {
        let alive = world.alive();
        let (node, parent) = (alive[random.below(alive.len())], alive[random.below(alive.len())]);
        if node != parent {
            world.relocate(node, parent);
        }
    }
    stage(&mut world, 2, "a hundred nodes move, the dead are started again");

    for _ in 0..200 {
        let alive = world.alive();
        let node = alive[random.below(alive.len())];
        world.reset(node);
        world.slow_down(alive[random.below(alive.len())], 5.0);
        world.run_for(SECOND / 100);
    }
    stage(&mut world, 2, "two hundred links flap, two hundred nodes are slow");

    // All that runs is adopted. Who comes meanwhile waits at the root, whose lanes take a second of a smaller load.
    let end = world.now() + 3 * SECOND;
    world.offer(Load { owners: 50, ..Load::new(rate(NODES, 0.03), end, TOKENS) });
    world.fail_over(SECOND);
    stage(&mut world, 3, "another root takes its place");

    let (before, begun) = (world.figures.clone(), Instant::now());
    world.run_until(120 * SECOND, |world| world.is_quiet() && world.is_settled());
    world.run_for(RECOVERY);
    since(&world, &before, begun, "it comes to rest");
    assert!(world.is_settled(), "not everybody went home: {:?}", world.unsettled());
    if let Err(broken) = world.verdict() {
        panic!("{broken}");
    }
    let figures = &world.figures;
    assert_eq!(figures.answered + figures.failures(), figures.asked);
    assert!(figures.failures() * 1000 < figures.asked, "clear errors are for the few: {:?}", figures.failed);
    assert_eq!(world.alive().len(), NODES);
}

/// Messages and events for each query, in a tree of that size under the same load for each node.
fn cost(nodes: usize, fan_out: usize) -> (f64, f64) {
    let mut world = plant(nodes, fan_out);
    let before = world.figures.clone();
    let load = Load { owners: 5, ..Load::new(rate(nodes, 0.5), world.now() + 4 * SECOND, Lengths::Fixed(5)) };
    world.offer(load);
    world.run_for(4 * SECOND);
    assert!(world.run_until(30 * SECOND, World::is_quiet), "answers are outstanding");
    world.verdict().expect("nothing goes wrong");
    let asked = (world.figures.asked - before.asked) as f64;
    ((world.figures.messages - before.messages) as f64 / asked, (world.figures.events - before.events) as f64 / asked)
}

#[test]
fn a_query_costs_what_its_depth_costs_however_large_the_tree() {
    let (small, large) = (cost(110, 10), cost(1110, 10));
    println!("messages and events for each query: {small:?} of 110 nodes, {large:?} of 1110");
    // One level more is a message down, and reports up that are shared.
    assert!(large.0 < small.0 + 4.0, "{large:?} against {small:?}");
}

#[test]
fn a_root_with_a_thousand_children_of_its_own_serves_them() {
    let begun = Instant::now();
    let plans: Vec<Plan> = balanced(1000, 1000, &engine("m", SLOTS, STEP_MS));
    let mut world = World::new(Setup::new(SEED), &plans);
    assert!(world.run_until(60 * SECOND, World::is_settled), "not everybody is attached");
    assert!((1..=1000).all(|node| world.parent(node) == Some(ROOT)));
    let before = world.figures.clone();
    world.offer(Load { owners: 5, ..Load::new(rate(1000, 0.8), world.now() + 4 * SECOND, TOKENS) });
    world.run_for(4 * SECOND);
    since(&world, &before, begun, "a thousand children");
    assert!(world.run_until(60 * SECOND, World::is_quiet), "answers are outstanding");
    world.verdict().expect("nothing goes wrong");
}

#[test]
fn no_slot_is_empty_for_a_step_while_somebody_waits_for_it() {
    let mut world = plant(1, 1);
    let rounds = 20;
    for number in 0..SLOTS * rounds {
        let wish = Wish { owner: number % 3, model: "", prompt_tokens: 1, tokens: 5, deadline_ms: 60_000, priority: 0 };
        world.ask_later(SECOND / 1000, wish);
    }
    // Five steps a round, and one more: the first may have begun with fewer than all.
    world.run_for(u64::from(rounds * 5 + 1) * (STEP_MS + 1) * SECOND / 1000);
    assert!(world.is_quiet(), "answers are outstanding");
    world.verdict().expect("nothing goes wrong");
}
