//! How a node leaves: it takes nothing more, its children go elsewhere, what runs finishes, and the rest is handed over.
//!
//! In this order nothing is lost: children attach elsewhere before they let go of the link, so what is on its way to them
//! still arrives; the node lets go of its own parent only when nothing runs here any more, and refuses what is then still on
//! its way down; and what the deadline interrupts goes on elsewhere behind the tokens that were delivered.

use std::time::Duration;

use banyan_proto::v1;
use tokio::time::Instant;

use super::Core;
use crate::{journal::Fact, router};

/// Children that have not found another parent by then are cut: those of an older version do not know what they were told.
const CHILDREN: Duration = Duration::from_secs(5);
/// How long the parent may take to end the link behind what is on its way.
const PARTING: Duration = Duration::from_secs(2);

/// How long even a node with nothing to do stays: whoever asked for it over the links is to hear that it has begun.
const FAREWELL: Duration = Duration::from_millis(100);

/// A node that is about to leave.
pub(super) struct Leave {
    /// What runs then is handed over.
    until: Instant,
    /// Until then children are waited for.
    children_until: Instant,
    /// It does not let go of its parent before.
    farewell: Instant,
    parting: Parting,
}

/// The end of the link to the parent.
enum Parting {
    NotYet,
    /// Asked for; waited for until then.
    Link(u64, Instant),
    Done,
}

impl Core {
    /// Begins to leave; a second wish can only bring the deadline nearer.
    pub(crate) fn drain(&mut self, until: Instant) -> v1::Draining {
        match &mut self.leave {
            Some(leave) => leave.until = leave.until.min(until),
            None => {
                let (children_until, farewell) = (self.now + CHILDREN, self.now + FAREWELL);
                self.leave = Some(Leave { until, children_until, farewell, parting: Parting::NotYet });
                // A root goes on with what it owes, for which it needs its children; it only takes no new questions.
                if self.desk.is_none() {
                    self.route(router::Event::Draining);
                    self.tell_children_to_leave();
                }
                self.tell_presence();
            }
        }
        v1::Draining {
            running: self.desk.as_ref().map_or(self.router.running(), |desk| desk.ledger.live()) as u32,
            queued: self.router.queued() as u32,
            children: self.children.len() as u32,
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leave.is_some()
    }

    /// A link to a parent ended.
    pub(super) fn parted(&mut self, link: u64) {
        if let Some(leave) = &mut self.leave
            && matches!(leave.parting, Parting::Link(of, _) if of == link)
        {
            leave.parting = Parting::Done;
        }
    }

    /// When there is something to do about it, if nothing happens before.
    pub(crate) fn leave_at(&self) -> Option<Instant> {
        let leave = self.leave.as_ref()?;
        Some(match leave.parting {
            Parting::Link(_, until) => until,
            Parting::Done => self.now,
            Parting::NotYet if self.now < leave.farewell => leave.farewell,
            Parting::NotYet if self.waits_for_children() => leave.until.min(leave.children_until),
            Parting::NotYet => leave.until,
        })
    }

    /// Takes the next step. True when the node has nothing left to do here.
    pub(crate) fn leaves(&mut self) -> bool {
        let (waits_for_children, now) = (self.waits_for_children(), self.now);
        let Some(leave) = &mut self.leave else { return false };
        match leave.parting {
            Parting::Done => return true,
            Parting::Link(_, until) => return now >= until,
            Parting::NotYet => {}
        }
        if now < leave.farewell {
            return false;
        }
        let works = match &self.desk {
            Some(desk) => desk.ledger.live() > 0,
            None => self.router.running() > 0,
        };
        if now < leave.until && (works || waits_for_children && now < leave.children_until) {
            return false;
        }
        let Some(uplink) = self.uplink.take() else { return true };
        leave.parting = Parting::Link(uplink.link, now + PARTING);
        self.journal.push(Fact::Note(format!("letting go of {}", uplink.parent)));
        uplink.part();
        false
    }

    fn waits_for_children(&self) -> bool {
        self.desk.is_none() && !self.children.is_empty()
    }
}
