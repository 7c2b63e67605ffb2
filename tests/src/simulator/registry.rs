//! The registry as a linearizable map: registering is one transaction, and everybody sees it a little later.

use std::collections::{BTreeMap, VecDeque};

use banyan_etcd::{Member, Role, Root, View};
use banyan_proto::NodeName;

/// The longest chain that one transaction compares.
const DEPTH_MAX: usize = 32;

/// The truth, and what everybody sees of it.
#[derive(Debug, Default)]
pub(super) struct Registry {
    members: BTreeMap<NodeName, Member>,
    revision: u64,
    /// What the watches have not shown yet, in order.
    unseen: VecDeque<Change>,
    /// As the watches show it.
    pub(super) seen: View,
}

/// A key's change, on its way to the watches.
#[derive(Debug)]
struct Change {
    name: NodeName,
    member: Option<Member>,
    revision: u64,
}

impl Registry {
    /// Whether a name is taken.
    pub(super) fn holds(&self, name: &NodeName) -> bool {
        self.members.contains_key(name)
    }

    /// Puts a member in, if its chain ends at a root and does not go through itself. A root gets its reign's number.
    pub(super) fn register(&mut self, name: &NodeName, parent: Option<&NodeName>, tree: &NodeName) -> Result<u64, String> {
        let mut above = parent;
        for _ in 0..DEPTH_MAX {
            let Some(one) = above else {
                self.revision += 1;
                let member = Member {
                    name: name.clone(),
                    parent: parent.cloned(),
                    address: name.to_string(),
                    role: if parent.is_none() { Role::Root } else { Role::Node },
                    tree: tree.clone(),
                    incarnation: self.revision,
                    version: String::new(),
                    models: Vec::new(),
                    device: "fake".to_owned(),
                    started_at: 0,
                };
                self.members.insert(name.clone(), member.clone());
                self.unseen.push_back(Change { name: name.clone(), member: Some(member), revision: self.revision });
                return Ok(self.revision);
            };
            if one == name {
                return Err(format!("{name} would be above itself"));
            }
            above = self.members.get(one).ok_or_else(|| format!("there is no {one}"))?.parent.as_ref();
        }
        Err("the tree would be too deep".to_owned())
    }

    /// A lease ended, or a node left.
    pub(super) fn remove(&mut self, name: &NodeName) {
        self.revision += 1;
        self.members.remove(name);
        self.unseen.push_back(Change { name: name.clone(), member: None, revision: self.revision });
    }

    /// The watches show the next change.
    pub(super) fn show(&mut self) {
        let Some(Change { name, member, revision }) = self.unseen.pop_front() else { return };
        self.seen.revision = self.seen.revision.max(revision as i64);
        self.seen.live = true;
        match member {
            Some(member) => {
                if member.role == Role::Root {
                    let epoch = member.incarnation;
                    let root = Root { name: name.clone(), address: member.address.clone(), epoch, former: Vec::new() };
                    self.seen.roots.insert(member.tree.clone(), root);
                }
                self.seen.members.insert(name, member);
            }
            None => {
                self.seen.roots.retain(|_, root| root.name != name);
                self.seen.members.remove(&name);
            }
        }
    }
}
