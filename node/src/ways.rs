//! The ways of queries that ended lately, for `banyan why`.

use std::collections::{HashMap, VecDeque};

use banyan_proto::QueryId;

use crate::ledger::Way;

/// Enough to ask about an answer that is still on somebody's screen; a way takes about half a kilobyte.
const KEPT: usize = 4096;
/// Of those that were refused for overload: there may be thousands a second, and they must not push out the others.
const OVERLOADED_KEPT: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Ways {
    /// Boxed: the table grows to four times what is in it, since there is much coming and going.
    ways: HashMap<QueryId, Box<Way>>,
    order: VecDeque<QueryId>,
    overloaded: VecDeque<QueryId>,
}

impl Ways {
    pub(crate) fn get(&self, id: &QueryId) -> Option<&Way> {
        self.ways.get(id).map(Box::as_ref)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = QueryId> {
        self.order.iter().rev().chain(self.overloaded.iter().rev()).copied()
    }

    pub(crate) fn push(&mut self, way: Way) {
        keep(&mut self.ways, &mut self.order, KEPT, way);
    }

    /// That of a query that was not let in.
    pub(crate) fn push_overloaded(&mut self, way: Way) {
        keep(&mut self.ways, &mut self.overloaded, OVERLOADED_KEPT, way);
    }
}

fn keep(ways: &mut HashMap<QueryId, Box<Way>>, order: &mut VecDeque<QueryId>, most: usize, way: Way) {
    if order.len() == most
        && let Some(oldest) = order.pop_front()
    {
        ways.remove(&oldest);
    }
    order.push_back(way.id);
    ways.insert(way.id, Box::new(way));
}
