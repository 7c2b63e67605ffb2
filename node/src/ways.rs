//! The ways of queries that ended lately, for `banyan why`.

use std::collections::{HashMap, VecDeque};

use banyan_proto::QueryId;

use crate::ledger::Way;

/// Enough to ask about an answer that is still on somebody's screen; a way takes about half a kilobyte.
const KEPT: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Ways {
    ways: HashMap<QueryId, Way>,
    order: VecDeque<QueryId>,
}

impl Ways {
    pub(crate) fn get(&self, id: &QueryId) -> Option<&Way> {
        self.ways.get(id)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = QueryId> {
        self.order.iter().rev().copied()
    }

    pub(crate) fn push(&mut self, way: Way) {
        if self.order.len() == KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.ways.remove(&oldest);
        }
        self.order.push_back(way.id);
        self.ways.insert(way.id, way);
    }
}
