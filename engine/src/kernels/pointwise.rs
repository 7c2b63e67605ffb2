//! Exponential, GELU, SwiGLU, and vectors at the ends of rows.

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

/// `x / (1 + e^-x)` (Elfwing et al., arXiv:1702.03118).
#[inline(always)]
fn silu<S: Simd>(simd: S, x: S::F) -> S::F {
    simd.div(x, simd.add(simd.splat(1.0), exp(simd, simd.sub(simd.splat(0.0), x))))
}

/// Of each row of `x` (`[rows, 2 * width]`: gate, up), `silu(gate) * up` (Shazeer, arXiv:2002.05202): `[rows, width]`.
pub(crate) fn swiglu(isa: Isa, pool: &Pool, x: &[f32], width: usize) -> Vec<f32> {
    assert!(width > 0 && x.len().is_multiple_of(2 * width), "rows of gate and up");
    let _span = profile::span(|| {
        // An exponential and a division: some twenty operations for each pair.
        let work = Work { bytes: size_of_val(x) as u64 * 3 / 2, operations: 10 * x.len() as u64, arithmetic: Arithmetic::F32 };
        (Part::SwiGlu, work)
    });
    let mut out = vec![0.0; x.len() / 2];
    each_row(isa, pool, &mut out, width, |row, out| {
        let (gate, up) = x[row * 2 * width..(row + 1) * 2 * width].split_at(width);
        SwiGlu { gate, up, out }
    });
    out
}

struct SwiGlu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Op for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let parts = self.gate.chunks(S::LANES).zip(self.up.chunks(S::LANES));
        for ((gate, up), out) in parts.zip(self.out.chunks_mut(S::LANES)) {
            store_some(simd, out, simd.mul(silu(simd, load_some(simd, gate)), load_some(simd, up)));
        }
    }
}

/// Runs an operation on each row of `out` (`[rows, width]`), on several threads where that is worth it.
pub(super) fn each_row<'a, O: Op<Output = ()>>(
    isa: Isa,
    pool: &Pool,
    out: &'a mut [f32],
    width: usize,
    op: impl Fn(usize, &'a mut [f32]) -> O + Sync,
) {
    let rows = out.len() / width;
    let shared = Shared(out.as_mut_ptr());
    // A row takes some hundred nanoseconds; waking anybody for a few of them costs more.
    let tasks = if rows < 8 { 1 } else { tasks_for(pool, rows) };
    pool.run(tasks, &|task| {
        for row in part(rows, task, tasks) {
            // SAFETY: the row lies within `out`, which is borrowed for as long, and no other task has it.
            let row_out = unsafe { std::slice::from_raw_parts_mut(shared.get().add(row * width), width) };
            isa.run(op(row, row_out));
        }
    });
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
    if to.len() == S::LANES {
        // SAFETY: there is room for `LANES` numbers.
        return unsafe { simd.store(to.as_mut_ptr(), x) };
    }
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
    fn swiglu_agrees_with_the_plain_one_and_a_row_does_not_depend_on_its_neighbours() {
        let pool = Pool::new(3).unwrap();
        for isa in Isa::all() {
            for width in [1, 2, 7, 8, 15, 16, 17, 100, 769] {
                let x: Vec<f32> = (0..width * 22).map(|i| (i * 7919 % 1009) as f32 / 5.0 - 100.0).collect();
                let all = swiglu(isa, &pool, &x, width);
                for (row, out) in x.chunks(2 * width).zip(all.chunks(width)) {
                    for i in 0..width {
                        let (gate, up) = (f64::from(row[i]), f64::from(row[width + i]));
                        let want = gate / (1.0 + (-gate).exp()) * up;
                        assert!((f64::from(out[i]) - want).abs() <= 1e-6 * want.abs() + 1e-30, "{isa}: {} and {want}", out[i]);
                    }
                    assert_eq!(swiglu(isa, &pool, row, width), out);
                }
            }
        }
    }
}
