//! Cancels that overtook their questions: a client that leaves at once says so on another stream than the one it asked on.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use banyan_proto::QueryId;
use tokio::time::Instant;

/// The question that was overtaken comes within that time, or never.
const WAIT: Duration = Duration::from_secs(5);
/// Beyond, the oldest give way, and their questions are as those of clients that left without a word.
const WAITING_MAX: usize = 4096;

/// Those whose questions have not come. See the module.
#[derive(Default)]
pub(super) struct Early {
    owners: HashMap<QueryId, String>,
    order: VecDeque<(Instant, QueryId)>,
}

impl Early {
    pub(super) fn push(&mut self, now: Instant, id: QueryId, owner: &str) {
        if self.owners.insert(id, owner.to_owned()).is_none() {
            self.order.push_back((now, id));
        }
        while self.order.len() > WAITING_MAX {
            self.forget_oldest();
        }
    }

    /// Whether a question was cancelled before it came. It is forgotten with that: a retry under the same id is another one.
    pub(super) fn take(&mut self, id: &QueryId, owner: &str) -> bool {
        let cancelled = self.owners.get(id).is_some_and(|of| of == owner);
        if cancelled {
            self.owners.remove(id);
            self.order.retain(|(_, waiting)| waiting != id);
        }
        cancelled
    }

    pub(super) fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(since, _)| now - *since >= WAIT) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, id)) = self.order.pop_front() {
            self.owners.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_waits_for_its_owners_question_once_and_not_for_long() {
        let (now, mut early) = (Instant::now(), Early::default());
        let id = QueryId::from_u128;
        early.push(now, id(1), "o");
        early.push(now, id(2), "o");
        assert!(!early.take(&id(1), "somebody else"));
        assert!(early.take(&id(1), "o") && !early.take(&id(1), "o"));
        early.expire(now + WAIT);
        assert!(!early.take(&id(2), "o"));
        for number in 0..2 * WAITING_MAX as u128 {
            early.push(now, id(number), "o");
        }
        assert_eq!((early.owners.len(), early.order.len()), (WAITING_MAX, WAITING_MAX));
    }
}
