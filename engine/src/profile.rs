//! Where a step's time goes, by kernel; and how many bytes and operations each needs at least.
//!
//! A [`Profile`] in an engine's [`Options`](crate::Options) has it note every step. Kernels report through [`span`], which
//! finds the step of its thread; without a profile that is one look at a thread-local flag. Who compares the times with the
//! machine's limits is the benchmark.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Steps of a shape that are kept: medians don't get better by more, and a forgotten profile stays small.
const STEPS_MAX: usize = 4096;

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static SPENT: RefCell<Vec<(Part, Spent)>> = const { RefCell::new(Vec::new()) };
}

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Rows times a weight matrix.
    Product {
        inputs: usize,
        columns: usize,
    },
    Attention,
    /// Of layers, or root mean square.
    Norm,
    /// Rotary positions of queries and keys.
    Turn,
    SwiGlu,
    /// Draws tokens from logits.
    Sampling,
    /// Between kernels: embeddings, copies, the lists of what is to do.
    Rest,
    /// Between one pass and the next of the same shape: the scheduler, texts, channels.
    Between,
}

/// What multiplies and adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    #[default]
    F32,
    Bf16,
    Int8,
}

/// What a call needs at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Read or written, each once.
    pub(crate) bytes: u64,
    /// Multiplications and additions, each counted.
    pub(crate) operations: u64,
    pub(crate) arithmetic: Arithmetic,
}

/// What a part of one step took and needed.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    calls: u32,
    seconds: f64,
    work: Work,
}

/// Notes a kernel's time until it is dropped, where its thread computes a step that is profiled.
pub(crate) struct Span(Option<(Instant, Part, Work)>);

/// Begins a kernel; `what` is asked only where somebody wants to know.
#[inline]
pub(crate) fn span(what: impl FnOnce() -> (Part, Work)) -> Span {
    if !ON.get() {
        return Span(None);
    }
    let (part, work) = what();
    Span(Some((Instant::now(), part, work)))
}

impl Drop for Span {
    #[inline]
    fn drop(&mut self) {
        if let Some((begun, part, work)) = self.0.take() {
            note(part, Spent { calls: 1, seconds: begun.elapsed().as_secs_f64(), work });
        }
    }
}

fn note(part: Part, spent: Spent) {
    SPENT.with_borrow_mut(|parts| match parts.iter_mut().find(|(noted, _)| *noted == part) {
        Some((_, sum)) => {
            sum.calls += spent.calls;
            sum.seconds += spent.seconds;
            sum.work.bytes += spent.work.bytes;
            sum.work.operations += spent.work.operations;
        }
        None => parts.push((part, spent)),
    });
}

/// What makes steps comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    /// Tokens that go through the model.
    pub(crate) rows: usize,
    /// Rows whose next token is drawn.
    pub(crate) samples: usize,
}

/// Steps of one shape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Steps {
    /// Of each step's whole pass, in seconds; sampling included.
    pub(crate) passes: Vec<f64>,
    pub(crate) parts: BTreeMap<Part, PartSteps>,
}

/// A part of the steps of one shape.
#[derive(Clone, Debug, Default)]
pub(crate) struct PartSteps {
    /// In a step.
    pub(crate) calls: u32,
    /// Of each step, in seconds.
    pub(crate) seconds: Vec<f64>,
    /// Of all steps together.
    pub(crate) bytes: u64,
    /// Of all steps together.
    pub(crate) operations: u64,
    pub(crate) arithmetic: Arithmetic,
}

/// Where an engine's steps spend their time. Notes nothing until it is switched on. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Profile(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    on: AtomicBool,
    steps: Mutex<BTreeMap<Shape, Steps>>,
}

impl Profile {
    /// Steps that begin from now on are noted, or are not.
    pub(crate) fn switch(&self, on: bool) {
        self.0.on.store(on, Ordering::Relaxed);
    }

    /// What was noted so far, and is forgotten here.
    pub(crate) fn take(&self) -> BTreeMap<Shape, Steps> {
        std::mem::take(&mut *self.0.steps.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An engine's part: notes its steps one after the other.
pub(crate) struct Profiler {
    profile: Profile,
    last: Option<(Shape, Instant)>,
}

impl Profiler {
    pub(crate) fn new(profile: Profile) -> Profiler {
        Profiler { profile, last: None }
    }

    /// A pass begins on this thread; `None`: nobody wants to know.
    pub(crate) fn begin(&self) -> Option<Instant> {
        if !self.profile.0.on.load(Ordering::Relaxed) {
            return None;
        }
        SPENT.with_borrow_mut(Vec::clear);
        ON.set(true);
        Some(Instant::now())
    }

    /// The pass that began at `begun` has ended.
    pub(crate) fn end(&mut self, shape: Shape, begun: Instant) {
        ON.set(false);
        let pass = begun.elapsed().as_secs_f64();
        let mut parts = SPENT.take();
        let known: f64 = parts.iter().map(|(_, spent)| spent.seconds).sum();
        let alone = |seconds| Spent { calls: 1, seconds, work: Work::default() };
        parts.push((Part::Rest, alone((pass - known).max(0.0))));
        // Where the shape changes, sequences came or went, and the engine may have waited for them.
        if let Some((last, ended)) = self.last
            && last == shape
        {
            parts.push((Part::Between, alone(begun.duration_since(ended).as_secs_f64())));
        }
        self.last = Some((shape, Instant::now()));
        let mut all = self.profile.0.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = all.entry(shape).or_default();
        if steps.passes.len() >= STEPS_MAX {
            return;
        }
        steps.passes.push(pass);
        for (part, spent) in parts {
            let sums = steps.parts.entry(part).or_default();
            sums.calls = spent.calls;
            sums.seconds.push(spent.seconds);
            sums.bytes += spent.work.bytes;
            sums.operations += spent.work.operations;
            sums.arithmetic = spent.work.arithmetic;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(bytes: u64) -> Span {
        span(|| (Part::Product { inputs: 3, columns: 4 }, Work { bytes, operations: 24, arithmetic: Arithmetic::Int8 }))
    }

    #[test]
    fn a_steps_parts_are_its_spans_and_what_is_left() {
        let profile = Profile::default();
        profile.switch(true);
        let mut profiler = Profiler::new(profile.clone());
        let shape = Shape { rows: 2, samples: 2 };
        for _ in 0..2 {
            let begun = profiler.begin().unwrap();
            drop(product(10));
            drop(product(20));
            profiler.end(shape, begun);
        }
        drop(product(1000));
        let steps = profile.take().remove(&shape).unwrap();
        assert_eq!(steps.passes.len(), 2);
        let products = &steps.parts[&Part::Product { inputs: 3, columns: 4 }];
        assert_eq!((products.calls, products.bytes, products.operations), (2, 60, 96));
        assert_eq!((products.seconds.len(), products.arithmetic), (2, Arithmetic::Int8));
        assert_eq!((steps.parts[&Part::Rest].seconds.len(), steps.parts[&Part::Between].seconds.len()), (2, 1));
        assert!(profile.take().is_empty());
    }

    #[test]
    fn nothing_is_asked_where_nobody_profiles() {
        drop(span(|| unreachable!("no step is profiled on this thread")));
    }
}
