//! What the router knows of one child: its last report, less what was sent to it since, and its standing.

use std::{collections::VecDeque, sync::Arc};

use banyan_proto::NodeName;

use super::standing::Standing;
use crate::capacity::{self, Capacity, serves};

#[derive(Debug)]
pub(super) struct Child {
    pub(super) name: NodeName,
    /// As last reported.
    reported: Vec<Capacity>,
    /// The report, less what was sent since.
    estimate: Vec<Capacity>,
    /// What of that is made use of: less where the child failed too often.
    pub(super) offered: Vec<Capacity>,
    /// Queries sent since it attached.
    pub(super) sent: u64,
    /// Models of those that the report did not count yet, and when they were sent, the oldest first.
    unseen: VecDeque<(Arc<str>, u64)>,
    /// Credit of smooth weighted round-robin.
    pub(super) credit: i64,
    pub(super) standing: Standing,
}

impl Child {
    pub(super) fn new(name: NodeName, standing: Standing) -> Self {
        Child {
            name,
            reported: Vec::new(),
            estimate: Vec::new(),
            offered: Vec::new(),
            sent: 0,
            unseen: VecDeque::new(),
            credit: 0,
            standing,
        }
    }

    /// A query is on its way to it.
    pub(super) fn send(&mut self, now: u64, model: Arc<str>) {
        self.sent += 1;
        capacity::take(&mut self.estimate, &model);
        self.unseen.push_back((model, now));
        self.standing.sent(now);
        self.offer();
    }

    /// It said what its subtree can take, when `received` queries had come down its link.
    pub(super) fn report(&mut self, now: u64, received: u64, capacity: Vec<Capacity>) {
        let unseen = self.sent.saturating_sub(received) as usize;
        while self.unseen.len() > unseen
            && let Some((_, at)) = self.unseen.pop_front()
        {
            self.standing.acknowledged(now.saturating_sub(at));
        }
        self.estimate.clone_from(&capacity);
        self.reported = capacity;
        for (model, _) in &self.unseen {
            capacity::take(&mut self.estimate, model);
        }
        self.offer();
    }

    /// Brings what is offered up to date with the standing.
    pub(super) fn offer(&mut self) {
        self.offered.clone_from(&self.estimate);
        let Some(places) = self.standing.places() else { return };
        // Whichever of its models is asked for first has the one place: kept for one of them, it might wait for ever.
        for set in &mut self.offered {
            (set.room, set.queue) = (set.room.min(places), set.queue.min(places));
        }
    }

    /// Whether it gets nothing, because it failed too often.
    pub(super) fn is_shut(&self) -> bool {
        self.standing.places() == Some(0)
    }

    /// Whether queries that it was sent would go with its link.
    pub(super) fn has_work(&self) -> bool {
        !self.unseen.is_empty() || self.reported.iter().any(|set| set.room < set.slots)
    }

    /// How long the query that has been on its way to it the longest has been so.
    pub(super) fn oldest_us(&self, now: u64) -> u64 {
        self.unseen.front().map_or(0, |(_, at)| now.saturating_sub(*at))
    }

    /// A number of its own, for jitter.
    pub(super) fn seed(&self) -> u64 {
        self.name.as_str().bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()))
    }

    pub(super) fn room(&self, model: &str) -> u64 {
        capacity::total(&self.offered, model, |set| set.room)
    }

    pub(super) fn queue(&self, model: &str) -> u64 {
        capacity::total(&self.offered, model, |set| set.queue)
    }

    pub(super) fn slots(&self, model: &str) -> u64 {
        capacity::total(&self.offered, model, |set| set.slots)
    }

    pub(super) fn serves(&self, model: &str) -> bool {
        self.reported.iter().any(|set| serves(&set.models, model))
    }
}
