//! What whoever watches a tree is told by its root: who is there, how much runs where, and the ways of queries, without their owners
//! and texts. Nothing is counted while nobody watches.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use banyan_proto::{NodeName, QueryId, v1};
use tokio::sync::mpsc;

use super::Core;
use crate::ledger::{Action, Event, Ledger, State};

/// APIs that look at one tree, and a few people beside.
const WATCHERS_MAX: usize = 64;
/// Sights that a watcher may be behind: some seconds.
const SIGHTS: usize = 32;
/// Queries that are named at a time: more than anybody tells apart.
const NAMED_MAX: usize = 1024;
/// Nodes of a query's way that are told.
const TRAIL_MAX: usize = 32;

/// Where nodes stand, with the numbers of their streams.
type Presences = BTreeMap<NodeName, (u64, v1::Presence)>;

/// The watchers, and what they know.
pub(super) struct Watch {
    watchers: Vec<mpsc::Sender<v1::Sight>>,
    queries: HashMap<QueryId, Seen>,
    named: usize,
    loads: BTreeMap<NodeName, Load>,
    /// Nodes of which a watcher knows something older.
    changed: BTreeSet<NodeName>,
    gone: BTreeSet<NodeName>,
    /// Named queries of which a watcher knows something older. They are as old as their ids.
    moved: BTreeMap<QueryId, v1::QuerySight>,
    /// Queries that wait, and all, as last told.
    told: (u32, u32),
}

struct Seen {
    state: State,
    node: Option<NodeName>,
    named: bool,
}

/// What a node has to do.
#[derive(Default)]
struct Load {
    running: u32,
    queued: u32,
    tokens: u64,
}

impl Core {
    /// Tells the root where this node stands.
    pub(super) fn tell_presence(&mut self) {
        let presence = v1::Presence {
            parent: self.uplink.as_ref().map(|uplink| uplink.parent.to_string()).unwrap_or_default(),
            draining: self.is_leaving(),
            slots: self.slots,
        };
        if let Some(work) = &mut self.engine {
            work.tell(v1::delivery::Kind::Presence(presence));
        }
    }

    /// A node said where it stands.
    pub(super) fn presence(&mut self, stream: u64, presence: v1::Presence) {
        let Some(desk) = &mut self.desk else { return };
        let Some(name) = desk.holder(stream).cloned() else { return };
        if let Some((_, known)) = desk.presences.get_mut(&name) {
            *known = presence;
            self.came(&name);
        }
    }

    pub(super) fn came(&mut self, name: &NodeName) {
        if let Some(watch) = &mut self.watch {
            watch.gone.remove(name);
            watch.changed.insert(name.clone());
        }
    }

    /// A stream of a node has ended; it may have another one.
    pub(super) fn went(&mut self, name: &NodeName) {
        let (Some(desk), Some(watch)) = (&self.desk, &mut self.watch) else { return };
        if !desk.presences.contains_key(name) {
            watch.changed.remove(name);
            watch.gone.insert(name.clone());
        }
    }

    /// One more watches.
    pub(super) fn watched(&mut self) -> Option<mpsc::Receiver<v1::Sight>> {
        let desk = self.desk.as_ref()?;
        let watch = self.watch.get_or_insert_with(|| Watch::new(&desk.ledger));
        watch.watchers.retain(|watcher| !watcher.is_closed());
        if watch.watchers.len() >= WATCHERS_MAX {
            return None;
        }
        let (to, sights) = mpsc::channel(SIGHTS);
        to.try_send(watch.whole(&desk.presences, &desk.ledger)).expect("a new channel has room");
        watch.watchers.push(to);
        Some(sights)
    }

    /// Tells the watchers what changed.
    pub(super) fn show_sights(&mut self) {
        let (Some(desk), Some(watch)) = (&self.desk, &mut self.watch) else { return };
        if let Some(sight) = watch.sight(&desk.presences, &desk.ledger) {
            watch.watchers.retain(|watcher| watcher.try_send(sight.clone()).is_ok());
        } else {
            watch.watchers.retain(|watcher| !watcher.is_closed());
        }
        if watch.watchers.is_empty() {
            self.watch = None;
        }
    }
}

impl Watch {
    fn new(ledger: &Ledger) -> Self {
        let mut watch = Watch {
            watchers: Vec::new(),
            queries: HashMap::new(),
            named: 0,
            loads: BTreeMap::new(),
            changed: BTreeSet::new(),
            gone: BTreeSet::new(),
            moved: BTreeMap::new(),
            told: (0, 0),
        };
        for (id, state, node) in ledger.places() {
            watch.place(id, state, node.cloned(), ledger);
        }
        watch.changed.clear();
        watch.moved.clear();
        watch
    }

    /// What the ledger was told and decided.
    pub(super) fn note(&mut self, event: &Event, actions: &[Action], ledger: &Ledger) {
        for action in actions {
            match action {
                Action::Send { ticket, .. } => self.place(ticket.id, State::Sent, None, ledger),
                Action::Placed { id, node, running, .. } => {
                    let state = match node {
                        None => State::Waiting,
                        Some(_) if *running => State::Running,
                        Some(_) => State::Queued,
                    };
                    self.place(*id, state, node.clone(), ledger);
                }
                Action::Deliver { .. } => {
                    if let Event::Generated { holder, tokens, .. } = event {
                        self.load(&holder.name).tokens += tokens.len() as u64;
                    }
                }
                Action::Finish { id } => self.end(id, "finished"),
                Action::Fail { id, .. } => self.end(id, "failed"),
                Action::Pause { .. } | Action::Cancel { .. } | Action::Resume { .. } | Action::Recall { .. } => {}
            }
        }
        if let Event::ClientLeft { id } = event {
            self.end(id, "cancelled");
        }
    }

    fn place(&mut self, id: QueryId, state: State, node: Option<NodeName>, ledger: &Ledger) {
        let before = self.queries.remove(&id);
        if let Some(seen) = &before {
            self.count(seen, false);
        }
        let named = before.as_ref().map_or(self.named < NAMED_MAX && self.moved.len() < NAMED_MAX, |seen| seen.named);
        // Its place among those that wait is its reader's affair.
        let stays = before.as_ref().is_some_and(|seen| seen.state == state && seen.node == node);
        if named && !stays {
            self.moved.insert(id, sight(&id, state, node.as_ref(), ledger));
        }
        let seen = Seen { state, node, named };
        self.count(&seen, true);
        self.queries.insert(id, seen);
    }

    fn end(&mut self, id: &QueryId, state: &str) {
        let Some(seen) = self.queries.remove(id) else { return };
        self.count(&seen, false);
        if seen.named {
            let moved = self.moved.entry(*id).or_insert_with(|| v1::QuerySight {
                id: id.to_string(),
                node: seen.node.as_ref().map(NodeName::to_string).unwrap_or_default(),
                ..Default::default()
            });
            state.clone_into(&mut moved.state);
        }
    }

    /// Adds a query to what its node has to do, or takes it away.
    fn count(&mut self, seen: &Seen, more: bool) {
        let add = |count: &mut u32| *count = if more { *count + 1 } else { count.saturating_sub(1) };
        if seen.named {
            self.named = if more { self.named + 1 } else { self.named.saturating_sub(1) };
        }
        let Some(node) = &seen.node else { return };
        match seen.state {
            State::Running => add(&mut self.load(node).running),
            State::Queued => add(&mut self.load(node).queued),
            State::Waiting | State::Sent | State::Ended => {}
        }
    }

    fn load(&mut self, node: &NodeName) -> &mut Load {
        self.changed.insert(node.clone());
        self.loads.entry(node.clone()).or_default()
    }

    fn whole(&self, presences: &Presences, ledger: &Ledger) -> v1::Sight {
        let mut queries: Vec<v1::QuerySight> = self
            .queries
            .iter()
            .filter(|(_, seen)| seen.named)
            .map(|(id, seen)| sight(id, seen.state, seen.node.as_ref(), ledger))
            .collect();
        queries.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        v1::Sight {
            whole: true,
            waiting: ledger.waiting() as u32,
            live: ledger.live() as u32,
            nodes: presences.iter().map(|(name, (_, presence))| self.node(name, presence)).collect(),
            gone: Vec::new(),
            queries,
        }
    }

    /// What changed since the last one; `None` when nothing did.
    fn sight(&mut self, presences: &Presences, ledger: &Ledger) -> Option<v1::Sight> {
        let counts = (ledger.waiting() as u32, ledger.live() as u32);
        if self.changed.is_empty() && self.gone.is_empty() && self.moved.is_empty() && self.told == counts {
            return None;
        }
        self.told = counts;
        let changed = std::mem::take(&mut self.changed);
        let nodes = changed.iter().filter_map(|name| Some(self.node(name, &presences.get(name)?.1))).collect();
        // What a node did that is gone is nobody's affair any more, and a long watch forgets it.
        self.loads.retain(|name, load| presences.contains_key(name) || load.running + load.queued > 0);
        Some(v1::Sight {
            whole: false,
            waiting: counts.0,
            live: counts.1,
            nodes,
            gone: std::mem::take(&mut self.gone).iter().map(NodeName::to_string).collect(),
            queries: std::mem::take(&mut self.moved).into_values().collect(),
        })
    }

    fn node(&self, name: &NodeName, presence: &v1::Presence) -> v1::NodeSight {
        let (running, queued, tokens) = self.loads.get(name).map_or((0, 0, 0), |load| (load.running, load.queued, load.tokens));
        v1::NodeSight { name: name.to_string(), presence: Some(presence.clone()), running, queued, tokens }
    }
}

fn sight(id: &QueryId, state: State, node: Option<&NodeName>, ledger: &Ledger) -> v1::QuerySight {
    let state = match state {
        State::Waiting => "waiting",
        State::Sent => "sent",
        State::Queued => "queued",
        State::Running => "running",
        State::Ended => "finished",
    };
    let trail = if node.is_some() { ledger.trail(id) } else { &[] };
    v1::QuerySight {
        id: id.to_string(),
        state: state.to_owned(),
        node: node.map(NodeName::to_string).unwrap_or_default(),
        trail: trail.iter().take(TRAIL_MAX).map(|hop| hop.node.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        capacity::Capacity,
        ledger::{Asked, Holder, Settings},
    };

    fn id(number: u128) -> QueryId {
        QueryId::from_u128(number)
    }

    fn holder(number: u64) -> Holder {
        Holder { name: format!("n{number}").parse().unwrap(), stream: number }
    }

    fn asked(number: u128) -> Event {
        Event::Asked(Asked {
            id: id(number),
            owner: "somebody".into(),
            model: "m".into(),
            priority: 0,
            prefer: None,
            tokens_max: 10,
            bytes: 10,
            time_us: 300_000_000,
            returning: false,
            impatient: false,
        })
    }

    /// A ledger that somebody watches.
    struct Watched {
        ledger: Ledger,
        watch: Watch,
    }

    impl Watched {
        fn new() -> Self {
            let mut ledger = Ledger::new(Settings { epoch: 7, eager: false, lanes: crate::LaneLimits::default() });
            ledger.handle(0, Event::Room(vec![Capacity { models: vec!["m".into()], room: 4, queue: 4, slots: 4 }]));
            let watch = Watch::new(&ledger);
            Watched { ledger, watch }
        }

        fn feed(&mut self, event: Event) {
            let actions = self.ledger.handle(1, event.clone());
            self.watch.note(&event, &actions, &self.ledger);
        }

        fn held(&mut self, number: u128, by: u64, running: bool) {
            if let Some(attempt) = self.ledger.attempt(&id(number)) {
                self.feed(Event::Held { id: id(number), attempt, holder: holder(by), running, trail: Vec::new() });
            }
        }

        fn sight(&mut self) -> Option<v1::Sight> {
            let presences = (0..4).map(|number| (holder(number).name, (number, v1::Presence::default()))).collect();
            self.watch.sight(&presences, &self.ledger)
        }
    }

    #[test]
    fn what_came_and_ended_between_two_sights_is_told_once_with_its_way() {
        let mut watched = Watched::new();
        watched.feed(asked(1));
        let attempt = watched.ledger.attempt(&id(1)).unwrap();
        watched.held(1, 2, true);
        watched.feed(Event::Generated { id: id(1), attempt, holder: holder(2), position: 0, tokens: vec![5, 6] });
        watched.feed(Event::Finished { id: id(1), attempt, holder: holder(2) });
        let sight = watched.sight().unwrap();
        let told: Vec<(&str, &str)> = sight.queries.iter().map(|query| (&*query.state, &*query.node)).collect();
        assert_eq!(told, [("finished", "n2")]);
        assert_eq!((sight.nodes[0].running, sight.nodes[0].tokens), (0, 2));
        assert_eq!(watched.sight(), None, "nothing more is to tell");
    }

    #[test]
    fn all_are_counted_and_only_so_many_are_named() {
        let mut watched = Watched::new();
        for number in 0..NAMED_MAX as u128 + 50 {
            watched.feed(asked(number));
        }
        let sight = watched.sight().unwrap();
        assert_eq!((sight.queries.len(), sight.live as usize), (NAMED_MAX, NAMED_MAX + 50));
    }

    proptest! {
        #[test]
        fn who_watches_all_along_counts_as_one_who_looks_now(steps in proptest::collection::vec((0..6_u8, 0..12_u128, 0..4_u64), 1..200)) {
            let mut watched = Watched::new();
            for (kind, number, by) in steps {
                let attempt = watched.ledger.attempt(&id(number));
                match (kind, attempt) {
                    (0, _) if !watched.ledger.is_live(&id(number)) => watched.feed(asked(number)),
                    (1, _) => watched.held(number, by, true),
                    (2, _) => watched.held(number, by, false),
                    (3, Some(attempt)) => watched.feed(Event::Finished { id: id(number), attempt, holder: holder(by) }),
                    (4, _) => watched.feed(Event::ClientLeft { id: id(number) }),
                    (5, _) => watched.feed(Event::HolderLost { stream: by }),
                    _ => {}
                }
            }
            let fresh = Watch::new(&watched.ledger);
            for number in 0..4 {
                let count = |watch: &Watch| watch.loads.get(&holder(number).name).map_or((0, 0), |load| (load.running, load.queued));
                prop_assert_eq!(count(&watched.watch), count(&fresh), "n{}", number);
            }
            prop_assert_eq!(watched.watch.queries.len(), fresh.queries.len());
            prop_assert_eq!(watched.watch.named, fresh.named);
        }
    }
}
