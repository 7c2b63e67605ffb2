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

/// A sum over the reports of many, kept up as they change, so that it costs nothing per child to read. Wide enough for
/// whatever peers may report; clamped when it is read.
#[derive(Debug, Default)]
pub(crate) struct Sum(Vec<Summed>);

#[derive(Debug)]
struct Summed {
    models: Vec<Arc<str>>,
    /// How many reports have this set.
    reports: u32,
    room: u64,
    queue: u64,
    slots: u64,
}

impl Sum {
    pub(crate) fn add(&mut self, report: &[Capacity]) {
        for set in report {
            let index = self.0.iter().position(|known| known.models == set.models).unwrap_or_else(|| {
                self.0.push(Summed { models: set.models.clone(), reports: 0, room: 0, queue: 0, slots: 0 });
                self.0.len() - 1
            });
            let known = &mut self.0[index];
            known.reports += 1;
            known.room += u64::from(set.room);
            known.queue += u64::from(set.queue);
            known.slots += u64::from(set.slots);
        }
    }

    /// Takes away what was added before.
    pub(crate) fn subtract(&mut self, report: &[Capacity]) {
        for set in report {
            let known = self.0.iter_mut().find(|known| known.models == set.models).expect("what is taken away was added");
            known.reports -= 1;
            known.room -= u64::from(set.room);
            known.queue -= u64::from(set.queue);
            known.slots -= u64::from(set.slots);
        }
        self.0.retain(|known| known.reports > 0);
    }

    /// The sum with one report more.
    pub(crate) fn with(&self, own: Option<Capacity>) -> Vec<Capacity> {
        let clamp = |wide: u64| u32::try_from(wide).unwrap_or(u32::MAX);
        let mut sum: Vec<Capacity> = own.into_iter().collect();
        for set in &self.0 {
            let (room, queue, slots) = (clamp(set.room), clamp(set.queue), clamp(set.slots));
            match sum.iter_mut().find(|known| known.models == set.models) {
                Some(known) => {
                    known.room = known.room.saturating_add(room);
                    known.queue = known.queue.saturating_add(queue);
                    known.slots = known.slots.saturating_add(slots);
                }
                None => sum.push(Capacity { models: set.models.clone(), room, queue, slots }),
            }
        }
        sum
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

/// Takes all places for a model: the numbers that promised them were wrong.
pub(crate) fn close(sum: &mut [Capacity], model: &str) {
    for set in sum.iter_mut().filter(|set| serves(&set.models, model)) {
        (set.room, set.queue) = (0, 0);
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
