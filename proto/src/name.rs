//! Names of nodes, clusters and trees.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// A node's name (clusters and trees are named alike): 1 to 63 of `a-z 0-9 - _ .`, beginning and ending with a letter
/// or a digit, as DNS labels do, so that a Kubernetes pod's name is a node's name too.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or too much.
    #[error("a name has 1 to 63 characters, this one has {0}")]
    Length(usize),
    /// A character that names don't have.
    #[error("a name is made of a-z, 0-9, '-', '_' and '.', and {0:?} has {1:?}")]
    Character(String, char),
    /// A hyphen or the like at an end.
    #[error("a name begins and ends with a letter or a digit, unlike {0:?}")]
    Edge(String),
}

impl NodeName {
    /// The longest name, in characters.
    pub const LENGTH_MAX: usize = 63;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let length = text.chars().count();
        if length == 0 || length > Self::LENGTH_MAX {
            return Err(NameError::Length(length));
        }
        let inner = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | '.');
        if let Some(wrong) = text.chars().find(|&c| !inner(c)) {
            return Err(NameError::Character(text.to_owned(), wrong));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.ends_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(NameError::Edge(text.to_owned()));
        }
        Ok(NodeName(text.into()))
    }
}

impl TryFrom<String> for NodeName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> String {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Of `known`, those nearest to what was typed, best first, at most three: for 'did you mean'.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut ranked: Vec<(usize, &str)> = known
        .into_iter()
        .map(|name| (distance(typed, name), name))
        .filter(|(far, name)| *far <= 2.max(name.chars().count() / 3) || (!typed.is_empty() && name.contains(typed)))
        .collect();
    ranked.sort();
    ranked.into_iter().map(|(_, name)| name).take(3).collect()
}

/// Levenshtein's distance, in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_dns_like() {
        for good in ["a", "root", "node-1", "gpu.rack_2", "0"] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        for wrong in ["", "A", "-a", "a-", "a b", "a/b", "é", &"x".repeat(64), "a\n"] {
            assert!(wrong.parse::<NodeName>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_typo_finds_its_name() {
        assert_eq!(nearest("roto", ["root", "leaf-1", "leaf-2"]), ["root"]);
        assert_eq!(nearest("leaf-3", ["root", "leaf-1", "leaf-2"]), ["leaf-1", "leaf-2"]);
        assert!(nearest("zzzzz", ["root"]).is_empty());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_the_text(text in ".*") {
            if let Ok(name) = text.parse::<NodeName>() {
                prop_assert_eq!(name.as_str(), text);
            }
        }
    }
}
