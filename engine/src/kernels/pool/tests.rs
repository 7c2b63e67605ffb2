//! What regions do, and which threads do it. Tasks that wait for each other prove that threads run at once; nothing is timed.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{self, ThreadId};

use super::*;

/// Miri interprets.
const ROUNDS: usize = if cfg!(miri) { 5 } else { 500 };

fn engines(cores: usize, threads: &[usize]) -> Vec<Pool> {
    let workers = Arc::new(Workers::start(cores).unwrap());
    threads.iter().map(|&threads| Pool::of(Arc::clone(&workers), threads)).collect()
}

/// Runs as many tasks as threads, which are done when all have begun.
fn meet(pool: &Pool, threads: usize) -> HashSet<ThreadId> {
    let (met, ran) = (Barrier::new(threads), Mutex::default());
    pool.run(threads, &|_| {
        let added: bool = HashSet::insert(&mut ran.lock().unwrap(), thread::current().id());
        assert!(added, "a thread that waits takes no second task");
        met.wait();
    });
    ran.into_inner().unwrap()
}

/// The threads that run so many tasks.
fn ran_by(pool: &Pool, tasks: usize) -> HashSet<ThreadId> {
    let ran = Mutex::default();
    pool.run(tasks, &|_| {
        HashSet::insert(&mut ran.lock().unwrap(), thread::current().id());
    });
    ran.into_inner().unwrap()
}

fn each_runs_once(pool: &Pool, tasks: usize) {
    let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(tasks, &|task| {
        counts[task].fetch_add(1, SeqCst);
    });
    assert!(counts.iter().all(|count| count.load(SeqCst) == 1));
}

#[test]
fn every_task_runs_once_with_any_number_of_threads() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads).unwrap();
        for tasks in [0, 1, 2, 7, 100] {
            for _ in 0..ROUNDS {
                each_runs_once(&pool, tasks);
            }
        }
    }
}

#[test]
fn a_region_within_a_region_runs_inline() {
    let pool = Pool::new(3).unwrap();
    let count = AtomicUsize::new(0);
    pool.run(4, &|_| {
        pool.run(5, &|_| {
            count.fetch_add(1, SeqCst);
        });
    });
    assert_eq!(count.load(SeqCst), 20);
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    for threads in [1, 2] {
        let pool = Pool::new(threads).unwrap();
        for bad in 0..8 {
            let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|task| assert_ne!(task, bad))));
            assert!(outcome.is_err());
        }
        each_runs_once(&pool, 8);
    }
}

#[test]
fn an_idle_engines_threads_serve_the_other() {
    let engines = engines(2, &[2, 2]);
    for _ in 0..ROUNDS {
        for one in &engines {
            // Also while it stays, as an engine does from step to step.
            one.stay();
            assert_eq!((one.threads(), meet(one, 2).len()), (2, 2));
            one.rest();
            meet(one, 2);
        }
    }
}

#[test]
fn busy_engines_have_a_core_each_and_no_more() {
    let engines = engines(2, &[2, 2]);
    let me = HashSet::from([thread::current().id()]);
    for _ in 0..ROUNDS {
        for (one, other) in [(0, 1), (1, 0)] {
            let (one, other) = (&engines[one], &engines[other]);
            meet(one, 2);
            other.stay();
            assert_eq!(ran_by(one, 16), me);
            one.stay();
            assert_eq!((one.threads(), ran_by(one, 16), ran_by(other, 16)), (1, me.clone(), me.clone()));
            other.rest();
            meet(one, 2);
            one.rest();
        }
    }
}

#[test]
fn engines_at_once_and_their_workers_are_no_more_than_the_cores() {
    let engines = engines(5, &[5, 5]);
    engines.iter().for_each(Pool::stay);
    // Three cores each, and so a worker that either may have.
    assert_eq!(engines.iter().map(Pool::threads).collect::<Vec<_>>(), [3, 3]);
    let (here, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for engine in &engines {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    engine.run(40, &|_| {
                        most.fetch_max(here.fetch_add(1, SeqCst) + 1, SeqCst);
                        here.fetch_sub(1, SeqCst);
                    });
                }
            });
        }
    });
    assert!(most.load(SeqCst) <= 5, "{} at once", most.load(SeqCst));
}

#[test]
fn an_engine_has_no_more_threads_than_it_was_given() {
    let engines = engines(4, &[2, 9]);
    assert_eq!([engines[0].threads(), engines[1].threads()], [2, 4]);
    for _ in 0..ROUNDS {
        assert_eq!(meet(&engines[1], 4).len(), 4);
        assert!(ran_by(&engines[0], 16).len() <= 2);
    }
}

#[test]
fn more_engines_than_cores_compute_on_their_own_threads() {
    let engines = engines(3, &[3; 40]);
    thread::scope(|scope| {
        for engine in &engines {
            scope.spawn(|| {
                engine.stay();
                each_runs_once(engine, 9);
            });
        }
    });
    assert_eq!(ran_by(&engines[0], 9).len(), 1);
    engines.iter().for_each(Pool::rest);
    meet(&engines[39], 3);
}

#[test]
fn engines_come_and_go_and_no_task_is_lost() {
    let workers = Arc::new(Workers::start(4).unwrap());
    thread::scope(|scope| {
        for caller in 0..6 {
            let workers = &workers;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let pool = Pool::of(Arc::clone(workers), 1 + (caller + round) % 4);
                    for tasks in [1, 2, 30] {
                        if (caller * round) % 3 == 0 {
                            pool.stay();
                        }
                        each_runs_once(&pool, tasks);
                        if round % 2 == 0 {
                            pool.rest();
                        }
                    }
                }
            });
        }
    });
    assert_eq!(Pool::of(workers, 4).threads(), 4, "nobody is busy any more");
}

#[test]
fn the_engines_of_a_process_share_its_workers() {
    let [one, other] = [(); 2].map(|()| Pool::shared(2).unwrap());
    assert!(Arc::ptr_eq(&one.workers, &other.workers));
}
