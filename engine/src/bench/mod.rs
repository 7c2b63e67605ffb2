//! How fast a model decodes here: measured through the engine itself, with its scheduler, sampler and channel, and beside what
//! the machine could do at best.

mod breakdown;
mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Receiver;

pub use breakdown::{Breakdown, Spent};

use crate::limits::{Limits, Meter};
use crate::profile::{Shape, Steps};
use crate::{Engine, Model, Options, Output, Profile, Refusal, Request, SequenceId, StartError, Step, threads};

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// CPU threads; `None`: as many as cores.
    pub threads: Option<usize>,
    /// Bytes for KV, as [`Options::kv_memory`].
    pub kv_memory: Option<u64>,
    /// Numbers of sequences that decode at once.
    pub batches: Vec<u32>,
    /// Prompt tokens of each sequence that decodes.
    pub prompt_tokens: u32,
    /// Tokens that each sequence decodes.
    pub new_tokens: u32,
    /// Prompt lengths for which to measure the time to the first token.
    pub first_token_prompts: Vec<u32>,
    /// How often to measure each; the median is reported.
    pub rounds: u32,
    /// Whether to measure the machine's limits before and after each case.
    pub limits: bool,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            threads: None,
            kv_memory: None,
            batches: vec![1, 8, 16, 32, 64],
            prompt_tokens: 32,
            new_tokens: 128,
            first_token_prompts: vec![32, 512],
            rounds: 3,
            limits: true,
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The model's public name.
    pub model: String,
    /// Of its weights.
    pub dtype: String,
    /// Where it computes.
    pub device: String,
    /// The kernels that were chosen for this processor.
    pub kernels: String,
    /// CPU threads.
    pub threads: usize,
    /// A row for each batch size.
    pub decode: Vec<Decode>,
    /// A row for each prompt length.
    pub first_token: Vec<FirstToken>,
    /// Of the process, where the system says so.
    pub memory: Memory,
}

/// Memory of the process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident after the first batch size.
    pub first_batch: Option<u64>,
    /// The most that was resident up to then, loading included.
    pub first_batch_peak: Option<u64>,
    /// The most that was resident at any time.
    pub peak: Option<u64>,
}

/// One batch size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decode {
    /// Sequences at once.
    pub batch: u32,
    /// Tokens of all of them, a second, from the moment when each had its first token: decoding alone.
    pub tokens_per_s: f64,
    /// The slowest round and the fastest.
    pub rounds_tokens_per_s: [f64; 2],
    /// The same from their submission on: prompts included.
    pub tokens_per_s_with_prompts: f64,
    /// What the machine would allow for decoding alone.
    pub limit_tokens_per_s: Option<f64>,
    /// What the machine could do meanwhile.
    pub limits: Option<Limits>,
    /// Where a step's time goes.
    pub step: Option<Breakdown>,
}

/// One prompt length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstToken {
    /// Of the prompt.
    pub prompt_tokens: u32,
    /// From submission to the first token, in an idle engine, in milliseconds.
    pub ms: f64,
    /// The fastest round and the slowest.
    pub rounds_ms: [f64; 2],
    /// The least that the machine would allow.
    pub limit_ms: Option<f64>,
    /// What the machine could do meanwhile.
    pub limits: Option<Limits>,
    /// Where the prompt's time goes.
    pub prompt: Option<Breakdown>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The engine does not start.
    #[error("failed to start the engine")]
    Start(#[from] StartError),
    /// A part of the plan makes no sense.
    #[error("{0}")]
    Plan(&'static str),
    /// The model can't take the plan's requests.
    #[error("the engine refused a request of the benchmark")]
    Refused(#[source] Refusal),
    /// The engine ended.
    #[error("the engine ended while it was measured")]
    Ended,
    /// The operating system has no threads to give.
    #[error("failed to start threads to measure the machine's limits with")]
    Threads(#[source] std::io::Error),
}

/// Tokens generated where only the first one's time counts.
const FIRST_TOKEN_NEW: u32 = 2;

/// Measures; blocks for as long as it takes.
pub fn run(model: &Arc<Model>, plan: &Plan) -> Result<Report, BenchError> {
    if plan.rounds == 0 || plan.prompt_tokens == 0 || plan.new_tokens < 2 || plan.batches.contains(&0) {
        return Err(BenchError::Plan("a benchmark needs a round, a prompt token, two new tokens and a sequence at least"));
    }
    let mut bench = Bench::start(model, plan)?;
    // Pages, threads and caches settle; nobody is measured cold.
    bench.batch(1, plan.prompt_tokens, 8.min(plan.new_tokens))?;
    let mut memory = Memory::default();
    let mut decode = Vec::new();
    for &batch in &plan.batches {
        decode.push(bench.decode(batch, plan)?);
        if memory.first_batch.is_none() {
            memory.first_batch = memory::resident();
            memory.first_batch_peak = bench.gauge.peak.bytes();
        }
    }
    // A prompt that does not fit is cut to the longest that does, and reported by the length that it has.
    let longest = bench.engine.info().first().context.saturating_sub(FIRST_TOKEN_NEW);
    let mut prompts: Vec<u32> = plan.first_token_prompts.iter().map(|&tokens| tokens.min(longest)).collect();
    prompts.dedup();
    let mut first_token = Vec::new();
    for prompt_tokens in prompts {
        first_token.push(bench.first_token(prompt_tokens, plan)?);
    }
    memory.peak = bench.gauge.peak.bytes();
    let info = bench.engine.info();
    Ok(Report {
        model: info.first().model.clone(),
        dtype: info.first().dtype.clone(),
        device: info.device.clone(),
        kernels: model.kernels(),
        threads: plan.threads.unwrap_or_else(threads::available),
        decode,
        first_token,
        memory,
    })
}

struct Bench {
    model: Arc<Model>,
    engine: Engine,
    steps: Receiver<Step>,
    profile: Profile,
    gauge: Gauge,
    /// The next sequence's id.
    next: u64,
}

/// Measures the machine between the cases.
struct Gauge {
    meter: Option<Meter>,
    /// At the end of the last case.
    last: Option<Limits>,
    peak: memory::Peak,
}

/// One measurement: tokens a second, and the time to the first token of the last sequence to get one.
struct Round {
    decode: f64,
    whole: f64,
    first: Duration,
}

impl Bench {
    fn start(model: &Arc<Model>, plan: &Plan) -> Result<Bench, BenchError> {
        let batch_max = plan.batches.iter().copied().max().unwrap_or(1);
        let profile = Profile::default();
        let options = Options {
            batch_max,
            threads: plan.threads,
            kv_memory: plan.kv_memory,
            // What is measured is a step for each token.
            speculate: false,
            profile: Some(profile.clone()),
            ..Options::default()
        };
        let (engine, steps) = Engine::start(Arc::clone(model), options)?;
        // The limits are the processor's.
        let meter = if plan.limits && engine.info().device == "cpu" {
            Some(Meter::new(plan.threads.unwrap_or_else(threads::available)).map_err(BenchError::Threads)?)
        } else {
            None
        };
        let mut gauge = Gauge { meter, last: None, peak: memory::Peak::new() };
        gauge.measure();
        Ok(Bench { model: Arc::clone(model), engine, steps, profile, gauge, next: 0 })
    }

    fn decode(&mut self, batch: u32, plan: &Plan) -> Result<Decode, BenchError> {
        let rounds = (0..plan.rounds).map(|_| self.batch(batch, plan.prompt_tokens, plan.new_tokens));
        let rounds = rounds.collect::<Result<Vec<_>, BenchError>>()?;
        let limits = self.gauge.measure();
        let steps = self.profiled(|bench| bench.batch(batch, plan.prompt_tokens, plan.new_tokens).map(|_| ()))?;
        let rows = batch as usize;
        let steps = steps.into_iter().filter(|(shape, _)| *shape == Shape { rows, samples: rows }).collect::<BTreeMap<_, _>>();
        let units = steps.values().map(|steps| steps.passes.len()).sum::<usize>() as f64;
        let step = Breakdown::new(&steps, units, &self.model, limits.as_ref());
        let limit_ms = step.as_ref().and_then(|step| step.limit_ms);
        let speeds = || rounds.iter().map(|round| round.decode);
        Ok(Decode {
            batch,
            tokens_per_s: median(speeds().collect()),
            rounds_tokens_per_s: extremes(speeds()),
            tokens_per_s_with_prompts: median(rounds.iter().map(|round| round.whole).collect()),
            limit_tokens_per_s: limit_ms.map(|ms| f64::from(batch) / ms * 1e3),
            limits,
            step,
        })
    }

    fn first_token(&mut self, prompt_tokens: u32, plan: &Plan) -> Result<FirstToken, BenchError> {
        let rounds = (0..plan.rounds)
            .map(|_| self.batch(1, prompt_tokens, FIRST_TOKEN_NEW).map(|round| round.first.as_secs_f64() * 1e3))
            .collect::<Result<Vec<_>, BenchError>>()?;
        let limits = self.gauge.measure();
        let steps =
            self.profiled(|bench| (0..plan.rounds).try_for_each(|_| bench.batch(1, prompt_tokens, FIRST_TOKEN_NEW).map(|_| ())))?;
        // All but the step of the second token.
        let prompt = |(shape, _): &(Shape, _)| prompt_tokens == 1 || *shape != Shape { rows: 1, samples: 1 };
        let steps = steps.into_iter().filter(prompt).collect::<BTreeMap<_, _>>();
        let prompt = Breakdown::new(&steps, f64::from(plan.rounds), &self.model, limits.as_ref());
        Ok(FirstToken {
            prompt_tokens,
            ms: median(rounds.clone()),
            rounds_ms: extremes(rounds.iter().copied()),
            limit_ms: prompt.as_ref().and_then(|prompt| prompt.limit_ms),
            limits,
            prompt,
        })
    }

    /// Notes where the steps of `f` spend their time. What is timed elsewhere is not slowed down by noting.
    fn profiled(&mut self, f: impl FnOnce(&mut Self) -> Result<(), BenchError>) -> Result<BTreeMap<Shape, Steps>, BenchError> {
        self.profile.switch(true);
        let done = f(self);
        self.profile.switch(false);
        let steps = self.profile.take();
        done.map(|()| steps)
    }

    fn batch(&mut self, batch: u32, prompt_tokens: u32, new_tokens: u32) -> Result<Round, BenchError> {
        let start = Instant::now();
        for _ in 0..batch {
            self.next += 1;
            self.engine.submit(Request::fixed(SequenceId(self.next), prompt(self.next, prompt_tokens), new_tokens));
        }
        let (mut firsts, mut tokens, mut ended) = (0, 0u64, 0);
        let mut all_decode: Option<(Instant, u64)> = None;
        let mut first_end: Option<(Instant, u64)> = None;
        while ended < batch {
            let step = self.steps.blocking_recv().ok_or(BenchError::Ended)?;
            for output in step.outputs {
                match output {
                    Output::Tokens { position, tokens: new, .. } => {
                        firsts += u32::from(position == 0);
                        tokens += new.len() as u64;
                    }
                    Output::Finished { .. } => ended += 1,
                    Output::Refused { refusal, .. } => return Err(BenchError::Refused(refusal)),
                    Output::Started { .. } | Output::Progress { .. } | Output::Cancelled { .. } => {}
                }
            }
            if firsts == batch && all_decode.is_none() {
                all_decode = Some((Instant::now(), tokens));
            }
            if ended > 0 && first_end.is_none() {
                first_end = Some((Instant::now(), tokens));
            }
        }
        let ((since, before), now) = (all_decode.ok_or(BenchError::Ended)?, Instant::now());
        // Whoever began early ends early, and leaves smaller steps to the others. Where all ended before the last one began,
        // there was no step of all.
        let (until, after) = first_end.filter(|(end, _)| *end > since).unwrap_or((now, tokens));
        Ok(Round {
            decode: (after - before) as f64 / until.duration_since(since).as_secs_f64(),
            whole: tokens as f64 / start.elapsed().as_secs_f64(),
            first: since - start,
        })
    }
}

impl Gauge {
    /// What the machine could do since the last measurement, about: the mean of the two.
    fn measure(&mut self) -> Option<Limits> {
        let meter = self.meter.as_ref()?;
        let now = self.peak.without(|| meter.measure())?;
        let last = self.last.replace(now).unwrap_or(now);
        Some(last.mean(&now))
    }
}

/// A prompt like no other, of ids that every vocabulary has: nothing of an earlier prompt can be reused.
fn prompt(sequence: u64, tokens: u32) -> Vec<u32> {
    let mut state = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // xorshift64*, Vigna, arXiv:1402.6246.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    };
    (0..tokens).map(|_| 1 + next() % 200).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

/// The least and the most.
fn extremes(values: impl Iterator<Item = f64>) -> [f64; 2] {
    values.fold([f64::INFINITY, f64::NEG_INFINITY], |[least, most], value| [least.min(value), most.max(value)])
}

#[cfg(test)]
mod tests;
