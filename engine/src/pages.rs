//! Who holds which KV page: pages are given, shared, cached and taken again. Numbers only; what stands in them is `kv`'s.
//!
//! A page is fresh (never used: untouched memory costs nothing), free, held by sequences, or idle: nobody holds it, and its
//! text is kept for whoever begins with the same. Only a page with one holder and without a place among the prefixes is ever
//! written. When memory is short the page goes whose text was let go first, and what follows a text goes before it.

use std::collections::BTreeMap;

use crate::prefixes::{Prefixes, ROOT};

/// All pages of an engine.
#[derive(Debug)]
pub(crate) struct Pages {
    count: u32,
    /// Never given out from here on.
    fresh: u32,
    /// Given back without a text, the latest last: its lines are the likeliest to be in a processor's cache.
    free: Vec<u32>,
    /// How many sequences hold each page that was ever given out.
    holders: Vec<u32>,
    prefixes: Prefixes,
    /// Kept for their text alone, by when they were let go. A sequence lets its last page go first, so what follows a page is
    /// always older than the page.
    idle: BTreeMap<u64, u32>,
    /// When each idle page was let go.
    idle_since: Vec<u64>,
    now: u64,
    evicted: u64,
}

impl Pages {
    /// So many, all fresh.
    pub(crate) fn new(count: u32) -> Pages {
        Pages {
            count,
            fresh: 0,
            free: Vec::new(),
            holders: Vec::new(),
            prefixes: Prefixes::default(),
            idle: BTreeMap::new(),
            idle_since: Vec::new(),
            now: 0,
            evicted: 0,
        }
    }

    /// How many can be had.
    pub(crate) fn available(&self) -> u32 {
        self.count - self.fresh + self.free.len() as u32 + self.idle.len() as u32
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// How many are kept for their text alone.
    pub(crate) fn idle(&self) -> u32 {
        self.idle.len() as u32
    }

    /// Texts that were given up for room, in pages.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// A page to write to, for one holder.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let page = if let Some(page) = self.free.pop() {
            page
        } else if self.fresh < self.count {
            self.fresh += 1;
            self.holders.push(0);
            self.idle_since.push(0);
            self.fresh - 1
        } else {
            let (_, page) = self.idle.pop_first()?;
            self.prefixes.remove(page);
            self.evicted += 1;
            page
        };
        self.holders[page as usize] = 1;
        Some(page)
    }

    /// The page that holds these tokens behind the text that ends with `before`.
    pub(crate) fn find(&self, before: Option<u32>, tokens: &[u32]) -> Option<u32> {
        self.prefixes.find(before.unwrap_or(ROOT), tokens)
    }

    /// Whether nobody holds the page, so that holding it takes one from those that can be had.
    pub(crate) fn is_idle(&self, page: u32) -> bool {
        self.holders[page as usize] == 0
    }

    /// One more holder of a page that was found.
    pub(crate) fn hold(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders += 1;
        if *holders == 1 {
            self.idle.remove(&self.idle_since[page as usize]);
        }
    }

    /// Keeps a full page's text for others to find, and gives the page that holds it from now on: where the same text stands
    /// already, that one, and the sequence's own is free again.
    pub(crate) fn remember(&mut self, before: Option<u32>, tokens: &[u32], page: u32) -> u32 {
        match self.find(before, tokens) {
            Some(known) => {
                self.hold(known);
                self.release(page);
                known
            }
            None => {
                self.prefixes.insert(before.unwrap_or(ROOT), tokens, page);
                page
            }
        }
    }

    /// One holder less.
    pub(crate) fn release(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders > 0 {
            return;
        }
        if self.prefixes.has(page) {
            self.now += 1;
            self.idle_since[page as usize] = self.now;
            self.idle.insert(self.now, page);
        } else {
            self.free.push(page);
        }
    }

    /// One holder less of all pages of a sequence.
    pub(crate) fn release_all(&mut self, pages: Vec<u32>) {
        pages.into_iter().rev().for_each(|page| self.release(page));
    }

    /// Checks the accounts against those who hold pages; for tests.
    #[cfg(test)]
    pub(crate) fn audit<'a>(&self, held: impl IntoIterator<Item = &'a [u32]>) {
        let mut holders = vec![0; self.holders.len()];
        held.into_iter().flatten().for_each(|page| holders[*page as usize] += 1);
        assert_eq!(holders, self.holders, "holders are who hold");
        let mut unheld: Vec<u32> = (0..self.fresh).filter(|page| self.holders[*page as usize] == 0).collect();
        unheld.sort_unstable();
        let mut known: Vec<u32> = self.free.iter().chain(self.idle.values()).copied().collect();
        known.sort_unstable();
        assert_eq!(known, unheld, "nothing leaks, and nothing is there twice");
        assert!(
            self.idle.values().all(|page| self.prefixes.has(*page)) && self.free.iter().all(|page| !self.prefixes.has(*page))
        );
        let shared = (0..self.fresh).filter(|page| self.holders[*page as usize] > 1);
        assert!(shared.into_iter().all(|page| self.prefixes.has(page)), "what several hold is written by none");
        // Who goes first has nothing behind it.
        assert!(self.idle.values().next().is_none_or(|page| self.prefixes.is_leaf(*page)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_given_once_and_come_back_latest_first() {
        let mut pages = Pages::new(3);
        assert_eq!([pages.take(), pages.take(), pages.take(), pages.take()], [Some(0), Some(1), Some(2), None]);
        pages.release_all(vec![0, 1]);
        assert_eq!(pages.available(), 2);
        assert_eq!([pages.take(), pages.take(), pages.take()], [Some(0), Some(1), None]);
    }

    #[test]
    fn a_text_is_kept_until_its_page_is_needed_and_its_end_goes_first() {
        let mut pages = Pages::new(3);
        let own: Vec<u32> = (0..2).map(|_| pages.take().unwrap()).collect();
        assert_eq!(pages.remember(None, &[1, 2], own[0]), own[0]);
        assert_eq!(pages.remember(Some(own[0]), &[3, 4], own[1]), own[1]);
        pages.release_all(own.clone());
        assert_eq!((pages.available(), pages.idle()), (3, 2));
        let fresh = pages.take().unwrap();
        assert_eq!(pages.find(Some(own[0]), &[3, 4]), Some(own[1]), "fresh memory goes first");
        assert_eq!(pages.take(), Some(own[1]), "then the end of the text");
        assert_eq!((pages.find(None, &[1, 2]), pages.evicted()), (Some(own[0]), 1));
        pages.hold(own[0]);
        assert_eq!(pages.take(), None, "what somebody holds stays");
        pages.audit([&[fresh, own[1], own[0]][..]]);
    }

    #[test]
    fn the_same_text_stands_once() {
        let mut pages = Pages::new(2);
        let (a, b) = (pages.take().unwrap(), pages.take().unwrap());
        assert_eq!(pages.remember(None, &[1], a), a);
        assert_eq!(pages.remember(None, &[1], b), a);
        assert_eq!(pages.available(), 1);
        pages.audit([&[a][..], &[a][..]]);
    }
}
