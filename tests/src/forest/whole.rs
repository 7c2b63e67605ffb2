//! What must be true of a tree when all is over.

use std::collections::BTreeSet;

use banyan_proto::v1;
use futures::future::join_all;

use super::Forest;
use crate::{footprint::Footprint, process::Banyan, query};

impl Forest {
    /// Remembers what every process holds, while nothing happens.
    pub async fn remember(&mut self) {
        self.whole().await;
        let apis = self.apis.iter().filter_map(|api| api.banyan.as_ref()).map(Banyan::pid);
        let nodes = self.nodes.values().filter_map(|process| process.banyan.as_ref()).map(Banyan::pid);
        self.before = apis.chain(nodes).filter_map(|pid| Some((pid, Footprint::of(pid)?))).collect();
        let reigning = self.reigning().await;
        self.before_reigning = reigning.and_then(|root| Footprint::of(self.process(&root).pid()));
    }

    /// Waits until everything is as it was: the tree connected and without circles, every node at the parent that it wants, the
    /// registry's names those of the living, gauges and queues at zero, and every process that lived through it back at what
    /// it held before.
    ///
    /// # Panics
    /// When that does not come about.
    pub async fn whole(&self) {
        let living = self.living();
        let looked = std::cell::RefCell::new(String::new());
        let outcome = crate::eventually::within(2 * crate::eventually::PATIENCE, || async {
            let wrong = self.what_is_wrong(&living).await;
            looked.borrow_mut().clone_from(&wrong);
            wrong.is_empty().then_some(())
        });
        assert!(outcome.await.is_some(), "the tree does not get whole again: {}", looked.borrow());
    }

    /// What is still wrong, when something is.
    pub async fn is_not_whole(&self) -> Option<String> {
        Some(self.what_is_wrong(&self.living()).await).filter(|wrong| !wrong.is_empty())
    }

    async fn what_is_wrong(&self, living: &BTreeSet<String>) -> String {
        let mut wrong = Vec::new();
        let roots: Vec<&String> = living.iter().filter(|name| self.nodes[*name].seed.parent.is_none()).collect();
        let views = join_all(roots.iter().map(|root| async { query::view(&self.address(root)).await })).await;
        let waits = |view: &v1::TreeView| view.status.as_ref().is_some_and(|root| root.state == "standby" && root.registered);
        let reigning = roots.iter().zip(&views).find(|(_, view)| view.as_ref().is_some_and(|view| !waits(view)));
        let reigning = reigning.map_or("", |(root, _)| root.as_str());
        let mut seen = BTreeSet::new();
        for (root, view) in roots.iter().zip(&views) {
            match view {
                Some(view) if waits(view) && view.children.is_empty() && !reigning.is_empty() => _ = seen.insert((*root).clone()),
                Some(view) => self.look_at(view, "", reigning, &mut seen, &mut wrong),
                None => wrong.push(format!("the root {root} does not answer")),
            }
        }
        if seen != *living {
            wrong.push(format!("the tree has {seen:?}, and there live {living:?}"));
        }
        match self.registry.members().await {
            Ok(members) => {
                let members: BTreeSet<String> = members.iter().map(|member| member.name.to_string()).collect();
                if members != *living {
                    wrong.push(format!("the registry has {members:?}, and there live {living:?}"));
                }
            }
            Err(error) => wrong.push(format!("{error}: {:?}", std::error::Error::source(&error))),
        }
        for (pid, before) in &self.before {
            let node = self.nodes.iter().find(|(_, process)| process.banyan.as_ref().is_some_and(|one| one.pid() == *pid));
            let name = node.map_or("an API", |(name, _)| name);
            let before = if name == reigning { self.before_reigning.as_ref().unwrap_or(before) } else { before };
            if let Some(now) = Footprint::of(*pid)
                && !now.is_back_at(before)
            {
                wrong.push(format!("{name} had {before:?} and has {now:?}"));
            }
        }
        wrong.join("; ")
    }

    fn look_at(&self, view: &v1::TreeView, parent: &str, reigning: &str, seen: &mut BTreeSet<String>, wrong: &mut Vec<String>) {
        // Below a root that waits for its turn, or is no more, is below the one that reigns.
        let is_root = |name: &str| self.nodes.get(name).is_some_and(|process| process.seed.parent.is_none());
        let Some(status) = &view.status else { return };
        let name = &status.name;
        if !seen.insert(name.clone()) {
            wrong.push(format!("{name} is there twice"));
        }
        if view.silent {
            wrong.push(format!("{name} is silent"));
            return;
        }
        let home = if is_root(&status.parent) { reigning } else { &status.parent };
        if status.attached != parent || home != parent {
            wrong.push(format!("{name} is below {parent:?}, says {:?}, and wants {:?}", status.attached, status.parent));
        }
        if status.state != "ready" || !status.registered {
            wrong.push(format!("{name} is {}, registered: {}", status.state, status.registered));
        }
        let held = status.kv.as_ref().map_or(0, |kv| kv.pages_held);
        let gauges = [
            ("running", status.running),
            ("queued", status.queued),
            ("waiting", status.waiting),
            ("live", status.live),
            ("KV pages", held),
        ];
        for (gauge, value) in gauges {
            if value != 0 {
                wrong.push(format!("{name} has {gauge} {value}"));
            }
        }
        for child in &view.children {
            self.look_at(child, name, reigning, seen, wrong);
        }
    }
}
