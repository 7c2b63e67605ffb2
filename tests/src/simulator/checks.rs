//! The promises: looked after while the world goes on, and when it has come to rest.

use std::collections::BTreeMap;

use super::{
    node::Deliver,
    world::{Event, MILLISECOND, ROOT, SECOND, World},
};

/// How often somebody looks around.
pub(super) const LOOK: u64 = 250 * MILLISECOND;
/// A query's end may come so long after its deadline: a tick of the ledger's and its way.
const DEADLINE_GRACE: u64 = SECOND;
/// No tree is deeper than that.
const DEPTH_MAX: usize = 64;

impl World {
    /// Nobody waits for long while a node idles that serves its model, and nobody outlives its deadline.
    pub(super) fn look(&mut self) {
        self.agenda.after(LOOK, Event::Look);
        let now = self.now();
        // The model that idles for the longest time, by when it began to.
        let mut idle: BTreeMap<String, u64> = BTreeMap::new();
        for node in &mut self.nodes[ROOT + 1..] {
            let has_room = node.body.as_ref().is_some_and(|body| {
                let gauges = body.core.gauges();
                gauges.has_room && gauges.rooted && body.uplink.link.is_some()
            });
            node.room_since = if has_room && !node.paused { node.room_since.or(Some(now)) } else { None };
            if let (Some(since), Some(engine)) = (node.room_since, &node.engine) {
                match idle.get_mut(&engine.model) {
                    Some(first) => *first = since.min(*first),
                    None => {
                        idle.insert(engine.model.clone(), since);
                    }
                }
            }
        }
        let anywhere = idle.values().min().copied();
        self.live.retain(|client| !self.clients[*client as usize].is_done());
        let mut broken = Vec::new();
        for &number in &self.live {
            let client = &self.clients[number as usize];
            let late = client.asked_at + client.wish.deadline_ms * MILLISECOND + DEADLINE_GRACE;
            if now > late {
                broken.push(format!("query {} has outlived its deadline", client.id));
            }
            let room = if client.wish.model.is_empty() { anywhere } else { idle.get(client.wish.model).copied() };
            if let (Some(waits), Some(room)) = (client.waits_since, room) {
                let both = now.saturating_sub(waits.max(room));
                let suspect = || self.nodes[ROOT].body.as_ref().is_some_and(|root| root.core.is_suspect(&client.id));
                // Suspects wait for their turn.
                if both > self.setup.idle_wait && !suspect() {
                    let ms = both / MILLISECOND;
                    broken.push(format!("query {} for {:?} waits for {ms} ms while a node idles", client.id, client.wish.model));
                }
            }
        }
        for one in broken {
            self.break_promise(one);
        }
        let depth = self.figures.hops as usize;
        if depth > DEPTH_MAX {
            self.break_promise(format!("a query came through {depth} nodes"));
        }
    }

    /// Whether nothing is being answered.
    pub fn is_quiet(&self) -> bool {
        self.live.iter().all(|client| self.clients[*client as usize].is_done())
            && self.nodes[ROOT].body.as_ref().is_none_or(|root| root.core.gauges().live == 0)
            && self.nodes.iter().all(|node| {
                node.body.as_ref().is_none_or(|body| {
                    let gauges = body.core.gauges();
                    (gauges.running, gauges.queued, gauges.kept) == (0, 0, 0)
                })
            })
    }

    /// Whether every living node is attached to the parent that it wants, and delivers to the root.
    pub fn is_settled(&self) -> bool {
        (1..self.nodes.len()).all(|node| self.is_at_home(node))
    }

    fn is_at_home(&self, node: usize) -> bool {
        // The dead are where they are; who has not started yet is not.
        let Some(body) = &self.nodes[node].body else { return self.nodes[node].life > 0 };
        let wanted = body.wanted.as_ref();
        let there = wanted.and_then(|wanted| self.by_name.get(wanted.as_str()));
        // Who wants somebody that is gone lives with others.
        let gone = there.is_some_and(|there| self.nodes[*there as usize].body.is_none());
        let home = body.uplink.link.as_ref().is_some_and(|held| gone || wanted == Some(&held.parent));
        home && matches!(body.deliver, Deliver::Open(_)) && body.core.gauges().connected && body.core.gauges().rooted
    }

    /// Those that are not where they want to be, or deliver nowhere, and why.
    pub fn unsettled(&self) -> Vec<String> {
        let away = |&node: &usize| !self.is_at_home(node);
        // The way up from it, and from whom it wants.
        let way = |from: usize| {
            let up = std::iter::successors(Some(from), |at| self.parent(*at)).take(DEPTH_MAX);
            up.map(|at| self.name(at).as_str()).collect::<Vec<_>>().join(" < ")
        };
        let tell = |node: usize| {
            let wanted = self.nodes[node].body.as_ref().and_then(|body| body.wanted.clone());
            let there = wanted.as_ref().and_then(|wanted| self.by_name.get(wanted.as_str())).map(|there| way(*there as usize));
            format!("{}, which wants {there:?}: {:?}", way(node), self.nodes[node].body)
        };
        self.alive().into_iter().filter(away).take(5).map(tell).collect()
    }

    /// All promises of a world at rest: what was broken on the way, and what is left over.
    pub fn verdict(&mut self) -> Result<(), String> {
        if !self.is_quiet() {
            self.tell_unquiet();
        }
        for client in 0..self.clients.len() {
            if !self.clients[client].is_done() {
                let one = &self.clients[client];
                let text = format!("query {} was neither answered nor failed: {one:?}", one.id);
                self.break_promise(text);
            }
        }
        self.check_tree();
        self.check_root();
        match self.broken.is_empty() {
            true => Ok(()),
            false => Err(format!("seed {}: {}", self.setup.seed, self.broken.join("\n  "))),
        }
    }

    fn tell_unquiet(&mut self) {
        for node in 0..self.nodes.len() {
            let Some(body) = &self.nodes[node].body else { continue };
            let gauges = body.core.gauges();
            if (gauges.running, gauges.queued, gauges.kept, gauges.live, gauges.waiting) != (0, 0, 0, 0, 0) {
                let text = format!("{} is not at rest: {gauges:?}", self.name(node));
                self.break_promise(text);
            }
        }
    }

    fn check_tree(&mut self) {
        let mut children = vec![0; self.nodes.len()];
        let mut broken = Vec::new();
        for node in self.alive() {
            let mut at = node;
            if let Some(parent) = self.parent(node) {
                children[parent] += 1;
            }
            let mut steps = 0;
            while at != ROOT && steps <= DEPTH_MAX {
                steps += 1;
                let Some(above) = self.parent(at) else { break };
                at = above;
            }
            if at != ROOT {
                broken.push(format!("{} has no way to the root: it ends at {}", self.name(node), self.name(at)));
            }
        }
        for (node, children) in children.into_iter().enumerate() {
            let Some(body) = &self.nodes[node].body else { continue };
            let known = body.core.gauges().children;
            if known != children {
                broken.push(format!("{} knows {known} children and has {children}", self.name(node)));
            }
        }
        for one in broken {
            self.break_promise(one);
        }
    }

    fn check_root(&mut self) {
        let Some(root) = &self.nodes[ROOT].body else { return };
        let gauges = root.core.gauges();
        let alive = self.alive().len();
        if (gauges.live, gauges.waiting, gauges.clients) != (0, 0, 0) || gauges.holders != alive {
            self.break_promise(format!("the root is left with {gauges:?}, and {alive} nodes live"));
        }
    }
}
