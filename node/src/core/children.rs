//! The node's children: their links, what they report, and what is sent down to them.

use banyan_proto::{NodeName, QueryId, v1};
use tokio::sync::{mpsc, oneshot};

use super::{Core, input, input::ChildLink, parcel::Parcel, parent::ancestry_down, traced};
use crate::{
    ledger,
    router::{self, Service},
    translate,
};

/// Sets of models in one report: more than a tree has kinds of nodes, few enough that a faulty child costs little.
const SETS_MAX: usize = 256;

/// More than a process has file descriptors for.
const CHILDREN_MAX: usize = 16_384;
/// Inspections that were sent down and not answered yet; those beyond find nobody.
const INSPECTIONS_MAX: usize = 65_536;

pub(super) struct Child {
    pub(super) link: u64,
    pub(super) address: String,
    pub(super) nodes: u32,
    /// As last reported.
    pub(super) service: Option<Service>,
    pub(super) to: mpsc::Sender<v1::Down>,
}

impl Core {
    pub(super) fn child_attached(&mut self, link: ChildLink) {
        if let Some(message) = self.objection(&link.name) {
            let rejected = v1::Down { kind: Some(v1::down::Kind::Rejected(v1::Rejected { message })) };
            // Fails only when the child has gone again. Dropping the sender ends the stream.
            let _ = link.to.try_send(rejected);
            return;
        }
        let event = router::Event::ChildJoined { child: link.name.clone() };
        let child = Child { link: link.link, address: link.address, nodes: 0, service: None, to: link.to };
        // Fails only when the child has gone again, which its link will say.
        let _ = child.to.try_send(ancestry_down(self.ancestry_for_children()));
        self.children.insert(link.name, child);
        self.route(event);
    }

    /// Why this child can't be had, if it can't.
    fn objection(&self, child: &NodeName) -> Option<String> {
        if *child == self.name {
            return Some(format!("{} can't be its own parent", self.name));
        }
        if self.is_leaving() {
            return Some(format!("{} is about to leave", self.name));
        }
        if self.children.len() >= CHILDREN_MAX && !self.children.contains_key(child) {
            return Some(format!("{} has {CHILDREN_MAX} children: attach below one of them", self.name));
        }
        let above = self.ancestry.ancestors.iter().any(|ancestor| ancestor.name == child.as_str());
        above.then(|| format!("{child} is above {}, so attaching would close a circle", self.name))
    }

    pub(super) fn child_report(&mut self, child: NodeName, link: u64, report: v1::Report) {
        let Some(known) = self.children.get_mut(&child).filter(|known| known.link == link) else { return };
        known.nodes = report.nodes;
        let capacity = report.capacity.into_iter().take(SETS_MAX).map(translate::capacity).collect();
        let service = translate::service(report.service.unwrap_or_default());
        let before = known.service.replace(service).unwrap_or(service);
        self.below.busy_us += service.busy_us.saturating_sub(before.busy_us);
        self.below.tokens += service.tokens.saturating_sub(before.tokens);
        self.route(router::Event::ChildReported { child, received: report.received, capacity, service });
    }

    pub(super) fn forward(&mut self, id: QueryId, child: &NodeName, choice: router::Choice, mut query: Parcel) {
        let Some(link) = self.children.get(child) else { return };
        if let Some(desk) = &mut self.desk {
            desk.sent_to(&id, child);
        }
        if self.desk.is_none()
            && let Some(place) = traced::forward(&self.tracer, &self.name, child, choice, query.header())
        {
            query.pass(&place);
        }
        // The root has written its own hop where there was more to say than whom it chose.
        if query.trail().last().is_none_or(|hop| hop.node != self.name.as_str()) {
            query.add_hop(&self.name, translate::reason_of_choice(choice));
        }
        if link.to.try_send(v1::Down { kind: Some(v1::down::Kind::Query(query.into_bytes())) }).is_err() {
            // Nobody will say to hold it, so the root sends it again; the link's end takes the child from the router.
            tracing::warn!(query = %id, %child, "link can't take a query, cut");
            self.cut_child(child.clone());
        }
    }

    pub(super) fn child_gone(&mut self, child: NodeName, link: u64, orderly: bool) {
        if self.children.get(&child).is_none_or(|known| known.link != link) {
            return;
        }
        if !orderly {
            return self.cut_child(child);
        }
        // Dropping the sender ends the stream behind what is on its way, and that the child still reads.
        self.children.remove(&child);
        self.end_relays_from(&child, true);
        self.route(router::Event::ChildLeft { child, orderly });
    }

    pub(super) fn tell_children_to_leave(&mut self) {
        let leaving = || v1::Down { kind: Some(v1::down::Kind::Leaving(v1::Leaving {})) };
        let deaf = self.children.iter().filter(|(_, child)| child.to.try_send(leaving()).is_err());
        for child in deaf.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.cut_child(child);
        }
    }

    pub(super) fn cut_child(&mut self, child: NodeName) {
        // Dropping the sender ends the stream; the child attaches again.
        if self.children.remove(&child).is_none() {
            return;
        }
        self.end_relays_from(&child, false);
        self.tell_severed(&child);
        let sent = self.desk.as_ref().map(|desk| desk.sent_through(&child)).unwrap_or_default();
        self.route(router::Event::ChildLeft { child, orderly: false });
        for id in sent {
            self.ledger(ledger::Event::Vanished { id }, None);
        }
    }

    pub(super) fn ask_children(
        &mut self,
        inspection: v1::inspection::Kind,
        reply: oneshot::Sender<Vec<(NodeName, oneshot::Receiver<v1::Inspected>)>>,
    ) {
        self.inspections.retain(|_, waiting| !waiting.is_closed());
        let target = input::target_of(&inspection);
        let mut waiting = Vec::new();
        for (name, child) in &self.children {
            if self.inspections.len() >= INSPECTIONS_MAX {
                break;
            }
            self.inspection += 1;
            let (sender, receiver) = oneshot::channel();
            let down = v1::Inspection { number: self.inspection, target: target.clone(), kind: Some(inspection.clone()) };
            if child.to.try_send(v1::Down { kind: Some(v1::down::Kind::Inspection(down)) }).is_ok() {
                self.inspections.insert(self.inspection, sender);
                waiting.push((name.clone(), receiver));
            }
        }
        let _ = reply.send(waiting);
    }
}
