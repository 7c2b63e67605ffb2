//! What a node does as a holder: it passes on what its engine says, and does what the root wants of what it keeps.

use banyan_engine as engine;
use banyan_proto::{Attempt, QueryId, v1};
use tokio::sync::mpsc;

use super::{Core, work::Work};
use crate::{journal::Fact, router, translate};

impl Core {
    pub(crate) fn step(&mut self, step: engine::Step) {
        let Some(work) = &mut self.engine else { return };
        let slots = step.slots;
        if let Some(meters) = self.meters.as_ref().filter(|_| !step.outputs.is_empty()) {
            meters.stepped(work.running());
        }
        let ended = work.step(step, self.now);
        if !ended.is_empty() {
            // The parent learns how it went, though there may be no more room than before.
            self.note_report(false);
        }
        for id in ended {
            self.route(router::Event::Ended { id });
        }
        if let Some(slots) = slots {
            self.route(router::Event::Limited { slots });
        }
    }

    pub(super) fn root_connected(&mut self, to: mpsc::Sender<v1::Delivery>, relayed: bool) {
        let Some(work) = &mut self.engine else { return };
        work.connected(to, self.now);
        if let Some(meters) = &self.meters {
            meters.connected(relayed);
        }
        if relayed || self.relayed {
            let through = self.uplink.as_ref().filter(|_| relayed).map(|uplink| format!("delivers through {}", uplink.parent));
            self.journal.push(Fact::Note(through.unwrap_or_else(|| "delivers straight to the root again".to_owned())));
        }
        self.relayed = relayed;
        self.rootless_since = None;
        self.tell_presence();
        self.route(router::Event::Connected(true));
    }

    pub(super) fn root_lost(&mut self) {
        let Some(work) = &mut self.engine else { return };
        work.disconnected(self.now);
        self.rootless_since.get_or_insert(self.now);
        self.relayed = false;
        self.route(router::Event::Connected(false));
    }

    /// Nobody will ask for what is kept.
    pub(super) fn let_go(&mut self) {
        let kept = self.engine.as_ref().map(Work::attempts).unwrap_or_default();
        for (id, attempt) in kept {
            self.cancelled(id, attempt);
        }
    }

    fn cancelled(&mut self, id: QueryId, attempt: Attempt) {
        if let Some(work) = &mut self.engine {
            work.forget_ended(id, attempt);
        }
        self.route(router::Event::Cancelled { id, attempt });
    }

    pub(super) fn control(&mut self, control: v1::Control) {
        use v1::control::Kind;
        match &control.kind {
            Some(Kind::Cancel(query)) => {
                if let Some((id, attempt)) = translate::read_reference(query) {
                    self.cancelled(id, attempt);
                }
            }
            Some(Kind::Recall(query)) => {
                if let Some((id, attempt)) = translate::read_reference(query) {
                    self.route(router::Event::Recalled { id, attempt });
                }
            }
            Some(Kind::Resume(resume)) => {
                let query = resume.query.as_ref().and_then(translate::read_reference);
                if let (Some((id, attempt)), Some(work)) = (query, &mut self.engine) {
                    work.resume(id, attempt, resume.position);
                }
            }
            Some(Kind::Welcome(_)) | None => {}
        }
    }
}
