//! The workers of a process, and how many of them may work.

use std::hint::spin_loop;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use super::region::{Panic, Region};
use crate::threads;

/// How often a worker looks before it parks: some tens of microseconds, longer than the gaps within a step and shorter than
/// a scheduler's time slice. So long a caller also waits for a worker before it lets others have its core.
const SPINS: u32 = 2_000;
/// More threads than any machine has cores are a mistake.
const CORES_MAX: usize = 1024;
/// Callers whom workers join at once. With more of them, there are few cores for each.
const REGIONS_MAX: usize = 16;

/// Threads that join regions, one less than there are cores.
#[derive(Debug)]
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A region of one's own, until it is given back.
#[derive(Debug)]
pub(super) struct Lease(usize);

#[derive(Debug)]
struct Shared {
    cores: usize,
    crowd: Crowd,
    regions: Box<[Region]>,
    places: Box<[Place]>,
    /// Workers that park. Rarely written, so that a caller sees them all by one line of the cache.
    asleep: Box<[AtomicBool]>,
    leased: Box<[AtomicBool]>,
    ending: AtomicBool,
}

/// What all threads read and few write.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Crowd {
    /// Callers that are busy.
    callers: AtomicUsize,
    /// Regions from the first on that were ever leased.
    regions: AtomicUsize,
}

/// Where a worker is: one more than the region's number, or 0. Nobody else writes there.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Place(AtomicUsize);

impl Workers {
    /// Starts the workers for so many cores.
    pub(super) fn start(cores: usize) -> io::Result<Workers> {
        let cores = cores.clamp(1, CORES_MAX);
        let regions = REGIONS_MAX.min(cores);
        let shared = Arc::new(Shared {
            cores,
            crowd: Crowd::default(),
            regions: (0..regions).map(|_| Region::new(cores)).collect(),
            places: (1..cores).map(|_| Place::default()).collect(),
            asleep: (1..cores).map(|_| AtomicBool::new(false)).collect(),
            leased: (0..regions).map(|_| AtomicBool::new(false)).collect(),
            ending: AtomicBool::new(false),
        });
        let mut workers = Workers { shared: Arc::clone(&shared), threads: Vec::with_capacity(cores - 1) };
        for index in 0..cores - 1 {
            let shared = Arc::clone(&shared);
            // Where one thread fails to start, dropping the others ends them.
            workers.threads.push(thread::Builder::new().name(format!("engine-{index}")).spawn(move || shared.work(index))?);
        }
        Ok(workers)
    }

    /// Those that this process's engines share; they end with the last who has them.
    pub(super) fn of_process() -> io::Result<Arc<Workers>> {
        static SHARED: Mutex<Weak<Workers>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(workers) = shared.upgrade() {
            return Ok(workers);
        }
        let workers = Arc::new(Workers::start(threads::available())?);
        *shared = Arc::downgrade(&workers);
        Ok(workers)
    }

    pub(super) fn cores(&self) -> usize {
        self.shared.cores
    }

    /// One caller more is busy.
    pub(super) fn enter(&self) {
        self.shared.crowd.callers.fetch_add(1, SeqCst);
    }

    /// And one less.
    pub(super) fn leave(&self) {
        self.shared.crowd.callers.fetch_sub(1, SeqCst);
    }

    /// How many threads each busy caller may have, itself among them: as many as all, and at most `threads_max`.
    pub(super) fn share(&self, threads_max: usize) -> usize {
        let callers = self.shared.crowd.callers.load(SeqCst);
        threads_max.min(self.shared.cores.div_ceil(callers.max(1)))
    }

    /// A region, where one is free.
    pub(super) fn lease(&self) -> Option<Lease> {
        let mut leased = self.shared.leased.iter();
        let free = leased.position(|leased| !leased.load(SeqCst) && !leased.swap(true, SeqCst))?;
        self.shared.crowd.regions.fetch_max(free + 1, SeqCst);
        Some(Lease(free))
    }

    pub(super) fn give_back(&self, lease: Lease) {
        self.shared.leased[lease.0].store(false, SeqCst);
    }

    /// Does all tasks on so many threads at most.
    pub(super) fn run(
        &self,
        lease: &mut Lease,
        threads: usize,
        tasks: usize,
        task: &(dyn Fn(usize) + Sync),
    ) -> Result<(), Panic> {
        let (shared, region) = (&*self.shared, lease.0);
        let opened = || self.wake(region, threads - 1);
        let wait = || shared.places.iter().for_each(|place| place.wait_until_left(region));
        // SAFETY: a lease is one caller's, which lends it for this call alone.
        unsafe { shared.regions[region].call(threads, tasks, task, opened, wait) }
    }

    /// Sees to it that so many workers look for work, where so many may: those that are awake count if they are not in another
    /// region.
    fn wake(&self, region: usize, wanted: usize) {
        let shared = &*self.shared;
        let asleep = &shared.asleep[..shared.allowed()];
        if !asleep.iter().any(|asleep| asleep.load(SeqCst)) {
            return;
        }
        let here =
            |worker: &usize| !asleep[*worker].load(SeqCst) && [0, region + 1].contains(&shared.places[*worker].0.load(SeqCst));
        let mut missing = wanted.saturating_sub((0..asleep.len()).filter(here).count());
        for (asleep, thread) in asleep.iter().zip(&self.threads) {
            if missing > 0 && asleep.swap(false, SeqCst) {
                thread.thread().unpark();
                missing -= 1;
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.ending.store(true, SeqCst);
        for worker in self.threads.drain(..) {
            worker.thread().unpark();
            // A worker catches its tasks' panics, so it can't have ended by one.
            let _ = worker.join();
        }
    }
}

impl Place {
    fn wait_until_left(&self, region: usize) {
        let mut spins = 0;
        while self.0.load(SeqCst) == region + 1 {
            spins += 1;
            // Its core may have been taken away, for this very thread.
            if spins < SPINS { spin_loop() } else { thread::yield_now() }
        }
    }
}

impl Shared {
    /// How many workers, from the first on, may work or look for work: the cores that busy callers leave.
    fn allowed(&self) -> usize {
        self.cores.saturating_sub(self.crowd.callers.load(SeqCst)).min(self.places.len())
    }

    fn work(&self, index: usize) {
        let mut seen = vec![0; self.regions.len()];
        while !self.ending.load(SeqCst) {
            while self.finds_work(index, &mut seen) {}
            self.asleep[index].store(true, SeqCst);
            // Look again: whoever opened a region before the flag was up did not see it, and whoever does so later will unpark.
            if !self.ending.load(SeqCst) && self.open(index, &seen).is_none() {
                thread::park();
            }
            self.asleep[index].store(false, SeqCst);
        }
    }

    /// Looks for a region to join, for a while. False: there was none.
    fn finds_work(&self, index: usize, seen: &mut [u64]) -> bool {
        for _ in 0..SPINS {
            if let Some((region, turn)) = self.open(index, seen) {
                self.join(index, region, turn);
                seen[region] = turn;
                return true;
            }
            // Whoever may not work has no core to spin on.
            if index >= self.allowed() || self.ending.load(SeqCst) {
                return false;
            }
            spin_loop();
        }
        false
    }

    /// A region that is open and that the worker has not been in, if it may work. Workers begin to look at different ones.
    fn open(&self, index: usize, seen: &[u64]) -> Option<(usize, u64)> {
        if index >= self.allowed() {
            return None;
        }
        let regions = self.crowd.regions.load(SeqCst);
        let open = |region: usize| Some((region, self.regions[region].open().filter(|turn| *turn != seen[region])?));
        (0..regions).find_map(|next| open((index + next) % regions))
    }

    fn join(&self, index: usize, region: usize, turn: u64) {
        let place = &self.places[index].0;
        place.store(region + 1, SeqCst);
        if self.regions[region].open() == Some(turn) {
            // SAFETY: the region was seen open after `place` had said that we are there, and the region's caller waits for it
            // to say otherwise.
            unsafe { self.regions[region].join(index, || index < self.allowed()) };
        }
        place.store(0, SeqCst);
    }
}
