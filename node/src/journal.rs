//! The last decisions of a node, for `banyan node log`.
//!
//! Facts are kept as they were decided and put into words only when somebody asks.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use banyan_proto::{NodeName, v1};
use serde_json::json;
use tokio::sync::broadcast;

use crate::{
    ledger,
    router::{self, Verdict},
};

/// Some minutes of a busy node; a decision takes a few hundred bytes.
const KEPT: usize = 2048;
/// A follower that falls further behind misses decisions, and slows nobody.
const FOLLOWER_LAG: usize = 1024;

pub(crate) struct Journal {
    next: u64,
    kept: VecDeque<Kept>,
    kept_max: usize,
    /// From the first follower on: its buffer is the largest thing of an idle node.
    followers: Option<broadcast::Sender<v1::Decision>>,
}

struct Kept {
    number: u64,
    at_ms: u64,
    fact: Fact,
}

/// One decision.
pub(crate) enum Fact {
    Router(router::Event, Vec<router::Action>),
    Ledger(ledger::Event, Vec<ledger::Action>),
    Note(String),
}

impl Journal {
    pub(crate) fn new() -> Self {
        Journal::keeping(KEPT)
    }

    /// One that keeps so many decisions.
    pub(crate) fn keeping(kept_max: usize) -> Self {
        Journal { next: 1, kept: VecDeque::new(), kept_max, followers: None }
    }

    pub(crate) fn push(&mut self, fact: Fact) {
        if !fact.tells() {
            return;
        }
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let kept = Kept { number: self.next, at_ms, fact };
        self.next += 1;
        if let Some(followers) = self.followers.as_ref().filter(|followers| followers.receiver_count() > 0) {
            // Fails only when the last follower left in between.
            let _ = followers.send(kept.decision());
        }
        if self.kept.len() == self.kept_max {
            self.kept.pop_front();
        }
        self.kept.push_back(kept);
    }

    /// The last decisions, the oldest first; 0: all that are kept.
    pub(crate) fn last(&self, count: usize) -> Vec<v1::Decision> {
        let count = if count == 0 { self.kept.len() } else { count.min(self.kept.len()) };
        self.kept.iter().skip(self.kept.len() - count).map(Kept::decision).collect()
    }

    pub(crate) fn follow(&mut self) -> broadcast::Receiver<v1::Decision> {
        self.followers.get_or_insert_with(|| broadcast::channel(FOLLOWER_LAG).0).subscribe()
    }
}

impl Kept {
    fn decision(&self) -> v1::Decision {
        let json = match &self.fact {
            Fact::Router(event, actions) => json!({ "event": event, "actions": actions }),
            Fact::Ledger(event, actions) => json!({ "event": event, "actions": actions }),
            Fact::Note(text) => json!({ "note": text }),
        };
        v1::Decision { number: self.number, at_ms: self.at_ms, text: self.fact.text(), json: json.to_string() }
    }
}

impl Fact {
    /// Whether a person would want to read it: reports and tokens by themselves say nothing.
    fn tells(&self) -> bool {
        match self {
            Fact::Router(
                router::Event::ChildReported { .. }
                | router::Event::Limited { .. }
                | router::Event::Ended { .. }
                | router::Event::Tick,
                actions,
            ) => actions.iter().any(|action| !matches!(action, router::Action::Report { .. })),
            Fact::Router(..) | Fact::Note(_) => true,
            Fact::Ledger(event, actions) => match event {
                ledger::Event::Asked(_) | ledger::Event::AskedAgain { .. } => actions.iter().any(|action| match action {
                    // There may be thousands a second; they are noted together.
                    ledger::Action::Fail { failure: ledger::Failure::Overloaded { .. }, .. } => false,
                    ledger::Action::Fail { .. } | ledger::Action::Placed { .. } => true,
                    _ => false,
                }),
                ledger::Event::Refused { .. } | ledger::Event::Returned { .. } | ledger::Event::HolderLost { .. } => true,
                ledger::Event::Vanished { .. } => !actions.is_empty(),
                ledger::Event::Reigned { .. } | ledger::Event::Claimed { .. } => true,
                ledger::Event::Detached { .. } | ledger::Event::Attached { .. } => true,
                ledger::Event::ClientLeft { .. } => !actions.is_empty(),
                ledger::Event::Tick | ledger::Event::Room(_) | ledger::Event::Held { .. } => actions.iter().any(|action| {
                    matches!(
                        action,
                        ledger::Action::Fail { .. }
                            | ledger::Action::Recall { .. }
                            | ledger::Action::Cancel { .. }
                            | ledger::Action::Pause { .. }
                    )
                }),
                _ => false,
            },
        }
    }

    fn text(&self) -> String {
        match self {
            Fact::Router(event, actions) => {
                let mut text = router_event(event);
                for action in actions {
                    if let Some(done) = router_action(action) {
                        let _ = write!(text, ": {done}");
                    }
                }
                text
            }
            Fact::Ledger(event, actions) => {
                let mut text = ledger_event(event);
                for (index, done) in actions.iter().filter_map(ledger_action).enumerate() {
                    let _ = write!(text, "{} {done}", if index == 0 { ":" } else { "," });
                }
                text
            }
            Fact::Note(text) => text.clone(),
        }
    }
}

fn router_event(event: &router::Event) -> String {
    match event {
        router::Event::Connected(true) => "reached the root".to_owned(),
        router::Event::Connected(false) => "lost the way to the root".to_owned(),
        router::Event::ChildJoined { child } => format!("child {child} attached"),
        router::Event::ChildLeft { child, orderly: true } => format!("child {child} went elsewhere"),
        router::Event::ChildLeft { child, .. } => format!("the link to child {child} broke"),
        router::Event::ChildReported { child, .. } => format!("child {child} reported"),
        router::Event::Draining => "about to leave".to_owned(),
        router::Event::Tick => "time passed".to_owned(),
        router::Event::Arrived(ticket) if ticket.attempt.number > 1 => {
            format!("query {} (attempt {})", ticket.id, ticket.attempt.number)
        }
        router::Event::Arrived(ticket) => format!("query {}", ticket.id),
        router::Event::Limited { slots } => format!("the engine takes {slots} together"),
        router::Event::Ended { id } => format!("query {id} left the engine"),
        router::Event::Cancelled { id, .. } => format!("query {id} cancelled"),
        router::Event::Recalled { id, .. } => format!("query {id} recalled"),
    }
}

fn router_action(action: &router::Action) -> Option<String> {
    use router::{Action, Because, Choice};
    Some(match action {
        Action::Execute { id } => format!("run {id}"),
        Action::Queue { .. } => "busy and nobody to pass it to, queued".to_owned(),
        Action::Forward { child, choice: Choice::Room, .. } => format!("to {child}, which has room"),
        Action::Forward { child, choice: Choice::Turn, .. } => format!("to {child}, whose turn it is; no child has room"),
        Action::Forward { child, choice: Choice::Preferred, .. } => format!("to {child}, which it prefers"),
        Action::Refuse { because: Because::Busy, .. } => "refused, the queue is full".to_owned(),
        Action::Refuse { because: Because::Model, .. } => "refused, nobody here serves its model".to_owned(),
        Action::Refuse { because: Because::Disconnected, .. } => "refused, there is no way to the root".to_owned(),
        Action::Refuse { because: Because::Hops, .. } => "refused, it came through too many nodes".to_owned(),
        Action::Refuse { because: Because::Leaving, .. } => "refused, the node is leaving".to_owned(),
        Action::Refuse { because: Because::Held, .. } => "refused, an older attempt is still in the engine".to_owned(),
        Action::Return { .. } => "handed back, it had not started".to_owned(),
        Action::Abort { .. } => "taken from the engine".to_owned(),
        Action::Drop { .. } => "dropped from the queue".to_owned(),
        Action::Judge { child, verdict } => judged(child, *verdict),
        Action::Report { .. } => return None,
    })
}

fn judged(child: &NodeName, verdict: Verdict) -> String {
    let ms = |us: u64| format!("{:.1} ms", us as f64 / 1000.0);
    match verdict {
        Verdict::Turns { one_in: 1, .. } => format!("{child} is as quick as the others again"),
        Verdict::Turns { one_in, delay_us, pace_us } => {
            let pace = if pace_us == 0 { String::new() } else { format!(", and a token there takes {}", ms(pace_us)) };
            format!("{child} is slow and gets one turn in {one_in}: queries take {} to reach it{pace}", ms(delay_us))
        }
        Verdict::Shut { for_us } => format!("{child} failed too often in a row, and gets nothing for {}", ms(for_us)),
        Verdict::Trial => format!("{child} gets one query, to show whether it works again"),
        Verdict::Open => format!("{child} works again"),
    }
}

fn ledger_event(event: &ledger::Event) -> String {
    use ledger::Event;
    match event {
        Event::Asked(asked) => format!("query {} asked", asked.id),
        Event::AskedAgain { asked, delivered } => format!("query {} asked again behind {} tokens", asked.id, delivered.len()),
        Event::Reigned { epoch } => format!("the reign's number is {epoch} now"),
        Event::Claimed { id, holder, .. } => format!("query {id} has been held by {}", holder.name),
        Event::Detached { id } => format!("query {id} has lost its reader"),
        Event::Attached { id } => format!("query {id} has a reader again"),
        Event::Room(_) => "room changed".to_owned(),
        Event::Tick => "time passed".to_owned(),
        Event::Held { id, holder, running: true, .. } => format!("query {id} runs on {}", holder.name),
        Event::Held { id, holder, .. } => format!("query {id} queued at {}", holder.name),
        Event::Progressed { id, .. } | Event::Generated { id, .. } | Event::Finished { id, .. } => {
            format!("query {id} progressed")
        }
        Event::Refused { id, holder, fault: ledger::Fault::Busy, .. } => {
            format!("query {id} refused by {}, which is full", holder.name)
        }
        Event::Refused { id, holder, fault: ledger::Fault::Engine, .. } => {
            format!("the engine of {} failed with query {id}", holder.name)
        }
        Event::Refused { id, holder, .. } => format!("query {id} refused by {}", holder.name),
        Event::Bounced { id, .. } => format!("query {id} found no child"),
        Event::Returned { id, holder, .. } => format!("query {id} handed back by {}", holder.name),
        Event::HolderLost { stream } => format!("the stream {stream} of a node broke"),
        Event::Vanished { id } => format!("query {id} was sent to a child that is gone"),
        Event::ClientLeft { id } => format!("the client of query {id} left"),
    }
}

fn ledger_action(action: &ledger::Action) -> Option<String> {
    use ledger::{Action, Failure};
    Some(match action {
        Action::Send { ticket, .. } => format!("send {} (attempt {})", ticket.id, ticket.attempt.number),
        Action::Fail { id, failure } => match failure {
            Failure::Overloaded { retry_after_ms, .. } => format!("refuse {id} for {retry_after_ms} ms, there is no place"),
            Failure::Hopeless { wait_ms } => format!("fail {id}, it would have waited {wait_ms} ms more, beyond its deadline"),
            Failure::UnknownModel { .. } => format!("fail {id}, no node serves its model"),
            Failure::NoPlace => format!("fail {id}, it would have to wait"),
            Failure::Unserved => format!("fail {id}, the nodes of its model are away"),
            Failure::Deadline => format!("fail {id}, its deadline passed"),
            Failure::Poison => format!("fail {id}, two nodes died or failed while they ran it"),
            Failure::Broken => format!("fail {id}, nobody can continue a provider's answer"),
            Failure::Abandoned => format!("fail {id}, nobody came back for it"),
            Failure::Holder => format!("fail {id}, as the node said"),
        },
        Action::Placed { id, node: None, .. } => format!("{id} waits at the root"),
        Action::Pause { id } => format!("{id} waits, too much is being sent again"),
        Action::Placed { .. } | Action::Deliver { .. } | Action::Finish { .. } => return None,
        Action::Cancel { id, .. } => format!("cancel {id} at its node"),
        Action::Recall { id, .. } => format!("recall {id}"),
        Action::Resume { id, position, .. } => format!("go on with {id} behind {position} tokens"),
    })
}
