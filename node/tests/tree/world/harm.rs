//! What befalls nodes, links, clients and the root.

use super::*;

impl World {
    /// What the root had under way is lost; nodes and APIs find the next one, in any order.
    pub(super) fn fail_over(&mut self) {
        self.epoch += 1;
        (self.root, self.ledger) = reign(self.routing, self.epoch);
        for client in self.clients.values_mut().filter(|client| client.ends == 0 && !client.left) {
            client.answers.clear();
            client.to_ask = true;
        }
        // Whatever still came on older streams went with the old root.
        self.nodes.iter_mut().for_each(|node| node.late.clear());
        for index in self.alive() {
            self.nodes[index].deliveries.clear();
            if self.nodes[index].parent == usize::MAX {
                self.attach(index, usize::MAX);
            }
            self.reconnect(index);
        }
    }

    pub(crate) fn join(&mut self, below: u8, model: u8, busy_at: u8, batch: u8) {
        let mut parents = vec![usize::MAX];
        parents.extend(self.staying());
        let parent = parents[usize::from(below) % parents.len()];
        let index = self.nodes.len();
        let name: NodeName = format!("n{index}").parse().unwrap();
        let model = MODELS[usize::from(model) % MODELS.len()];
        let (busy_at, batch_max) = (busy_at.into(), batch.into());
        let engine = router::Engine { models: vec![model.into()], busy_at, batch_max, queue_max: batch_max };
        let router = Router::new(router::Settings { name: name.clone(), routing: self.routing, engine: Some(engine) });
        self.nodes.push(Sim {
            name,
            model,
            parent,
            router,
            alive: true,
            draining: false,
            link: 0,
            stream: self.streams.len() as u64,
            received: 0,
            service: Service::default(),
            kept: BTreeMap::new(),
            report_due: false,
            down: VecDeque::new(),
            up: VecDeque::new(),
            deliveries: VecDeque::new(),
            late: VecDeque::new(),
            said: Vec::new(),
            controls: VecDeque::new(),
        });
        self.streams.push(index);
        self.node(index, router::Event::Connected(true), None);
        self.attach(index, parent);
    }

    pub(super) fn attach(&mut self, index: usize, parent: usize) {
        self.nodes[index].down.clear();
        self.link(index, parent);
    }

    /// What is on its way on the old link still arrives.
    pub(super) fn move_to(&mut self, index: usize, parent: usize) {
        let (child, old) = (self.nodes[index].name.clone(), self.nodes[index].parent);
        if old != parent {
            self.link(index, parent);
            self.parent(old, router::Event::ChildLeft { child, orderly: true });
        }
    }

    /// The node takes nothing more, and its children go elsewhere.
    pub(super) fn drain(&mut self, index: usize) {
        self.nodes[index].draining = true;
        self.node(index, router::Event::Draining, None);
        for child in self.alive() {
            if self.nodes[child].parent == index {
                let above = self.nodes[index].parent;
                // The grandparent, if that one will have it.
                let parent = if self.staying().contains(&above) { above } else { usize::MAX };
                self.move_to(child, parent);
            }
        }
    }

    /// It lets go of its parent, refuses what was on its way, and hands over what it has.
    pub(super) fn leave(&mut self, index: usize) {
        let (child, parent) = (self.nodes[index].name.clone(), self.nodes[index].parent);
        self.parent(parent, router::Event::ChildLeft { child, orderly: true });
        while !self.nodes[index].down.is_empty() {
            self.deliver_node(index, 0);
        }
        let node = &mut self.nodes[index];
        let (holder, stream) = (Holder { name: node.name.clone(), stream: node.stream }, node.stream);
        for (id, kept) in std::mem::take(&mut node.kept) {
            if !kept.aborted {
                let returned = ledger::Event::Returned { id, attempt: kept.attempt, holder: holder.clone() };
                node.deliveries.push_back(Delivery::Event(returned));
            }
        }
        node.deliveries.push_back(Delivery::Gone { stream });
        node.alive = false;
        node.controls.clear();
        node.up.clear();
    }

    pub(super) fn link(&mut self, index: usize, parent: usize) {
        self.nodes[index].parent = parent;
        self.nodes[index].link += 1;
        self.nodes[index].received = 0;
        self.nodes[index].up.clear();
        self.nodes[index].report_due = true;
        let child = self.nodes[index].name.clone();
        self.parent(parent, router::Event::ChildJoined { child });
    }

    /// SIGKILL: what it had sent still arrives, what was sent to it does not, and its children go to the root.
    pub(super) fn kill(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.alive = false;
        node.down.clear();
        node.controls.clear();
        node.up.push_back(Up::Gone);
        let stream = node.stream;
        node.deliveries.push_back(Delivery::Gone { stream });
        for child in self.alive() {
            if self.nodes[child].parent == index {
                self.attach(child, usize::MAX);
            }
        }
    }

    /// What was sent still arrives, then the end; on the new stream the node says what it holds.
    pub(super) fn blip(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let stream = node.stream;
        node.deliveries.push_back(Delivery::Gone { stream });
        self.reconnect(index);
    }

    /// On a new stream the node says what it holds, and waits to be told where to go on.
    pub(super) fn reconnect(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.controls.clear();
        node.stream = self.streams.len() as u64;
        self.streams.push(index);
        self.node(index, router::Event::Connected(false), None);
        self.node(index, router::Event::Connected(true), None);
        let node = &mut self.nodes[index];
        let holder = Holder { name: node.name.clone(), stream: node.stream };
        for (&id, kept) in node.kept.iter_mut().filter(|(_, kept)| !kept.aborted) {
            kept.waits = true;
            node.deliveries.push_back(Delivery::Event(ledger::Event::Claimed {
                id,
                attempt: kept.attempt,
                holder: holder.clone(),
                running: kept.running || kept.ended,
                from: kept.from,
                trail: Vec::new(),
            }));
        }
    }

    pub(super) fn resume(&mut self, index: usize, id: QueryId, attempt: Attempt, position: u32) {
        let node = &mut self.nodes[index];
        let holder = Holder { name: node.name.clone(), stream: node.stream };
        let Some(kept) = node.kept.get_mut(&id).filter(|kept| kept.attempt == attempt && !kept.aborted) else {
            return node.say(ledger::Event::Returned { id, attempt, holder });
        };
        kept.waits = false;
        let (computed, ended) = (kept.position, kept.ended);
        for position in position..computed {
            let (holder, tokens) = (holder.clone(), vec![token(id, position)]);
            node.say(ledger::Event::Generated { id, attempt, holder, position, tokens });
        }
        if ended {
            node.say(ledger::Event::Finished { id, attempt, holder });
            node.kept.remove(&id);
        }
    }

    /// Seven at once are as many as a parent takes in a row.
    pub(super) fn fail(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let holder = Holder { name: node.name.clone(), stream: node.stream };
        let running: Vec<QueryId> = node.kept.iter().filter(|(_, kept)| kept.running).map(|(id, _)| *id).collect();
        node.service.failed += 7;
        node.report_due = true;
        for id in running {
            let node = &mut self.nodes[index];
            let kept = node.kept.remove(&id).unwrap();
            if !kept.aborted {
                let (attempt, holder, fault) = (kept.attempt, holder.clone(), ledger::Fault::Engine);
                node.say(ledger::Event::Refused { id, attempt, holder, fault, trail: Vec::new() });
            }
            self.node(index, router::Event::Ended { id }, None);
        }
    }

    /// Part of what was sent on the old stream is lost, and its end comes late; the new one says what the node holds, and once
    /// more what it said of what has ended.
    pub(super) fn detour(&mut self, index: usize, arrive: usize) {
        let node = &mut self.nodes[index];
        let mut cut = std::mem::take(&mut node.deliveries);
        // The end of an earlier stream is always noticed, whatever became of what was said on it.
        let lost = cut.split_off(arrive % (cut.len() + 1));
        node.late.extend(cut);
        node.late.extend(lost.into_iter().filter(|delivery| matches!(delivery, Delivery::Gone { .. })));
        node.late.push_back(Delivery::Gone { stream: node.stream });
        self.reconnect(index);
        let node = &mut self.nodes[index];
        let holder = Holder { name: node.name.clone(), stream: node.stream };
        for mut event in node.said.clone() {
            use ledger::Event;
            let (Event::Generated { holder: by, id, .. }
            | Event::Finished { holder: by, id, .. }
            | Event::Refused { holder: by, id, .. }
            | Event::Returned { holder: by, id, .. }) = &mut event
            else {
                continue;
            };
            by.clone_from(&holder);
            if !node.kept.contains_key(id) {
                node.deliveries.push_back(Delivery::Event(event));
            }
        }
    }
}
