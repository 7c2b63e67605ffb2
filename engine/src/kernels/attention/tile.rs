//! Some queries against one head of keys and values, block by block of keys, without ever holding more scores than a block's
//! (Dao et al., FlashAttention, arXiv:2205.14135).
//!
//! What a query gets of a block depends on the query and the block alone: a score is one chain over the head's dimensions,
//! the greatest score and the exponentials are exact functions of the scores, their sum is taken page by page, and each output
//! is one chain over the block's keys. Blocks begin at fixed positions and are merged from the first on, whether one task
//! computes them all or each is another's. So it does not matter how many queries come at once, or on how many threads.

use std::ops::Range;

use super::keys::{BLOCK, Keys};
use crate::kernels::Shared;
use crate::kernels::kv_pages::{LINE, PAGE, Stored, padded};
use crate::kernels::pointwise::store_some;
use crate::kernels::simd::{Op, Simd};

/// The most queries of a tile.
const QUERIES_MAX: usize = 8;
/// The most lanes that there are.
const LANES_MAX: usize = 16;

/// How many queries a tile of an instruction set has at most: as many as leave room in its registers.
pub(super) struct Widest;

impl Op for Widest {
    type Output = usize;

    #[inline(always)]
    fn call<S: Simd>(self, _: S) -> usize {
        match S::TILE_ROWS {
            8.. => QUERIES_MAX,
            4.. => 4,
            _ => 2,
        }
    }
}

/// Up to `N` queries of one sequence that share a head of keys and values.
pub(super) struct Tile<'a, E, const N: usize> {
    pub(super) keys: Keys<'a, E>,
    pub(super) scale: f32,
    /// `[head_dim]` each. Where there are less than `N`, the last comes again.
    pub(super) queries: [&'a [f32]; N],
    /// How many keys each sees, from the sequence's first on; not descending.
    pub(super) sees: [usize; N],
    /// The blocks of keys to take.
    pub(super) blocks: Range<usize>,
    pub(super) output: Output<N>,
    pub(super) scratch: &'a mut Scratch,
}

/// Where results go.
#[derive(Clone, Copy)]
pub(super) enum Output<const N: usize> {
    /// Each query's `[head_dim]`; null where nobody wants it.
    Whole([Shared<f32>; N]),
    /// What [`Merge`] takes, for so many queries: `[blocks, queries, part_floats(head_dim)]`.
    Parts(Shared<f32>, usize),
}

/// Floats of what a query got of one block: weighted values, the greatest score, the sum of the weights.
pub(super) fn part_floats(head_dim: usize) -> usize {
    padded(head_dim) + 2
}

/// What a task computes in.
#[derive(Default)]
pub(super) struct Scratch {
    floats: Vec<f32>,
    /// Where the first cache line begins.
    start: usize,
}

impl Scratch {
    /// Scaled queries `[head_dim, N]`, scores `[N, BLOCK]`, and weighted values of all blocks so far and of one,
    /// `[N, padded(head_dim)]` each.
    fn parts(&mut self, head_dim: usize) -> [&mut [f32]; 4] {
        let width = QUERIES_MAX * padded(head_dim);
        let length = 3 * width + QUERIES_MAX * BLOCK;
        if self.floats.len() < length + LANES_MAX {
            self.floats = vec![0.0; length + LANES_MAX];
            self.start = self.floats.as_ptr().align_offset(LINE).min(LANES_MAX);
        }
        let (queries, rest) = self.floats[self.start..].split_at_mut(width);
        let (scores, rest) = rest.split_at_mut(QUERIES_MAX * BLOCK);
        let (whole, rest) = rest.split_at_mut(width);
        [queries, scores, whole, &mut rest[..width]]
    }
}

/// What some queries know of some keys.
#[derive(Clone, Copy)]
struct Sums {
    /// The greatest score, in octaves.
    most: [f32; LANES_MAX],
    /// Of the weights `2^(score - greatest)`; 0 where a query sees none of the keys.
    sum: [f32; LANES_MAX],
}

impl Sums {
    const NONE: Sums = Sums { most: [f32::NEG_INFINITY; LANES_MAX], sum: [0.0; LANES_MAX] };
}

impl<E: Stored, const N: usize> Op for Tile<'_, E, N> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let Tile { keys, scale, queries: given, sees, blocks, output, scratch } = self;
        let (dim, width) = (keys.head_dim, padded(keys.head_dim));
        assert!(N <= Widest.call(simd), "the plan cuts no wider tiles");
        let [queries, scores, whole, part] = scratch.parts(dim);
        // Weights are powers of two, which saves a multiplication each.
        let scale = scale * std::f32::consts::LOG2_E;
        let given = given.map(|query| &query[..dim]);
        for (d, scaled) in queries.chunks_exact_mut(N).enumerate().take(dim) {
            for (query, scaled) in given.iter().zip(scaled) {
                // SAFETY: each query is as long as was just seen. Checked, this loop takes as long as a tenth of the products.
                *scaled = unsafe { query.get_unchecked(d) } * scale;
            }
        }
        let mut all = Sums::NONE;
        for block in blocks.clone() {
            // How many of the block's keys each query sees.
            let own = sees.map(|sees| sees.saturating_sub(block * BLOCK).min(BLOCK));
            let pages = own[N - 1].div_ceil(PAGE);
            assert!(block * BLOCK / PAGE + pages <= keys.head.pages.len(), "the keys that are seen have pages");
            keys.scores::<S, N>(simd, block, pages, queries, scores);
            let mut here = Sums::NONE;
            for (i, own) in own.into_iter().enumerate().filter(|(_, own)| *own > 0) {
                let scores = &mut scores[i * BLOCK..(i + 1) * BLOCK];
                (here.most[i], here.sum[i]) = weights(simd, scores, own);
                if E::SCALED {
                    keys.scale_weights(simd, block, &mut scores[..own.next_multiple_of(PAGE)]);
                }
            }
            let first = block == blocks.start;
            let to = if first { &mut *whole } else { &mut *part };
            keys.values::<S, N>(simd, block, own, scores, to);
            match output {
                Output::Whole(_) if first => all = here,
                Output::Whole(_) => merge::<S, N>(simd, width, &mut all, whole, &here, part),
                Output::Parts(parts, count) => {
                    for (i, values) in to.chunks_exact(width).enumerate().take(count) {
                        let at = ((block - blocks.start) * count + i) * part_floats(dim);
                        // SAFETY: the caller has room for this block of this tile, and no other task has it.
                        let room = unsafe { std::slice::from_raw_parts_mut(parts.get().add(at), part_floats(dim)) };
                        room[..width].copy_from_slice(values);
                        room[width..].copy_from_slice(&[here.most[i], here.sum[i]]);
                    }
                }
            }
        }
        if let Output::Whole(outputs) = output {
            for (i, output) in outputs.into_iter().enumerate().filter(|(_, output)| !output.get().is_null()) {
                // SAFETY: the caller has room for this query's output, and no other task has it.
                let output = unsafe { std::slice::from_raw_parts_mut(output.get(), dim) };
                finish(simd, &whole[i * width..], all.sum[i], output);
            }
        }
    }
}

/// One query's parts, computed elsewhere, put together.
pub(super) struct Merge<'a> {
    /// A part for each block of keys, `stride` floats apart.
    pub(super) parts: &'a [f32],
    pub(super) stride: usize,
    /// `[head_dim]`.
    pub(super) output: &'a mut [f32],
}

impl Op for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let width = padded(self.output.len());
        let read = |part: &[f32]| {
            let mut sums = Sums::NONE;
            (sums.most[0], sums.sum[0]) = (part[width], part[width + 1]);
            sums
        };
        let mut parts = self.parts.chunks(self.stride);
        let first = parts.next().expect("every query sees the first block");
        let (mut all, mut whole) = (read(first), first[..width].to_vec());
        for part in parts {
            merge::<S, 1>(simd, width, &mut all, &mut whole, &read(part), part);
        }
        finish(simd, &whole, all.sum[0], self.output);
    }
}

/// Takes what `N` queries got of one more block up: `whole` and `part` are `[N, width]`.
#[inline(always)]
fn merge<S: Simd, const N: usize>(simd: S, width: usize, all: &mut Sums, whole: &mut [f32], here: &Sums, part: &[f32]) {
    let (mut before, mut now) = ([0.0; LANES_MAX], [0.0; LANES_MAX]);
    let most: [f32; LANES_MAX] = std::array::from_fn(|i| if here.most[i] > all.most[i] { here.most[i] } else { all.most[i] });
    for lanes in (0..N).step_by(S::LANES) {
        // SAFETY: all arrays hold the most lanes that there are, and `lanes` is 0 where an instruction set has so many.
        unsafe {
            let most = simd.load(most.as_ptr().add(lanes));
            let of = |sums: &Sums| simd.sub(simd.load(sums.most.as_ptr().add(lanes)), most);
            simd.store(before.as_mut_ptr().add(lanes), exp2(simd, of(all)));
            simd.store(now.as_mut_ptr().add(lanes), exp2(simd, of(here)));
        }
    }
    for i in 0..N {
        // Not a zero more where nothing was seen: minus zero would change by it.
        if here.sum[i] == 0.0 {
            continue;
        }
        all.most[i] = most[i];
        all.sum[i] = all.sum[i] * before[i] + here.sum[i] * now[i];
        let (before, now) = (simd.splat(before[i]), simd.splat(now[i]));
        let (whole, part) = (&mut whole[i * width..(i + 1) * width], &part[i * width..(i + 1) * width]);
        for (whole, part) in whole.chunks_exact_mut(S::LANES).zip(part.chunks_exact(S::LANES)) {
            // SAFETY: both chunks have `LANES` numbers.
            unsafe {
                let sum = simd.fma(simd.load(part.as_ptr()), now, simd.mul(simd.load(whole.as_ptr()), before));
                simd.store(whole.as_mut_ptr(), sum);
            }
        }
    }
}

/// Weighted values by the sum of their weights.
#[inline(always)]
fn finish<S: Simd>(simd: S, values: &[f32], sum: f32, output: &mut [f32]) {
    let inverse = simd.splat(1.0 / sum);
    for (values, output) in values.chunks_exact(S::LANES).zip(output.chunks_mut(S::LANES)) {
        // SAFETY: the chunk has `LANES` numbers.
        let values = simd.mul(unsafe { simd.load(values.as_ptr()) }, inverse);
        store_some(simd, output, values);
    }
}

/// A block's scores to weights `2^(score - greatest)`, of which the first `own` count; says the greatest and the sum.
#[inline(always)]
fn weights<S: Simd>(simd: S, scores: &mut [f32], own: usize) -> (f32, f32) {
    let scores = &mut scores[..own.next_multiple_of(PAGE)];
    scores[own..].fill(f32::NEG_INFINITY);
    let mut most = simd.splat(f32::NEG_INFINITY);
    for part in scores.chunks_exact(S::LANES) {
        // SAFETY: the part has `LANES` numbers.
        most = simd.max(most, unsafe { simd.load(part.as_ptr()) });
    }
    let most = simd.most(most);
    let mut sum = simd.splat(0.0);
    for part in scores.chunks_exact_mut(S::LANES) {
        // SAFETY: the part has `LANES` numbers.
        unsafe {
            let weight = exp2(simd, simd.sub(simd.load(part.as_ptr()), simd.splat(most)));
            simd.store(part.as_mut_ptr(), weight);
            sum = simd.add(sum, weight);
        }
    }
    (most, simd.sum(sum))
}

/// 2^x for x ≤ 0, within two units in the last place, and exactly 0 from -126.5 down. The polynomial is the one of its degree
/// that is nearest to 2^x on ±1/2, relatively, of those that are 1 at 0.
#[inline(always)]
#[allow(clippy::approx_constant, reason = "nearest as a polynomial, not as a series")]
fn exp2<S: Simd>(simd: S, x: S::F) -> S::F {
    // In this order NaN stays NaN.
    let x = simd.max(simd.splat(-127.0), x);
    let n = simd.round(x);
    let r = simd.sub(x, n);
    let mut p = simd.splat(0.001_326_466_4);
    for coefficient in [0.009_671_512, 0.055_507_34, 0.240_222_42, 0.693_147, 1.0] {
        p = simd.fma(p, r, simd.splat(coefficient));
    }
    // -127 makes a zero: there are no smaller normal numbers.
    simd.mul(p, simd.exp2(n))
}
