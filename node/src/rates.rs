//! How fast the tree works off what waits: tokens a second per model, measured while something waits.
//!
//! A rate that is measured while nothing waits is that of the clients, not of the tree, so that time does not count. Tokens
//! are those that lanes charge for, upper bounds: what waits is counted in the same unit, so that the ratio is a time. How long
//! a query takes once it has left the lanes is told in the same unit.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// Changes of the tree show within that time …
const WINDOW_US: u64 = 5_000_000;
/// … unless fewer answers than this ended in it: then it is as long as they took …
const ANSWERS: u32 = 16;
/// … but no longer than clients wait.
const WINDOW_MAX_US: u64 = 60_000_000;
/// Fewer answers say nothing about the next ones.
const ANSWERS_MIN: u32 = 4;
/// How long answers take is a mean over about so many, whether or not something waited.
const SERVICE_ANSWERS: u32 = 64;

/// The rates of all models. See the module.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    models: BTreeMap<Arc<str>, Rate>,
    ticked_at: u64,
}

#[derive(Debug, Default)]
struct Rate {
    /// Since the last tick.
    now: Sample,
    window: VecDeque<Sample>,
    sum: Sample,
    service: Service,
}

/// From leaving the lanes to the end, of the last answers.
#[derive(Clone, Copy, Debug, Default)]
struct Service {
    us: u64,
    tokens: u64,
    answers: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    us: u64,
    tokens: u64,
    answers: u32,
}

impl Rates {
    /// An answer ended that was charged so many tokens, so long after it left the lanes. Bounded by the models that nodes served.
    pub(crate) fn ended(&mut self, model: &Arc<str>, tokens: u32, service_us: u64) {
        let rate = match self.models.get_mut(model) {
            Some(rate) => rate,
            None => self.models.entry(model.clone()).or_default(),
        };
        rate.now.tokens += u64::from(tokens);
        rate.now.answers += 1;
        let Service { us, tokens: all, answers } = rate.service;
        rate.service = Service { us: us + service_us, tokens: all + u64::from(tokens), answers: answers + 1 };
        if rate.service.answers == 2 * SERVICE_ANSWERS {
            let Service { us, tokens, answers } = rate.service;
            rate.service = Service { us: us / 2, tokens: tokens / 2, answers: answers / 2 };
        }
    }

    /// Time has passed; `waits` says for which models something waits.
    pub(crate) fn tick(&mut self, now: u64, waits: impl Fn(&str) -> bool) {
        let us = now.saturating_sub(std::mem::replace(&mut self.ticked_at, now));
        for (model, rate) in &mut self.models {
            let sample = Sample { us, ..std::mem::take(&mut rate.now) };
            if us > 0 && waits(model) {
                rate.push(sample);
            }
        }
    }

    /// Tokens a microsecond that leave the lanes; nothing before enough was seen.
    pub(crate) fn tokens_per_us(&self, model: &str) -> Option<f64> {
        let sum = self.models.get(model).map(|rate| rate.sum).filter(|sum| sum.answers >= ANSWERS_MIN && sum.us > 0)?;
        Some(sum.tokens as f64 / sum.us as f64)
    }

    /// How long a query of that size takes once it has left the lanes.
    pub(crate) fn service_us(&self, model: &str, tokens: u32) -> Option<f64> {
        let service = self.models.get(model)?.service;
        (service.answers > 0).then(|| f64::from(tokens) * service.us as f64 / service.tokens.max(1) as f64)
    }
}

impl Rate {
    fn push(&mut self, sample: Sample) {
        self.window.push_back(sample);
        self.sum.us += sample.us;
        self.sum.tokens += sample.tokens;
        self.sum.answers += sample.answers;
        while let Some(first) = self.window.front().copied() {
            let (us, answers) = (self.sum.us - first.us, self.sum.answers - first.answers);
            let enough = us >= WINDOW_US && answers >= ANSWERS;
            if !enough && self.sum.us <= WINDOW_MAX_US {
                return;
            }
            self.window.pop_front();
            self.sum = Sample { us, answers, tokens: self.sum.tokens - first.tokens };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 100_000;

    fn after(seconds: u64, every_us: u64, tokens: u32, rates: &mut Rates) -> Option<f64> {
        let model: Arc<str> = "m".into();
        let from = rates.ticked_at;
        for step in 1..=seconds * 10 {
            let now = from + step * TICK;
            for _ in 0..(now / every_us - (now - TICK) / every_us) {
                rates.ended(&model, tokens, 2_000 * u64::from(tokens));
            }
            rates.tick(now, |_| true);
        }
        rates.tokens_per_us("m").map(|rate| rate * 1e6)
    }

    #[test]
    fn a_steady_rate_is_found_however_slow() {
        for (every_us, tokens) in [(1_000, 10), (50_000, 100), (3_000_000, 500)] {
            let exact = f64::from(tokens) * 1e6 / every_us as f64;
            let mut rates = Rates::default();
            let found = after(120, every_us, tokens, &mut rates).unwrap();
            assert!((found / exact - 1.0).abs() < 0.1, "{found} instead of {exact}");
            assert_eq!(rates.service_us("m", 7), Some(14_000.0));
        }
    }

    #[test]
    fn a_change_shows_within_the_window() {
        let mut rates = Rates::default();
        after(60, 10_000, 10, &mut rates);
        let found = after(6, 20_000, 10, &mut rates).unwrap();
        assert!((found / 500.0 - 1.0).abs() < 0.1, "{found}");
    }

    #[test]
    fn idle_time_is_not_counted() {
        let mut rates = Rates::default();
        let before = after(10, 10_000, 10, &mut rates);
        rates.ended(&"m".into(), 10, 10);
        rates.tick(rates.ticked_at + 3_600_000_000, |_| false);
        assert_eq!(rates.tokens_per_us("m").map(|rate| rate * 1e6), before);
        assert_eq!(rates.tokens_per_us("other"), None);
    }

    #[test]
    fn the_window_is_bounded() {
        let mut rates = Rates::default();
        after(600, 100_000_000, 10, &mut rates);
        assert!(rates.models["m"].window.len() <= 601);
    }
}
