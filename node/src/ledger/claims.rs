//! What outlives a root: queries that the API asks again, and the nodes that hold them since an earlier reign.
//!
//! They arrive in any order. A query that is asked again waits a moment for the node that holds it, and is sent once more
//! where none says so; what a node holds and nobody asks for is cancelled. So is what a client left and did not come back for.

use std::collections::HashMap;

use banyan_proto::{Attempt, QueryId};

use super::{Action, Asked, Failure, Holder, Hop, Ledger, Outcome, Part, State, TOKEN_BYTES, Why, entry::Entry};

/// How long after its start a root waits for the nodes to say what they hold: they look for it as soon as it is registered.
pub const CLAIM_TIMEOUT_US: u64 = 2_000_000;
/// What nobody asks for by then is nobody's: APIs ask as soon as a root is registered.
pub const ORPHAN_TIMEOUT_US: u64 = 5_000_000;
/// How long an answer goes on without a reader.
pub const DETACHED_TIMEOUT_US: u64 = 30_000_000;
/// More than all engines of a large tree run; what is beyond is computed again.
const ORPHANS_MAX: usize = 65_536;

/// What nodes hold since an earlier reign, and nobody has asked for yet.
#[derive(Debug, Default)]
pub(super) struct Orphans(HashMap<QueryId, Orphan>);

#[derive(Debug)]
struct Orphan {
    claim: Claim,
    since: u64,
}

/// A node's word that it holds an attempt.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) attempt: Attempt,
    pub(super) holder: Holder,
    pub(super) running: bool,
    /// The first position that the node can deliver.
    pub(super) from: u32,
    pub(super) trail: Vec<Hop>,
}

impl Orphans {
    /// Forgets what a stream's node held.
    pub(super) fn lose(&mut self, stream: u64) {
        self.0.retain(|_, orphan| orphan.claim.holder.stream != stream);
    }

    /// Forgets what a node has ended with.
    pub(super) fn forget(&mut self, id: &QueryId, attempt: Attempt, holder: &Holder) {
        if self.0.get(id).is_some_and(|orphan| orphan.claim.attempt == attempt && orphan.claim.holder == *holder) {
            self.0.remove(id);
        }
    }

    /// Whether the node has said the same on a newer stream, which takes over from the one that this came on.
    fn knows_newer(&self, id: &QueryId, claim: &Claim) -> bool {
        self.0.get(id).is_some_and(|Orphan { claim: known, .. }| {
            let same = known.attempt == claim.attempt && known.holder.name == claim.holder.name;
            same && known.holder.stream > claim.holder.stream
        })
    }

    pub(super) fn contains(&self, id: &QueryId) -> bool {
        self.0.contains_key(id)
    }

    /// Nodes' claims that nobody asked for.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Ledger {
    /// Takes in a query that was accepted before, perhaps by another root, so no bound refuses it now.
    pub(super) fn ask_again(&mut self, now: u64, asked: Asked, delivered: Vec<u32>, actions: &mut Vec<Action>) {
        let id = asked.id;
        self.accepted += 1;
        self.live_bytes += asked.bytes + TOKEN_BYTES * delivered.len();
        let mut entry = Entry::new(now, self.accepted, asked, self.settings.epoch);
        entry.tokens = delivered;
        entry.why = Why::Lost;
        let waiting = entry.waiting();
        self.entries.insert(id, entry);
        if let Some(orphan) = self.orphans.0.remove(&id) {
            self.unclaimed.insert((waiting.order, id));
            self.adopt(now, id, orphan.claim, actions);
        } else if now < self.claims_until {
            self.unclaimed.insert((waiting.order, id));
            actions.push(self.entries[&id].placed());
        } else {
            self.lanes.push(waiting);
            self.set_off(now, id, actions);
        }
    }

    /// A node holds an attempt, and waits to be told where to go on.
    pub(super) fn claim(&mut self, now: u64, id: QueryId, claim: Claim, actions: &mut Vec<Action>) {
        let earlier = claim.attempt.epoch < self.settings.epoch;
        match self.entries.get(&id) {
            Some(entry) if entry.attempt == claim.attempt && entry.may_be_held_by(&claim.holder) => {
                self.resume(now, id, claim, actions);
            }
            // Not sent in this reign.
            Some(entry) if earlier && entry.state == State::Waiting && entry.attempt.number == 0 => {
                self.adopt(now, id, claim, actions);
            }
            None if self.orphans.knows_newer(&id, &claim) => {}
            None if earlier && self.orphans.0.len() < ORPHANS_MAX => {
                // Of two nodes that hold it, the one with the later attempt is nearer to its end.
                // The same one again has begun to run meanwhile, or has a new stream.
                let same = |other: &Claim| (other.attempt, &other.holder.name) == (claim.attempt, &claim.holder.name);
                let known = self.orphans.0.remove(&id).map(|orphan| orphan.claim).filter(|known| !same(known));
                let (kept, lost) = match known {
                    Some(known) if known.attempt >= claim.attempt => (known, Some(claim)),
                    known => (claim, known),
                };
                self.orphans.0.insert(id, Orphan { claim: kept, since: now });
                if let Some(lost) = lost {
                    actions.push(Action::Cancel { stream: lost.holder.stream, id, attempt: lost.attempt });
                }
            }
            _ => actions.push(Action::Cancel { stream: claim.holder.stream, id, attempt: claim.attempt }),
        }
    }

    /// Gives a waiting query to the node that holds it already, if that can go on where the client is.
    fn adopt(&mut self, now: u64, id: QueryId, claim: Claim, actions: &mut Vec<Action>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if !self.unclaimed.remove(&(entry.order, id)) {
            self.lanes.remove(&entry.waiting());
        }
        entry.adopt(now, claim.attempt);
        self.resume(now, id, claim, actions);
    }

    fn resume(&mut self, now: u64, id: QueryId, claim: Claim, actions: &mut Vec<Action>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let position = entry.tokens.len() as u32;
        let Claim { attempt, holder, running, from, trail } = claim;
        let stream = holder.stream;
        if from > position {
            actions.push(Action::Cancel { stream, id, attempt });
            self.lose(now, id, Part::Bystander, actions);
            self.dispatch(now, actions);
            return;
        }
        entry.hold(now, holder, running, trail);
        entry.started |= running;
        let (order, recalled, placed) = (entry.order, entry.recalled, entry.placed());
        actions.push(placed);
        actions.push(Action::Resume { stream, id, attempt, position });
        if running {
            self.queued.remove(&(order, id));
            self.recalling.remove(&id);
        } else {
            self.queued.insert((order, id));
            if recalled {
                // An older stream may have swallowed it.
                actions.push(Action::Recall { stream, id, attempt });
            }
        }
        self.dispatch(now, actions);
    }

    /// The client lost its stream, and may come back.
    pub(super) fn detach(&mut self, now: u64, id: QueryId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.detached_at = Some(now);
        }
    }

    pub(super) fn attach(&mut self, id: QueryId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.detached_at = None;
        }
    }

    /// What was waited for long enough.
    pub(super) fn give_up_waiting(&mut self, now: u64, actions: &mut Vec<Action>) {
        if now >= self.claims_until {
            for (_, id) in std::mem::take(&mut self.unclaimed) {
                self.lanes.push(self.entries[&id].waiting());
                self.set_off(now, id, actions);
            }
        }
        let late = |since: u64, timeout: u64| now.saturating_sub(since) >= timeout;
        let orphans = self.orphans.0.iter().filter(|(_, orphan)| late(orphan.since, ORPHAN_TIMEOUT_US));
        let mut orphans: Vec<QueryId> = orphans.map(|(id, _)| *id).collect();
        orphans.sort_unstable();
        for id in orphans {
            let Some(Orphan { claim, .. }) = self.orphans.0.remove(&id) else { continue };
            actions.push(Action::Cancel { stream: claim.holder.stream, id, attempt: claim.attempt });
        }
        for id in self.in_order(|entry| entry.detached_at.is_some_and(|since| late(since, DETACHED_TIMEOUT_US))) {
            self.entries[&id].cancel(actions);
            actions.push(Action::Fail { id, failure: Failure::Abandoned });
            self.end(now, id, Outcome::Cancelled, Some("its client left and did not come back"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        LaneLimits,
        capacity::Capacity,
        ledger::{
            Event, Settings,
            fixtures::{SECOND, asked, holder, id},
        },
    };

    const BEFORE: Attempt = Attempt { epoch: 6, number: 3 };

    fn ledger() -> Ledger {
        Ledger::new(Settings { epoch: 7, eager: false, lanes: LaneLimits::default() })
    }

    fn again(number: u128, delivered: &[u32]) -> Event {
        Event::AskedAgain { asked: asked(number), delivered: delivered.to_vec() }
    }

    fn claimed(number: u128, attempt: Attempt, by: &str, from: u32) -> Event {
        Event::Claimed { id: id(number), attempt, holder: holder(by), running: true, from, trail: Vec::new() }
    }

    fn room() -> Event {
        Event::Room(vec![Capacity { models: vec!["m".into()], room: 4, queue: 0, slots: 4 }])
    }

    fn cancel(number: u128, attempt: Attempt, by: &str) -> Action {
        Action::Cancel { stream: holder(by).stream, id: id(number), attempt }
    }

    fn resume(number: u128, attempt: Attempt, by: &str, position: u32) -> Action {
        Action::Resume { stream: holder(by).stream, id: id(number), attempt, position }
    }

    fn feed(ledger: &mut Ledger, now: u64, events: impl IntoIterator<Item = Event>) -> Vec<Action> {
        let actions = events.into_iter().flat_map(|event| ledger.handle(now, event));
        actions.filter(|action| !matches!(action, Action::Placed { .. })).collect()
    }

    #[test]
    fn a_node_goes_on_behind_what_the_client_has_whoever_comes_first() {
        for node_first in [true, false] {
            let mut ledger = ledger();
            let mut events = [again(1, &[5, 6]), claimed(1, BEFORE, "a", 0)];
            if node_first {
                events.reverse();
            }
            assert_eq!(feed(&mut ledger, 1, events), [resume(1, BEFORE, "a", 2)]);
            let said = Event::Generated { id: id(1), attempt: BEFORE, holder: holder("a"), position: 2, tokens: vec![7] };
            assert_eq!(feed(&mut ledger, 2, [said]), [Action::Deliver { id: id(1) }]);
            // Should it be lost now, the next attempt is one of this reign.
            let actions = feed(&mut ledger, 3, [room(), Event::HolderLost { stream: holder("a").stream }]);
            let sent = actions.iter().find_map(|action| match action {
                Action::Send { ticket, .. } => Some(ticket.attempt),
                _ => None,
            });
            assert_eq!(sent, Some(Attempt { epoch: 7, number: 4 }));
        }
    }

    #[test]
    fn a_query_that_no_node_holds_is_sent_when_all_had_their_chance() {
        let mut ledger = ledger();
        assert_eq!(feed(&mut ledger, 1, [room(), again(1, &[5])]), []);
        assert_eq!(feed(&mut ledger, CLAIM_TIMEOUT_US / 2, [Event::Tick]), []);
        let actions = feed(&mut ledger, 1 + CLAIM_TIMEOUT_US, [Event::Tick]);
        assert!(matches!(&actions[..], [Action::Send { ticket, .. }] if ticket.attempt == Attempt { epoch: 7, number: 1 }));
        // Whoever holds it is too late now, and so is a root's earlier attempt.
        assert_eq!(feed(&mut ledger, 3 * SECOND, [claimed(1, BEFORE, "a", 0)]), [cancel(1, BEFORE, "a")]);
    }

    #[test]
    fn what_nobody_asks_for_is_cancelled() {
        let mut ledger = ledger();
        assert_eq!(feed(&mut ledger, 1, [claimed(1, BEFORE, "a", 0)]), []);
        assert_eq!(ledger.orphans(), 1);
        assert_eq!(feed(&mut ledger, 1 + ORPHAN_TIMEOUT_US, [Event::Tick]), [cancel(1, BEFORE, "a")]);
        assert_eq!(ledger.orphans(), 0);
        // One of this reign is nobody's at once.
        let ours = Attempt { epoch: 7, number: 1 };
        assert_eq!(feed(&mut ledger, 9 * SECOND, [claimed(1, ours, "a", 0)]), [cancel(1, ours, "a")]);
    }

    #[test]
    fn what_comes_late_on_an_older_stream_of_the_node_changes_nothing() {
        let newer = Holder { stream: holder("a").stream + 1000, ..holder("a") };
        let again =
            Event::Claimed { id: id(1), attempt: BEFORE, holder: newer.clone(), running: true, from: 0, trail: Vec::new() };
        let mut ledger = ledger();
        let late = [again, claimed(1, BEFORE, "a", 0), Event::HolderLost { stream: holder("a").stream }];
        assert_eq!(feed(&mut ledger, 1, late), []);
        let cancel = Action::Cancel { stream: newer.stream, id: id(1), attempt: BEFORE };
        assert_eq!(feed(&mut ledger, 1 + ORPHAN_TIMEOUT_US, [Event::Tick]), [cancel]);
    }

    #[test]
    fn of_two_nodes_that_hold_it_the_later_attempt_counts() {
        let earlier = Attempt { number: 2, ..BEFORE };
        for claims in
            [[claimed(1, BEFORE, "b", 0), claimed(1, earlier, "a", 0)], [claimed(1, earlier, "a", 0), claimed(1, BEFORE, "b", 0)]]
        {
            let mut ledger = ledger();
            assert_eq!(feed(&mut ledger, 1, claims), [cancel(1, earlier, "a")]);
            assert_eq!(feed(&mut ledger, 2, [again(1, &[])]), [resume(1, BEFORE, "b", 0)]);
        }
    }

    #[test]
    fn a_node_that_began_behind_the_client_is_no_help() {
        let mut ledger = ledger();
        let actions = feed(&mut ledger, 1, [room(), claimed(1, BEFORE, "a", 3), again(1, &[5, 6])]);
        assert_eq!(actions[0], cancel(1, BEFORE, "a"));
        assert!(matches!(&actions[1], Action::Send { ticket, .. } if ticket.attempt == Attempt { epoch: 7, number: 4 }));
    }

    #[test]
    fn an_answer_without_readers_goes_on_for_a_while() {
        let mut ledger = ledger();
        feed(&mut ledger, 1, [again(1, &[]), claimed(1, BEFORE, "a", 0), Event::Detached { id: id(1) }]);
        assert_eq!(feed(&mut ledger, DETACHED_TIMEOUT_US, [Event::Tick, Event::Attached { id: id(1) }]), []);
        feed(&mut ledger, DETACHED_TIMEOUT_US + 1, [Event::Detached { id: id(1) }]);
        let progress = Event::Progressed { id: id(1), attempt: BEFORE, holder: holder("a") };
        assert_eq!(feed(&mut ledger, DETACHED_TIMEOUT_US + 2, [progress, Event::Tick]), []);
        let actions = feed(&mut ledger, 2 * DETACHED_TIMEOUT_US + 1, [Event::Tick]);
        assert_eq!(actions, [cancel(1, BEFORE, "a"), Action::Fail { id: id(1), failure: Failure::Abandoned }]);
        assert_eq!(ledger.live(), 0);
    }
}
