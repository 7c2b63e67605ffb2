//! Guesses at what comes next, from the sequence's own tokens: where its last tokens stood before, what followed them then.
//!
//! Prompt lookup, the cheapest kind of speculative decoding (arXiv:2211.17192): no second model, and right where an answer
//! repeats its prompt or itself. Guesses cost rows of a step and never change a text, so all that is decided here is whether
//! they are worth it: a sequence whose guesses are wrong makes shorter ones, and then none for a while.

use std::collections::HashMap;

/// Tokens of a draft at the most: with the token that is decoded anyway, the eight rows that kernels compute at once.
pub(crate) const DRAFT_MAX: usize = 7;
/// The first draft's length: a guess at how good guesses are.
const DRAFT_FIRST: usize = 3;
/// Tokens that must agree. One is chance, and two are, in most texts, a bad sign of the third.
const MATCH_MIN: usize = 3;
/// More of them make no better guess.
const MATCH_MAX: usize = 8;
/// Earlier places that are looked at, the latest first, so that a step's cost is bounded in a text of equal tokens, too.
const PLACES_MAX: usize = 16;
/// Tokens that enter the index at once: some ten microseconds. A long prompt's come with its chunks, or late.
const INDEX_MAX: usize = 512;
/// Steps without a guess after wrong ones, at the most: then a text that begins to repeat itself is found out soon enough.
const PAUSE_MAX: u32 = 64;

/// Where a pair of tokens has not stood before.
const NOWHERE: u32 = u32::MAX;

/// A sequence's guesses, and how good they were.
#[derive(Debug)]
pub(crate) struct Drafter {
    /// Where a pair of tokens stood last, by its second token's position. Of the text's last pair it tells the place before.
    last: HashMap<(u32, u32), u32>,
    /// By position, where the pair that ends there stood before.
    before: Vec<u32>,
    length: usize,
    misses: u32,
    pause: u32,
}

impl Drafter {
    pub(crate) fn new() -> Drafter {
        Drafter { last: HashMap::new(), before: Vec::new(), length: DRAFT_FIRST, misses: 0, pause: 0 }
    }

    /// Takes up tokens that are new since the last call, as far as that is cheap.
    pub(crate) fn index(&mut self, tokens: &[u32]) {
        // The last token is not in it before something follows it.
        let end = tokens.len().saturating_sub(1).min(self.before.len() + INDEX_MAX);
        for position in self.before.len()..end {
            let place = u32::try_from(position).unwrap_or(NOWHERE);
            let before = position.checked_sub(1).and_then(|first| self.last.insert((tokens[first], tokens[position]), place));
            self.before.push(before.unwrap_or(NOWHERE));
        }
    }

    /// What may follow the tokens, at most so many; often nothing.
    pub(crate) fn propose(&mut self, tokens: &[u32], most: usize) -> Vec<u32> {
        if self.pause > 0 {
            self.pause -= 1;
            return Vec::new();
        }
        let Some((place, agree)) = self.best(tokens) else { return Vec::new() };
        // A longer agreement is a better sign, and a shorter draft loses less.
        let count = if agree < MATCH_MAX { self.length } else { self.length.max(DRAFT_FIRST) }.min(most);
        let mut draft: Vec<u32> = Vec::with_capacity(count);
        for next in place + 1..place + 1 + count {
            // What repeats itself goes on with what was just guessed.
            draft.push(tokens.get(next).copied().unwrap_or_else(|| draft[next - tokens.len()]));
        }
        draft
    }

    /// How many of a draft's tokens came.
    pub(crate) fn learn(&mut self, drafted: usize, accepted: usize) {
        if drafted == 0 {
            return;
        }
        if accepted == 0 {
            self.misses = (self.misses + 1).min(PAUSE_MAX.ilog2());
            self.pause = 1 << self.misses;
            self.length = 1;
        } else {
            self.misses = 0;
            self.length = if accepted == drafted { self.length.max(drafted) * 2 } else { accepted + 1 }.min(DRAFT_MAX);
        }
    }

    /// The earlier place whose tokens agree longest with the last ones, the latest of equals, and how many agree.
    fn best(&self, tokens: &[u32]) -> Option<(usize, usize)> {
        let &[.., first, second] = tokens else { return None };
        let mut place = *self.last.get(&(first, second))?;
        let mut best = None;
        for _ in 0..PLACES_MAX {
            if place == NOWHERE {
                break;
            }
            let there = &tokens[..=place as usize];
            let agree = there.iter().rev().zip(tokens.iter().rev()).take(MATCH_MAX).take_while(|(a, b)| a == b).count();
            if agree >= MATCH_MIN && best.is_none_or(|(_, most)| agree > most) {
                best = Some((place as usize, agree));
            }
            if agree == MATCH_MAX {
                break;
            }
            place = self.before[place as usize];
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn propose(tokens: &[u32], most: usize) -> Vec<u32> {
        let mut drafter = Drafter::new();
        drafter.index(tokens);
        drafter.length = DRAFT_MAX;
        drafter.propose(tokens, most)
    }

    #[test]
    fn what_followed_the_last_tokens_before_is_guessed() {
        assert_eq!(propose(&[1, 2, 3, 4, 5, 6, 9, 1, 2, 3], 3), [4, 5, 6]);
        assert_eq!(propose(&[1, 2, 3, 4, 5, 6, 9, 1, 2, 3], 1), [4]);
        assert!(propose(&[1, 2, 3, 4, 5, 6, 9, 7, 2, 3], 3).is_empty(), "two may be chance");
        assert!(propose(&[], 3).is_empty());
        assert!(propose(&[1, 2], 3).is_empty());
    }

    #[test]
    fn the_longest_agreement_wins_and_the_latest_of_equals() {
        assert_eq!(propose(&[8, 1, 2, 3, 4, 9, 1, 2, 3, 5, 8, 1, 2, 3], 1), [4]);
        assert_eq!(propose(&[1, 2, 3, 4, 9, 1, 2, 3, 5, 7, 1, 2, 3], 1), [5]);
    }

    #[test]
    fn a_loop_is_guessed_beyond_its_end() {
        assert_eq!(propose(&[7, 7, 7, 7], 5), [7; 5]);
        assert_eq!(propose(&[1, 2, 1, 2, 1], 5), [2, 1, 2, 1, 2]);
    }

    #[test]
    fn tokens_may_come_one_by_one_or_all_at_once() {
        let text: Vec<u32> = (0..3000u32).map(|i| i * i % 7 + i % 3).collect();
        let mut slow = Drafter::new();
        for end in 1..=text.len() {
            slow.index(&text[..end]);
        }
        let mut fast = Drafter::new();
        for _ in 0..=text.len() / INDEX_MAX {
            fast.index(&text);
        }
        assert_eq!((slow.before.len(), &slow.before), (text.len() - 1, &fast.before));
        assert_eq!(slow.propose(&text, 4), fast.propose(&text, 4));
    }

    #[test]
    fn wrong_guesses_are_made_less_often_and_right_ones_longer() {
        let text = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3];
        let mut drafter = Drafter::new();
        drafter.index(&text);
        assert_eq!(drafter.propose(&text, 99).len(), DRAFT_FIRST);
        drafter.learn(DRAFT_FIRST, DRAFT_FIRST);
        assert_eq!(drafter.propose(&text, 99).len(), 2 * DRAFT_FIRST);
        drafter.learn(2 * DRAFT_FIRST, 1);
        assert_eq!(drafter.propose(&text, 99).len(), 2);
        for pause in [2, 4, 8, 16, 32, 64, 64] {
            drafter.learn(1, 0);
            assert!((0..pause).all(|_| drafter.propose(&text, 99).is_empty()));
            assert_eq!(drafter.propose(&text, 99).len(), 1);
        }
    }
}
