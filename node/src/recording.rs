//! A recording of all that the pure parts were told and what they decided, so that a live run can be replayed.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::{ledger, router};

/// A cheap handle to the records of one node. Grows with the run: for tests and for hunting a fault, not for service.
#[derive(Clone, Debug, Default)]
pub struct Recording(Arc<Mutex<Vec<Record>>>);

/// One call of a pure part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// The router was built so.
    RouterStarted {
        /// From these.
        settings: router::Settings,
    },
    /// The ledger was built so.
    LedgerStarted {
        /// From these.
        settings: ledger::Settings,
    },
    /// The router decided.
    Router {
        /// When: microseconds since the node started.
        now: u64,
        /// What happened.
        event: router::Event,
        /// What was done about it.
        actions: Vec<router::Action>,
    },
    /// The ledger decided.
    Ledger {
        /// When: microseconds since the node started.
        now: u64,
        /// What happened.
        event: ledger::Event,
        /// What was done about it.
        actions: Vec<ledger::Action>,
    },
}

impl Recording {
    /// All records so far, the oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.0.lock().expect("no holder of the lock panics").clone()
    }

    pub(crate) fn push(&self, record: Record) {
        self.0.lock().expect("no holder of the lock panics").push(record);
    }
}
