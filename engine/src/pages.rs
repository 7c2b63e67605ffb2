//! Who holds which KV page: pages are given, shared, cached and taken again. Numbers only; what stands in them is `kv`'s.
//!
//! A page is fresh (never used: untouched memory costs nothing), free, held by sequences, or idle: nobody holds it, and its
//! text is kept for whoever begins with the same. Only a page with one holder and without a place among the prefixes is ever
//! written. When memory is short the page goes whose text was let go first, and what follows a text goes before it.
//!
//! Most texts never come again, so a text that was found once is worth memory, and one that was not is on trial: only so many
//! of these are kept while there is fresh memory, or prompts that share nothing would fill all of it with texts that nobody
//! asks for, and each new page would cost the system's zeroes besides.

use std::collections::BTreeMap;

use crate::prefixes::{Prefixes, ROOT};

/// Of all pages, the part that texts on trial may have while there is fresh memory: a chat's first turns, until the second
/// finds them.
const TRIAL_PART: u32 = 16;
/// In a small memory as many as these, some turns.
const TRIAL_MIN: u32 = 32;

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
    /// Kept for their text alone, by when they were let go: those that nobody found yet, and those that somebody did. A sequence
    /// lets its last page go first, so what follows a page is always older than the page, and was never found without it.
    idle: [BTreeMap<u64, u32>; 2],
    /// Whether anybody found each page.
    found: Vec<bool>,
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
            idle: Default::default(),
            found: Vec::new(),
            idle_since: Vec::new(),
            now: 0,
            evicted: 0,
        }
    }

    /// How many can be had.
    pub(crate) fn available(&self) -> u32 {
        self.count - self.fresh + self.free.len() as u32 + self.idle()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// How many are kept for their text alone.
    pub(crate) fn idle(&self) -> u32 {
        self.idle.iter().map(BTreeMap::len).sum::<usize>() as u32
    }

    /// Texts that were given up for room, in pages.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// A page to write to, for one holder.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let on_trial = self.idle[0].len() as u32;
        let page = if let Some(page) = self.free.pop() {
            page
        } else if self.fresh < self.count && on_trial < (self.count / TRIAL_PART).max(TRIAL_MIN) {
            self.fresh += 1;
            self.holders.push(0);
            self.found.push(false);
            self.idle_since.push(0);
            self.fresh - 1
        } else {
            self.evict()?
        };
        self.holders[page as usize] = 1;
        Some(page)
    }

    /// Gives a text up: where there is fresh memory one on trial, else the one that was let go first.
    fn evict(&mut self) -> Option<u32> {
        let first = |idle: &BTreeMap<u64, u32>| idle.keys().next().copied().unwrap_or(u64::MAX);
        let known = self.fresh == self.count && first(&self.idle[1]) < first(&self.idle[0]);
        let (_, page) = self.idle[usize::from(known)].pop_first()?;
        self.prefixes.remove(page);
        self.found[page as usize] = false;
        self.evicted += 1;
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
        let (holders, found) = (&mut self.holders[page as usize], &mut self.found[page as usize]);
        *holders += 1;
        if *holders == 1 {
            self.idle[usize::from(*found)].remove(&self.idle_since[page as usize]);
        }
        *found = true;
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
            self.idle[usize::from(self.found[page as usize])].insert(self.now, page);
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
        let mut known: Vec<u32> = self.free.iter().chain(self.idle.iter().flat_map(BTreeMap::values)).copied().collect();
        known.sort_unstable();
        assert_eq!(known, unheld, "nothing leaks, and nothing is there twice");
        assert!(self.free.iter().all(|page| !self.prefixes.has(*page)));
        let shared = (0..self.fresh).filter(|page| self.holders[*page as usize] > 1);
        assert!(shared.into_iter().all(|page| self.prefixes.has(page)), "what several hold is written by none");
        for (idle, found) in self.idle.iter().zip([false, true]) {
            assert!(idle.values().all(|page| self.prefixes.has(*page) && self.found[*page as usize] == found));
            // Who goes first has nothing behind it.
            let first = idle.values().next().filter(|_| !found || self.idle[0].is_empty());
            assert!(first.is_none_or(|page| self.prefixes.is_leaf(*page)));
        }
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
    fn texts_that_nobody_asks_for_take_a_part_of_the_memory_and_those_that_came_again_all_of_it() {
        let count = 4 * TRIAL_MIN;
        let mut pages = Pages::new(count);
        let ask = |pages: &mut Pages, text: u32| {
            let page = match pages.find(None, &[text]) {
                Some(page) => {
                    pages.hold(page);
                    page
                }
                None => {
                    let page = pages.take().unwrap();
                    pages.remember(None, &[text], page)
                }
            };
            pages.release(page);
        };
        (0..10 * count).for_each(|text| ask(&mut pages, text));
        assert_eq!((pages.fresh, pages.idle()), (TRIAL_MIN, TRIAL_MIN));
        for text in (0..3 * TRIAL_MIN).flat_map(|text| [text, text]) {
            ask(&mut pages, text);
        }
        assert!((0..3 * TRIAL_MIN).all(|text| pages.find(None, &[text]).is_some()), "each came again at once");
        let others = 10 * count;
        (others..others + TRIAL_MIN).for_each(|text| ask(&mut pages, text));
        assert_eq!((pages.fresh, pages.idle()), (count, count));
        assert!((0..3 * TRIAL_MIN).all(|text| pages.find(None, &[text]).is_some()), "what nobody asked for goes first");
        (2 * others..2 * others + 2).for_each(|text| ask(&mut pages, text));
        assert_eq!([0, 1, 2].map(|text| pages.find(None, &[text]).is_some()), [false, false, true], "no text is kept for ever");
        pages.audit([]);
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
