//! What a subtree can take. Room counts once per set of models that share an engine: two models on one engine are not
//! two rooms.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What the engines that serve one set of models can take together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// The models that share an engine, sorted.
    pub models: Vec<Arc<str>>,
    /// Sequences that would start at once.
    pub room: u32,
    /// Queries that could wait in queues.
    pub queue: u32,
    /// Sequences that run together when all is busy.
    pub slots: u32,
}

/// Whether one of `models` is the one asked for; the empty name asks for any.
pub fn serves(models: &[Arc<str>], wanted: &str) -> bool {
    wanted.is_empty() || models.iter().any(|model| &**model == wanted)
}

/// Adds a set to a sum.
pub(crate) fn add(sum: &mut Vec<Capacity>, set: Capacity) {
    match sum.iter_mut().find(|known| known.models == set.models) {
        Some(known) => {
            known.room = known.room.saturating_add(set.room);
            known.queue = known.queue.saturating_add(set.queue);
            known.slots = known.slots.saturating_add(set.slots);
        }
        None => sum.push(set),
    }
}

/// Takes one query's place: a room where there is one, else a place in a queue, else nothing.
pub(crate) fn take(sum: &mut [Capacity], model: &str) {
    let with = |part: fn(&Capacity) -> u32| move |set: &Capacity| part(set) > 0 && serves(&set.models, model);
    if let Some(index) = sum.iter().position(with(|set| set.room)) {
        sum[index].room -= 1;
    } else if let Some(index) = sum.iter().position(with(|set| set.queue)) {
        sum[index].queue -= 1;
    }
}

/// Sums one figure over the sets that serve a model. Wide enough for whatever a peer may report.
pub(crate) fn total(sum: &[Capacity], model: &str, part: impl Fn(&Capacity) -> u32) -> u64 {
    sum.iter().filter(|set| serves(&set.models, model)).map(|set| u64::from(part(set))).sum()
}

/// Whether room or queue space for some set appeared or vanished: news that must not wait.
pub(crate) fn opened_or_closed(before: &[Capacity], after: &[Capacity]) -> bool {
    let open = |sets: &[Capacity], models: &[Arc<str>]| {
        sets.iter().find(|set| set.models == models).map(|set| (set.room > 0, set.queue > 0))
    };
    before.len() != after.len() || after.iter().any(|set| open(before, &set.models) != Some((set.room > 0, set.queue > 0)))
}
