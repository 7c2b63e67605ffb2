//! Which text stands in which KV page: a trie whose edges are the tokens of whole pages.
//!
//! A page is found by the page before it and its own tokens, compared one by one: no two texts are ever mixed up by a hash.
//! Owns no page: who holds one, and which goes when memory is short, is [`crate::pages`]' affair.

use std::collections::HashMap;
use std::sync::Arc;

/// Behind nothing: the parent of a text's first page.
pub(crate) const ROOT: u32 = u32::MAX;

/// The trie. A node is a page, and named by it.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    /// What follows a page, by its tokens.
    children: HashMap<u32, HashMap<Arc<[u32]>, u32>>,
    /// Where a page stands: its parent and its tokens.
    places: HashMap<u32, (u32, Arc<[u32]>)>,
}

impl Prefixes {
    /// The page with these tokens behind `parent`.
    pub(crate) fn find(&self, parent: u32, tokens: &[u32]) -> Option<u32> {
        self.children.get(&parent)?.get(tokens).copied()
    }

    /// Whether the page has a place here.
    pub(crate) fn has(&self, page: u32) -> bool {
        self.places.contains_key(&page)
    }

    /// Whether nothing follows the page.
    pub(crate) fn is_leaf(&self, page: u32) -> bool {
        !self.children.contains_key(&page)
    }

    /// Puts a page behind `parent`, where none with its tokens stands.
    pub(crate) fn insert(&mut self, parent: u32, tokens: &[u32], page: u32) {
        let tokens: Arc<[u32]> = tokens.into();
        let other = self.children.entry(parent).or_default().insert(Arc::clone(&tokens), page);
        debug_assert!(other.is_none() && (parent == ROOT || self.has(parent)), "one page for a text, behind one that is here");
        self.places.insert(page, (parent, tokens));
    }

    /// Takes a leaf out.
    pub(crate) fn remove(&mut self, page: u32) {
        debug_assert!(self.is_leaf(page), "what follows it would be found no more, and never given back");
        let Some((parent, tokens)) = self.places.remove(&page) else { return };
        if let Some(siblings) = self.children.get_mut(&parent) {
            siblings.remove(&tokens);
            if siblings.is_empty() {
                self.children.remove(&parent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_found_behind_its_own_beginning_only() {
        let mut prefixes = Prefixes::default();
        prefixes.insert(ROOT, &[1, 2], 7);
        prefixes.insert(7, &[3, 4], 8);
        prefixes.insert(ROOT, &[3, 4], 9);
        assert_eq!(prefixes.find(ROOT, &[1, 2]), Some(7));
        assert_eq!(prefixes.find(7, &[3, 4]), Some(8));
        assert_eq!(prefixes.find(ROOT, &[3, 4]), Some(9));
        assert_eq!(prefixes.find(9, &[3, 4]), None);
        assert_eq!(prefixes.find(ROOT, &[1]), None);
        assert!(!prefixes.is_leaf(7) && prefixes.is_leaf(8));
    }

    #[test]
    fn what_is_removed_is_found_no_more_and_its_page_may_hold_another_text() {
        let mut prefixes = Prefixes::default();
        prefixes.insert(ROOT, &[1, 2], 7);
        prefixes.insert(7, &[3, 4], 8);
        prefixes.remove(8);
        assert!(prefixes.is_leaf(7) && !prefixes.has(8));
        prefixes.insert(ROOT, &[5, 6], 8);
        assert_eq!((prefixes.find(7, &[3, 4]), prefixes.find(ROOT, &[5, 6])), (None, Some(8)));
        assert_eq!(prefixes.places.len(), 2);
    }
}
