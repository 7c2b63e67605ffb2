//! What the node says of itself: to inspections, and to whoever drives it and looks whether anything is left over.

use std::sync::Arc;

use banyan_proto::v1;

use super::{Core, Snapshot, desk::Desk, work::Work};
use crate::{bare::Gauges, capacity, translate};

impl Core {
    pub(crate) fn gauges(&self) -> Gauges {
        let (clients, holders) = self.desk.as_ref().map_or((0, 0), Desk::sizes);
        Gauges {
            running: self.router.running(),
            queued: self.router.queued(),
            has_room: self.router.has_room(),
            rooted: self.ancestry.epoch != 0,
            connected: self.engine.as_ref().is_some_and(Work::is_connected),
            kept: self.engine.as_ref().map_or(0, Work::kept),
            waiting: self.desk.as_ref().map_or(0, |desk| desk.ledger.waiting()),
            live: self.desk.as_ref().map_or(0, |desk| desk.ledger.live()),
            clients,
            holders,
            children: self.children.len(),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let children = self.children.iter().map(|(name, child)| {
            let (room, sent) = self.router.child(name).unwrap_or_default();
            let (one_in, shut_us) = self.router.standing(name, self.now());
            v1::ChildStatus {
                name: name.to_string(),
                address: child.address.clone(),
                room,
                nodes: child.nodes,
                sent,
                one_in,
                shut_ms: shut_us / 1000,
            }
        });
        Snapshot {
            attached: self.uplink.as_ref().map(|uplink| uplink.parent.to_string()),
            connected: self.engine.as_ref().is_some_and(Work::is_connected),
            running: self.router.running() as u32,
            queued: self.router.queued() as u32,
            has_room: self.router.has_room(),
            room: u32::try_from(capacity::total(&self.router.capacity(), "", |set| set.room)).unwrap_or(u32::MAX),
            children: children.collect(),
            ancestry: self.ancestry.ancestors.iter().map(|ancestor| ancestor.name.clone()).collect(),
            rooted: self.ancestry.epoch != 0,
            draining: self.is_leaving(),
            through: self.uplink.as_ref().filter(|_| self.relayed).map(|uplink| uplink.parent.to_string()),
            tokens: self.engine.as_ref().map_or(0, Work::tokens),
            waiting: self.desk.as_ref().map_or(0, |desk| desk.ledger.waiting() as u32),
            live: self.desk.as_ref().map_or(0, |desk| desk.ledger.live() as u32),
            epoch: self.ancestry.epoch,
            uptime: self.now.duration_since(self.started),
            kv: self.engine.as_ref().and_then(Work::kv),
            accounts: self.engine.as_ref().map(Work::accounts).unwrap_or_default(),
            loads: self.loads(),
        }
    }

    /// What each set of models that share an engine can take, and what waits for it.
    fn loads(&self) -> Vec<v1::Load> {
        let mut sets = self.router.capacity();
        let waits: Vec<_> = self.desk.iter().flat_map(|desk| desk.ledger.waiting_by_model()).collect();
        // A model whose nodes are all away is waited for as well.
        for (model, _) in &waits {
            if !model.is_empty() && !sets.iter().any(|set| capacity::serves(&set.models, model)) {
                sets.push(capacity::Capacity { models: vec![Arc::clone(model)], ..Default::default() });
            }
        }
        let load = |set: capacity::Capacity| {
            let waiting = waits.iter().filter(|(model, _)| model.is_empty() || capacity::serves(&set.models, model));
            let waiting: u64 = waiting.map(|(_, entries)| entries).sum();
            v1::Load { waiting: u32::try_from(waiting).unwrap_or(u32::MAX), capacity: Some(translate::capacity_to_wire(&set)) }
        };
        sets.into_iter().map(load).collect()
    }
}
