//! One parallel region: tasks that its caller and the workers who join it take, each from a run of its own, then the others'.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::super::part;

/// A place where regions are opened, one after the other, by one caller at a time.
///
/// A worker says where it is, on a line of the cache that is its own, before it looks whether the region is still open; the
/// caller closes the region before it looks where the workers are. So each sees the other, and no line is everybody's.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Region {
    /// Odd while the region is open; no two regions have the same.
    turn: AtomicU64,
    panicked: AtomicBool,
    /// Written by the caller while the region is closed and no worker is in it; read by those who are in it.
    job: UnsafeCell<Job>,
    /// The first is the caller's.
    seats: Box<[Seat]>,
}

/// One thread's part of a region. Two threads' never share a line of the cache.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Seat {
    taken: AtomicBool,
    run: Run,
}

/// Consecutive tasks that nobody has taken: the first, and the one after the last, in the lower and upper half. What the tasks
/// read and write is published by the region's opening and closing.
#[derive(Debug, Default)]
struct Run(AtomicU64);

#[derive(Clone, Copy)]
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    /// How many of the seats are there this time.
    seats: usize,
}

// SAFETY: `job` is the only part that is not `Sync` by itself; `Region::call` and `Region::join` keep its one writer and its
// readers apart. The closure in it is `Sync`, so that other threads may call it.
unsafe impl Sync for Region {}

/// What a task panicked with.
pub(super) type Panic = Box<dyn Any + Send>;

/// Calls `task` with each of `0..tasks` on this thread.
pub(super) fn inline(tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<(), Panic> {
    catch_unwind(AssertUnwindSafe(|| (0..tasks).for_each(task)))
}

impl Region {
    pub(super) fn new(seats: usize) -> Region {
        Region {
            turn: AtomicU64::new(0),
            panicked: AtomicBool::new(false),
            job: UnsafeCell::new(Job { task: &|_| {}, seats: 0 }),
            seats: (0..seats).map(|_| Seat::default()).collect(),
        }
    }

    /// The open region's number; `None` where none is open.
    pub(super) fn open(&self) -> Option<u64> {
        Some(self.turn.load(SeqCst)).filter(|turn| turn % 2 == 1)
    }

    /// Does all tasks, with the workers who join while it is open. `opened` wakes workers, and `wait` returns when none is in
    /// the region any more.
    ///
    /// # Safety
    /// The caller is the only one of this region.
    pub(super) unsafe fn call(
        &self,
        threads: usize,
        tasks: usize,
        task: &(dyn Fn(usize) + Sync),
        opened: impl FnOnce(),
        wait: impl FnOnce(),
    ) -> Result<(), Panic> {
        let seats = threads.min(self.seats.len());
        // SAFETY: only the lifetime is changed, and no worker calls `task` after this function returns: `wait` has seen by then
        // that none is in the region, and nothing in between unwinds.
        let task_static = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        // SAFETY: the caller is the only one to write; the region is closed, and no worker was in it after it became so, hence
        // one that enters now finds it closed, or open for the next time, and does not read before that.
        unsafe { *self.job.get() = Job { task: task_static, seats } };
        for (thread, seat) in self.seats[..seats].iter().enumerate() {
            seat.taken.store(thread == 0, Relaxed);
            seat.run.set(part(tasks, thread, seats));
        }
        let turn = self.turn.load(Relaxed);
        self.turn.store(turn + 1, SeqCst);
        opened();
        let mine = catch_unwind(AssertUnwindSafe(|| self.take_tasks(0, seats, task, || true)));
        self.turn.store(turn + 2, SeqCst);
        wait();
        let theirs = self.panicked.swap(false, SeqCst);
        mine?;
        if theirs { Err(Box::new("a task of a worker panicked")) } else { Ok(()) }
    }

    /// Does tasks of the open region, where a seat is free, until none is left or the worker is not to go on.
    ///
    /// # Safety
    /// The region was seen open after the worker had said that it is in it, where the region's `wait` looks; it says so until
    /// this returns.
    pub(super) unsafe fn join(&self, worker: usize, go_on: impl Fn() -> bool) {
        // SAFETY: the caller waits for us before it writes again or lets the closure go.
        let job = unsafe { *self.job.get() };
        let others = job.seats - 1;
        // The same worker has the same seat in each of a caller's regions, and so the same memory, as long as nobody has it.
        let free = |seat: &usize| {
            let taken = &self.seats[*seat].taken;
            !taken.load(Relaxed) && !taken.swap(true, Relaxed)
        };
        let Some(seat) = (0..others).map(|next| 1 + (worker + next) % others).find(free) else { return };
        if catch_unwind(AssertUnwindSafe(|| self.take_tasks(seat, job.seats, job.task, go_on))).is_err() {
            self.panicked.store(true, SeqCst);
        }
    }

    /// Does the tasks of a seat's run, and then those of the others that nobody has taken.
    fn take_tasks(&self, seat: usize, seats: usize, task: &(dyn Fn(usize) + Sync), go_on: impl Fn() -> bool) {
        while go_on() {
            let own = self.seats[seat].run.take_first();
            let others = || (1..seats).find_map(|other| self.seats[(seat + other) % seats].run.take_last());
            let Some(index) = own.or_else(others) else { return };
            task(index);
        }
    }
}

impl Run {
    fn set(&self, tasks: Range<usize>) {
        self.0.store(tasks.start as u64 | (tasks.end as u64) << 32, Relaxed);
    }

    fn take_first(&self) -> Option<usize> {
        self.take(|first, end| (first, first + 1, end))
    }

    fn take_last(&self) -> Option<usize> {
        self.take(|first, end| (end - 1, first, end - 1))
    }

    /// `taken` says which of a run's tasks to take, and what is left.
    fn take(&self, taken: impl Fn(u64, u64) -> (u64, u64, u64)) -> Option<usize> {
        let mut now = self.0.load(Relaxed);
        loop {
            let (first, end) = (now & 0xffff_ffff, now >> 32);
            if first >= end {
                return None;
            }
            let (task, first, end) = taken(first, end);
            match self.0.compare_exchange_weak(now, first | end << 32, Relaxed, Relaxed) {
                Ok(_) => return Some(task as usize),
                Err(changed) => now = changed,
            }
        }
    }
}
