//! What a node does while it is its tree's root, and how it begins and ceases to be that.

use banyan_proto::{NodeName, QueryId, v1};

use super::{
    Core,
    desk::Desk,
    input::{Ask, Attach, HolderLink},
};
use crate::{journal::Fact, ledger, recording::Record, translate};

impl Core {
    /// Where the node is no root, or only finishes what it has, the answer ends without a word, and the API asks whoever comes next.
    pub(super) fn ask(&mut self, ask: Ask) {
        let (now, leaving) = (self.now(), self.is_leaving());
        let Some(desk) = &mut self.desk else { return };
        if leaving && !translate::asked_id(&ask.question).is_some_and(|id| desk.knows(&id)) {
            return;
        }
        if let Some(event) = desk.accept(ask, now, self.now) {
            self.ledger(event, None);
        }
    }

    pub(super) fn attach_reader(&mut self, attach: Attach) {
        let now = self.now();
        let Some(desk) = &mut self.desk else { return };
        if let Some(event) = desk.attach(attach, now, self.now) {
            self.ledger(event, None);
        }
    }

    pub(super) fn cancel_answer(&mut self, id: QueryId, owner: &str, early: bool) {
        let now = self.now;
        let Some(desk) = &mut self.desk else { return };
        if early && !desk.knows(&id) {
            desk.early.push(now, id, owner);
        } else if desk.cancel(&id, owner) {
            self.ledger(ledger::Event::ClientLeft { id }, None);
        }
    }

    /// The node is the root from now on, or its reign has another number.
    pub(super) fn reign(&mut self, epoch: u64) {
        if self.desk.is_some() {
            self.ledger(ledger::Event::Reigned { epoch }, None);
        } else {
            let desk = Desk::new(
                ledger::Settings { epoch, eager: self.eager, lanes: self.lanes },
                self.name.clone(),
                self.tracer.clone(),
            );
            if let Some(recording) = &self.recording {
                recording.push(Record::LedgerStarted { settings: desk.ledger.settings().clone() });
            }
            self.desk = Some(desk);
            self.journal.push(Fact::Note(format!("this node is the root now, in reign {epoch}")));
        }
        self.set_ancestry(v1::Ancestry { ancestors: Vec::new(), epoch });
    }

    /// Another node is the root, or is about to be: whoever looked to this one goes there. Not a word is said for this reign any more.
    pub(super) fn step_down(&mut self) {
        if self.desk.take().is_none() {
            return;
        }
        self.watch = None;
        self.journal.push(Fact::Note("this node reigns no more".to_owned()));
        self.set_ancestry(v1::Ancestry::default());
        let children: Vec<NodeName> = self.children.keys().cloned().collect();
        for child in children {
            self.cut_child(child);
        }
    }

    pub(super) fn holder_joined(&mut self, link: HolderLink) {
        let Some(desk) = &mut self.desk else { return };
        let name = link.name.clone();
        desk.holder_joined(link);
        self.came(&name);
    }

    pub(super) fn holder_gone(&mut self, stream: u64) {
        let Some(desk) = &mut self.desk else { return };
        let name = desk.holder(stream).cloned();
        if desk.holder_gone(stream) {
            self.ledger(ledger::Event::HolderLost { stream }, None);
        }
        if let Some(name) = name {
            self.went(&name);
        }
    }

    pub(super) fn frame(&mut self, stream: u64, frame: v1::Frame) {
        for part in frame.parts {
            let Some(desk) = &mut self.desk else { return };
            if let Some((event, kind)) = desk.read(stream, part) {
                self.ledger(event, kind);
            }
        }
    }
}
