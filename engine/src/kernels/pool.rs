//! Threads that share the work of one engine's step.
//!
//! A step is some sixty short parallel regions, so workers spin briefly between them, then park: a spinning thread whose core
//! another process wants costs more than a wake-up. Which thread does which task never decides a result's bits, because no
//! kernel splits a sum over tasks.

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};

/// How often a worker looks before it parks: some tens of microseconds, longer than the gaps within a step and shorter than
/// a scheduler's time slice.
const SPINS: u32 = 2_000;
/// More threads than any machine has cores are a mistake.
const THREADS_MAX: usize = 1024;

/// A number of threads, the caller of [`Pool::run`] among them.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// One region at a time; a region within a region runs on its own thread alone.
    entrance: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Written by the caller of `run` while `open` is false and `inside` is 0; read by workers that are inside while it is open.
    job: UnsafeCell<Job>,
    /// The next task that nobody has taken.
    next: AtomicUsize,
    /// Whether workers may enter the job.
    open: AtomicBool,
    /// Workers that are looking at the job, or are about to see that they may not.
    inside: AtomicUsize,
    /// Counts jobs, so that a worker enters each once.
    generation: AtomicUsize,
    panicked: AtomicBool,
    ending: AtomicBool,
    sleeping: Vec<AtomicBool>,
}

#[derive(Clone, Copy)]
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    tasks: usize,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("tasks", &self.tasks).finish_non_exhaustive()
    }
}

// SAFETY: `job` is the only part that is not `Sync` by itself; the protocol of `open` and `inside` in `Pool::run` and
// `Shared::work` keeps its one writer and its readers apart.
unsafe impl Sync for Shared {}
// SAFETY: the closure in `job` is `Sync`, so that other threads may call it.
unsafe impl Send for Shared {}

impl Pool {
    /// Starts `threads - 1` workers; with one thread everything runs inline.
    pub(crate) fn new(threads: usize) -> std::io::Result<Pool> {
        let workers = threads.clamp(1, THREADS_MAX) - 1;
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(Job { task: &|_| {}, tasks: 0 }),
            next: AtomicUsize::new(0),
            open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            sleeping: (0..workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Pool { shared: Arc::clone(&shared), entrance: Mutex::new(()), workers: Vec::with_capacity(workers) };
        for index in 0..workers {
            let shared = Arc::clone(&shared);
            // Where one thread fails to start, dropping the pool ends the others.
            pool.workers.push(thread::Builder::new().name(format!("engine-{index}")).spawn(move || shared.work(index))?);
        }
        Ok(pool)
    }

    /// How many threads there are.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` with each of `0..tasks` once, on whichever thread is free, and returns when all are done. A panic in a
    /// task goes on in the caller, after the other tasks.
    pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let guard = if self.workers.is_empty() || tasks <= 1 { None } else { self.entrance.try_lock().ok() };
        if guard.is_none() {
            return (0..tasks).for_each(task);
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed, and no worker calls `task` after this function returns: `open` is false and
        // `inside` was seen to be 0 by then, and nothing in between unwinds.
        let task_static = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        // SAFETY: the entrance lock makes this the only writer; `open` is false and `inside` was 0 after it became so, hence
        // a worker that is inside by now will find it closed and not read.
        unsafe { *shared.job.get() = Job { task: task_static, tasks } };
        shared.next.store(0, SeqCst);
        shared.open.store(true, SeqCst);
        shared.generation.fetch_add(1, SeqCst);
        for (sleeping, worker) in shared.sleeping.iter().zip(&self.workers) {
            if sleeping.swap(false, SeqCst) {
                Thread::unpark(worker.thread());
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| shared.take_tasks(task, tasks)));
        shared.open.store(false, SeqCst);
        while shared.inside.load(SeqCst) != 0 {
            spin_loop();
        }
        let theirs = shared.panicked.swap(false, SeqCst);
        drop(guard);
        if let Err(panic) = mine {
            resume_unwind(panic);
        }
        assert!(!theirs, "a task of a worker panicked");
    }
}

impl Shared {
    fn take_tasks(&self, task: &(dyn Fn(usize) + Sync), tasks: usize) {
        loop {
            let index = self.next.fetch_add(1, SeqCst);
            if index >= tasks {
                return;
            }
            task(index);
        }
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        while !self.ending.load(SeqCst) {
            let generation = self.generation.load(SeqCst);
            if generation == seen {
                self.wait(index, seen);
                continue;
            }
            seen = generation;
            self.inside.fetch_add(1, SeqCst);
            if self.open.load(SeqCst) {
                // SAFETY: `inside` was raised before `open` was seen, so the caller waits for us before it writes again or
                // lets the closure go.
                let job = unsafe { *self.job.get() };
                if catch_unwind(AssertUnwindSafe(|| self.take_tasks(job.task, job.tasks))).is_err() {
                    self.panicked.store(true, SeqCst);
                }
            }
            self.inside.fetch_sub(1, SeqCst);
        }
    }

    fn wait(&self, index: usize, seen: usize) {
        for _ in 0..SPINS {
            if self.generation.load(SeqCst) != seen || self.ending.load(SeqCst) {
                return;
            }
            spin_loop();
        }
        self.sleeping[index].store(true, SeqCst);
        // Look again: whoever published before the flag was up did not see it, and whoever does so later will unpark.
        if self.generation.load(SeqCst) == seen && !self.ending.load(SeqCst) {
            thread::park();
        }
        self.sleeping[index].store(false, SeqCst);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ending.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its tasks' panics, so it can't have ended by one.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_with_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 100] {
                for _ in 0..200 {
                    let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(tasks, &|task| {
                        counts[task].fetch_add(1, SeqCst);
                    });
                    assert!(counts.iter().all(|count| count.load(SeqCst) == 1));
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
        let pool = Pool::new(2).unwrap();
        for bad in 0..8 {
            let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|task| assert_ne!(task, bad))));
            assert!(outcome.is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(8, &|_| {
            count.fetch_add(1, SeqCst);
        });
        assert_eq!(count.load(SeqCst), 8);
    }
}
