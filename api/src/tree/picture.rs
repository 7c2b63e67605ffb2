//! The tree as it is drawn: who is registered, put together with what roots see of them, and what of it changed.

use std::collections::{BTreeMap, BTreeSet};

use banyan_etcd::{Member, Role, View};
use banyan_proto::{NodeName, v1};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

/// Models of one node that are told.
const MODELS_MAX: usize = 16;

/// All trees of a cluster. See the module.
#[derive(Default)]
pub(super) struct Picture {
    members: BTreeMap<NodeName, Member>,
    /// Names of former roots, and who has taken their place.
    former: BTreeMap<NodeName, NodeName>,
    trees: BTreeMap<NodeName, Tree>,
    seen: BTreeMap<NodeName, Seen>,
    /// As they were told last.
    shown: BTreeMap<NodeName, Map<String, Value>>,
    queries: BTreeMap<String, (NodeName, v1::QuerySight)>,
    /// Nodes of which something may have changed.
    touched: BTreeSet<NodeName>,
    /// Queries that moved or ended since they were told.
    moved: BTreeMap<String, Value>,
    told: (u32, u32),
}

/// What its root says of a tree.
#[derive(Clone, Copy, Default)]
struct Tree {
    watched: bool,
    waiting: u32,
    live: u32,
}

/// What a root sees of a node.
struct Seen {
    tree: NodeName,
    /// `None` once its stream is gone.
    now: Option<v1::NodeSight>,
    rate: f64,
    /// When the rate was taken, and the tokens then.
    rated: Option<(Instant, u64)>,
}

impl Picture {
    /// The registry's view is another one.
    pub(super) fn members(&mut self, view: &View) {
        self.former =
            view.roots.values().flat_map(|root| root.former.iter().map(|former| (former.clone(), root.name.clone()))).collect();
        let names = self.members.keys().chain(view.members.keys());
        self.touched.extend(names.cloned());
        self.members.clone_from(&view.members);
        // One that is neither registered nor seen is gone.
        let gone = |name: &NodeName, seen: &Seen| seen.now.is_none() && !view.members.contains_key(name);
        self.seen.retain(|name, seen| !gone(name, seen));
    }

    /// What a tree's root saw; `None`: it says nothing any more.
    pub(super) fn sight(&mut self, tree: &NodeName, sight: Option<v1::Sight>) {
        let known = self.trees.entry(tree.clone()).or_default();
        let Some(sight) = sight else {
            known.watched = false;
            self.touch_tree(tree);
            return;
        };
        *known = Tree { watched: true, waiting: sight.waiting, live: sight.live };
        if sight.whole {
            self.forget(tree);
        }
        for node in sight.nodes {
            let Ok(name) = node.name.parse::<NodeName>() else { continue };
            self.touched.insert(name.clone());
            let seen = self.seen.entry(name).or_insert_with(|| Seen { tree: tree.clone(), now: None, rate: 0.0, rated: None });
            seen.tree.clone_from(tree);
            seen.now = Some(node);
        }
        for name in sight.gone.iter().filter_map(|name| name.parse::<NodeName>().ok()) {
            if let Some(seen) = self.seen.get_mut(&name) {
                (seen.now, seen.rate, seen.rated) = (None, 0.0, None);
            }
            self.touched.insert(name);
        }
        for query in sight.queries {
            self.moved.insert(query.id.clone(), told(&query));
            match query.state.as_str() {
                "finished" | "failed" | "cancelled" => self.queries.remove(&query.id),
                _ => self.queries.insert(query.id.clone(), (tree.clone(), query)),
            };
        }
    }

    /// Time has passed: how much came from each node meanwhile.
    pub(super) fn rates(&mut self, now: Instant) {
        for (name, seen) in &mut self.seen {
            let Some(node) = &seen.now else { continue };
            let (since, before) = seen.rated.replace((now, node.tokens)).unwrap_or((now, node.tokens));
            let passed = now.saturating_duration_since(since).as_secs_f64();
            let rate = if passed > 0.0 { node.tokens.saturating_sub(before) as f64 / passed } else { 0.0 };
            if (rate - seen.rate).abs() > f64::EPSILON {
                seen.rate = rate;
                self.touched.insert(name.clone());
            }
        }
    }

    /// All of it.
    pub(super) fn whole(&self) -> Value {
        let nodes: Vec<Value> = self.names().filter_map(|name| self.node(&name)).map(Value::Object).collect();
        let queries: Vec<Value> = self.queries.values().map(|(_, query)| told(query)).collect();
        let (waiting, live) = self.counts();
        json!({ "whole": true, "nodes": nodes, "queries": queries, "waiting": waiting, "live": live })
    }

    /// What changed since this was asked last; of nodes the fields that did, of new ones all. `None` when nothing did.
    pub(super) fn changes(&mut self) -> Option<Value> {
        let (mut nodes, mut gone) = (Vec::new(), Vec::new());
        for name in std::mem::take(&mut self.touched) {
            let Some(now) = self.node(&name) else {
                if self.shown.remove(&name).is_some() {
                    gone.push(name.to_string());
                }
                continue;
            };
            match self.shown.get(&name) {
                None => nodes.push(Value::Object(now.clone())),
                Some(before) if *before == now => continue,
                Some(before) => {
                    let differs = |(key, value): &(&String, &Value)| *key == "name" || before.get(*key) != Some(*value);
                    let fields = now.iter().filter(differs).map(|(key, value)| (key.clone(), value.clone()));
                    nodes.push(Value::Object(fields.collect()));
                }
            }
            self.shown.insert(name, now);
        }
        let queries: Vec<Value> = std::mem::take(&mut self.moved).into_values().collect();
        let counts = self.counts();
        if nodes.is_empty() && gone.is_empty() && queries.is_empty() && self.told == counts {
            return None;
        }
        self.told = counts;
        Some(json!({ "nodes": nodes, "gone": gone, "queries": queries, "waiting": counts.0, "live": counts.1 }))
    }

    /// A root tells all of its tree anew.
    fn forget(&mut self, tree: &NodeName) {
        self.touch_tree(tree);
        for seen in self.seen.values_mut().filter(|seen| seen.tree == *tree) {
            (seen.now, seen.rate, seen.rated) = (None, 0.0, None);
        }
        let moved = &mut self.moved;
        self.queries.retain(|id, (of, query)| {
            if of == tree {
                // Where it is, the root says next; if it does not, it has ended.
                moved.insert(id.clone(), told(&v1::QuerySight { state: "cancelled".to_owned(), ..query.clone() }));
            }
            of != tree
        });
    }

    fn touch_tree(&mut self, tree: &NodeName) {
        let members = self.members.iter().filter(|(_, member)| member.tree == *tree).map(|(name, _)| name);
        let seen = self.seen.iter().filter(|(_, seen)| seen.tree == *tree).map(|(name, _)| name);
        self.touched.extend(members.chain(seen).cloned());
    }

    fn names(&self) -> impl Iterator<Item = NodeName> {
        let seen = self.seen.iter().filter(|(_, seen)| seen.now.is_some()).map(|(name, _)| name);
        self.members.keys().chain(seen).cloned().collect::<BTreeSet<NodeName>>().into_iter()
    }

    fn counts(&self) -> (u32, u32) {
        self.trees.values().fold((0, 0), |(waiting, live), tree| (waiting + tree.waiting, live + tree.live))
    }

    /// What is told of a node; `None` when there is none.
    fn node(&self, name: &NodeName) -> Option<Map<String, Value>> {
        let (member, seen) = (self.members.get(name), self.seen.get(name));
        let now = seen.and_then(|seen| seen.now.as_ref());
        if member.is_none() && now.is_none() {
            return None;
        }
        let presence = now.and_then(|now| now.presence.clone()).unwrap_or_default();
        let tree = member.map(|member| &member.tree).or(seen.map(|seen| &seen.tree))?;
        let wanted = member.and_then(|member| member.parent.as_ref()).map(|parent| self.former.get(parent).unwrap_or(parent));
        let attached = Some(presence.parent).filter(|parent| !parent.is_empty());
        let parent = attached.or_else(|| wanted.map(NodeName::to_string));
        let role = member.map_or(Role::Node, |member| member.role);
        let root = self.trees.get(tree).copied().unwrap_or_default();
        let state = match (role, now) {
            (Role::Standby, _) => "standby",
            (Role::Root, _) if root.watched => "ready",
            // The root is not heard, and nobody else says anything of the nodes.
            _ if !root.watched => "unknown",
            (_, None) if seen.is_some() => "lost",
            (_, None) => "joining",
            (..) if presence.draining => "draining",
            (_, Some(now)) if presence.slots > 0 && now.running >= presence.slots => "busy",
            (..) => "ready",
        };
        let models = member.map(|member| &member.models[..member.models.len().min(MODELS_MAX)]).unwrap_or_default();
        let (running, queued, tokens) = now.map_or((0, 0, 0), |now| (now.running, now.queued, now.tokens));
        let told = json!({
            "name": name.as_str(),
            "tree": tree.as_str(),
            "parent": parent,
            "role": match role { Role::Root => "root", Role::Standby => "standby", Role::Node => "node" },
            "state": state,
            "device": member.map_or("", |member| &member.device),
            "models": models.iter().map(|model| &model.id).collect::<Vec<_>>(),
            "slots": presence.slots,
            "running": running,
            "queued": queued,
            "tokens": tokens,
            "tokens_per_s": (seen.map_or(0.0, |seen| seen.rate) * 10.0).round() / 10.0,
        });
        let Value::Object(told) = told else { unreachable!("it is written as an object") };
        Some(told)
    }
}

fn told(query: &v1::QuerySight) -> Value {
    json!({ "id": query.id, "state": query.state, "node": query.node, "trail": query.trail })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn member(named: &str, parent: Option<&str>) -> Member {
        Member {
            name: name(named),
            parent: parent.map(name),
            address: "127.0.0.1:1".to_owned(),
            role: if parent.is_some() { Role::Node } else { Role::Root },
            tree: name("main"),
            incarnation: 1,
            version: String::new(),
            models: Vec::new(),
            device: "cpu".to_owned(),
            started_at: 0,
        }
    }

    fn view(nodes: &[(&str, Option<&str>)]) -> View {
        let members = nodes.iter().map(|(named, parent)| (name(named), member(named, *parent))).collect();
        View { members, ..View::default() }
    }

    fn node(named: &str, parent: &str, running: u32, tokens: u64) -> v1::NodeSight {
        let presence = Some(v1::Presence { parent: parent.to_owned(), draining: false, slots: 2 });
        v1::NodeSight { name: named.to_owned(), presence, running, queued: 0, tokens }
    }

    fn query(id: &str, state: &str) -> v1::QuerySight {
        v1::QuerySight { id: id.to_owned(), state: state.to_owned(), node: "a".to_owned(), trail: vec!["root".to_owned()] }
    }

    fn state(picture: &Picture, named: &str) -> Option<String> {
        picture.node(&name(named)).map(|node| node["state"].as_str().unwrap().to_owned())
    }

    #[test]
    fn a_node_joins_works_is_lost_and_is_forgotten() {
        let mut picture = Picture::default();
        picture.members(&view(&[("root", None), ("a", Some("root"))]));
        assert_eq!(state(&picture, "a").as_deref(), Some("unknown"));
        picture.sight(&name("main"), Some(v1::Sight { whole: true, ..Default::default() }));
        assert_eq!((state(&picture, "root").as_deref(), state(&picture, "a").as_deref()), (Some("ready"), Some("joining")));
        picture.sight(&name("main"), Some(v1::Sight { nodes: vec![node("a", "root", 2, 0)], ..Default::default() }));
        assert_eq!(state(&picture, "a").as_deref(), Some("busy"));
        picture.sight(&name("main"), Some(v1::Sight { gone: vec!["a".to_owned()], ..Default::default() }));
        assert_eq!(state(&picture, "a").as_deref(), Some("lost"));
        picture.changes();
        picture.members(&view(&[("root", None)]));
        assert_eq!(picture.changes().unwrap()["gone"], json!(["a"]));
        assert_eq!(state(&picture, "a"), None);
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut picture = Picture::default();
        picture.members(&view(&[("root", None), ("a", Some("root"))]));
        let sight = v1::Sight { whole: true, nodes: vec![node("a", "root", 0, 0)], ..Default::default() };
        picture.sight(&name("main"), Some(sight));
        assert_eq!(picture.changes().unwrap()["nodes"].as_array().unwrap().len(), 2);
        assert!(picture.changes().is_none());
        picture.sight(&name("main"), Some(v1::Sight { nodes: vec![node("a", "root", 1, 7)], ..Default::default() }));
        assert_eq!(picture.changes().unwrap()["nodes"], json!([{ "name": "a", "running": 1, "tokens": 7 }]));
    }

    #[test]
    fn a_rate_is_what_came_since_the_last_one() {
        let mut picture = Picture::default();
        let now = Instant::now();
        let seen = |tokens| Some(v1::Sight { nodes: vec![node("a", "root", 1, tokens)], ..Default::default() });
        picture.sight(&name("main"), seen(5));
        picture.rates(now);
        picture.sight(&name("main"), seen(30));
        picture.rates(now + Duration::from_secs(2));
        assert_eq!(picture.node(&name("a")).unwrap()["tokens_per_s"], 12.5);
        picture.rates(now + Duration::from_secs(3));
        assert_eq!(picture.node(&name("a")).unwrap()["tokens_per_s"], 0.0);
    }

    #[test]
    fn queries_that_a_new_root_does_not_know_have_ended() {
        let mut picture = Picture::default();
        picture.sight(
            &name("main"),
            Some(v1::Sight { queries: vec![query("1", "running"), query("2", "queued")], ..Default::default() }),
        );
        picture.changes();
        picture.sight(&name("main"), Some(v1::Sight { whole: true, queries: vec![query("2", "running")], ..Default::default() }));
        let told = picture.changes().unwrap();
        let states: Vec<&str> =
            told["queries"].as_array().unwrap().iter().map(|query| query["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["cancelled", "running"]);
        assert_eq!(picture.whole()["queries"].as_array().unwrap().len(), 1);
    }
}
