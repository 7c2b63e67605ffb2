//! What the router knows of one child: its last report, less what was sent to it since.

use std::{collections::VecDeque, sync::Arc};

use banyan_proto::NodeName;

use crate::capacity::{self, Capacity, serves};

#[derive(Debug)]
pub(super) struct Child {
    pub(super) name: NodeName,
    /// As last reported.
    reported: Vec<Capacity>,
    /// The report, less what was sent since.
    pub(super) estimate: Vec<Capacity>,
    /// Queries sent since it attached.
    pub(super) sent: u64,
    /// Models of those that the report did not count yet, the oldest first.
    unseen: VecDeque<Arc<str>>,
    /// Credit of smooth weighted round-robin.
    pub(super) credit: i64,
}

impl Child {
    pub(super) fn new(name: NodeName) -> Self {
        Child { name, reported: Vec::new(), estimate: Vec::new(), sent: 0, unseen: VecDeque::new(), credit: 0 }
    }

    /// A query is on its way to it.
    pub(super) fn send(&mut self, model: Arc<str>) {
        self.sent += 1;
        capacity::take(&mut self.estimate, &model);
        self.unseen.push_back(model);
    }

    /// It said what its subtree can take, when `received` queries had come down its link.
    pub(super) fn report(&mut self, received: u64, capacity: Vec<Capacity>) {
        let unseen = self.sent.saturating_sub(received) as usize;
        while self.unseen.len() > unseen {
            self.unseen.pop_front();
        }
        self.estimate.clone_from(&capacity);
        self.reported = capacity;
        for model in &self.unseen {
            capacity::take(&mut self.estimate, model);
        }
    }

    pub(super) fn room(&self, model: &str) -> u64 {
        capacity::total(&self.estimate, model, |set| set.room)
    }

    pub(super) fn queue(&self, model: &str) -> u64 {
        capacity::total(&self.estimate, model, |set| set.queue)
    }

    pub(super) fn slots(&self, model: &str) -> u64 {
        capacity::total(&self.estimate, model, |set| set.slots)
    }

    pub(super) fn serves(&self, model: &str) -> bool {
        self.reported.iter().any(|set| serves(&set.models, model))
    }
}
