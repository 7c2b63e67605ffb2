//! Layer norm and root-mean-square norm: every row by itself.

use super::pointwise::{each_row, load_some, store_some};
use super::simd::{Op, Simd};
use super::{Isa, Pool};
use crate::profile::{self, Arithmetic, Part, Work};

/// Each row of `x` (`[rows, weight.len()]`) brought to mean 0 and variance 1, times weight, plus bias
/// (Ba et al., arXiv:1607.06450).
pub(crate) fn layer_norm(isa: Isa, pool: &Pool, x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weight.len();
    assert!(width > 0 && bias.len() == width && x.len().is_multiple_of(width), "rows of the weight's length");
    let _span = profile::span(|| {
        // Mean, variance, and what is made of them: some eight operations a number.
        let work = Work { bytes: 2 * size_of_val(x) as u64, operations: 8 * x.len() as u64, arithmetic: Arithmetic::F32 };
        (Part::Norm, work)
    });
    let mut out = vec![0.0; x.len()];
    each_row(isa, pool, &mut out, width, |row, out| {
        let x = &x[row * width..(row + 1) * width];
        LayerNorm { x, weight, bias, epsilon, out }
    });
    out
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Op for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let LayerNorm { x, weight, bias, epsilon, out } = self;
        let width = x.len();
        let mean = reduce(simd, x, simd.splat(0.0), false) / width as f32;
        let variance = reduce(simd, x, simd.splat(mean), true) / width as f32;
        let (mean, scale) = (simd.splat(mean), simd.splat(1.0 / (variance + epsilon).sqrt()));
        let mut at = 0;
        while at + S::LANES <= width {
            // SAFETY: `at + LANES` is within the row, and all four slices have its length.
            unsafe {
                let x = simd.load(x.as_ptr().add(at));
                let normal = simd.mul(simd.sub(x, mean), scale);
                let y = simd.fma(normal, simd.load(weight.as_ptr().add(at)), simd.load(bias.as_ptr().add(at)));
                simd.store(out.as_mut_ptr().add(at), y);
            }
            at += S::LANES;
        }
        if at < width {
            let normal = simd.mul(simd.sub(load_some(simd, &x[at..]), mean), scale);
            let y = simd.fma(normal, load_some(simd, &weight[at..]), load_some(simd, &bias[at..]));
            store_some(simd, &mut out[at..], y);
        }
    }
}

/// Each row of `x` (`[rows, weight.len()]`) brought to mean square 1, times weight (Zhang and Sennrich, arXiv:1910.07467).
pub(crate) fn rms_norm(isa: Isa, pool: &Pool, x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weight.len();
    assert!(width > 0 && x.len().is_multiple_of(width), "rows of the weight's length");
    let _span = profile::span(|| {
        let work = Work { bytes: 2 * size_of_val(x) as u64, operations: 4 * x.len() as u64, arithmetic: Arithmetic::F32 };
        (Part::Norm, work)
    });
    let mut out = vec![0.0; x.len()];
    each_row(isa, pool, &mut out, width, |row, out| {
        let x = &x[row * width..(row + 1) * width];
        RmsNorm { x, weight, epsilon, out }
    });
    out
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Op for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let scale = simd.splat(root_mean_square_inverse(simd, self.x, self.epsilon));
        let parts = self.x.chunks(S::LANES).zip(self.weight.chunks(S::LANES));
        for ((x, weight), out) in parts.zip(self.out.chunks_mut(S::LANES)) {
            store_some(simd, out, simd.mul(load_some(simd, weight), simd.mul(load_some(simd, x), scale)));
        }
    }
}

/// What brings a row to mean square 1.
#[inline(always)]
pub(super) fn root_mean_square_inverse<S: Simd>(simd: S, x: &[f32], epsilon: f32) -> f32 {
    1.0 / (reduce(simd, x, simd.splat(0.0), true) / x.len() as f32 + epsilon).sqrt()
}

/// Σ (x - shift), or of its squares, in four chains of vectors.
#[inline(always)]
fn reduce<S: Simd>(simd: S, x: &[f32], shift: S::F, square: bool) -> f32 {
    let mut sums = [simd.splat(0.0); 4];
    let mut turns = x.chunks_exact(4 * S::LANES);
    for turn in &mut turns {
        for (vector, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the turn has four times `LANES` numbers.
            let d = simd.sub(unsafe { simd.load(turn.as_ptr().add(vector * S::LANES)) }, shift);
            *sum = if square { simd.fma(d, d, *sum) } else { simd.add(*sum, d) };
        }
    }
    let mut chunks = turns.remainder().chunks_exact(S::LANES);
    for (chunk, sum) in (&mut chunks).zip(&mut sums) {
        // SAFETY: the chunk has `LANES` numbers.
        let d = simd.sub(unsafe { simd.load(chunk.as_ptr()) }, shift);
        *sum = if square { simd.fma(d, d, *sum) } else { simd.add(*sum, d) };
    }
    let mut sum = simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])));
    let mut one = [0.0; 16];
    // SAFETY: `one` holds the most lanes that there are.
    unsafe { simd.store(one.as_mut_ptr(), shift) };
    for x in chunks.remainder() {
        let d = x - one[0];
        sum += if square { d * d } else { d };
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: usize, n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 250.0 - 2.0).collect()
    }

    #[test]
    fn layer_norm_agrees_with_the_plain_one_and_a_row_does_not_depend_on_its_neighbours() {
        let pool = Pool::new(3).unwrap();
        for isa in Isa::all() {
            for width in [1, 2, 7, 8, 15, 16, 17, 64, 100, 769] {
                let (x, weight, bias) = (noise(1, width * 11), noise(2, width), noise(3, width));
                let all = layer_norm(isa, &pool, &x, &weight, &bias, 1e-5);
                for (row, out) in x.chunks(width).zip(all.chunks(width)) {
                    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
                    let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let want =
                            (f64::from(row[i]) - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]) + f64::from(bias[i]);
                        assert!((f64::from(out[i]) - want).abs() < 2e-4, "{isa} {width}: {} and {want}", out[i]);
                    }
                    assert_eq!(layer_norm(isa, &pool, row, &weight, &bias, 1e-5), out);
                }
            }
        }
    }

    #[test]
    fn rms_norm_agrees_with_the_plain_one_and_a_row_does_not_depend_on_its_neighbours() {
        let pool = Pool::new(3).unwrap();
        for isa in Isa::all() {
            for width in [1, 2, 7, 8, 15, 16, 17, 64, 100, 769] {
                let (x, weight) = (noise(1, width * 11), noise(2, width));
                let all = rms_norm(isa, &pool, &x, &weight, 1e-5);
                for (row, out) in x.chunks(width).zip(all.chunks(width)) {
                    let square = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let want = f64::from(row[i]) / (square + 1e-5).sqrt() * f64::from(weight[i]);
                        assert!((f64::from(out[i]) - want).abs() < 1e-5, "{isa} {width}: {} and {want}", out[i]);
                    }
                    assert_eq!(rms_norm(isa, &pool, row, &weight, 1e-5), out);
                }
            }
        }
    }
}
