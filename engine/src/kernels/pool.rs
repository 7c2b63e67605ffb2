//! Threads that share the work of one engine's step.
//!
//! A step is some sixty short parallel regions, so workers spin briefly between them, then park: a spinning thread whose core
//! another process wants costs more than a wake-up. Each thread has a run of consecutive tasks, whose memory lies together, and
//! takes from the others' ends when it has none left, so that a thread whose core is taken away for a moment holds up little.
//! Which thread does which task never decides a result's bits, because no kernel splits a sum over tasks.

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};

use super::part;

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
    /// The tasks that nobody has taken, a run for each thread; the first is the caller's. Written as `job` is.
    runs: Vec<Run>,
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

/// Consecutive tasks: the first, and the one after the last, in the lower and upper half. Two threads' runs never share a line
/// of the cache.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Run(AtomicU64);

impl Run {
    fn set(&self, tasks: Range<usize>) {
        self.0.store(tasks.start as u64 | (tasks.end as u64) << 32, SeqCst);
    }

    fn take_first(&self) -> Option<usize> {
        self.take(|first, end| (first, first + 1, end))
    }

    fn take_last(&self) -> Option<usize> {
        self.take(|first, end| (end - 1, first, end - 1))
    }

    /// `taken` says which of a run's tasks to take, and what is left.
    fn take(&self, taken: impl Fn(u64, u64) -> (u64, u64, u64)) -> Option<usize> {
        let mut now = self.0.load(SeqCst);
        loop {
            let (first, end) = (now & 0xffff_ffff, now >> 32);
            if first >= end {
                return None;
            }
            let (task, first, end) = taken(first, end);
            match self.0.compare_exchange_weak(now, first | end << 32, SeqCst, SeqCst) {
                Ok(_) => return Some(task as usize),
                Err(changed) => now = changed,
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").finish_non_exhaustive()
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
            job: UnsafeCell::new(Job { task: &|_| {} }),
            runs: (0..=workers).map(|_| Run::default()).collect(),
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
        assert!(u32::try_from(tasks).is_ok(), "tasks are counted in 32 bits");
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
        unsafe { *shared.job.get() = Job { task: task_static } };
        for (thread, run) in shared.runs.iter().enumerate() {
            run.set(part(tasks, thread, shared.runs.len()));
        }
        shared.open.store(true, SeqCst);
        shared.generation.fetch_add(1, SeqCst);
        for (sleeping, worker) in shared.sleeping.iter().zip(&self.workers) {
            if sleeping.swap(false, SeqCst) {
                Thread::unpark(worker.thread());
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| shared.take_tasks(0, task)));
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
    /// Does the tasks of a thread's run, and then those of the others that nobody has taken.
    fn take_tasks(&self, thread: usize, task: &(dyn Fn(usize) + Sync)) {
        while let Some(index) = self.runs[thread].take_first() {
            task(index);
        }
        for other in 1..self.runs.len() {
            while let Some(index) = self.runs[(thread + other) % self.runs.len()].take_last() {
                task(index);
            }
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
                if catch_unwind(AssertUnwindSafe(|| self.take_tasks(index + 1, job.task))).is_err() {
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
