//! How long to wait before trying again: doubling, bounded, and with jitter so that a crowd does not come back as one.

use std::time::Duration;

/// The waits of one series of tries.
#[derive(Debug)]
pub(crate) struct Backoff {
    least: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// For transactions that lost a race: the other side is done in a round trip or two.
    pub(crate) fn after_races() -> Self {
        Self::new(Duration::from_millis(4), Duration::from_millis(200))
    }

    /// For a registry that does not answer: soon enough to notice a restart, rare enough for a thousand nodes at once.
    pub(crate) fn while_unavailable() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_secs(2))
    }

    fn new(least: Duration, most: Duration) -> Self {
        Backoff { least, most, next: least }
    }

    /// The next wait: between half of the current step and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.most);
        step.mul_f64(rand::random_range(0.5..=1.0))
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_begin_again() {
        let mut backoff = Backoff::while_unavailable();
        let waits: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
        assert!(waits[0] <= Duration::from_millis(50));
        assert!(waits.iter().all(|wait| *wait >= Duration::from_millis(25) && *wait <= Duration::from_secs(2)));
        assert!(waits[19] >= Duration::from_secs(1));
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(50));
    }
}
