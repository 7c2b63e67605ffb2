//! The admission thread: requests wait in the order in which they came, and one after the other becomes a sequence.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use super::{Admitted, admit};
use crate::language::Language;
use crate::{Refusal, Request, SequenceId};

/// Requests that may wait. Callers submit a batch or two at most, and the largest batch is some hundreds; one that bounds
/// nothing hears of it before memory is full.
const WAITING_MAX: usize = 4096;

/// What became of a request.
pub(crate) type Admission<L> = (SequenceId, Result<Admitted<L>, Refusal>);

/// There is no room for another request.
#[derive(Debug)]
pub(crate) struct Full;

/// The thread and its queue. Dropped, it ends with the request that it is reading.
pub(crate) struct Admissions<L: Language> {
    queue: Arc<Queue>,
    results: mpsc::Receiver<Admission<L>>,
    /// Handed over and not answered for: neither admitted, nor refused, nor cancelled.
    open: VecDeque<SequenceId>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Box<Request>>,
    closed: bool,
}

impl<L: Language> Admissions<L> {
    /// Starts the thread; it calls `ready` after each result.
    pub(crate) fn start(language: Arc<L>, ready: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let (result, results) = mpsc::channel();
        let waiting = Arc::clone(&queue);
        let thread = thread::Builder::new().name("admission".into()).spawn(move || {
            while let Some(request) = waiting.next() {
                let admission = (request.id, admit(&*language, &request));
                // A large prompt is freed here, not where steps are computed.
                drop(request);
                if result.send(admission).is_err() {
                    return;
                }
                ready();
            }
        })?;
        Ok(Admissions { queue, results, open: VecDeque::new(), thread: Some(thread) })
    }

    /// Whether nobody waits here.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether this request is here.
    pub(crate) fn knows(&self, id: SequenceId) -> bool {
        self.open.contains(&id)
    }

    /// Hands a request over.
    pub(crate) fn push(&mut self, request: Box<Request>) -> Result<(), Full> {
        if self.open.len() >= WAITING_MAX {
            return Err(Full);
        }
        self.open.push_back(request.id);
        self.queue.lock().requests.push_back(request);
        self.queue.changed.notify_one();
        Ok(())
    }

    /// The next result, in the order in which requests were handed over; none of one that was cancelled.
    pub(crate) fn next(&mut self) -> Option<Admission<L>> {
        let (id, result) = self.results.try_recv().ok()?;
        self.remove(id).then_some((id, result))
    }

    /// Nothing more comes of a request, even of the one that is being read. False: it is not here.
    pub(crate) fn cancel(&mut self, id: SequenceId) -> bool {
        let here = self.remove(id);
        if here {
            self.queue.lock().requests.retain(|request| request.id != id);
        }
        here
    }

    /// Nothing more comes of any request: who was here, in order.
    pub(crate) fn cancel_all(&mut self) -> impl Iterator<Item = SequenceId> {
        self.queue.lock().requests.clear();
        std::mem::take(&mut self.open).into_iter()
    }

    fn remove(&mut self, id: SequenceId) -> bool {
        // Nearly always the first.
        self.open.iter().position(|open| *open == id).and_then(|at| self.open.remove(at)).is_some()
    }
}

impl<L: Language> Drop for Admissions<L> {
    fn drop(&mut self) {
        let mut waiting = self.queue.lock();
        waiting.closed = true;
        waiting.requests.clear();
        drop(waiting);
        self.queue.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It catches panics of what it calls, and has none of its own.
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a request; `None` when the queue is closed.
    fn next(&self) -> Option<Box<Request>> {
        let mut waiting = self.lock();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(request) = waiting.requests.pop_front() {
                return Some(request);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
