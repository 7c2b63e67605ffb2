//! Many small worlds, each with a tree, a load and a nemesis of its own.

use std::{
    env,
    time::{Duration, Instant},
};

use banyan_node::Routing;
use banyan_tests::random::Random;
use banyan_tests::simulator::{Delay, Lengths, Load, ROOT, SECOND, Setup, World, scattered};

use super::engine;

/// Worlds of the short run.
const WORLDS: u64 = 150;
const MODELS: [&str; 2] = ["small", "large"];

/// How often the nemesis strikes.
struct Nemesis {
    /// Mean time between two faults, in seconds.
    pace: f64,
    kills: bool,
    pauses: bool,
    cuts: bool,
    moves: bool,
    drains: bool,
    slows: bool,
    failovers: bool,
}

#[test]
fn whatever_dies_stops_lags_or_moves_every_query_is_answered_once_or_fails_clearly() {
    if let Ok(seed) = env::var("BANYAN_TEST_SEED") {
        return judge(&[seed.parse().unwrap_or_else(|_| panic!("BANYAN_TEST_SEED={seed} is no number"))]);
    }
    judge(&(0..WORLDS).collect::<Vec<_>>());
    if let Ok(minutes) = env::var("BANYAN_TEST_LONG") {
        let minutes: u64 = minutes.parse().unwrap_or_else(|_| panic!("BANYAN_TEST_LONG={minutes} is no number of minutes"));
        let begun = Instant::now();
        let mut seed = WORLDS;
        while begun.elapsed() < Duration::from_secs(60 * minutes) {
            judge(&[seed]);
            seed += 1;
        }
        println!("{seed} worlds kept their promises");
    }
}

fn judge(seeds: &[u64]) {
    let broken = |seed: &u64| live(*seed).err().map(|broken| format!("BANYAN_TEST_SEED={seed} plays it again: {broken}"));
    let broken: Vec<String> = seeds.iter().filter_map(broken).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
}

/// A whole life of a world.
fn live(seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed ^ 0x5eed);
    let mut world = world(seed, &mut random);
    world.run_for(5 * SECOND);
    let nemesis = Nemesis {
        pace: random.between(0.3, 4.0),
        kills: random.chance(0.8),
        pauses: random.chance(0.5),
        cuts: random.chance(0.5),
        moves: random.chance(0.5),
        drains: random.chance(0.5),
        slows: random.chance(0.3),
        failovers: random.chance(0.4),
    };
    let until = world.now() + (10.0 * random.between(1.0, 3.0)) as u64 * SECOND;
    offer(&mut world, &mut random, until);
    while world.now() < until {
        let gap = random.exponential(nemesis.pace).min(10.0);
        world.run_for((gap * SECOND as f64) as u64);
        strike(&mut world, &nemesis, &mut random);
    }
    come_to_rest(&mut world)
}

fn world(seed: u64, random: &mut Random) -> World {
    let routings = [Routing::RoundRobin, Routing::RoundRobin, Routing::Weighted, Routing::LeastBusy];
    let setup = Setup {
        routing: routings[random.below(routings.len())],
        delay: Delay { least: 20_000 + random.below(2_000_000) as u64, jitter: random.below(3_000_000) as u64 },
        ..Setup::new(seed)
    };
    let nodes = 2 + random.below(24);
    let models = 1 + random.below(2);
    let (batch, step) = (1 + random.below(6) as u32, 5 + random.below(40) as u64);
    let plans = scattered(nodes, random, |node| engine(MODELS[node % models], batch, step));
    World::new(setup, &plans)
}

/// A load between a little and more than the world can take.
fn offer(world: &mut World, random: &mut Random, until: u64) {
    let rate = random.between(2.0, 60.0);
    let mut models = vec![""];
    models.extend(MODELS);
    let load = Load {
        owners: 1 + random.below(4) as u32,
        models: models.into_iter().take(1 + random.below(2)).collect(),
        deadline_ms: if random.chance(0.3) { 3_000 + random.below(20_000) as u64 } else { 300_000 },
        leaving: if random.chance(0.5) { 0.05 } else { 0.0 },
        ..Load::new(rate, until, Lengths::Mixed { short: 1 + random.below(20) as u32, long: 100, one_in: 10 })
    };
    world.offer(load);
}

fn strike(world: &mut World, nemesis: &Nemesis, random: &mut Random) {
    let alive = world.alive();
    // Somebody has to be left to answer.
    if alive.len() < 2 {
        return;
    }
    let victim = alive[random.below(alive.len())];
    match random.below(10) {
        0 | 1 if nemesis.kills => {
            world.kill(victim);
            if random.chance(0.7) {
                world.restart(victim);
            }
        }
        2 if nemesis.pauses => {
            world.pause(victim);
            let time = random.between(0.1, 6.0);
            world.run_for((time * SECOND as f64) as u64);
            world.go_on(victim);
        }
        3 if nemesis.cuts => {
            let other = if random.chance(0.5) { ROOT } else { alive[random.below(alive.len())] };
            if other != victim {
                world.sever(victim, other);
            }
        }
        4 if nemesis.cuts => world.reset(victim),
        5 if nemesis.cuts => world.heal(),
        6 if nemesis.moves => {
            let mut targets = alive.clone();
            targets.push(ROOT);
            let target = targets[random.below(targets.len())];
            if target != victim {
                world.relocate(victim, target);
            }
        }
        7 if nemesis.drains => world.drain(victim, random.below(5) as u64 * SECOND),
        // From a standby that is told to the lease of one that fell silent.
        9 if nemesis.failovers => world.fail_over((random.between(0.1, 6.0) * SECOND as f64) as u64),
        8 if nemesis.slows => world.slow_down(victim, random.between(0.5, 20.0)),
        _ => {}
    }
}

/// All is whole again, and nobody asks: in a while everything is at rest.
fn come_to_rest(world: &mut World) -> Result<(), String> {
    world.heal();
    // Whoever was told to leave does so.
    world.run_for(15 * SECOND);
    for node in 1..world.len() {
        world.slow_down(node, 1.0);
        world.restart(node);
    }
    let at_rest = |world: &World| world.is_quiet() && world.is_settled();
    for _ in 0..10 {
        world.run_until(600 * SECOND, at_rest);
        // What is under way arrives; somebody whose old lease only ends now may start, and be wanted by others.
        world.run_for(5 * SECOND);
        if at_rest(world) {
            return world.verdict();
        }
    }
    let away: Vec<String> = world.unsettled();
    Err(format!("not everybody went home: {}; {:?}", away.join("; "), world.verdict()))
}
