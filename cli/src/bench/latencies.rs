//! Many durations, and what is said of them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Durations, to be sorted once.
#[derive(Default)]
pub(crate) struct Latencies(Vec<Duration>);

/// What is said of many durations, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
}

impl Latencies {
    pub(crate) fn push(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    pub(crate) fn append(&mut self, mut other: Latencies) {
        self.0.append(&mut other.0);
    }

    /// All zero when there are none.
    pub(crate) fn summary(mut self) -> Summary {
        self.0.sort_unstable();
        let us = |latency: Duration| latency.as_secs_f64() * 1e6;
        // The nearest rank: the least one that so many are not above.
        let quantile = |part: f64| {
            let rank = (self.0.len() as f64 * part).ceil() as usize;
            self.0.get(rank.saturating_sub(1)).copied().map_or(0.0, us)
        };
        let sum: Duration = self.0.iter().sum();
        Summary {
            count: self.0.len(),
            mean_us: us(sum) / self.0.len().max(1) as f64,
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            max_us: quantile(1.0),
        }
    }
}

impl FromIterator<Duration> for Latencies {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        Latencies(durations.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let summary = (1..=100).rev().map(Duration::from_micros).collect::<Latencies>().summary();
        assert_eq!((summary.p50_us, summary.p90_us, summary.p99_us, summary.max_us), (50.0, 90.0, 99.0, 100.0));
        assert_eq!((summary.count, summary.mean_us), (100, 50.5));
    }

    #[test]
    fn nothing_measured_is_all_zero() {
        assert_eq!(Latencies::default().summary().p99_us, 0.0);
    }
}
