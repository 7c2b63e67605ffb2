//! Whom a death is blamed on: who was running there becomes a suspect, and of the suspects of one death one is out at a time.

use banyan_proto::{Attempt, QueryId};

use super::{Action, Failure, Holder, Ledger, Outcome, State, Why};

/// What a query had to do with the loss of its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It may be to blame, and if it was suspect before, it is.
    Suspect,
    /// It may be to blame, and so may other suspects.
    OneOfSome,
    /// Somebody else is to blame, or nobody.
    Bystander,
}

impl Ledger {
    /// Whether a suspect has its turn.
    pub(super) fn is_out(&self, id: &QueryId) -> bool {
        self.entries.get(id).is_some_and(|entry| self.out.get(&entry.death) == Some(id))
    }

    /// Its turn is over.
    pub(super) fn take_in(&mut self, death: u64, id: QueryId) {
        if self.out.get(&death) == Some(&id) {
            self.out.remove(&death);
        }
    }

    /// A node that says to hold what was lost with its stream lives.
    pub(super) fn forgive(&mut self, id: QueryId, attempt: Attempt, holder: &Holder) {
        if self.entries.get_mut(&id).is_some_and(|entry| entry.forgive(attempt, &holder.name)) {
            self.clear(id);
        }
    }

    /// A query is suspect no more: the next one has its turn.
    pub(super) fn clear(&mut self, id: QueryId) {
        let Some(death) = self.entries.get(&id).map(|entry| entry.death) else { return };
        self.take_in(death, id);
        let Some(entry) = self.entries.get(&id) else { return };
        if self.suspects.remove(&(entry.order, id)) {
            self.lanes.push(entry.waiting());
        }
    }

    /// The attempt is lost: the query goes out again behind what was delivered. Blamed is only what an engine had begun, and no
    /// bystander.
    pub(super) fn lose(&mut self, now: u64, id: QueryId, part: Part, actions: &mut Vec<Action>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.tried(now, None, Outcome::Lost, Vec::new());
        if entry.state == State::Running && part != Part::Bystander && entry.is_guilty() {
            self.blame(now, id, part == Part::Suspect, actions);
        } else {
            self.wait_again(now, id, Why::Lost, actions);
        }
    }

    /// An engine died or failed with the query in it: it is a suspect next, and if that happens again before it got past the
    /// point, or too often, it fails.
    pub(super) fn blame(&mut self, now: u64, id: QueryId, alone: bool, actions: &mut Vec<Action>) {
        let Some(death) = self.entries.get(&id).map(|entry| entry.death) else { return };
        self.take_in(death, id);
        if self.entries.get_mut(&id).is_some_and(|entry| entry.blame(alone)) {
            actions.push(Action::Fail { id, failure: Failure::Poison });
            self.end(now, id, Outcome::Lost, Some("two nodes failed while they ran it"));
        } else {
            self.wait_again(now, id, Why::Lost, actions);
        }
    }
}
