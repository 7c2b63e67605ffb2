//! How many prompt tokens a step takes: as many as fit into a time that the others can wait, by what the last ones took.

use serde::{Deserialize, Serialize};

/// What a prompt may add to a step in which others decode, in microseconds: a stream that pauses so long still flows.
const BESIDE_OTHERS_US: u64 = 50_000;
/// What a step may take in which nobody decodes: so long does a newcomer wait before anything is done for it.
const ALONE_US: u64 = 200_000;
/// Where nobody decodes, that many times the tokens: larger chunks read the weights less often.
const ALONE_FACTOR: usize = 4;
/// Fewer tokens would read all weights for next to nothing.
const TOKENS_MIN: usize = 32;

/// The budget, which learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Budget {
    /// Tokens beside others at the most.
    most: usize,
    /// What a row takes, in nanoseconds; 0: not known yet.
    row_ns: u64,
}

impl Budget {
    pub(super) fn new(most: u32) -> Budget {
        Budget { most: most as usize, row_ns: 0 }
    }

    /// Rows of a step in which `decoding` sequences get their token each; one prompt token is always allowed.
    pub(super) fn tokens(&self, decoding: usize) -> usize {
        let (most, us) = if decoding == 0 { (self.most * ALONE_FACTOR, ALONE_US) } else { (self.most, BESIDE_OTHERS_US) };
        let in_time = (us * 1000).checked_div(self.row_ns).map_or(self.most, |tokens| usize::try_from(tokens).unwrap_or(most));
        most.min(in_time.max(self.least())).saturating_sub(decoding).max(1)
    }

    /// A step with so many prompt tokens, and so many rows in all, took that long. A row that decodes costs about what one of a
    /// prompt does; were the prompts charged with all, chunks would shrink beside many others until they cost the others most.
    pub(super) fn learn(&mut self, prompt_tokens: usize, rows: usize, micros: u64) {
        // A few tokens say nothing about many.
        if prompt_tokens < self.least() {
            return;
        }
        let now = micros.saturating_mul(1000) / rows as u64;
        self.row_ns = if self.row_ns == 0 { now } else { (3 * self.row_ns + now) / 4 };
    }

    fn least(&self) -> usize {
        TOKENS_MIN.min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_wait_for_a_bounded_time_and_a_prompt_alone_takes_more() {
        let mut budget = Budget::new(256);
        assert_eq!((budget.tokens(0), budget.tokens(6)), (256, 250), "before anything is known");
        budget.learn(256, 256, 256_000);
        assert_eq!((budget.tokens(0), budget.tokens(6)), (200, 44));
        budget.learn(1, 9, 1_000_000);
        assert_eq!(budget.tokens(0), 200, "one token says nothing");
        for _ in 0..40 {
            budget.learn(64, 64, 640);
        }
        assert_eq!((budget.tokens(0), budget.tokens(6)), (1024, 250));
        for _ in 0..40 {
            budget.learn(64, 64, 64_000_000);
        }
        assert_eq!((budget.tokens(0), budget.tokens(6), budget.tokens(99)), (32, 26, 1));
    }
}
