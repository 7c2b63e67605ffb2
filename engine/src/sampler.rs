//! Logits to a token: penalties, bias, temperature, truncation, and random numbers that depend on nothing but
//! (seed, position).
//!
//! candle-transformers' `LogitsProcessor` and `apply_repeat_penalty` are what the tests compare with, and not what runs:
//! the first keeps a generator whose state is the whole history (a resumed answer would differ) and sorts all 50,257
//! probabilities for top-p (milliseconds per token), the second copies the logits and builds a set of the prompt for every
//! token. Here a penalised token costs one addition, truncation sorts only what lies at its edge, and exponentials are plain
//! arithmetic, so the same token comes out on every platform.

mod distribution;
mod peaks;
mod philox;

use std::collections::HashMap;

pub(crate) use peaks::Peaks;

use crate::request::Sampling;

/// Below that a temperature means greedy, as in vLLM: it would choose between logits that differ in their last digits, which
/// are rounding, and from 1e-39 down the quotients overflow.
const TEMPERATURE_MIN: f32 = 1e-5;

/// One sequence's sampler.
pub struct Sampler {
    sampling: Sampling,
    /// Tokens of prompt (where a penalty wants them) and answer.
    seen: HashMap<u32, Seen>,
}

/// How a token was seen.
#[derive(Clone, Copy, Default)]
struct Seen {
    in_answer: u32,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Which.
    pub token: u32,
    /// Where [`Sampling::logprobs`] asks for it.
    pub logprob: Option<Logprob>,
}

/// Log-probabilities of the model's own distribution: before penalties, bias, temperature and truncation.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// Of the chosen token.
    pub logprob: f32,
    /// The most probable tokens, most probable first.
    pub top: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler for the completion of `prompt`.
    pub fn new(sampling: &Sampling, prompt: &[u32]) -> Self {
        let mut seen = HashMap::new();
        if sampling.repetition_penalty != 1.0 {
            seen.extend(prompt.iter().map(|&token| (token, Seen::default())));
        }
        Sampler { sampling: sampling.clone(), seen }
    }

    /// Counts a completion token that was chosen elsewhere: an earlier attempt's, when an answer is resumed. Those that
    /// [`Sampler::sample`] chooses are counted already.
    pub fn accept(&mut self, token: u32) {
        let penalties = &self.sampling;
        if penalties.repetition_penalty != 1.0 || penalties.presence_penalty != 0.0 || penalties.frequency_penalty != 0.0 {
            self.seen.entry(token).or_default().in_answer += 1;
        }
    }

    /// Chooses the completion's token number `position` (from 0) by its logits, which are spent in doing so. NaN counts as
    /// impossible.
    pub fn sample(&mut self, position: u32, logits: &mut [f32]) -> Sampled {
        let peaks = Peaks::new(logits).unwrap_or_else(|| {
            for logit in logits.iter_mut() {
                *logit = finite(*logit);
            }
            Peaks::new(logits).expect("all are finite now")
        });
        self.sample_among(position, logits, peaks)
    }

    /// The same of logits that are all finite, whose peaks are known.
    pub(crate) fn sample_among(&mut self, position: u32, logits: &mut [f32], mut peaks: Peaks) -> Sampled {
        let reported = self.sampling.logprobs.map(|count| Reported::new(logits, &peaks, usize::from(count)));
        let raw = reported.is_some().then(|| logits.to_vec());
        self.penalise(logits);
        let biased = self.sampling.logit_bias.iter().map(|bias| bias.token);
        peaks.update(logits, self.seen.keys().copied().chain(biased));
        let token = if self.sampling.temperature >= TEMPERATURE_MIN {
            distribution::draw(&self.sampling, philox::uniform(self.sampling.seed, position), logits, &peaks)
        } else {
            peaks.token(logits)
        };
        self.accept(token);
        let logprob = reported.zip(raw).map(|(reported, raw)| Logprob {
            logprob: raw.get(token as usize).map_or(f32::NEG_INFINITY, |&logit| reported.logprob(logit)),
            top: reported.top,
        });
        Sampled { token, logprob }
    }

    fn penalise(&self, logits: &mut [f32]) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, logit_bias, .. } = &self.sampling;
        for (&token, seen) in &self.seen {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            if *logit >= 0.0 {
                *logit /= repetition_penalty;
            } else {
                *logit *= repetition_penalty;
            }
            if seen.in_answer > 0 {
                *logit -= presence_penalty + frequency_penalty * seen.in_answer as f32;
            }
            *logit = finite(*logit);
        }
        // Last, so that a bias of -100 bans a token whatever the penalties made of it.
        for bias in logit_bias {
            let Some(logit) = logits.get_mut(bias.token as usize) else { continue };
            *logit = finite(*logit + bias.bias);
        }
    }
}

/// What the model thinks of a token that somebody else chose, and its `count` favourites.
pub(crate) fn logprob(token: u32, logits: &[f32], peaks: &Peaks, count: usize) -> Logprob {
    let reported = Reported::new(logits, peaks, count);
    Logprob { logprob: logits.get(token as usize).map_or(f32::NEG_INFINITY, |&logit| reported.logprob(logit)), top: reported.top }
}

/// The nearest finite number, so that no difference of two logits is NaN; NaN itself is the least.
fn finite(logit: f32) -> f32 {
    if logit.is_nan() { f32::MIN } else { logit.clamp(f32::MIN, f32::MAX) }
}

/// What is reported of the model's distribution.
struct Reported {
    max: f32,
    /// ln Σ exp(logit - max).
    log_sum: f64,
    top: Vec<(u32, f32)>,
}

impl Reported {
    fn new(logits: &[f32], peaks: &Peaks, count: usize) -> Self {
        let max = peaks.most();
        let log_sum = distribution::sum(logits, |logit| distribution::exp(logit - max)).ln();
        let mut reported = Reported { max, log_sum, top: Vec::new() };
        let top = distribution::largest(logits, peaks, count);
        reported.top = top.into_iter().map(|(logit, token)| (token, reported.logprob(logit))).collect();
        reported
    }

    fn logprob(&self, logit: f32) -> f32 {
        ((f64::from(logit) - f64::from(self.max)) - self.log_sum) as f32
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use candle_transformers::generation::{LogitsProcessor, Sampling as Candle};
    use candle_transformers::utils::apply_repeat_penalty;
    use proptest::prelude::*;

    use super::*;
    use crate::request::LogitBias;

    fn sampling(temperature: f32) -> Sampling {
        Sampling { temperature, seed: 42, ..Sampling::default() }
    }

    /// A bell-shaped row of logits, the same each time.
    fn row(vocabulary: usize) -> Vec<f32> {
        let unit = |i: usize| (i as u32).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32;
        (0..vocabulary).map(|i| (0..6).map(|k| unit(i * 6 + k)).sum::<f32>() * 3.0 - 9.0).collect()
    }

    fn one(sampling: &Sampling, position: u32, logits: &[f32]) -> u32 {
        Sampler::new(sampling, &[]).sample(position, &mut logits.to_vec()).token
    }

    /// How often each token comes in `draws` positions.
    fn counts(sampling: &Sampling, logits: &[f32], draws: u32) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for position in 0..draws {
            counts[one(sampling, position, logits) as usize] += 1.0;
        }
        counts
    }

    fn candle_counts(sampling: Candle, logits: &[f32], draws: u32) -> Vec<f64> {
        let logits = Tensor::new(logits, &Device::Cpu).unwrap();
        let mut processor = LogitsProcessor::from_sampling(1, sampling);
        let mut counts = vec![0.0; logits.elem_count()];
        for _ in 0..draws {
            counts[processor.sample(&logits).unwrap() as usize] += 1.0;
        }
        counts
    }

    #[test]
    fn greedy_takes_what_candle_takes_and_the_lowest_id_of_equals() {
        let logits = row(5000);
        let candle = LogitsProcessor::from_sampling(0, Candle::ArgMax).sample(&Tensor::new(&logits[..], &Device::Cpu).unwrap());
        assert_eq!(one(&sampling(0.0), 0, &logits), candle.unwrap());
        assert_eq!(one(&sampling(0.0), 0, &[1.0, 3.0, 3.0, 0.0]), 1);
        assert_eq!(one(&sampling(0.0), 0, &[-0.0, 0.0]), 0);
    }

    #[test]
    fn a_temperature_too_small_to_divide_by_is_greedy() {
        let logits = [1.0, 3.0, 3.0, f32::MAX, 2.0, f32::MIN];
        for temperature in [f32::from_bits(1), 1e-45, 1e-40, 1e-39, f32::MIN_POSITIVE, 1e-20, 0.9e-5, -0.0] {
            for asked in [
                sampling(temperature),
                Sampling { top_k: 3, ..sampling(temperature) },
                Sampling { top_p: 0.5, min_p: 0.1, ..sampling(temperature) },
            ] {
                assert!((0..50).all(|position| one(&asked, position, &logits[..3]) == 1), "{temperature:e} of equals");
                assert_eq!(one(&asked, 0, &logits), 3, "{temperature:e}");
            }
        }
        assert_eq!(one(&sampling(1e-5), 0, &logits), 3, "the least that divides");
    }

    #[test]
    fn tokens_come_as_often_as_candles() {
        let logits = row(40);
        let draws = 20_000;
        let cases = [
            (sampling(0.8), Candle::All { temperature: 0.8 }),
            (Sampling { top_k: 7, ..sampling(1.3) }, Candle::TopK { k: 7, temperature: 1.3 }),
            (Sampling { top_p: 0.8, ..sampling(1.0) }, Candle::TopP { p: 0.8, temperature: 1.0 }),
            (Sampling { top_p: 0.3, ..sampling(2.0) }, Candle::TopP { p: 0.3, temperature: 2.0 }),
        ];
        for (ours, candles) in cases {
            let (a, b) = (counts(&ours, &logits, draws), candle_counts(candles.clone(), &logits, draws));
            for token in 0..logits.len() {
                // Four standard deviations of the difference of two counts.
                let allowed = 4.0 * (a[token] + b[token]).sqrt() + 4.0;
                assert!((a[token] - b[token]).abs() <= allowed, "{candles:?} token {token}: {} and {}", a[token], b[token]);
            }
        }
    }

    #[test]
    fn top_p_after_top_k_counts_shares_of_what_top_k_left() {
        // Shares 0.4, 0.3, 0.2, 0.1; of the first two 0.57 and 0.43.
        let logits = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln);
        let seen = |top_k, top_p| -> Vec<bool> {
            counts(&Sampling { top_k, top_p, ..sampling(1.0) }, &logits, 2000).iter().map(|&count| count > 0.0).collect()
        };
        assert_eq!(seen(2, 0.5), [true, false, false, false]);
        assert_eq!(seen(0, 0.5), [true, true, false, false]);
        assert_eq!(seen(3, 0.75), [true, true, false, false]);
        assert_eq!(seen(0, 0.0), [true, false, false, false]);
    }

    #[test]
    fn min_p_keeps_what_has_that_share_of_the_most_probable() {
        let logits = [0.5f32, 0.26, 0.24].map(f32::ln);
        for top_k in [0, 3] {
            let seen = counts(&Sampling { min_p: 0.5, top_k, ..sampling(1.0) }, &logits, 2000);
            assert!(seen[0] > 0.0 && seen[1] > 0.0 && seen[2] == 0.0, "{seen:?}");
        }
    }

    #[test]
    fn a_token_is_a_function_of_seed_and_position() {
        let logits = row(1000);
        let mut sampler = Sampler::new(&sampling(1.0), &[]);
        let whole: Vec<u32> = (0..50).map(|position| sampler.sample(position, &mut logits.clone()).token).collect();
        // Another sampler that begins in the middle.
        let mut resumed = Sampler::new(&sampling(1.0), &[]);
        whole[..20].iter().for_each(|&token| resumed.accept(token));
        let rest: Vec<u32> = (20..50).map(|position| resumed.sample(position, &mut logits.clone()).token).collect();
        assert_eq!(rest, whole[20..]);
        let other = Sampling { seed: 43, ..sampling(1.0) };
        assert_ne!((0..50).map(|position| one(&other, position, &logits)).collect::<Vec<_>>(), whole);
    }

    #[test]
    fn repetition_is_penalised_as_candle_does() {
        let logits = row(200);
        let prompt = [3, 5, 5, 199, 100_000];
        let penalised = apply_repeat_penalty(&Tensor::new(&logits[..], &Device::Cpu).unwrap(), 1.7, &prompt).unwrap();
        let mut ours = logits.clone();
        Sampler::new(&Sampling { repetition_penalty: 1.7, ..sampling(0.0) }, &prompt).penalise(&mut ours);
        assert_eq!(ours, penalised.to_vec1::<f32>().unwrap());
    }

    #[test]
    fn presence_counts_once_and_frequency_each_time_and_the_prompt_not_at_all() {
        let asked = Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..sampling(0.0) };
        let mut sampler = Sampler::new(&asked, &[0]);
        for token in [1, 2, 2] {
            sampler.accept(token);
        }
        let mut logits = [1.0; 4];
        sampler.penalise(&mut logits);
        assert_eq!(logits, [1.0, 0.25, 0.0, 1.0]);
    }

    #[test]
    fn a_resumed_answer_is_penalised_like_an_undisturbed_one() {
        let asked = Sampling { frequency_penalty: 0.7, repetition_penalty: 1.2, ..sampling(0.0) };
        let logits = row(50);
        let mut sampler = Sampler::new(&asked, &[1, 2]);
        let whole: Vec<u32> = (0..30).map(|position| sampler.sample(position, &mut logits.clone()).token).collect();
        let mut resumed = Sampler::new(&asked, &[1, 2]);
        whole[..10].iter().for_each(|&token| resumed.accept(token));
        let rest: Vec<u32> = (10..30).map(|position| resumed.sample(position, &mut logits.clone()).token).collect();
        assert_eq!(rest, whole[10..]);
    }

    #[test]
    fn a_bias_bans_and_forces() {
        let biased = |token, bias| Sampling { logit_bias: vec![LogitBias { token, bias }], ..sampling(1.0) };
        let logits = [5.0, 4.0, 3.0];
        assert!((0..200).all(|position| one(&biased(0, -100.0), position, &logits) != 0));
        assert!((0..200).all(|position| one(&biased(2, 100.0), position, &logits) == 2));
        assert!(one(&biased(77, 100.0), 0, &logits) < 3);
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let asked = Sampling {
            logprobs: Some(2),
            temperature: 0.0,
            logit_bias: vec![LogitBias { token: 2, bias: 100.0 }],
            ..Sampling::default()
        };
        let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
        let sampled = Sampler::new(&asked, &[]).sample(0, &mut logits.to_vec());
        let logprob = sampled.logprob.unwrap();
        assert_eq!(sampled.token, 2);
        assert!((logprob.logprob - 0.125f32.ln()).abs() < 1e-6);
        assert_eq!(logprob.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1]);
        assert!((logprob.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
        assert_eq!(Sampler::new(&Sampling::default(), &[]).sample(0, &mut logits.to_vec()).logprob, None);
    }

    #[test]
    fn what_is_impossible_is_never_taken() {
        let nan = f32::NAN;
        assert_eq!(one(&sampling(0.0), 0, &[nan, nan, 1.0, nan]), 2);
        assert_eq!(one(&sampling(0.0), 0, &[f32::NEG_INFINITY, -5.0]), 1);
        assert_eq!(one(&sampling(0.0), 0, &[0.0, f32::INFINITY, f32::INFINITY]), 1);
        let masked = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.1, nan];
        assert!((0..500).map(|position| one(&sampling(5.0), position, &masked)).all(|token| token == 1 || token == 3));
    }

    proptest! {
        #[test]
        fn no_numbers_panic_or_leave_the_vocabulary(
            logits in prop::collection::vec(any::<f32>(), 1..300),
            (temperature, top_p, min_p) in (any::<f32>(), any::<f32>(), any::<f32>()),
            (repetition_penalty, presence_penalty, frequency_penalty) in (any::<f32>(), any::<f32>(), any::<f32>()),
            top_k in prop_oneof![0u32..10, any::<u32>()],
            bias in any::<f32>(),
            prompt in prop::collection::vec(0u32..400, 0..20),
        ) {
            let asked = Sampling {
                temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty,
                seed: 1, logprobs: Some(20), logit_bias: vec![LogitBias { token: 3, bias }],
            };
            let mut sampler = Sampler::new(&asked, &prompt);
            for position in 0..3 {
                let sampled = sampler.sample(position, &mut logits.clone());
                prop_assert!((sampled.token as usize) < logits.len());
                let logprob = sampled.logprob.unwrap();
                prop_assert!(!logprob.logprob.is_nan() && logprob.top.len() == logits.len().min(20));
            }
        }

        #[test]
        fn every_draw_is_within_what_truncation_keeps(
            logits in prop::collection::vec(-8f32..8.0, 1..400), top_k in 0u32..50, top_p in 0.01f32..1.0, min_p in 0f32..0.3,
            temperature in 0.2f32..2.0, seed in any::<u64>(),
        ) {
            let asked = Sampling { temperature, top_k, top_p, min_p, seed, ..Sampling::default() };
            // The definition, with a full sort and in f64.
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            if top_k > 0 {
                order.truncate(top_k as usize);
            }
            let weight = |i: usize| (f64::from(logits[i] - logits[order[0]]) / f64::from(temperature)).exp();
            let total: f64 = order.iter().map(|&i| weight(i)).sum();
            let mut covered = 0.0;
            // A hair more than asked for: ours are f32.
            let kept: Vec<usize> = order.iter().copied().take_while(|&i| {
                let wanted = covered < f64::from(top_p) * total * 1.00001 && weight(i) >= f64::from(min_p) * 0.9999;
                covered += weight(i);
                wanted
            }).collect();
            for position in 0..20 {
                prop_assert!(kept.contains(&(one(&asked, position, &logits) as usize)));
            }
        }
    }
}
