//! Threads that share the work of the engines' steps.
//!
//! A process has one set of [`Workers`], one less than it has cores, and each engine has a [`Pool`]: its door to them. A step is
//! some sixty short parallel regions. A worker joins whatever region is open, so an idle engine's cores serve a busy one; but
//! only while the engines that are busy and the workers together are no more than the cores: two busy engines on two cores
//! compute on their own threads alone, and nobody spins on a core that another could compute on.
//!
//! Workers spin briefly between regions, then park: a spinning thread whose core another process wants costs more than a
//! wake-up. Each thread has a run of consecutive tasks, whose memory lies together, and takes from the others' ends when it has
//! none left, so that a thread whose core is taken away for a moment holds up little. Which thread does which task, and how many
//! there are, never decides a result's bits, because no kernel splits a sum over tasks.

mod region;
mod workers;

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard};

use workers::{Lease, Workers};

/// An engine's threads: the caller of [`Pool::run`], and workers that join it.
#[derive(Debug)]
pub(crate) struct Pool {
    workers: Arc<Workers>,
    threads_max: usize,
    /// One region at a time; a region within a region runs on its own thread alone.
    door: Mutex<Door>,
}

#[derive(Debug, Default)]
struct Door {
    /// Whether the caller counts as busy between its regions too.
    staying: bool,
    lease: Option<Lease>,
}

impl Pool {
    /// A pool with workers of its own, for tests and for what is measured alone; with one thread everything runs inline.
    pub(crate) fn new(threads: usize) -> std::io::Result<Pool> {
        Ok(Pool::of(Arc::new(Workers::start(threads)?), threads))
    }

    /// The caller and at most `threads - 1` of the workers that this process's engines share.
    pub(crate) fn shared(threads: usize) -> std::io::Result<Pool> {
        Ok(Pool::of(Workers::of_process()?, threads))
    }

    fn of(workers: Arc<Workers>, threads: usize) -> Pool {
        let threads_max = threads.clamp(1, workers.cores());
        Pool { workers, threads_max, door: Mutex::default() }
    }

    /// How many threads a region has at most, as long as nobody else becomes busy or idle.
    pub(crate) fn threads(&self) -> usize {
        self.workers.share(self.threads_max)
    }

    /// From now on the caller counts as busy between its regions too, so that no worker takes its core there.
    pub(crate) fn stay(&self) {
        let mut door = self.door();
        if !std::mem::replace(&mut door.staying, true) {
            self.workers.enter();
        }
    }

    /// The caller is going to wait: until its next region its core is the others'.
    pub(crate) fn rest(&self) {
        let mut door = self.door();
        if std::mem::replace(&mut door.staying, false) {
            self.leave(&mut door);
        }
    }

    /// Calls `task` with each of `0..tasks` once, on whichever thread is free, and returns when all are done. A panic in a
    /// task goes on in the caller.
    pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        assert!(u32::try_from(tasks).is_ok(), "tasks are counted in 32 bits");
        let alone = self.threads_max == 1 || tasks <= 1;
        let door = if alone { None } else { self.door.try_lock().ok() };
        let Some(mut door) = door else { return (0..tasks).for_each(task) };
        if !door.staying {
            self.workers.enter();
        }
        let threads = self.threads();
        if threads > 1 && door.lease.is_none() {
            door.lease = self.workers.lease();
        }
        let outcome = match &mut door.lease {
            Some(lease) if threads > 1 => self.workers.run(lease, threads, tasks, task),
            _ => region::inline(tasks, task),
        };
        if !door.staying {
            self.leave(&mut door);
        }
        drop(door);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    }

    fn leave(&self, door: &mut Door) {
        if let Some(lease) = door.lease.take() {
            self.workers.give_back(lease);
        }
        self.workers.leave();
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().expect("nothing unwinds while it is held: what tasks panic with is caught")
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.rest();
    }
}

#[cfg(test)]
mod tests;
