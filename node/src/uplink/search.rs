//! Whom a child attaches to, and when it looks again: the uplink's decisions, without its sockets.
//!
//! Candidates are the wanted parent first, then the ancestors that were last known, the grandparent first, then the root
//! of the tree. A child that lives with somebody else goes back when the wanted parent can be reached again.

use std::time::Duration;

use banyan_etcd::{Role, View};
use banyan_proto::{NodeName, v1};

/// Tries at the wanted parent before the others: it may just be restarting.
const WANTED_TRIES: u32 = 3;
/// The pause after a round of failures grows from this …
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// … to this, so that a parent's return is noticed soon, and a thousand orphans do not knock all at once.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long a parent has to answer the attachment. A silent parent is found in 2 s, and 2 s later its orphans try others: all of
/// them have one in 5 s.
pub const ATTACH_TIMEOUT: Duration = Duration::from_secs(2);
/// Who takes that long to fail does not refuse, but says nothing: others are tried before it.
const SILENCE: Duration = Duration::from_secs(1);
/// A parent without a way to the root gets that long to find one.
pub const ROOTLESS_MAX: Duration = Duration::from_secs(5);
/// How often a child that lives elsewhere looks whether its wanted parent is back.
pub const RETURN_INTERVAL: Duration = Duration::from_secs(5);

/// Somebody to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: NodeName,
    /// Where it is dialled.
    pub address: String,
}

/// Why a link ended, or never was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Whoever was wanted changed, or is back.
    Moved,
    /// The stream broke.
    Broken,
    /// The parent found no way to the root.
    Rootless,
    /// The parent is about to leave.
    Leaving,
    /// Nobody could be reached.
    Nobody,
}

/// Goes from parent to parent. See the module.
#[derive(Debug)]
pub struct Search {
    us: NodeName,
    tree: NodeName,
    /// As last known, the parent first.
    ancestors: Vec<Candidate>,
    /// Rounds in which nobody could be reached.
    failures: u32,
    /// Whoever is silent, cut off from the root, or about to leave, is the last resort.
    avoid: Option<NodeName>,
    parent: Option<Candidate>,
}

impl Search {
    /// For a node that has no parent yet.
    pub fn new(us: NodeName, tree: NodeName) -> Self {
        Search { us, tree, ancestors: Vec::new(), failures: 0, avoid: None, parent: None }
    }

    /// Whom to try now, in order.
    pub fn candidates(&self, wanted: &NodeName, view: &View) -> Vec<Candidate> {
        // Others than the wanted parent only once that had its chances.
        let anybody = self.failures >= WANTED_TRIES || self.avoid.is_some();
        let mut order = candidates(wanted, &self.ancestors, view, &self.tree, &self.us, anybody);
        order.sort_by_key(|candidate| self.avoid.as_ref() == Some(&candidate.name));
        order
    }

    /// Everybody whom the node could attach to, in the same order.
    pub fn all(&self, wanted: &NodeName, view: &View) -> Vec<Candidate> {
        candidates(wanted, &self.ancestors, view, &self.tree, &self.us, true)
    }

    /// Whom the wanted parent's name stands for now: below a tree's root is below whoever that is.
    pub fn home(&self, wanted: &NodeName, view: &View) -> Option<Candidate> {
        home(wanted, view, &self.tree)
    }

    /// Whether that ancestry ends at a root which has been succeeded by another.
    pub fn is_past(&self, ancestry: &v1::Ancestry, view: &View) -> bool {
        let root = ancestry.ancestors.last().map(|root| root.name.as_str());
        view.roots.get(&self.tree).is_some_and(|now| ancestry.epoch < now.epoch && root != Some(now.name.as_str()))
    }

    /// Whether those that can't be reached are news.
    pub fn is_fresh(&self) -> bool {
        self.failures == 0
    }

    /// None of them took us, of whom this was the first, and it took so long to know.
    pub fn failed(&mut self, first: &Candidate, took: Duration) {
        if took >= SILENCE {
            self.avoid = Some(first.name.clone());
        }
    }

    /// One of them took us.
    pub fn attached(&mut self, parent: Candidate, ancestry: &v1::Ancestry) {
        self.failures = 0;
        self.parent = Some(parent);
        self.remember(ancestry);
    }

    /// The parent said who is above it. False when the node itself is, so that the link closes a circle.
    pub fn told(&mut self, ancestry: &v1::Ancestry) -> bool {
        if is_among(&self.us, ancestry) {
            return false;
        }
        self.remember(ancestry);
        true
    }

    /// The link has ended, or nobody took us. Returns how long to pause, give or take half of it, before the next round.
    pub fn ended(&mut self, end: End) -> Option<Duration> {
        let parent = self.parent.take();
        match end {
            End::Moved => {
                self.avoid = None;
                None
            }
            End::Broken => {
                self.avoid = None;
                Some(PAUSE_MIN)
            }
            End::Rootless | End::Leaving => {
                self.avoid = parent.map(|parent| parent.name);
                Some(PAUSE_MIN)
            }
            End::Nobody => {
                self.failures += 1;
                Some(pause_after(self.failures - 1))
            }
        }
    }

    /// Whether it is the present parent.
    pub fn is_parent(&self, name: &NodeName) -> bool {
        self.parent.as_ref().is_some_and(|parent| parent.name == *name)
    }

    /// Whether the node itself is among its ancestors.
    pub fn is_among(&self, ancestry: &v1::Ancestry) -> bool {
        is_among(&self.us, ancestry)
    }

    /// The ancestry with the parent's address, which only the one who dialled it knows.
    pub fn full(&self, ancestry: &v1::Ancestry) -> v1::Ancestry {
        let mut full = ancestry.clone();
        if let (Some(first), Some(parent)) = (full.ancestors.first_mut(), &self.parent) {
            first.address.clone_from(&parent.address);
        }
        full
    }

    fn remember(&mut self, ancestry: &v1::Ancestry) {
        if rootless(ancestry) {
            return;
        }
        let known = self.full(ancestry).ancestors.into_iter();
        self.ancestors = known.filter_map(|one| Some(Candidate { name: one.name.parse().ok()?, address: one.address })).collect();
    }
}

/// A parent with no way to the root says so by an epoch of 0.
pub fn rootless(ancestry: &v1::Ancestry) -> bool {
    ancestry.epoch == 0
}

/// Whether a node is among its ancestors.
pub fn is_among(us: &NodeName, ancestry: &v1::Ancestry) -> bool {
    ancestry.ancestors.iter().any(|ancestor| ancestor.name == us.as_str())
}

/// The pause behind so many rounds that failed and one more, give or take half of it.
pub fn pause_after(failures: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX)
}

fn home(wanted: &NodeName, view: &View, tree: &NodeName) -> Option<Candidate> {
    let member = view.members.get(wanted);
    let named = |role| member.filter(|member| role == (member.role == Role::Node));
    let candidate = |name: &NodeName, address: &str| Candidate { name: name.clone(), address: address.to_owned() };
    if let Some(node) = named(true) {
        return Some(candidate(wanted, &node.address));
    }
    if let Some(root) = view.roots.get(tree).filter(|root| root.is_called(wanted)) {
        return Some(candidate(&root.name, &root.address));
    }
    // A standby has nothing to give.
    named(false).filter(|root| root.role == Role::Root).map(|root| candidate(wanted, &root.address))
}

/// Whom to try, in order.
fn candidates(
    wanted: &NodeName,
    ancestors: &[Candidate],
    view: &View,
    tree: &NodeName,
    us: &NodeName,
    anybody: bool,
) -> Vec<Candidate> {
    let mut order = Vec::new();
    if let Some(home) = home(wanted, view, tree) {
        order.push(home);
    } else if let Some(known) = ancestors.iter().find(|known| known.name == *wanted) {
        // Gone from the registry, or the registry is gone: its last address is worth a try.
        order.push(known.clone());
    }
    if anybody || order.is_empty() {
        order.extend(ancestors.iter().filter(|known| known.name != *wanted).cloned());
        if let Some(root) = view.roots.get(tree) {
            order.push(Candidate { name: root.name.clone(), address: root.address.clone() });
        }
    }
    order.retain(|candidate| candidate.name != *us);
    order.dedup();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ancestry(names: &[&str], epoch: u64) -> v1::Ancestry {
        let ancestor = |name: &&str| v1::Ancestor { name: (*name).to_owned(), address: format!("{name}:1") };
        v1::Ancestry { ancestors: names.iter().map(ancestor).collect(), epoch }
    }

    fn search() -> Search {
        let mut search = Search::new("leaf".parse().unwrap(), "main".parse().unwrap());
        let parent = Candidate { name: "parent".parse().unwrap(), address: "parent:1".into() };
        search.attached(parent, &ancestry(&["parent", "grandparent", "root"], 1));
        search
    }

    fn names(search: &Search) -> Vec<String> {
        let order = search.candidates(&"parent".parse().unwrap(), &View::default());
        order.iter().map(|candidate| candidate.name.to_string()).collect()
    }

    #[test]
    fn an_orphan_tries_its_parent_then_the_grandparent_then_the_root() {
        let mut search = search();
        assert_eq!(search.ended(End::Broken), Some(PAUSE_MIN));
        for _ in 0..WANTED_TRIES {
            assert_eq!(names(&search), ["parent"]);
            search.ended(End::Nobody);
        }
        assert_eq!(names(&search), ["parent", "grandparent", "root"]);
    }

    #[test]
    fn a_parent_that_says_nothing_is_tried_once_and_one_that_refuses_again() {
        let mut search = search();
        let parent = Candidate { name: "parent".parse().unwrap(), address: "parent:1".into() };
        search.ended(End::Broken);
        search.failed(&parent, Duration::from_millis(5));
        search.ended(End::Nobody);
        assert_eq!(names(&search), ["parent"]);
        search.failed(&parent, ATTACH_TIMEOUT);
        search.ended(End::Nobody);
        assert_eq!(names(&search), ["grandparent", "root", "parent"]);
    }

    #[test]
    fn a_parent_without_a_way_to_the_root_is_the_last_resort() {
        let mut search = search();
        assert!(search.told(&ancestry(&["parent"], 0)));
        search.ended(End::Rootless);
        assert_eq!(names(&search), ["grandparent", "root", "parent"]);
    }

    #[test]
    fn a_node_does_not_stay_below_itself() {
        let mut search = search();
        assert!(!search.told(&ancestry(&["parent", "leaf", "root"], 1)));
    }

    #[test]
    fn pauses_grow_to_their_bound_and_begin_again() {
        let mut search = search();
        search.ended(End::Broken);
        let pauses: Vec<u128> = (0..6).map(|_| search.ended(End::Nobody).unwrap().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000]);
    }
}
