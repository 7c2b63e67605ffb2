//! How many sequences to batch, and from how many on a node should call itself busy: `auto` for both, decided by what steps of
//! this model take on this machine.
//!
//! The measurement runs an engine for about a fifth of a second; what its times mean is [`decide`]'s plain arithmetic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;
use tracing::info;

use crate::room::{Room, room};
use crate::{Engine, Model, Options, Output, Request, SequenceId, StartError, Step, kv};

/// How long to measure. The size that is being measured is measured to its end, so a large model takes two of its steps more.
const BUDGET: Duration = Duration::from_millis(200);
/// More at once than this gains nothing on any machine that was seen, and each costs memory.
const BATCH_MOST: u32 = 256;
/// So many always run together: where a machine stalls while it is measured, the node is not slow for its life.
const BATCH_LEAST: u32 = 8;
/// Twice as many sequences are worth it while they bring so much more throughput.
const GAIN: f64 = 1.05;
/// A node is busy when one more sequence would make a step take longer than so many times a lone sequence's: by then another
/// node serves the next one faster, and with none that has room, the batch still fills up to its bound.
const SLOWDOWN: f64 = 2.0;
/// Tokens of each sequence while sizes are measured: one step in which they may come in late, and two that count.
const TOKENS: u32 = 4;
/// A sequence's length for the bound by memory: few grow to a long context, and those that do make others wait.
const USUAL_TOKENS: u32 = 1024;

/// What was decided, and by which times.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Sequences to run at once: beyond, throughput hardly grows.
    pub batch_max: u32,
    /// Sequences with which a node is busy: beyond, each one's tokens come at less than half the speed of a lone one's.
    pub busy_at: u32,
    /// Rows of a step, and the seconds that it took.
    pub steps: Vec<(u32, f64)>,
}

/// Measures steps of 1, 2, 4, … sequences with these options, whose `batch_max` is not looked at.
pub fn calibrate(model: &Arc<Model>, options: &Options) -> Result<Calibration, StartError> {
    let (shape, page_bytes) = (model.kv_shape(), model.page_bytes());
    let Room { pages, context } =
        room(shape.context, page_bytes, BATCH_MOST, options.kv_memory, options.engines, model.memory_available())?;
    let usual = context.min(USUAL_TOKENS).div_ceil(kv::PAGE_TOKENS);
    let fit = (pages / usual).clamp(1, BATCH_MOST);
    let (engine, mut steps) = Engine::start(Arc::clone(model), Options { batch_max: fit, speculate: false, ..options.clone() })?;
    let begun = Instant::now();
    // The first step of all is slow: threads start and pages are touched.
    step_time(&engine, &mut steps, 0, 1);
    let mut times: Vec<(u32, f64)> = Vec::new();
    let mut rows = 1;
    // Two sizes are needed to see a trend.
    while rows <= fit && (times.len() < 2 || begun.elapsed() < BUDGET) {
        let Some(seconds) = step_time(&engine, &mut steps, rows.into(), rows) else { break };
        times.push((rows, seconds));
        rows *= 2;
    }
    let (batch_max, busy_at) = decide(&times, fit);
    info!(batch_max, busy_at, steps = ?times, took_ms = begun.elapsed().as_millis() as u64, "measured how steps grow");
    Ok(Calibration { batch_max, busy_at, steps: times })
}

/// The batch and when it is busy, from the times of steps of 1, 2, 4, … rows; at most `fit` sequences. Between and beyond what
/// was measured, times lie on straight lines.
fn decide(times: &[(u32, f64)], fit: u32) -> (u32, u32) {
    let Some(&(_, alone)) = times.first() else { return (fit, fit) };
    let speed = |rows: u32| f64::from(rows) / time_of(times, rows);
    let (mut batch_max, mut rows, mut worth) = (BATCH_LEAST.min(fit), BATCH_LEAST, 1.0);
    // One size that the machine stalled in does not end it: the next one may make up for it.
    while rows * 2 <= fit {
        (rows, worth) = (rows * 2, worth * GAIN);
        if speed(rows) >= worth * speed(batch_max) {
            (batch_max, worth) = (rows, 1.0);
        }
    }
    let busy_at = (1..=batch_max).take_while(|&rows| time_of(times, rows) <= SLOWDOWN * alone).last().unwrap_or(1);
    (batch_max, busy_at)
}

/// The seconds of a step of so many rows.
fn time_of(times: &[(u32, f64)], rows: u32) -> f64 {
    let at = times.partition_point(|&(measured, _)| measured < rows);
    let (from, to) = match times {
        [] => return 0.0,
        // One time says no more than that rows cost something.
        [(measured, seconds)] => return seconds * f64::from(rows) / f64::from(*measured),
        _ if at == 0 => return times[0].1,
        _ if at == times.len() => (times[at - 2], times[at - 1]),
        _ => (times[at - 1], times[at]),
    };
    let slope = ((to.1 - from.1) / f64::from(to.0 - from.0)).max(0.0);
    to.1 + slope * (f64::from(rows) - f64::from(to.0))
}

/// The quickest step with so many sequences; `None` where they never run together.
fn step_time(engine: &Engine, steps: &mut Receiver<Step>, series: u64, rows: u32) -> Option<f64> {
    for number in 0..u64::from(rows) {
        let prompt = vec![1 + (number % 200) as u32];
        engine.submit(Request::fixed(SequenceId((series << 32) + number), prompt, TOKENS));
    }
    let (mut ended, mut quickest, mut last) = (0, None, None::<Instant>);
    while ended < rows {
        let step = steps.blocking_recv()?;
        let now = Instant::now();
        let mut tokens = 0;
        for output in &step.outputs {
            match output {
                Output::Tokens { .. } => tokens += 1,
                Output::Finished { .. } | Output::Refused { .. } => ended += 1,
                _ => {}
            }
        }
        if tokens == rows
            && let Some(last) = last
        {
            let seconds = now.duration_since(last).as_secs_f64();
            quickest = Some(quickest.map_or(seconds, |quickest: f64| quickest.min(seconds)));
        }
        last = Some(now);
    }
    quickest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LoadOptions, Source};

    /// Times of `seconds` for 1, 2, 4, … rows.
    fn times(seconds: &[f64]) -> Vec<(u32, f64)> {
        seconds.iter().enumerate().map(|(at, seconds)| (1 << at, *seconds)).collect()
    }

    #[test]
    fn a_batch_grows_while_doubling_it_pays() {
        // 10 + rows: the doubling to 128 still gains 7 %, the one to 256 gains 4 %.
        assert_eq!(decide(&times(&[11.0, 12.0, 14.0, 18.0, 26.0, 42.0, 74.0]), 256), (128, 12));
        assert_eq!(decide(&times(&[10.0, 11.0, 13.0, 17.0, 25.0, 50.0]), 256), (16, 11));
    }

    #[test]
    fn what_was_not_measured_follows_the_last_line() {
        let all: Vec<(u32, f64)> = (0..8).map(|at| (1 << at, 10.0 + f64::from(1 << at))).collect();
        for known in 2..all.len() {
            assert_eq!(decide(&all[..known], 128), decide(&all, 128), "{known} sizes");
        }
    }

    #[test]
    fn rows_that_cost_as_much_together_as_alone_make_a_node_busy_and_the_least_batch() {
        assert_eq!(decide(&times(&[1.0, 2.0]), 64), (8, 2));
        assert_eq!(decide(&times(&[1.0]), 64), (8, 2));
    }

    #[test]
    fn a_size_in_which_the_machine_stalled_does_not_end_the_batch() {
        assert_eq!(decide(&times(&[11.0, 12.0, 14.0, 18.0, 60.0, 42.0]), 32).0, 32);
        assert_eq!(decide(&times(&[11.0, 90.0]), 256).0, 8);
    }

    #[test]
    fn memory_bounds_the_batch() {
        assert_eq!(decide(&times(&[1.0, 1.0, 1.0]), 5), (5, 5));
        assert_eq!(decide(&times(&[1.0, 1.0, 1.0, 1.0, 1.0]), 20), (16, 16));
        assert_eq!(decide(&[], 3), (3, 3));
    }

    #[test]
    fn noise_never_makes_time_fall() {
        let noisy = [(1, 1.0), (2, 0.9), (4, 1.2)];
        assert!((1..100).all(|rows| time_of(&noisy, rows) > 0.0 && time_of(&noisy, rows) <= time_of(&noisy, rows + 4)));
    }

    #[test]
    fn the_bundled_model_is_measured() {
        let model = Arc::new(Model::load(&Source::bundled(), &LoadOptions::default(), &crate::Progress::silent()).unwrap());
        let calibration = calibrate(&model, &Options { threads: Some(1), ..Options::default() }).unwrap();
        assert!(calibration.steps.len() >= 2, "{calibration:?}");
        assert!(1 <= calibration.busy_at && calibration.busy_at <= calibration.batch_max, "{calibration:?}");
        assert!(calibration.batch_max <= BATCH_MOST);
    }
}
