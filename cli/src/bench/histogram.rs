//! Durations in bounded memory, for runs that go on for hours: a count for each 1.6 % of a duration.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::latencies::Summary;

/// Counts to a doubling.
const STEPS: u64 = 64;
/// Doublings of a microsecond: half a day.
const DOUBLINGS: u64 = 36;

/// Durations, counted. As [`Latencies`](super::latencies::Latencies), less exact.
pub(crate) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    sum_us: u64,
    max_us: u64,
}

/// How many durations lie between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bar {
    /// Not included, but for the first bar.
    pub(crate) from_us: u64,
    pub(crate) to_us: u64,
    pub(crate) count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; (DOUBLINGS * STEPS) as usize], count: 0, sum_us: 0, max_us: 0 }
    }
}

impl Histogram {
    pub(crate) fn push(&mut self, duration: Duration) {
        let us = duration.as_micros() as u64;
        let place = place(us).min(self.counts.len() - 1);
        self.counts[place] += 1;
        self.count += 1;
        self.sum_us += us;
        self.max_us = self.max_us.max(us);
    }

    /// So many bars at most, from the least to the greatest, each as much wider than the one before as all are.
    pub(crate) fn bars(&self, most: usize) -> Vec<Bar> {
        let Some(first) = self.counts.iter().position(|count| *count > 0) else { return Vec::new() };
        let last = self.counts.iter().rposition(|count| *count > 0).unwrap_or(first);
        // Places are spaced so themselves, but for the first microseconds.
        let step = (last + 1 - first).div_ceil(most.max(1));
        let bar = |from: usize| {
            let to = (from + step - 1).min(last);
            let below = from.checked_sub(1).map_or(0, end);
            Bar { from_us: below, to_us: end(to).min(self.max_us), count: self.counts[from..=to].iter().sum() }
        };
        (first..=last).step_by(step).map(bar).collect()
    }

    pub(crate) fn summary(&self) -> Summary {
        let quantile = |part: f64| {
            let rank = (self.count as f64 * part).ceil() as u64;
            let mut seen = 0;
            let place = self.counts.iter().position(|count| {
                seen += count;
                seen >= rank.max(1)
            });
            place.map_or(0.0, |place| (end(place) as f64).min(self.max_us as f64))
        };
        Summary {
            count: self.count as usize,
            mean_us: self.sum_us as f64 / self.count.max(1) as f64,
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            max_us: self.max_us as f64,
        }
    }
}

/// The first microseconds have a count each; then each doubling is divided evenly.
fn place(us: u64) -> usize {
    if us < STEPS {
        return us as usize;
    }
    let doubling = u64::from(us.ilog2() - STEPS.ilog2());
    ((doubling + 1) * STEPS + (us >> doubling) - STEPS) as usize
}

/// The longest duration that is counted at a place, in microseconds.
fn end(place: usize) -> u64 {
    let (doubling, step) = (place as u64 / STEPS, place as u64 % STEPS);
    match doubling.checked_sub(1) {
        None => step,
        Some(doubling) => ((STEPS + step + 1) << doubling) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_lies_within_a_sixtieth_of_where_it_is_counted() {
        for us in (0..100_000).chain([1 << 20, (1 << 30) + 12_345, 40_000_000_000]) {
            let end = end(place(us));
            assert!(us <= end && end - us <= us / 60, "{us} counted as {end}");
        }
    }

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let mut histogram = Histogram::default();
        (1..=100).for_each(|ms| histogram.push(Duration::from_millis(ms)));
        let summary = histogram.summary();
        assert_eq!((summary.count, summary.mean_us, summary.max_us), (100, 50_500.0, 100_000.0));
        assert!((summary.p99_us / 99_000.0 - 1.0).abs() < 0.02 && (summary.p50_us / 50_000.0 - 1.0).abs() < 0.02);
        assert_eq!(Histogram::default().summary().p99_us, 0.0);
    }

    #[test]
    fn bars_hold_every_duration_once() {
        let mut histogram = Histogram::default();
        assert!(histogram.bars(10).is_empty());
        (1..=1000).for_each(|ms| histogram.push(Duration::from_millis(ms)));
        let bars = histogram.bars(10);
        assert!((5..=10).contains(&bars.len()), "{bars:?}");
        assert_eq!(bars.iter().map(|bar| bar.count).sum::<u64>(), 1000);
        assert!(bars.windows(2).all(|pair| pair[0].to_us == pair[1].from_us), "{bars:?}");
        assert_eq!(bars.last().map(|bar| bar.to_us), Some(1_000_000));
    }
}
