//! Where things lie in the registry: `/banyan/<cluster>/nodes/<name>` and `/banyan/<cluster>/roots/<tree>`.

use banyan_proto::NodeName;

/// The keys of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: String,
}

/// What a key is about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// The member of this name.
    Node(NodeName),
    /// The root of this tree.
    Root(NodeName),
}

impl Keys {
    pub(crate) fn new(cluster: &NodeName) -> Self {
        Keys { prefix: format!("/banyan/{cluster}/") }
    }

    /// What every key of the cluster begins with.
    pub(crate) fn all(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn node(&self, name: &NodeName) -> String {
        format!("{}nodes/{name}", self.prefix)
    }

    pub(crate) fn root(&self, tree: &NodeName) -> String {
        format!("{}roots/{tree}", self.prefix)
    }

    /// A join token that was not used yet.
    pub(crate) fn token(&self, hash: &str) -> String {
        format!("{}tokens/{hash}", self.prefix)
    }

    /// A name for which a certificate was made.
    pub(crate) fn certificate(&self, role: &str, name: &NodeName) -> String {
        format!("{}certificates/{role}/{name}", self.prefix)
    }

    /// Reads a key back; None for what others, or other versions, keep beside ours.
    pub(crate) fn parse(&self, key: &[u8]) -> Option<Key> {
        let (kind, name) = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.split_once('/')?;
        let name = name.parse().ok()?;
        match kind {
            "nodes" => Some(Key::Node(name)),
            "roots" => Some(Key::Root(name)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::member::tests::name;

    #[test]
    fn keys_are_read_back() {
        let keys = Keys::new(&name("c"));
        assert_eq!(keys.node(&name("a")), "/banyan/c/nodes/a");
        assert_eq!(keys.parse(keys.node(&name("a")).as_bytes()), Some(Key::Node(name("a"))));
        assert_eq!(keys.parse(keys.root(&name("main")).as_bytes()), Some(Key::Root(name("main"))));
        for foreign in ["/banyan/c/nodes/", "/banyan/c/nodes/A", "/banyan/c/load/a", "/banyan/d/nodes/a", "/banyan/c/"] {
            assert_eq!(keys.parse(foreign.as_bytes()), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(key in proptest::collection::vec(any::<u8>(), 0..64)) {
            let keys = Keys::new(&name("c"));
            let _ = keys.parse(&key);
            let _ = keys.parse(&[keys.all().as_bytes(), &key].concat());
        }
    }
}
