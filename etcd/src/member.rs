//! What a node says of itself in the registry, and how it is written there.
//!
//! The JSON under `nodes/<name>` is read by every version that shares a cluster, so unknown fields are ignored and fields
//! that a newer version may drop have defaults.

use banyan_proto::NodeName;
use serde::{Deserialize, Serialize};

/// The largest value that is taken for a member, in bytes: a hundred models fit, and a listing of ten thousand nodes stays
/// in memory whatever somebody else wrote under our keys.
pub(crate) const VALUE_BYTES_MAX: usize = 64 << 10;

/// A model that a node serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The public name, as in `/v1/models`.
    pub id: String,
    /// The longest prompt and answer together, in tokens.
    #[serde(default)]
    pub context: u32,
    /// Whether it has a chat template of its own.
    #[serde(default)]
    pub chat: bool,
    /// When its weights were made, in Unix seconds.
    #[serde(default)]
    pub created: u64,
    /// Of a provider's model: which one it can stand in for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands_in: Option<StandIn>,
}

/// A provider's model, in the place of one that the tree's own nodes serve, or might.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandIn {
    /// The model that is asked for.
    pub model: String,
    /// When it is taken.
    pub policy: Policy,
}

/// When a provider is taken by those who ask for a model and not for a provider.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// When no node of the tree's own has a place for the query.
    #[default]
    Spill,
    /// Before any node of the tree's own.
    Always,
    /// Not at all.
    #[serde(other)]
    Never,
}

/// What a node is in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The one node without a parent: it takes queries and never infers.
    Root,
    /// A root in waiting: takes its tree's place when that is free.
    Standby,
    /// Every other node.
    Node,
}

/// A node as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name, which nobody else of the cluster has.
    pub name: NodeName,
    /// The parent that it wants; a temporary re-attachment elsewhere is not written. None for a root.
    #[serde(default)]
    pub parent: Option<NodeName>,
    /// Where others reach it, as `host:port` or a URL.
    pub address: String,
    /// Root or node.
    pub role: Role,
    /// The tree that it belongs to.
    pub tree: NodeName,
    /// The number of its life under this name. The registry sets it, to a number above every earlier one of the name.
    #[serde(default)]
    pub incarnation: u64,
    /// The version that it runs.
    #[serde(default)]
    pub version: String,
    /// What it serves; several may share one engine.
    #[serde(default)]
    pub models: Vec<Model>,
    /// What it computes on, such as `cpu` or `cuda:0`.
    #[serde(default)]
    pub device: String,
    /// When its process started, in Unix milliseconds.
    #[serde(default)]
    pub started_at: u64,
}

/// Why a registry's value is no member, or a member can't be registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemberError {
    /// Not our JSON.
    #[error("the value is not the JSON of a member")]
    Json(#[from] serde_json::Error),
    /// Its name is not its key's.
    #[error("the value under the name {key} says that it is {name}")]
    Name {
        /// The key's name.
        key: NodeName,
        /// The value's.
        name: NodeName,
    },
    /// A root with a parent, or a node without one.
    #[error("a root has no parent and every other node has one, unlike {0}")]
    Role(NodeName),
    /// More than the registry holds for one member.
    #[error("a member takes at most {VALUE_BYTES_MAX} bytes in the registry, not {0}: it serves too many models for one node")]
    Size(usize),
}

impl Member {
    /// Parses the value under the key of `name`.
    pub(crate) fn parse(name: &NodeName, value: &[u8]) -> Result<Member, MemberError> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(MemberError::Size(value.len()));
        }
        let member: Member = serde_json::from_slice(value)?;
        if member.name != *name {
            return Err(MemberError::Name { key: name.clone(), name: member.name });
        }
        member.check()?;
        Ok(member)
    }

    /// The value for the registry.
    pub(crate) fn to_value(&self) -> Result<Vec<u8>, MemberError> {
        self.check()?;
        let value = serde_json::to_vec(self)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(MemberError::Size(value.len()));
        }
        Ok(value)
    }

    fn check(&self) -> Result<(), MemberError> {
        if (self.role != Role::Node) == self.parent.is_none() { Ok(()) } else { Err(MemberError::Role(self.name.clone())) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    pub(crate) fn member(text: &str, parent: Option<&str>) -> Member {
        Member {
            name: name(text),
            parent: parent.map(name),
            address: "127.0.0.1:7600".into(),
            role: if parent.is_none() { Role::Root } else { Role::Node },
            tree: name("main"),
            incarnation: 7,
            version: "0.1.0".into(),
            models: vec![Model { id: "gpt2".into(), context: 1024, chat: false, created: 1, stands_in: None }],
            device: "cpu".into(),
            started_at: 1_700_000_000_000,
        }
    }

    #[test]
    fn a_member_is_read_as_it_was_written() {
        for member in [member("root", None), member("a", Some("root"))] {
            assert_eq!(Member::parse(&member.name, &member.to_value().unwrap()).unwrap(), member);
        }
    }

    #[test]
    fn a_newer_versions_fields_are_ignored_and_a_minimal_value_is_enough() {
        let value = br#"{"name":"a","parent":"root","address":"x:1","role":"node","tree":"main","rack":{"row":3}}"#;
        let member = Member::parse(&name("a"), value).unwrap();
        assert_eq!((member.parent, member.models.len()), (Some(name("root")), 0));
    }

    #[test]
    fn foreign_values_are_refused_with_a_reason() {
        let parse = |value: &str| Member::parse(&name("a"), value.as_bytes()).unwrap_err();
        assert!(matches!(parse("hello"), MemberError::Json(_)));
        assert!(matches!(parse(r#"{"name":"A B"}"#), MemberError::Json(_)));
        let wrong = r#"{"name":"b","parent":"root","address":"x:1","role":"node","tree":"main"}"#;
        assert!(matches!(parse(wrong), MemberError::Name { .. }));
        let orphan = r#"{"name":"a","address":"x:1","role":"node","tree":"main"}"#;
        assert!(matches!(parse(orphan), MemberError::Role(_)));
        assert!(matches!(parse(&" ".repeat(VALUE_BYTES_MAX + 1)), MemberError::Size(_)));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(value in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Member::parse(&name("a"), &value);
        }

        #[test]
        fn a_damaged_member_is_an_error_or_a_valid_member(at in 0usize..400, byte in any::<u8>()) {
            let mut value = member("a", Some("root")).to_value().unwrap();
            let at = at % value.len();
            value[at] = byte;
            if let Ok(parsed) = Member::parse(&name("a"), &value) {
                prop_assert_eq!(parsed.name, name("a"));
            }
        }
    }
}
