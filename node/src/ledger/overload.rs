//! What the ledger refuses for overload, what it gives up in the lanes, and when those who are refused may come back.

use std::sync::Arc;

use super::{Action, Asked, Failure, Ledger, Outcome, Overload, State, entry::Entry};
use crate::{capacity, lanes::Waiting};

/// Before anything was answered an answer is thought to take so long.
const ANSWER_US: f64 = 5e6;
/// What waits is given up only when even a tree that many times as fast would be too late: rates change, and a query that was
/// accepted is not refused on a guess.
const OPTIMISM: f64 = 2.0;
/// Nobody is let in whose answer would have to take less than so many times what answers of its size take: at the edge of the
/// deadline half of them would end unfinished, and what was spent on them would be lost.
const MARGIN: f64 = 2.0;

impl Ledger {
    /// Why there is no place for a query, if there is none.
    pub(super) fn overload(&mut self, now: u64, asked: &Asked, waiting: &Waiting) -> Option<Failure> {
        let measured = self.rate(&asked.model);
        let ahead = self.lanes.ahead(waiting);
        let wait_us = measured.map_or(0.0, |rate| ahead as f64 / rate);
        let service_us = self.rates.service_us(&asked.model, waiting.tokens);
        let time_us = asked.time_us as f64 - MARGIN * service_us.unwrap_or(0.0);
        let because = if !self.entries.is_empty() && self.live_bytes + asked.bytes > self.settings.lanes.live_bytes {
            Overload::Memory
        } else if !self.lanes.has_space(&asked.owner, waiting.tokens, asked.bytes, asked.returning) {
            Overload::Lanes
        } else if ahead > 0 && wait_us > time_us {
            Overload::Deadline { wait_ms: (wait_us / 1e3) as u64 }
        } else {
            return None;
        };
        let tokens = f64::from(waiting.tokens);
        let slots = capacity::total(&self.room, &asked.model, |set| set.slots).max(1) as f64;
        // While nothing has waited long enough to be measured, as many answers at once as there are slots.
        let rate = measured.unwrap_or(slots * tokens / service_us.unwrap_or(ANSWER_US).max(1.0));
        let share = rate / self.lanes.sharers(&asked.owner, &asked.model) as f64;
        let earliest_us = match because {
            Overload::Lanes | Overload::Memory => self.lanes.excess(&asked.owner) as f64 / share,
            Overload::Deadline { .. } => wait_us - time_us,
        };
        let lane = (asked.owner.clone(), asked.model.clone());
        let told = self.returns.promise(now, lane, earliest_us as u64, tokens / share);
        Some(Failure::Overloaded { because, retry_after_ms: told.after_us.div_ceil(1000), kept: told.kept })
    }

    /// Gives up what would wait beyond its deadline, at once rather than then: its client can go elsewhere, and who waits behind
    /// it has more of its time left.
    pub(super) fn shed(&mut self, now: u64, actions: &mut Vec<Action>) {
        let entries = &self.entries;
        let mut last: Option<(Arc<str>, Option<f64>)> = None;
        let hopeless = self.lanes.hopeless(|waiting, ahead| {
            let rate = match &last {
                Some((model, rate)) if *model == waiting.model => *rate,
                _ => last.insert((waiting.model.clone(), self.rate(&waiting.model))).1,
            };
            let wait_us = ahead as f64 / rate?;
            let entry = entries.get(&waiting.id)?;
            let service_us = self.rates.service_us(&waiting.model, entry.tokens_max).unwrap_or(0.0);
            let left_us = entry.deadline.saturating_sub(now);
            let hopeless = (wait_us + service_us) / OPTIMISM > left_us as f64;
            hopeless.then_some((wait_us / 1e3) as u64)
        });
        for (id, wait_ms) in hopeless {
            actions.push(Action::Fail { id, failure: Failure::Hopeless { wait_ms } });
            self.end(now, id, Outcome::Expired, Some("it would not have been served before its deadline"));
        }
    }

    /// An answer ended: what its slot did meanwhile counts, whoever ended it.
    pub(super) fn measure(&mut self, now: u64, entry: &Entry, outcome: Outcome) {
        let was_running = entry.state == State::Running;
        let worked = match outcome {
            Outcome::Finished => true,
            Outcome::Cancelled | Outcome::Expired => was_running,
            Outcome::Lost | Outcome::Returned | Outcome::Refused => false,
        };
        if worked {
            self.rates.ended(&entry.model, entry.tokens_max, now.saturating_sub(entry.sent_at));
        }
    }

    /// Tokens a microsecond of what waits for a model, where it is known and nodes are there.
    fn rate(&self, model: &str) -> Option<f64> {
        let known = !self.settings.eager && capacity::total(&self.room, model, |set| set.slots) > 0;
        self.rates.tokens_per_us(model).filter(|rate| known && *rate > 0.0)
    }
}

#[cfg(test)]
mod tests;
