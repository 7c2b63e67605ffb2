//! What a live scheduler was told and what it planned, and the same again: the same events give the same plans.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Event, Limits, Plan, Scheduler};

/// One line of a recorded run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The scheduler was told.
    Event(Event),
    /// The scheduler was asked, and answered.
    Plan(Plan),
}

/// Keeps what a live scheduler was told and what it planned. Cloning shares it. Meant for tests and bug reports: it grows
/// with the run, and has all tokens in it.
#[derive(Clone, Debug, Default)]
pub struct Recording(Arc<Mutex<Option<Limits>>>, Arc<Mutex<Vec<Record>>>);

impl Recording {
    /// The limits under which the run was recorded; `None` before the engine starts.
    pub fn limits(&self) -> Option<Limits> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All lines so far.
    pub fn records(&self) -> Vec<Record> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn begin(&self, limits: Limits) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(limits);
    }

    pub(super) fn push(&self, record: Record) {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }
}

/// A replayed plan differs from the recorded one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the recording planned {recorded:?}, the replay {replayed:?}")]
pub struct Divergence {
    /// Index into the records.
    pub line: usize,
    /// What the live run did.
    pub recorded: Box<Plan>,
    /// What the same events give now.
    pub replayed: Box<Plan>,
}

/// Feeds recorded events to a new scheduler and compares every plan.
pub fn replay(limits: Limits, records: &[Record]) -> Result<(), Divergence> {
    let mut scheduler = Scheduler::new(limits, None);
    for (line, record) in records.iter().enumerate() {
        match record {
            Record::Event(event) => {
                scheduler.feed(event.clone());
            }
            Record::Plan(recorded) => {
                let replayed = scheduler.plan();
                if replayed != *recorded {
                    return Err(Divergence { line, recorded: Box::new(recorded.clone()), replayed: Box::new(replayed) });
                }
            }
        }
    }
    Ok(())
}
