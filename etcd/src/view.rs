//! What the registry held when we last heard: built from a listing, kept up by events. Pure; the watcher feeds it.

use std::collections::{BTreeMap, BTreeSet};

use banyan_proto::NodeName;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    Member,
    keys::{Key, Keys},
    member::VALUE_BYTES_MAX,
};

/// More roots than any tree changes between.
const FORMER_MAX: usize = 16;

/// The cluster, as last heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Everyone registered, by name.
    pub members: BTreeMap<NodeName, Member>,
    /// The roots, by tree.
    pub roots: BTreeMap<NodeName, Root>,
    /// The registry's revision that this reflects; 0 before the first answer.
    pub revision: i64,
    /// Whether the watch is connected. When not, this is what was known last: a hint, never a death.
    pub live: bool,
}

/// The root of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Its name.
    pub name: NodeName,
    /// Where it is reached.
    pub address: String,
    /// The number of its reign: the `create_revision` of `roots/<tree>`.
    pub epoch: u64,
    /// The names of the tree's roots before it: whoever was started below one of them is below this one.
    pub former: Vec<NodeName>,
}

/// What is written under `roots/<tree>`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RootValue {
    pub(crate) name: NodeName,
    pub(crate) address: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) former: Vec<NodeName>,
}

/// A key and its value, as the registry told it.
pub(crate) struct Entry<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) create_revision: i64,
}

impl Root {
    pub(crate) fn parse(value: &[u8], create_revision: i64) -> Result<Root, serde_json::Error> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(<serde_json::Error as serde::de::Error>::custom("the value is too long"));
        }
        let RootValue { name, address, former } = serde_json::from_slice(value)?;
        Ok(Root { name, address, epoch: create_revision.unsigned_abs(), former })
    }

    /// The names that the next root of the tree remembers.
    pub fn former_of(&self, next: &NodeName) -> Vec<NodeName> {
        let known = self.former.iter().chain([&self.name]).filter(|name| *name != next);
        let mut former: Vec<NodeName> = Vec::new();
        for name in known {
            former.retain(|other| other != name);
            former.push(name.clone());
        }
        former.split_off(former.len().saturating_sub(FORMER_MAX))
    }

    /// Whether a node that wants to be below `name` wants to be below this root.
    pub fn is_called(&self, name: &NodeName) -> bool {
        self.name == *name || self.former.contains(name)
    }
}

impl View {
    /// How many levels of members are below `name`.
    pub(crate) fn height(&self, name: &NodeName) -> usize {
        let mut level: BTreeSet<&NodeName> = BTreeSet::from([name]);
        // The bound ends it even on a cycle, which only a hand could have written.
        for height in 0..=self.members.len() {
            let below = |member: &&Member| member.parent.as_ref().is_some_and(|parent| level.contains(parent));
            let next: BTreeSet<_> = self.members.values().filter(below).map(|member| &member.name).collect();
            if next.is_empty() {
                return height;
            }
            level = next;
        }
        self.members.len()
    }

    /// Whether somebody of that name can be a parent: a node, or a root that stands for it.
    pub fn is_there(&self, parent: &NodeName, tree: &NodeName) -> bool {
        self.members.contains_key(parent) || self.roots.get(tree).is_some_and(|root| root.is_called(parent))
    }

    /// Takes in a key and its value. What is not ours is left out, with a warning: one bad key must not hide the others.
    pub(crate) fn put(&mut self, keys: &Keys, entry: &Entry<'_>) {
        match keys.parse(entry.key) {
            Some(Key::Node(name)) => match Member::parse(&name, entry.value) {
                Ok(member) => {
                    self.members.insert(name, member);
                }
                Err(error) => {
                    warn!(node = %name, %error, "left out a member that can't be read");
                    self.members.remove(&name);
                }
            },
            Some(Key::Root(tree)) => match Root::parse(entry.value, entry.create_revision) {
                Ok(root) => {
                    self.roots.insert(tree, root);
                }
                Err(error) => {
                    warn!(%tree, %error, "left out a root that can't be read");
                    self.roots.remove(&tree);
                }
            },
            None => {}
        }
    }

    /// Takes in that a key is gone.
    pub(crate) fn delete(&mut self, keys: &Keys, key: &[u8]) {
        match keys.parse(key) {
            Some(Key::Node(name)) => {
                self.members.remove(&name);
            }
            Some(Key::Root(tree)) => {
                self.roots.remove(&tree);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::member::tests::{member, name};

    fn put(view: &mut View, key: &str, value: &[u8], create_revision: i64) {
        view.put(&Keys::new(&name("c")), &Entry { key: key.as_bytes(), value, create_revision });
    }

    #[test]
    fn members_and_roots_come_and_go() {
        let keys = Keys::new(&name("c"));
        let mut view = View::default();
        let root = member("root", None);
        put(&mut view, "/banyan/c/nodes/root", &root.to_value().unwrap(), 4);
        put(&mut view, "/banyan/c/roots/main", br#"{"name":"root","address":"x:1"}"#, 5);
        assert_eq!(view.members[&name("root")], root);
        assert_eq!(view.roots[&name("main")], Root { name: name("root"), address: "x:1".into(), epoch: 5, former: vec![] });
        view.delete(&keys, b"/banyan/c/nodes/root");
        view.delete(&keys, b"/banyan/c/roots/main");
        view.delete(&keys, b"/banyan/c/else/main");
        assert_eq!(view, View::default());
    }

    #[test]
    fn a_tree_remembers_its_former_roots() {
        let root = Root { name: name("b"), address: "x:1".into(), epoch: 5, former: vec![name("c"), name("a")] };
        assert_eq!(root.former_of(&name("c")), [name("a"), name("b")]);
        assert!(["a", "b", "c"].iter().all(|called| root.is_called(&name(called))) && !root.is_called(&name("d")));
    }

    #[test]
    fn a_bad_value_hides_only_itself() {
        let mut view = View::default();
        put(&mut view, "/banyan/c/nodes/a", &member("a", Some("root")).to_value().unwrap(), 1);
        put(&mut view, "/banyan/c/nodes/b", b"not json", 2);
        put(&mut view, "/banyan/c/roots/main", b"{}", 3);
        assert_eq!(view.members.keys().collect::<Vec<_>>(), [&name("a")]);
        put(&mut view, "/banyan/c/nodes/a", b"overwritten by hand", 1);
        assert!(view.members.is_empty());
    }

    #[test]
    fn the_height_counts_the_levels_below() {
        let mut view = View::default();
        for (child, parent) in [("root", None), ("a", Some("root")), ("b", Some("a")), ("c", Some("a")), ("d", Some("c"))] {
            view.members.insert(name(child), member(child, parent));
        }
        assert_eq!(["root", "a", "b", "d", "nobody"].map(|each| view.height(&name(each))), [3, 2, 0, 0, 0]);
        view.members.insert(name("a"), member("a", Some("d")));
        assert!(view.height(&name("a")) <= 5, "ends on a cycle");
    }

    proptest! {
        #[test]
        fn any_bytes_may_lie_under_our_keys(value in proptest::collection::vec(any::<u8>(), 0..256), revision in any::<i64>()) {
            let mut view = View::default();
            put(&mut view, "/banyan/c/roots/main", &value, revision);
            put(&mut view, "/banyan/c/nodes/a", &value, revision);
        }
    }
}
