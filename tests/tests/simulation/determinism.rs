//! The same seed gives the same world, to the last bit: in one process twice, where every hash map has another seed, and on
//! any thread.

use std::thread;

use banyan_tests::random::Random;
use banyan_tests::simulator::{Lengths, Load, ROOT, SECOND, Setup, World, scattered};

use super::engine;

/// A world with faults of every kind, and what stands for all that happened in it.
fn trace(seed: u64) -> (u64, u64) {
    let mut random = Random::new(seed);
    let plans = scattered(20, &mut random, |node| engine(["small", "large"][node % 2], 3, 20));
    let mut world = World::new(Setup { whole_trace: true, ..Setup::new(seed) }, &plans);
    world.run_for(3 * SECOND);
    let load = Load {
        owners: 3,
        models: vec!["small", "large", ""],
        leaving: 0.1,
        ..Load::new(80.0, world.now() + 8 * SECOND, Lengths::Between(1, 40))
    };
    world.offer(load);
    for round in 0..8 {
        let alive = world.alive();
        let victim = alive[random.below(alive.len())];
        match round % 4 {
            0 => world.kill(victim),
            1 => world.reset(victim),
            2 => world.sever(victim, ROOT),
            3 if round > 4 => world.fail_over(SECOND / 2),
            _ => world.isolate(&world.subtree(victim)),
        }
        world.run_for(SECOND);
        world.heal();
        world.restart(victim);
    }
    world.run_for(10 * SECOND);
    (world.trace(), world.figures.events)
}

#[test]
fn a_seed_gives_the_same_world_twice_and_another_seed_another() {
    let first = trace(1);
    assert!(first.1 > 10_000, "hardly anything happened: {} events", first.1);
    assert_eq!(trace(1), first);
    assert_ne!(trace(2), first);
}

#[test]
fn a_seed_gives_the_same_world_on_every_thread() {
    let expected: Vec<_> = (10..14).map(trace).collect();
    let threads: Vec<_> = (10..14).map(|seed| thread::spawn(move || trace(seed))).collect();
    let found: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("a world does not panic")).collect();
    assert_eq!(found, expected);
}
