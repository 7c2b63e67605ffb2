//! How the tree comes to rest, and what must be true of it then.

use super::*;

impl World {
    /// Delivers everything that is on its way, with the engines standing still.
    pub(crate) fn settle(&mut self) {
        // The classic rule, which knows no room, goes on trying a full tree.
        let rounds = if self.routing == Routing::Classic { 6 } else { 50 };
        for _ in 0..rounds {
            let mut messages = 0;
            loop {
                for index in self.alive() {
                    self.let_go(index);
                    self.report(index);
                }
                let Some(&channel) = self.channels().first() else { break };
                self.deliver(channel);
                messages += 1;
                assert!(messages < 100_000, "messages without end: a query is sent in circles");
            }
            self.tick(2_500_000);
            if self.channels().is_empty() {
                return;
            }
        }
        assert_eq!(self.routing, Routing::Classic, "messages never cease");
    }

    /// Whether somebody on the way to it passes it over, because it failed too often.
    pub(super) fn is_shut(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        let parent = if node.parent == usize::MAX { &self.root } else { &self.nodes[node.parent].router };
        parent.standing(&node.name, self.now).1 > 0 || node.parent != usize::MAX && self.is_shut(node.parent)
    }

    pub(crate) fn nobody_waits_while_a_node_idles(&self) {
        if self.routing == Routing::Classic {
            return;
        }
        let open = |&index: &usize| self.nodes[index].router.has_room() && !self.is_shut(index);
        let idle: BTreeSet<&str> = self.alive().into_iter().filter(open).map(|index| self.nodes[index].model).collect();
        for (id, client) in &self.clients {
            let waits = client.ends == 0
                && !client.left
                && !self.nodes.iter().any(|node| node.alive && node.kept.get(id).is_some_and(|kept| kept.running));
            // Suspects wait for their turn.
            let suspect = self.ledger.is_suspect(id);
            assert!(
                !(waits && !suspect && idle.contains(client.model)),
                "query {id} for {} waits while a node idles: {:?}",
                client.model,
                self.ledger.way(id)
            );
        }
    }

    /// Runs the engines until every query has ended.
    pub(crate) fn run_dry(&mut self) {
        for _ in 0..2000 {
            self.settle();
            self.nobody_waits_while_a_node_idles();
            if self.clients.values().all(|client| client.left || client.ends > 0) {
                break;
            }
            for index in self.alive() {
                self.engine_step(index);
            }
        }
        self.settle();
        for index in self.alive() {
            self.engine_step(index);
        }
        for (id, client) in &self.clients {
            assert!(
                client.left || client.ends == 1,
                "query {id} for {} ended {} times: {:?}",
                client.model,
                client.ends,
                self.ledger.way(id)
            );
        }
        // What nobody asked for again is cancelled.
        self.tick(ledger::ORPHAN_TIMEOUT_US);
        self.settle();
        for index in self.alive() {
            self.engine_step(index);
        }
        assert_eq!((self.ledger.live(), self.ledger.waiting(), self.ledger.orphans()), (0, 0, 0));
        for node in self.nodes.iter().filter(|node| node.alive) {
            assert_eq!((node.router.running(), node.router.queued()), (0, 0), "{} still has work", node.name);
            assert!(node.kept.is_empty(), "{} still keeps answers: {:?}", node.name, node.kept);
        }
    }
}
