//! How fast a model decodes here: measured through the engine itself, with its scheduler, sampler and channel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Receiver;

use crate::{Engine, Model, Options, Output, Prompt, Refusal, Request, Sampling, SequenceId, StartError, Step, threads};

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// CPU threads; `None`: as many as cores.
    pub threads: Option<usize>,
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
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            threads: None,
            batches: vec![1, 8, 16, 32, 64],
            prompt_tokens: 32,
            new_tokens: 128,
            first_token_prompts: vec![32, 512],
            rounds: 3,
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
    /// Resident memory of the process after the first batch size, in bytes; where the system says so.
    pub memory_first_batch_bytes: Option<u64>,
    /// The most that was resident at any time since the process started, loading included, in bytes.
    pub memory_peak_bytes: Option<u64>,
}

/// One batch size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decode {
    /// Sequences at once.
    pub batch: u32,
    /// Tokens of all of them, a second, from the moment when each had its first token: decoding alone.
    pub tokens_per_s: f64,
    /// The same from their submission on: prompts included.
    pub tokens_per_s_with_prompts: f64,
}

/// One prompt length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstToken {
    /// Of the prompt.
    pub prompt_tokens: u32,
    /// From submission to the first token, in an idle engine, in milliseconds.
    pub ms: f64,
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
}

/// Tokens generated where only the first one's time counts.
const FIRST_TOKEN_NEW: u32 = 2;

/// Measures; blocks for as long as it takes.
pub fn run(model: &Arc<Model>, plan: &Plan) -> Result<Report, BenchError> {
    if plan.rounds == 0 || plan.prompt_tokens == 0 || plan.new_tokens < 2 || plan.batches.contains(&0) {
        return Err(BenchError::Plan("a benchmark needs a round, a prompt token, two new tokens and a sequence at least"));
    }
    let batch_max = plan.batches.iter().copied().max().unwrap_or(1);
    let options = Options { batch_max, threads: plan.threads, ..Options::default() };
    let (engine, steps) = Engine::start(Arc::clone(model), options)?;
    let mut bench = Bench { engine, steps, next: 0 };
    // Pages, threads and caches settle; nobody is measured cold.
    bench.batch(1, plan.prompt_tokens, 8.min(plan.new_tokens))?;
    let mut decode = Vec::new();
    let mut memory_first_batch_bytes = None;
    for &batch in &plan.batches {
        let rounds = (0..plan.rounds).map(|_| bench.batch(batch, plan.prompt_tokens, plan.new_tokens));
        let rounds = rounds.collect::<Result<Vec<_>, BenchError>>()?;
        decode.push(Decode {
            batch,
            tokens_per_s: median(rounds.iter().map(|round| round.decode).collect()),
            tokens_per_s_with_prompts: median(rounds.iter().map(|round| round.whole).collect()),
        });
        memory_first_batch_bytes = memory_first_batch_bytes.or_else(|| memory("VmRSS:"));
    }
    let mut first_token = Vec::new();
    // A prompt that does not fit is cut to the longest that does, and reported by the length that it has.
    let longest = bench.engine.info().context.saturating_sub(FIRST_TOKEN_NEW);
    let mut prompts: Vec<u32> = plan.first_token_prompts.iter().map(|&tokens| tokens.min(longest)).collect();
    prompts.dedup();
    for prompt_tokens in prompts {
        let rounds =
            (0..plan.rounds).map(|_| bench.batch(1, prompt_tokens, FIRST_TOKEN_NEW).map(|round| round.first.as_secs_f64() * 1e3));
        first_token.push(FirstToken { prompt_tokens, ms: median(rounds.collect::<Result<Vec<_>, BenchError>>()?) });
    }
    let info = bench.engine.info();
    Ok(Report {
        model: info.model.clone(),
        dtype: info.dtype.clone(),
        device: info.device.clone(),
        kernels: model.kernels(),
        threads: plan.threads.unwrap_or_else(threads::available),
        decode,
        first_token,
        memory_first_batch_bytes,
        memory_peak_bytes: memory("VmHWM:"),
    })
}

struct Bench {
    engine: Engine,
    steps: Receiver<Step>,
    /// The next sequence's id.
    next: u64,
}

/// One measurement: tokens a second, and the time to the first token of the last sequence to get one.
struct Round {
    decode: f64,
    whole: f64,
    first: Duration,
}

impl Bench {
    fn batch(&mut self, batch: u32, prompt_tokens: u32, new_tokens: u32) -> Result<Round, BenchError> {
        let start = Instant::now();
        for _ in 0..batch {
            self.next += 1;
            self.engine.submit(Request {
                id: SequenceId(self.next),
                // Ids that every vocabulary has, and other ones for each sequence.
                prompt: Prompt::Tokens((0..prompt_tokens).map(|i| 1 + (i * 31 + self.next as u32 * 17) % 200).collect()),
                sampling: Sampling { temperature: 0.0, ..Sampling::default() },
                max_tokens: Some(new_tokens),
                min_tokens: 0,
                stop: Vec::new(),
                ignore_eos: true,
                resume: Vec::new(),
                alone: false,
            });
        }
        let (mut firsts, mut tokens, mut ended) = (0, 0u64, 0);
        let mut all_decode: Option<(Instant, u64)> = None;
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
        }
        let (since, before) = all_decode.ok_or(BenchError::Ended)?;
        Ok(Round {
            decode: (tokens - before) as f64 / since.elapsed().as_secs_f64(),
            whole: tokens as f64 / start.elapsed().as_secs_f64(),
            first: since - start,
        })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

/// A line of `/proc/self/status`, in bytes.
fn memory(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LoadOptions, Source};

    #[test]
    fn a_small_plan_is_measured_and_an_impossible_one_refused() {
        let model = Arc::new(Model::load(&Source::bundled(), &LoadOptions::default()).unwrap());
        let plan = Plan { batches: vec![1, 3], new_tokens: 4, rounds: 2, first_token_prompts: vec![5], ..Plan::default() };
        let report = run(&model, &plan).unwrap();
        assert_eq!(report.decode.iter().map(|row| row.batch).collect::<Vec<_>>(), [1, 3]);
        assert!(report.decode.iter().all(|row| row.tokens_per_s > 0.0 && row.tokens_per_s_with_prompts > 0.0));
        assert_eq!((report.first_token.len(), report.first_token[0].prompt_tokens), (1, 5));
        assert!(matches!(run(&model, &Plan { rounds: 0, ..plan.clone() }), Err(BenchError::Plan(_))));
        let long = Plan { first_token_prompts: vec![4096], ..plan.clone() };
        assert_eq!(run(&model, &long).unwrap().first_token[0].prompt_tokens, 510);
        let endless = Plan { new_tokens: 4096, ..plan };
        assert!(matches!(run(&model, &endless), Err(BenchError::Refused(Refusal::TooLong { .. }))));
    }

    #[test]
    fn medians_are_medians() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0])), (2.0, 2.5));
    }
}
