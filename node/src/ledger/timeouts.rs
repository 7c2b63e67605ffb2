//! What passing time does to accounts: deadlines, holders that are silent or hung, and what waits for its turn.

use banyan_proto::QueryId;

use super::{Action, EAGER_RETRIES, Failure, Ledger, Outcome, State, blame::Part};

impl Ledger {
    pub(super) fn tick(&mut self, now: u64, actions: &mut Vec<Action>) {
        let lanes = &self.lanes;
        self.rates.tick(now, |model| lanes.of_model(model).entries > 0);
        self.returns.tick(now);
        while !self.paused.is_empty() && self.budget.take(now) {
            let (_, id) = self.paused.pop_first().expect("one is there");
            self.lanes.push(self.entries[&id].waiting());
        }
        for entry in self.entries.values_mut() {
            entry.note_served(now, &self.room);
        }
        for id in self.in_order(|entry| entry.due(now, &self.streams)) {
            self.act_on_time(now, id, actions);
        }
        self.shed(now, actions);
        self.give_up_waiting(now, actions);
        match self.settings.eager {
            true => self.retry(now, EAGER_RETRIES, actions),
            false => self.dispatch(now, actions),
        }
        self.tell_places(actions);
    }

    /// Who waits hears how it goes on.
    fn tell_places(&mut self, actions: &mut Vec<Action>) {
        for (id, place) in self.lanes.numbers() {
            let told = self.entries.get_mut(&id).and_then(|entry| entry.stand(place));
            actions.extend(told);
        }
    }

    fn act_on_time(&mut self, now: u64, id: QueryId, actions: &mut Vec<Action>) {
        let entry = self.entries.get_mut(&id).expect("a due query is live");
        if now >= entry.deadline {
            entry.cancel(actions);
            actions.push(Action::Fail { id, failure: Failure::Deadline });
            self.end(now, id, Outcome::Expired, Some("its deadline passed"));
            return;
        }
        match entry.state {
            State::Waiting => {
                let known = entry.model.is_empty() || self.known.contains(&entry.model);
                let failure = if known { Failure::Unserved } else { self.unknown_model() };
                actions.push(Action::Fail { id, failure });
                self.end(now, id, Outcome::Expired, Some("no node serves its model"));
            }
            State::Sent => self.lose(now, id, Part::Bystander, actions),
            State::Running => {
                entry.cancel(actions);
                self.lose(now, id, Part::Suspect, actions);
            }
            State::Queued | State::Ended => {}
        }
    }
}
