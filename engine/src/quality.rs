//! What a smaller form of a model costs in quality: its perplexity on a text, and how far its predictions are from f32's.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::kernels::Pool;
use crate::model::Reading;
use crate::{DeviceChoice, Dtype, KvDtype, LoadError, LoadOptions, Model, Progress, Source, threads};

/// The first four chapters of Lewis Carroll's 'Alice's Adventures in Wonderland' (1865, in the public domain).
pub const TEXT: &str = include_str!("../quality/alice.txt");

/// Tokens of a window where nobody says otherwise: long enough that most predictions have seen much, and several windows
/// in a short text.
const WINDOW: usize = 1024;
/// Tokens whose logits are compared at once: with 150,000 of them to a token and two models, that is 80 MB.
const PART: usize = 64;

/// What to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The text to predict.
    pub text: String,
    /// What to compare with f32: the types of weights, and of keys and values.
    pub dtypes: Vec<(Dtype, KvDtype)>,
    /// Tokens of a window: each is read by itself from its beginning. `None`: 1024, or the model's context where that is less.
    pub window: Option<usize>,
    /// Tokens to read at most.
    pub tokens_max: Option<usize>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// CPU threads; `None`: as many as cores.
    pub threads: Option<usize>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            text: TEXT.to_owned(),
            dtypes: vec![
                (Dtype::F32, KvDtype::F16),
                (Dtype::F32, KvDtype::Q8),
                (Dtype::Bf16, KvDtype::F16),
                (Dtype::Q8, KvDtype::F16),
                (Dtype::Q8, KvDtype::Q8),
                (Dtype::Q4, KvDtype::F16),
                (Dtype::Q4, KvDtype::Q8),
            ],
            window: None,
            tokens_max: None,
            device: DeviceChoice::Auto,
            threads: None,
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The model's public name.
    pub model: String,
    /// Number of its weights.
    pub parameters: u64,
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Tokens of a window.
    pub window: usize,
    /// In f32: e to the mean of what a token of the text surprised it by, in nats.
    pub perplexity: f64,
    /// A row for each that was compared.
    pub rows: Vec<Row>,
}

/// One type of weights, and of keys and values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Of the weights.
    pub dtype: String,
    /// Of keys and values.
    pub kv_dtype: String,
    /// On the text.
    pub perplexity: f64,
    /// By what part perplexity is greater than in f32.
    pub perplexity_change: f64,
    /// Kullback-Leibler divergence of its predictions from f32's: mean over the tokens, in nats.
    pub divergence: f64,
    /// The divergence that 99 % of the tokens stay below.
    pub divergence_p99: f64,
    /// For what part of the tokens its likeliest one is f32's likeliest one.
    pub same_choice: f64,
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum QualityError {
    /// The model does not load.
    #[error("failed to load the model in {dtype}")]
    Load {
        /// In what.
        dtype: Dtype,
        /// Why.
        source: LoadError,
    },
    /// The text or the window is too short.
    #[error("{0}")]
    Plan(String),
    /// A computation failed.
    #[error("failed to compute the model's predictions")]
    Compute(#[source] candle_core::Error),
}

/// What a prediction was worth.
#[derive(Clone, Copy, Default)]
struct Score {
    /// Nats by which the text's token surprised f32, and the dtype.
    surprise: [f64; 2],
    divergence: f64,
    same_choice: bool,
}

/// Compares; blocks for as long as it takes. `tell` hears of each part that is done, and of how many there are.
pub fn run(source: &Source, plan: &Plan, tell: &dyn Fn(usize, usize)) -> Result<Report, QualityError> {
    let load = |dtype: Dtype, kv_dtype: KvDtype| {
        let options = LoadOptions { device: plan.device, dtype, kv_dtype, ..LoadOptions::default() };
        Model::load(source, &options, &Progress::silent()).map_err(|source| QualityError::Load { dtype, source })
    };
    let reference = load(Dtype::F32, KvDtype::F32)?;
    let pool = Pool::shared(plan.threads.unwrap_or_else(threads::available)).map_err(candle_core::Error::wrap);
    let pool = pool.map_err(QualityError::Compute)?;
    let windows = windows(&reference, plan)?;
    let window = windows.iter().map(Vec::len).max().unwrap_or_default();
    let tokens = windows.iter().map(|window| window.len() - 1).sum();
    let parts = windows.iter().map(|window| window.len().div_ceil(PART)).sum::<usize>();
    let mut rows = Vec::new();
    let mut perplexity = f64::NAN;
    for (number, &(dtype, kv_dtype)) in plan.dtypes.iter().enumerate() {
        let other = load(dtype, kv_dtype)?;
        let done = |part: usize| tell(number * parts + part, plan.dtypes.len() * parts);
        let scores = compare(&reference, &other, &pool, &windows, &done).map_err(QualityError::Compute)?;
        // What `auto` came to, and else what was asked for: four bits have the vocabulary in eight.
        let dtype = if dtype == Dtype::Auto { other.info(0).first().dtype.clone() } else { dtype.to_string() };
        let (own, row) = row(dtype, other.kv_dtype().to_string(), &scores);
        perplexity = own;
        rows.push(row);
    }
    let info = reference.info(0);
    let served = info.first();
    Ok(Report { model: served.model.clone(), parameters: served.parameters, tokens, window, perplexity, rows })
}

/// The text's tokens in windows, each of which begins as the tokenizer begins a text.
fn windows(model: &Model, plan: &Plan) -> Result<Vec<Vec<u32>>, QualityError> {
    let context = model.kv_shape().context as usize;
    let window = plan.window.unwrap_or(WINDOW.min(context));
    let begin = model.tokenizer.encode("");
    if window > context || window < begin.len() + 2 {
        let message =
            format!("a window of {window} tokens; it must be from {} to the model's context of {context}", begin.len() + 2);
        return Err(QualityError::Plan(message));
    }
    let tokens = model.tokenizer.encode(&plan.text);
    let tokens = tokens.strip_prefix(&begin[..]).unwrap_or(&tokens);
    let tokens = &tokens[..tokens.len().min(plan.tokens_max.unwrap_or(usize::MAX))];
    let windows = tokens.chunks(window - begin.len()).map(|part| [&begin[..], part].concat());
    // The last one may be a single token, which nothing predicts.
    let windows: Vec<_> = windows.filter(|window| window.len() > 1).collect();
    match windows.is_empty() {
        true => Err(QualityError::Plan("the text has no two tokens: take a longer one".into())),
        false => Ok(windows),
    }
}

/// The scores of all predictions, in order.
fn compare(
    reference: &Model,
    other: &Model,
    pool: &Pool,
    windows: &[Vec<u32>],
    done: &dyn Fn(usize),
) -> candle_core::Result<Vec<Score>> {
    let longest = windows.iter().map(Vec::len).max().unwrap_or_default();
    let mut readings = [Reading::new(reference, pool, longest)?, Reading::new(other, pool, longest)?];
    let vocabulary = reference.config.vocabulary();
    let (mut scores, mut parts) = (Vec::new(), 0);
    for window in windows {
        readings.iter_mut().for_each(Reading::begin);
        for (number, part) in window.chunks(PART).enumerate() {
            let wanted = readings[0].logits(part)?;
            let got = readings[1].logits(part)?;
            let next = &window[number * PART + 1..];
            let places: Vec<Mutex<Score>> = part.iter().zip(next).map(|_| Mutex::default()).collect();
            pool.run(places.len(), &|place| {
                let row = place * vocabulary..(place + 1) * vocabulary;
                // Nobody else has this task, so the lock is free; it is there for the compiler.
                *places[place].lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                    score(&wanted[row.clone()], &got[row], next[place] as usize);
            });
            scores.extend(places.into_iter().map(|place| place.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)));
            parts += 1;
            done(parts);
        }
    }
    Ok(scores)
}

/// Of one prediction by two models, and the token that came.
fn score(reference: &[f32], other: &[f32], token: usize) -> Score {
    let (p, q) = (Softmax::of(reference), Softmax::of(other));
    let terms = reference.iter().zip(other).map(|(&a, &b)| {
        let a = p.log(a);
        a.exp() * (a - q.log(b))
    });
    Score {
        surprise: [-p.log(reference[token]), -q.log(other[token])],
        // Not below 0 but by rounding.
        divergence: terms.sum::<f64>().max(0.0),
        same_choice: p.likeliest == q.likeliest,
    }
}

/// What makes logarithms of probabilities of logits.
struct Softmax {
    log_sum: f64,
    likeliest: usize,
}

impl Softmax {
    fn of(logits: &[f32]) -> Softmax {
        let likeliest = (0..logits.len()).fold(0, |best, at| if logits[at] > logits[best] { at } else { best });
        let most = f64::from(logits[likeliest]);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum();
        Softmax { log_sum: most + sum.ln(), likeliest }
    }

    fn log(&self, logit: f32) -> f64 {
        f64::from(logit) - self.log_sum
    }
}

/// The reference's perplexity, and the other's row.
fn row(dtype: String, kv_dtype: String, scores: &[Score]) -> (f64, Row) {
    let mean = |of: &dyn Fn(&Score) -> f64| scores.iter().map(of).sum::<f64>() / scores.len() as f64;
    let perplexity = [0, 1].map(|which| mean(&|score| score.surprise[which]).exp());
    let mut divergences: Vec<f64> = scores.iter().map(|score| score.divergence).collect();
    divergences.sort_by(f64::total_cmp);
    let row = Row {
        dtype,
        kv_dtype,
        perplexity: perplexity[1],
        perplexity_change: perplexity[1] / perplexity[0] - 1.0,
        divergence: mean(&|score| score.divergence),
        divergence_p99: divergences[(divergences.len() - 1) * 99 / 100],
        same_choice: mean(&|score| f64::from(u8::from(score.same_choice))),
    };
    (perplexity[0], row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_is_as_good_as_itself_and_q8_nearly() {
        let dtypes = vec![(Dtype::F32, KvDtype::F32), (Dtype::Q8, KvDtype::Q8)];
        let plan = Plan { dtypes, tokens_max: Some(300), window: Some(128), ..Plan::default() };
        let told = Mutex::new(Vec::new());
        let report = run(&Source::bundled(), &plan, &|done, all| told.lock().unwrap().push((done, all))).unwrap();
        assert_eq!((report.tokens, report.window, report.rows.len()), (297, 128, 2));
        assert_eq!(told.into_inner().unwrap().last(), Some(&(10, 10)));
        let same = Row {
            dtype: "f32".into(),
            kv_dtype: "f32".into(),
            perplexity: report.perplexity,
            perplexity_change: 0.0,
            divergence: 0.0,
            divergence_p99: 0.0,
            same_choice: 1.0,
        };
        assert_eq!(report.rows[0], same);
        let q8 = &report.rows[1];
        assert!(q8.perplexity_change.abs() < 0.02 && q8.divergence > 0.0 && q8.divergence < 0.01, "{q8:?}");
        assert!(q8.divergence < q8.divergence_p99 && q8.same_choice > 0.9, "{q8:?}");
    }

    #[test]
    fn scores_are_those_of_the_definitions() {
        let (a, b) = ([1f32.ln(), 3f32.ln()], [2f32.ln(), 2f32.ln()]);
        let score = score(&a, &b, 0);
        assert!((score.surprise[0] - 4f64.ln()).abs() < 1e-6 && (score.surprise[1] - 2f64.ln()).abs() < 1e-6);
        let divergence = 0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln();
        assert!((score.divergence - divergence).abs() < 1e-6 && !score.same_choice);
    }

    #[test]
    fn a_text_or_window_without_a_prediction_is_refused() {
        let refused = |plan: Plan| match run(&Source::bundled(), &plan, &|_, _| ()) {
            Err(QualityError::Plan(message)) => message,
            other => panic!("{other:?}"),
        };
        assert!(refused(Plan { text: "a".into(), ..Plan::default() }).contains("longer"));
        assert!(refused(Plan { window: Some(4096), ..Plan::default() }).contains("context of 512"));
        assert!(refused(Plan { window: Some(1), ..Plan::default() }).contains("from 2"));
    }
}
