//! The node's parent: the link up, the ancestry that comes down it, and the reports of room that go up.

use std::time::Duration;

use banyan_proto::{NodeName, v1};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Core, input::Attached, parcel::Parcel};
use crate::{
    journal::Fact,
    router::{self, Action, Because},
    translate,
};

/// Reports of room that did not open or close anything are sent at most that often.
const REPORT_INTERVAL: Duration = Duration::from_millis(20);

pub(super) struct Uplink {
    pub(super) link: u64,
    pub(super) parent: NodeName,
    pub(super) received: u64,
    pub(super) to: mpsc::Sender<v1::Up>,
}

impl Uplink {
    /// Lets go of the parent: dropping the sender ends the stream, and the parent's own ends behind what is on its way.
    pub(super) fn part(self) {
        // Fails when the link has broken, which says the same.
        let _ = self.to.try_send(v1::Up { kind: Some(v1::up::Kind::Leaving(v1::Leaving {})) });
    }
}

impl Core {
    pub(super) fn attached(&mut self, attached: Attached) {
        self.journal.push(Fact::Note(format!("attached to {}", attached.parent)));
        if let Some(meters) = &self.meters {
            meters.attached();
        }
        if let Some(old) = self.uplink.take() {
            self.end_relays_up();
            old.part();
        }
        self.uplink = Some(Uplink { link: attached.link, parent: attached.parent, received: 0, to: attached.to });
        self.set_ancestry(attached.ancestry);
        self.tell_presence();
        self.report = true;
        self.send_report();
    }

    pub(super) fn set_ancestry(&mut self, ancestry: v1::Ancestry) {
        if self.ancestry == ancestry {
            return;
        }
        self.ancestry = ancestry;
        let down = self.ancestry_for_children();
        let told = |child: &super::children::Child| child.to.try_send(ancestry_down(down.clone())).is_ok();
        let deaf: Vec<NodeName> = self.children.iter().filter(|(_, child)| !told(child)).map(|(name, _)| name.clone()).collect();
        for child in deaf {
            // With an old ancestry it would go on without the root; attaching again it learns the new one.
            self.cut_child(child);
        }
    }

    pub(super) fn ancestry_for_children(&self) -> v1::Ancestry {
        // The child knows our address: it dialled it. `0` as the epoch says that there is no way to the root now.
        let us = v1::Ancestor { name: self.name.to_string(), address: String::new() };
        let ancestors = std::iter::once(us).chain(self.ancestry.ancestors.iter().cloned()).collect();
        v1::Ancestry { ancestors, epoch: self.ancestry.epoch }
    }

    pub(super) fn note_report(&mut self, urgent: bool) {
        if let Some(desk) = &mut self.desk {
            desk.room_changed = true;
            return;
        }
        self.report = true;
        if urgent {
            self.report_at = Some(self.now);
        } else {
            self.report_at.get_or_insert(self.now + REPORT_INTERVAL);
        }
    }

    pub(crate) fn send_report(&mut self) {
        self.report_at = None;
        if !std::mem::take(&mut self.report) {
            return;
        }
        let nodes = self.children.values().fold(1u32, |sum, child| sum.saturating_add(child.nodes));
        let own = self.engine.as_mut().map(|work| work.service(self.now)).unwrap_or_default();
        let Some(uplink) = &self.uplink else { return };
        let service = v1::Service {
            busy_us: own.busy_us + self.below.busy_us,
            tokens: own.tokens + self.below.tokens,
            answered: own.answered,
            failed: own.failed,
        };
        let capacity = self.router.capacity().iter().map(translate::capacity_to_wire).collect();
        let report = v1::Report { received: uplink.received, capacity, nodes, service: Some(service) };
        if uplink.to.try_send(v1::Up { kind: Some(v1::up::Kind::Report(report)) }).is_err() {
            self.uplink = None;
            self.end_relays_up();
        }
    }

    pub(super) fn query(&mut self, link: u64, query: Bytes) {
        if let Some(uplink) = self.uplink.as_mut().filter(|uplink| uplink.link == link) {
            uplink.received += 1;
            // The parent counts this query against our last report until the next one says that it came.
            if !self.report {
                self.report = true;
                self.report_at.get_or_insert(self.now + REPORT_INTERVAL);
            }
        }
        match Parcel::read(query).and_then(|query| Some((translate::ticket(query.header())?, query))) {
            Some((ticket, query)) if ticket.attempt.epoch < self.ancestry.epoch => {
                tracing::info!(node = %self.name, query = %ticket.id, attempt = ?ticket.attempt, "refused, its root reigns no more");
                if let Some(work) = &mut self.engine {
                    work.act(
                        &self.name,
                        &Action::Refuse { id: ticket.id, because: Because::Disconnected },
                        Some(query),
                        self.now,
                        None,
                    );
                }
            }
            Some((ticket, query)) => self.route_with(router::Event::Arrived(ticket), Some(query)),
            None => tracing::warn!(node = %self.name, "a query without a readable header came down the link"),
        }
    }
}

pub(super) fn ancestry_down(ancestry: v1::Ancestry) -> v1::Down {
    v1::Down { kind: Some(v1::down::Kind::Ancestry(ancestry)) }
}
