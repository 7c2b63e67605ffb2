//! The retry budget: how many queries may be sent again more than once.
//!
//! What is lost goes out again, and in a tree that is in trouble that is work for whoever is left, which may bring
//! them down as well. So what was sent again already is bounded by what is accepted, beyond a burst, and what exceeds that waits.

/// In hundredths: what each query that is accepted adds …
const SHARE: u64 = 20;
/// … and what each millisecond adds, however few are accepted: ten a second.
const PER_MS: u64 = 1;
/// At once: what a large node's batch and queue hold, so that one loss is made good without a wait.
const BURST: u64 = 256 * ONE;
const ONE: u64 = 100;

#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
    at_ms: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { left: BURST, at_ms: 0 }
    }
}

impl Budget {
    pub(super) fn accepted(&mut self) {
        self.left = (self.left + SHARE).min(BURST);
    }

    /// Whether one more may be sent again at `now`, in microseconds.
    pub(super) fn take(&mut self, now: u64) -> bool {
        let passed_ms = (now / 1000).saturating_sub(self.at_ms);
        self.at_ms += passed_ms;
        self.left = self.left.saturating_add(passed_ms.saturating_mul(PER_MS)).min(BURST);
        let may = self.left >= ONE;
        if may {
            self.left -= ONE;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_then_a_share_of_what_is_accepted() {
        let mut budget = Budget::default();
        let taken = |budget: &mut Budget, now| (0..10_000).take_while(|_| budget.take(now)).count();
        assert_eq!(taken(&mut budget, 0), 256);
        (0..100).for_each(|_| budget.accepted());
        assert_eq!(taken(&mut budget, 0), 20);
        assert_eq!(taken(&mut budget, 2_000_000), 20, "and ten a second in any case");
        assert_eq!(taken(&mut budget, 3_600_000_000), 256, "nobody saves up for a storm");
    }
}
