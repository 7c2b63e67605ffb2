//! The distribution that tokens are drawn from: temperature, top-k, top-p and min-p over logits, in the order in which
//! transformers applies them.

use std::cmp::Ordering;

use super::peaks::Peaks;
use crate::request::Sampling;

/// Weights are summed by blocks, so that a draw looks at a few hundred of them and not at the whole vocabulary.
const BLOCK: usize = 256;

/// The token at `uniform` (in [0, 1)) of the distribution. `logits` are finite, and spent.
pub(super) fn draw(sampling: &Sampling, uniform: f64, logits: &mut [f32], peaks: &Peaks) -> u32 {
    let scale = Scale { max: peaks.most(), inverse: 1.0 / sampling.temperature };
    // The most probable token's weight is 1, so a weight is its share of it.
    let least = sampling.min_p.min(1.0);
    let top_k = sampling.top_k as usize;
    if top_k > 0 && top_k < logits.len() {
        let kept = largest(logits, peaks, top_k);
        let mut weights: Vec<f32> = kept.iter().map(|&(logit, _)| scale.weight(logit)).collect();
        if sampling.top_p < 1.0 {
            let enough = f64::from(sampling.top_p) * sum(&weights, |weight| weight);
            weights.truncate(reached(weights.iter().copied(), enough).map_or(weights.len(), |last| last + 1));
        }
        let probable = weights.iter().take_while(|&&weight| weight >= least).count().max(1);
        weights.truncate(probable);
        return pick(&weights, uniform).map_or(kept[0].1, |index| kept[index].1);
    }
    for logit in logits.iter_mut() {
        *logit = scale.weight(*logit);
    }
    let weights = logits;
    if sampling.top_p < 1.0 {
        keep_nucleus(weights, sampling.top_p);
    }
    if least > 0.0 {
        for weight in weights.iter_mut() {
            *weight = if *weight >= least { *weight } else { 0.0 };
        }
    }
    pick(weights, uniform).map_or(0, |token| token as u32)
}

/// Sets all weights to 0 but the largest ones that together make `top_p` of the sum; of equals the lowest ids stay. Sorts
/// no more than a sixteenth of an octave of them: the weights are added up by their size first, and only where the sum is
/// reached does it matter which of two is larger.
fn keep_nucleus(weights: &mut [f32], top_p: f32) {
    // Positive floats are ordered like their bits: sign, exponent and 4 bits of mantissa number 1/16 of an octave.
    let bucket = |weight: f32| ((weight.to_bits() >> 19) as usize).min(BUCKETS - 1);
    let mut sums = vec![0f64; BUCKETS];
    for &weight in weights.iter() {
        sums[bucket(weight)] += f64::from(weight);
    }
    let enough = f64::from(top_p) * sums.iter().sum::<f64>();
    let mut covered = 0.0;
    let Some(edge) = (0..BUCKETS).rev().find(|&number| {
        covered += sums[number];
        covered >= enough && covered > 0.0
    }) else {
        return;
    };
    covered -= sums[edge];
    let mut at_edge: Vec<(f32, usize)> = weights
        .iter()
        .enumerate()
        .filter(|&(_, &weight)| bucket(weight) == edge)
        .map(|(token, &weight)| (weight, token))
        .collect();
    at_edge.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    // At least one where nothing is covered yet: the most probable token always stays.
    let stay = reached(at_edge.iter().map(|&(weight, _)| weight), enough - covered).map_or(at_edge.len(), |last| last + 1);
    for weight in weights.iter_mut() {
        if bucket(*weight) < edge {
            *weight = 0.0;
        }
    }
    for &(_, token) in &at_edge[stay..] {
        weights[token] = 0.0;
    }
}

/// One more than the bucket of 1.0, the largest weight.
const BUCKETS: usize = (0x3F80_0000 >> 19) + 1;

/// Where a running sum reaches `enough`.
fn reached(mut weights: impl Iterator<Item = f32>, enough: f64) -> Option<usize> {
    let mut covered = 0.0;
    weights.position(|weight| {
        covered += f64::from(weight);
        covered >= enough
    })
}

/// Logits to weights: exp((logit - max) / temperature), 1 for the most probable.
struct Scale {
    max: f32,
    inverse: f32,
}

impl Scale {
    fn weight(&self, logit: f32) -> f32 {
        exp((logit - self.max) * self.inverse)
    }
}

/// The `count` largest logits with their tokens, largest first, of equals the lowest id first.
pub(super) fn largest(logits: &[f32], peaks: &Peaks, count: usize) -> Vec<(f32, u32)> {
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1));
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    // A threshold that rises: most blocks cost one comparison, and almost every logit of the others.
    let room = count * 2 + 64;
    let mut kept: Vec<(f32, u32)> = Vec::with_capacity(room.min(logits.len()));
    let mut threshold = peaks.bound(count);
    for (peak, first, block) in peaks.blocks(logits) {
        if peak < threshold {
            continue;
        }
        for (token, &logit) in (first..).zip(block) {
            if logit < threshold {
                continue;
            }
            kept.push((logit, token as u32));
            if kept.len() == room {
                let (_, last, _) = kept.select_nth_unstable_by(count - 1, order);
                threshold = last.0;
                kept.truncate(count);
            }
        }
    }
    kept.sort_unstable_by(order);
    kept.truncate(count);
    kept
}

/// The index at which the running sum of weights passes `uniform` of the whole; `None` where all are zero.
fn pick(weights: &[f32], uniform: f64) -> Option<usize> {
    let blocks: Vec<f64> = weights.chunks(BLOCK).map(|block| sum(block, |weight| weight)).collect();
    let mut left = uniform * blocks.iter().sum::<f64>();
    for (number, &block) in blocks.iter().enumerate() {
        if left < block {
            let start = number * BLOCK;
            let block = &weights[start..weights.len().min(start + BLOCK)];
            for (index, &weight) in block.iter().enumerate() {
                left -= f64::from(weight);
                if left < 0.0 {
                    return Some(start + index);
                }
            }
            // Rounding: the block's sum was a trifle more than its parts.
            return block.iter().rposition(|&weight| weight > 0.0).map(|index| start + index);
        }
        left -= block;
    }
    weights.iter().rposition(|&weight| weight > 0.0)
}

/// The sum of a function of all values. Eight running sums side by side, added at the end: the same on every machine, and
/// quick.
pub(super) fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0f64; 8];
    let chunks = values.chunks_exact(lanes.len());
    let rest: f64 = chunks.remainder().iter().map(|&value| f64::from(of(value))).sum();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(of(value));
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// e^x for x ≤ 0, within two units in the last place, and the same bits on every platform: the system's `expf` is neither
/// the same everywhere nor vectorised. Polynomial and reduction by S. L. Moshier's Cephes (expf.c). Below e^-87, the edge
/// of normal numbers, it is 0.
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it leaves the nearest integer in the low bits
    let clamped = x.clamp(-87.0, 0.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x >= -87.0 { p * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_within_two_units_in_the_last_place() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::NAN), 0.0);
        for step in 0..870_000 {
            let x = step as f32 * -1e-4;
            let want = f64::from(x).exp();
            let ulp = f64::from(f32::EPSILON) * 2f64.powi(want.log2().floor() as i32);
            assert!((f64::from(exp(x)) - want).abs() <= 2.0 * ulp, "{x}: {} against {want}", exp(x));
        }
    }

    #[test]
    fn a_nucleus_is_that_of_a_full_sort() {
        for (len, top_p) in [(1, 0.5), (2, 0.0), (300, 0.3), (300, 0.999), (5000, 0.9), (5000, 1e-9), (5000, 0.999_999)] {
            for spread in [0.01f32, 1.0, 60.0] {
                let unit = |i: u32| i.wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32;
                let mut weights: Vec<f32> = (0..len).map(|i| exp(-(unit(i) * 64.0).floor() / 64.0 * spread)).collect();
                let mut sorted: Vec<(f32, usize)> = weights.iter().copied().zip(0..).collect();
                sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                let total: f64 = sorted.iter().map(|&(weight, _)| f64::from(weight)).sum();
                let mut before = 0.0;
                let mut want = vec![0.0; weights.len()];
                for (rank, &(weight, token)) in sorted.iter().enumerate() {
                    if rank == 0 || before < f64::from(top_p as f32) * total - 1e-9 {
                        want[token] = weight;
                    }
                    before += f64::from(weight);
                }
                keep_nucleus(&mut weights, top_p as f32);
                assert_eq!(weights, want, "{len} {top_p} {spread}");
            }
        }
    }

    #[test]
    fn the_largest_are_those_of_a_full_sort() {
        for (len, count) in [(1, 1), (10, 3), (1000, 1), (1000, 64), (5000, 700), (5000, 5000), (64, 100)] {
            // Few distinct values, so that ties are common.
            let logits: Vec<f32> = (0..len).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as f32).collect();
            let mut sorted: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
            sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            sorted.truncate(count);
            assert_eq!(largest(&logits, &Peaks::new(&logits).unwrap(), count), sorted, "{count} of {len}");
        }
    }
}
