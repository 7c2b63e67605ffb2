//! Exponential, GELU, layer norm.

use super::simd::{Op, Simd};
use super::{Isa, Pool, Shared, part, tasks_for};
use crate::profile::{self, Arithmetic, Part, Work};

/// e^x for x ≤ 88; 0 is never reached, 2^-126 is the least. Cody and Waite's reduction, and Cephes' polynomial (`expf.c`):
/// within two units in the last place.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    let x = simd.max(simd.min(x, simd.splat(88.0)), simd.splat(-87.0));
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first of which times n is exact.
    let r = simd.fma(n, simd.splat(-0.693_359_4), x);
    let r = simd.fma(n, simd.splat(2.121_944_4e-4), r);
    let mut p = simd.splat(1.987_569_1e-4);
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = simd.fma(p, r, simd.splat(coefficient));
    }
    let p = simd.fma(simd.mul(p, r), r, simd.add(r, simd.splat(1.0)));
    simd.mul(p, simd.exp2(n))
}

/// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))` (Hendrycks and Gimpel, arXiv:1606.08415), as `x / (1 + e^-2u)`.
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, x: S::F) -> S::F {
    let cubic = simd.fma(simd.mul(simd.mul(x, x), simd.splat(0.044_715)), x, x);
    let u2 = simd.mul(cubic, simd.splat(-2.0 * 0.797_884_6));
    simd.div(x, simd.add(simd.splat(1.0), exp(simd, u2)))
}

/// Each row of `x` (`[rows, weight.len()]`) brought to mean 0 and variance 1, times weight, plus bias
/// (Ba et al., arXiv:1607.06450).
pub(crate) fn layer_norm(isa: Isa, pool: &Pool, x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weight.len();
    assert!(width > 0 && bias.len() == width && x.len().is_multiple_of(width), "rows of the weight's length");
    let rows = x.len() / width;
    let _span = profile::span(|| {
        // Mean, variance, and what is made of them: some eight operations a number.
        let work = Work { bytes: 2 * size_of_val(x) as u64, operations: 8 * x.len() as u64, arithmetic: Arithmetic::F32 };
        (Part::Norm, work)
    });
    let mut out = vec![0.0; x.len()];
    let shared = Shared(out.as_mut_ptr());
    // A row takes some hundred nanoseconds; waking anybody for a few of them costs more.
    let tasks = if rows < 8 { 1 } else { tasks_for(pool, rows) };
    pool.run(tasks, &|task| {
        for row in part(rows, task, tasks) {
            // SAFETY: the row lies within `out`, and no other task has it.
            let out = unsafe { std::slice::from_raw_parts_mut(shared.get().add(row * width), width) };
            isa.run(LayerNorm { x: &x[row * width..(row + 1) * width], weight, bias, epsilon, out });
        }
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

/// Up to `LANES` numbers, and zeroes.
#[inline(always)]
pub(super) fn load_some<S: Simd>(simd: S, from: &[f32]) -> S::F {
    if from.len() >= S::LANES {
        // SAFETY: there are `LANES` numbers.
        return unsafe { simd.load(from.as_ptr()) };
    }
    let mut lanes = [0.0; 16];
    lanes[..from.len()].copy_from_slice(from);
    // SAFETY: `lanes` holds the most lanes that there are.
    unsafe { simd.load(lanes.as_ptr()) }
}

/// The first lanes, as many as `to` holds.
#[inline(always)]
pub(super) fn store_some<S: Simd>(simd: S, to: &mut [f32], x: S::F) {
    let mut lanes = [0.0; 16];
    // SAFETY: `lanes` holds the most lanes that there are.
    unsafe { simd.store(lanes.as_mut_ptr(), x) };
    to.copy_from_slice(&lanes[..to.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Map<'a, const GELU: bool>(&'a [f32], &'a mut [f32]);

    impl<const GELU: bool> Op for Map<'_, GELU> {
        type Output = ();

        #[inline(always)]
        fn call<S: Simd>(self, simd: S) {
            for (x, y) in self.0.chunks(S::LANES).zip(self.1.chunks_mut(S::LANES)) {
                let x = load_some(simd, x);
                store_some(simd, y, if GELU { gelu(simd, x) } else { exp(simd, x) });
            }
        }
    }

    fn grid() -> Vec<f32> {
        (0..100_001).map(|i| -87.0 + 175.0 * i as f32 / 100_000.0).collect()
    }

    #[test]
    fn exp_is_within_three_units_in_the_last_place() {
        let x = grid();
        for isa in Isa::all() {
            let mut y = vec![0.0; x.len()];
            isa.run(Map::<false>(&x, &mut y));
            for (x, y) in x.iter().zip(&y) {
                let exact = f64::from(*x).exp();
                let error = (f64::from(*y) - exact).abs() / exact;
                assert!(error < 3.0 * f64::from(f32::EPSILON) / 2.0, "{isa}: exp({x}) is {exact}, not {y}");
            }
        }
    }

    #[test]
    fn gelu_is_as_exact_as_f32_allows() {
        let x: Vec<f32> = grid().into_iter().map(|x| x / 8.0).chain([-1e30, -100.0, 0.0, 100.0, 1e30]).collect();
        for isa in Isa::all() {
            let mut y = vec![0.0; x.len()];
            isa.run(Map::<true>(&x, &mut y));
            for (x, y) in x.iter().zip(&y) {
                let x = f64::from(*x);
                let exact = 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
                assert!((f64::from(*y) - exact).abs() <= 1e-6 * exact.abs().max(0.5), "{isa}: gelu({x}) is {exact}, not {y}");
            }
        }
    }

    #[test]
    fn layer_norm_agrees_with_the_plain_one_and_a_row_does_not_depend_on_its_neighbours() {
        let pool = Pool::new(3).unwrap();
        for isa in Isa::all() {
            for width in [1, 2, 7, 8, 15, 16, 17, 64, 100, 769] {
                let noise = |seed: usize, n: usize| -> Vec<f32> {
                    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 250.0 - 2.0).collect()
                };
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
}
