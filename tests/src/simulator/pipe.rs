//! One direction of a link: what a node's production code says on it leaves in order, and arrives in order after a delay.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use tokio::sync::mpsc;

use crate::random::Random;

/// How long a link's messages are under way.
#[derive(Clone, Copy, Debug)]
pub struct Delay {
    /// At the least, in nanoseconds.
    pub least: u64,
    /// The mean of what comes on top of it: exponentially distributed.
    pub jitter: u64,
}

impl Delay {
    /// One message's.
    pub(super) fn draw(&self, random: &mut Random) -> u64 {
        let jitter = if self.jitter == 0 { 0 } else { random.exponential(self.jitter as f64) as u64 };
        self.least + jitter
    }
}

/// What was written to and not read since.
#[derive(Clone, Debug, Default)]
pub(super) struct Bells(Arc<Mutex<Vec<Wire>>>);

/// What rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wire {
    /// From a child to its parent.
    Up(u32),
    /// From a parent to its child.
    Down(u32),
    /// From a node to the root.
    Delivery(u32),
    /// From the root to a node.
    Control(u32),
    /// From the root to a client.
    Answer(u32),
}

impl Bells {
    /// Those that rang, in the order in which they did.
    pub(super) fn take(&self, into: &mut Vec<Wire>) {
        into.append(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Rings when the wire is written to.
    pub(super) fn waker(&self, wire: Wire) -> Waker {
        Waker::from(Arc::new(Bell { wire, bells: self.clone() }))
    }
}

struct Bell {
    wire: Wire,
    bells: Bells,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.bells.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.wire);
    }
}

/// The reading end of a channel that production code writes to.
#[derive(Debug)]
pub(super) struct Pipe<T> {
    from: mpsc::Receiver<T>,
    waker: Waker,
    /// When the last message arrives.
    last: u64,
}

impl<T> Pipe<T> {
    /// A channel of production's size, and the end that production writes to.
    pub(super) fn new(bells: &Bells, wire: Wire, capacity: usize) -> (mpsc::Sender<T>, Pipe<T>) {
        let (to, from) = mpsc::channel(capacity);
        let mut pipe = Pipe { from, waker: bells.waker(wire), last: 0 };
        // Listens from now on.
        let polled = pipe.next();
        debug_assert!(polled.is_pending(), "a new channel is empty");
        (to, pipe)
    }

    /// What leaves next, if anything, and when it arrives: never before what left earlier. When the writer has gone that is an
    /// end, and the pipe goes with it.
    pub(super) fn leaving(this: &mut Option<Pipe<T>>, now: u64, delay: impl FnOnce() -> u64) -> Option<(u64, Option<T>)> {
        let pipe = this.as_mut()?;
        let Poll::Ready(next) = pipe.next() else { return None };
        pipe.last = (now + delay()).max(pipe.last + 1);
        let at = pipe.last;
        if next.is_none() {
            *this = None;
        }
        Some((at, next))
    }

    fn next(&mut self) -> Poll<Option<T>> {
        self.from.poll_recv(&mut Context::from_waker(&self.waker))
    }
}
