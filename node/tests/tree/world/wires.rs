//! What is on its way, and what who gets it does about it.

use super::*;

impl World {
    /// As the root's task does: time passes, and then the ledger hears of the room as it is.
    pub(super) fn tick(&mut self, time: u64) {
        self.now += time;
        self.root(router::Event::Tick, None);
        for index in self.alive() {
            self.node(index, router::Event::Tick, None);
        }
        self.ledger(ledger::Event::Tick);
        self.ledger(ledger::Event::Room(self.root.capacity()));
    }

    /// Tells a node's router, or the root's.
    pub(super) fn parent(&mut self, parent: usize, event: router::Event) {
        if parent == usize::MAX {
            self.root(event, None);
        } else if self.nodes[parent].alive {
            self.node(parent, event, None);
        }
    }

    pub(super) fn root(&mut self, event: router::Event, query: Option<Down>) {
        let mut query = query;
        for action in self.root.handle(self.now, event) {
            match action {
                router::Action::Forward { child, .. } => {
                    let child = self.nodes.iter_mut().find(|node| node.name == child && node.parent == usize::MAX);
                    if let (Some(child), Some(query)) = (child.filter(|child| child.alive), query.take()) {
                        child.down.push_back(Down { link: child.link, ..query });
                    }
                }
                router::Action::Refuse { id, because } => {
                    assert_ne!(because, Because::Held);
                    let attempt = query.take().unwrap().ticket.attempt;
                    self.ledger(ledger::Event::Bounced { id, attempt });
                }
                router::Action::Report { capacity, .. } => self.ledger(ledger::Event::Room(capacity)),
                router::Action::Judge { .. } => {}
                other => panic!("the root never infers and keeps nothing: {other:?}"),
            }
        }
    }

    pub(super) fn node(&mut self, index: usize, event: router::Event, query: Option<Down>) {
        let mut query = query;
        for action in self.nodes[index].router.handle(self.now, event) {
            let holder = Holder { name: self.nodes[index].name.clone(), stream: self.nodes[index].stream };
            match action {
                router::Action::Report { .. } => self.nodes[index].report_due = true,
                router::Action::Judge { .. } => {}
                router::Action::Forward { child, .. } => {
                    let child = self.nodes.iter_mut().find(|node| node.name == child && node.parent == index && node.alive);
                    if let (Some(child), Some(query)) = (child, query.take()) {
                        child.down.push_back(Down { link: child.link, ..query });
                    }
                }
                router::Action::Execute { id } | router::Action::Queue { id } => {
                    let running = matches!(action, router::Action::Execute { .. });
                    let node = &mut self.nodes[index];
                    if let Some(Down { ticket, position, .. }) = query.take() {
                        assert!(serves(&[node.model.into()], &ticket.model), "{} got a query for {}", node.name, ticket.model);
                        let attempt = ticket.attempt;
                        let kept =
                            Kept { attempt, from: position, position, running, aborted: false, waits: false, ended: false };
                        node.kept.insert(id, kept);
                    }
                    let kept = node.kept.get_mut(&id).expect("what runs was kept");
                    kept.running = running;
                    let (attempt, from, trail) = (kept.attempt, kept.from, Vec::new());
                    let event = match kept.waits {
                        true => ledger::Event::Claimed { id, attempt, holder, running, from, trail },
                        false => ledger::Event::Held { id, attempt, holder, running, trail },
                    };
                    node.say(event);
                }
                router::Action::Refuse { id, .. } => {
                    let attempt = query.take().unwrap().ticket.attempt;
                    let refused = ledger::Event::Refused { id, attempt, holder, fault: ledger::Fault::Busy, trail: Vec::new() };
                    self.nodes[index].say(refused);
                }
                router::Action::Return { id } => {
                    let attempt = self.nodes[index].kept.remove(&id).unwrap().attempt;
                    self.nodes[index].say(ledger::Event::Returned { id, attempt, holder });
                }
                router::Action::Abort { id } => self.nodes[index].kept.get_mut(&id).unwrap().aborted = true,
                router::Action::Drop { id } => {
                    self.nodes[index].kept.remove(&id);
                }
            }
        }
    }

    pub(super) fn engine_step(&mut self, index: usize) {
        let holder = Holder { name: self.nodes[index].name.clone(), stream: self.nodes[index].stream };
        let running: Vec<QueryId> = self.nodes[index].kept.iter().filter(|(_, kept)| kept.running).map(|(id, _)| *id).collect();
        for id in running {
            let wants = self.clients[&id].wants;
            let node = &mut self.nodes[index];
            let kept = node.kept.get_mut(&id).unwrap();
            let (attempt, position) = (kept.attempt, kept.position);
            let (waits, aborted) = (kept.waits, kept.aborted);
            let ended = aborted || position >= wants;
            if !aborted {
                node.service.busy_us += 1000;
                node.report_due = true;
                let event = if position < wants {
                    node.service.tokens += 1;
                    kept.position += 1;
                    ledger::Event::Generated { id, attempt, holder: holder.clone(), position, tokens: vec![token(id, position)] }
                } else {
                    node.service.answered += 1;
                    ledger::Event::Finished { id, attempt, holder: holder.clone() }
                };
                if !waits {
                    node.say(event);
                }
            }
            if ended {
                if waits && !aborted {
                    let kept = node.kept.get_mut(&id).unwrap();
                    (kept.running, kept.ended) = (false, true);
                } else {
                    node.kept.remove(&id);
                }
                self.node(index, router::Event::Ended { id }, None);
            }
        }
    }

    pub(super) fn report(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if std::mem::take(&mut node.report_due) {
            node.up.push_back(Up::Report { received: node.received, capacity: node.router.capacity(), service: node.service });
        }
    }

    pub(super) fn channels(&self) -> Vec<Channel> {
        let mut channels = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let full = [
                !node.down.is_empty(),
                !node.up.is_empty(),
                !node.deliveries.is_empty(),
                !node.controls.is_empty(),
                !node.late.is_empty(),
            ];
            channels.extend((0u8..5).filter(|&channel| full[usize::from(channel)]).map(|channel| Channel::Node(index, channel)));
        }
        for (id, client) in &self.clients {
            channels.extend((!client.answers.is_empty()).then_some(Channel::Answer(*id)));
            channels.extend(client.to_ask.then_some(Channel::Ask(*id)));
        }
        channels
    }

    pub(super) fn deliver(&mut self, channel: Channel) {
        match channel {
            Channel::Node(index, channel) => self.deliver_node(index, channel),
            Channel::Answer(id) => self.read_answer(id),
            Channel::Ask(id) => {
                let client = self.clients.get_mut(&id).unwrap();
                client.to_ask = false;
                let delivered = client.got.clone();
                self.ledger(ledger::Event::AskedAgain { asked: self.asked(id), delivered });
            }
        }
    }

    /// Each position once, in order, and one end behind all of them.
    pub(super) fn read_answer(&mut self, id: QueryId) {
        let client = self.clients.get_mut(&id).unwrap();
        match client.answers.pop_front().unwrap() {
            Answer::Token(position, token) => {
                assert_eq!(position as usize, client.got.len(), "a position was repeated or left out");
                assert_eq!(client.ends, 0, "a token after the end");
                client.got.push(token);
            }
            Answer::End => {
                client.ends += 1;
                assert_eq!(client.got, (0..client.wants).map(|position| token(id, position)).collect::<Vec<_>>());
            }
            Answer::Failed => client.ends += 1,
        }
    }

    pub(super) fn deliver_node(&mut self, index: usize, channel: u8) {
        match channel {
            0 => {
                let down = self.nodes[index].down.pop_front().unwrap();
                if down.link == self.nodes[index].link {
                    self.nodes[index].received += 1;
                }
                // The parent counts it until a report says that it came.
                self.nodes[index].report_due = true;
                let mut ticket = down.ticket.clone();
                ticket.hops += 1;
                self.node(index, router::Event::Arrived(ticket.clone()), Some(Down { ticket, ..down }));
            }
            1 => {
                let up = self.nodes[index].up.pop_front().unwrap();
                let (child, parent) = (self.nodes[index].name.clone(), self.nodes[index].parent);
                self.parent(
                    parent,
                    match up {
                        Up::Report { received, capacity, service } => {
                            router::Event::ChildReported { child, received, capacity, service }
                        }
                        Up::Gone => router::Event::ChildLeft { child, orderly: false },
                    },
                );
            }
            2 | 4 => {
                let node = &mut self.nodes[index];
                let channel = if channel == 2 { &mut node.deliveries } else { &mut node.late };
                match channel.pop_front().unwrap() {
                    Delivery::Event(event) => self.ledger(event),
                    Delivery::Gone { stream } => self.ledger(ledger::Event::HolderLost { stream }),
                }
            }
            _ => {
                let event = match self.nodes[index].controls.pop_front().unwrap() {
                    Control::Resume(id, attempt, position) => return self.resume(index, id, attempt, position),
                    Control::Cancel(id, attempt) => {
                        let ended = self.nodes[index].kept.get(&id).is_some_and(|kept| kept.ended && kept.attempt <= attempt);
                        if ended {
                            self.nodes[index].kept.remove(&id);
                        }
                        router::Event::Cancelled { id, attempt }
                    }
                    Control::Recall(id, attempt) => router::Event::Recalled { id, attempt },
                };
                self.node(index, event, None);
            }
        }
    }

    pub(super) fn ledger(&mut self, event: ledger::Event) {
        let said = match &event {
            ledger::Event::Generated { id, position, tokens, .. } => Some((*id, *position, tokens.clone())),
            _ => None,
        };
        for action in self.ledger.handle(self.now, event) {
            match action {
                ledger::Action::Send { ticket, .. } => {
                    let (delivered, _) = self.ledger.delivered(&ticket.id, self.now).expect("what is sent is live");
                    let position = delivered.len() as u32;
                    self.root(router::Event::Arrived(ticket.clone()), Some(Down { link: 0, ticket, position }));
                }
                ledger::Action::Deliver { id } => {
                    let (of, position, tokens) = said.clone().unwrap();
                    assert_eq!(of, id);
                    let client = self.clients.get_mut(&id).unwrap();
                    let tokens = tokens.into_iter().zip(position..).map(|(token, at)| Answer::Token(at, token));
                    client.answers.extend(tokens);
                }
                ledger::Action::Finish { id } => self.clients.get_mut(&id).unwrap().answers.push_back(Answer::End),
                ledger::Action::Fail { id, failure } => {
                    let client = self.clients.get_mut(&id).unwrap();
                    client.answers.push_back(Answer::Failed);
                    let served = self.root.capacity().iter().any(|set| serves(&set.models, client.model));
                    match failure {
                        Failure::Overloaded { .. } => assert!(client.got.is_empty()),
                        Failure::UnknownModel { .. } | Failure::Unserved => assert!(!served),
                        Failure::Poison => {}
                        other => panic!("{other:?}"),
                    }
                }
                ledger::Action::Resume { stream, id, attempt, position } => {
                    self.control(stream, Control::Resume(id, attempt, position));
                }
                ledger::Action::Cancel { stream, id, attempt } => self.control(stream, Control::Cancel(id, attempt)),
                ledger::Action::Recall { stream, id, attempt } => self.control(stream, Control::Recall(id, attempt)),
                ledger::Action::Placed { .. } | ledger::Action::Pause { .. } => {}
            }
        }
    }

    pub(super) fn control(&mut self, stream: u64, control: Control) {
        let node = &mut self.nodes[self.streams[stream as usize]];
        if node.alive && node.stream == stream {
            node.controls.push_back(control);
        }
    }

    /// Engines let go of what was taken from them.
    pub(super) fn let_go(&mut self, index: usize) {
        let aborted = self.nodes[index].kept.iter().filter(|(_, kept)| kept.aborted).map(|(id, _)| *id);
        for id in aborted.collect::<Vec<_>>() {
            self.nodes[index].kept.remove(&id);
            self.node(index, router::Event::Ended { id }, None);
        }
    }
}
