//! Some queries against one head of keys and values, block by block of keys, without ever holding more scores than a block's
//! (Dao et al., FlashAttention, arXiv:2205.14135).
//!
//! What a query gets of a block depends on the query and the block alone: a score is one chain over the head's dimensions,
//! the greatest score and the exponentials are exact functions of the scores, their sum is taken page by page, and each output
//! is one chain over the block's keys. Blocks begin at fixed positions and are merged from the first on, whether one task
//! computes them all or each is another's. So it does not matter how many queries come at once, or on how many threads.

use std::marker::PhantomData;
use std::ops::Range;

use crate::kernels::Shared;
use crate::kernels::kv_pages::{HeadLayout, PAGE, Stored, padded};
use crate::kernels::pointwise::store_some;
use crate::kernels::simd::{Op, Simd};

/// Keys whose scores are in memory together: with eight queries a quarter of the first cache. Shorter ones, and merging them
/// shows.
pub(super) const BLOCK: usize = 256;
const BLOCK_PAGES: usize = BLOCK / PAGE;
/// The most queries of a tile.
const QUERIES_MAX: usize = 8;
/// The most lanes that there are.
const LANES_MAX: usize = 16;
const LINE: usize = 64;
/// How many pages of values are on their way before they are needed.
const PAGES_AHEAD: usize = 2;

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

/// One head of a sequence's keys and values.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    /// The head in the first of all pages.
    pub(super) memory: Shared<u8>,
    pub(super) page_bytes: usize,
    pub(super) layout: HeadLayout,
    /// Position `p` is in `pages[p / PAGE]`.
    pub(super) pages: &'a [u32],
}

impl Head<'_> {
    /// This head in one of the sequence's pages; anywhere where there is no such page.
    #[inline(always)]
    pub(super) fn page(&self, page: usize) -> *const u8 {
        let page = self.pages.get(page).map_or(0, |page| *page as usize);
        self.memory.get().wrapping_add(page * self.page_bytes)
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
            assert!(block * BLOCK_PAGES + pages <= keys.head.pages.len(), "the keys that are seen have pages");
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

/// A head of keys and values as numbers of a type.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a, E> {
    pub(super) head: Head<'a>,
    pub(super) head_dim: usize,
    /// What is wanted next, so that it can be on its way.
    pub(super) next: Head<'a>,
    pub(super) stored: PhantomData<E>,
}

impl<E: Stored> Keys<'_, E> {
    /// Dimensions of a page's keys in a cache line.
    const LINE_DIMS: usize = LINE / (PAGE * size_of::<E>());

    /// The scores of `N` queries with the first `pages` pages of a block.
    #[inline(always)]
    fn scores<S: Simd, const N: usize>(&self, simd: S, block: usize, pages: usize, queries: &[f32], scores: &mut [f32]) {
        assert!(queries.len() >= N * self.head_dim && scores.len() >= N * BLOCK && pages <= BLOCK_PAGES);
        let mut page = 0;
        while page < pages {
            let left = pages - page;
            // As many vectors of keys as leave the registers room for all sums, and few enough queries' at least four.
            page += match (S::LANES, N) {
                (16, ..=4) if left >= 4 => self.score::<S, N, 4>(simd, block, page, pages, queries, scores),
                (16, _) if left >= 2 => self.score::<S, N, 2>(simd, block, page, pages, queries, scores),
                (16, _) => self.score::<S, N, 1>(simd, block, page, pages, queries, scores),
                (_, ..=2) if left >= 2 => self.score::<S, N, 4>(simd, block, page, pages, queries, scores),
                _ => self.score::<S, N, 2>(simd, block, page, pages, queries, scores),
            };
        }
    }

    /// The scores with `VECTORS` vectors of keys from a page on; says how many pages that were.
    #[inline(always)]
    fn score<S: Simd, const N: usize, const VECTORS: usize>(
        &self,
        simd: S,
        block: usize,
        page: usize,
        pages: usize,
        queries: &[f32],
        scores: &mut [f32],
    ) -> usize {
        let here = VECTORS * S::LANES / PAGE;
        let (mut keys, mut ahead) = ([std::ptr::null::<E>(); VECTORS], [std::ptr::null::<u8>(); VECTORS]);
        for vector in 0..VECTORS {
            let at = vector * S::LANES;
            keys[vector] = self.head.page(block * BLOCK_PAGES + page + at / PAGE).cast::<E>().wrapping_add(at % PAGE);
            // The keys behind these, or the first values.
            let then = page + here + at / PAGE;
            ahead[vector] = if then < pages {
                self.head.page(block * BLOCK_PAGES + then)
            } else {
                self.head.page(block * BLOCK_PAGES + then - pages).wrapping_add(self.head.layout.values)
            };
        }
        let mut sums = [[simd.splat(0.0); VECTORS]; N];
        let queries = queries.as_ptr();
        let whole_lines = self.head_dim / Self::LINE_DIMS;
        // SAFETY: `scores` holds queries and scores to their lengths, and `call` has seen that the pages are there.
        unsafe {
            for line in 0..whole_lines {
                // The processor's own prefetching stops at the borders of its pages, and a head is about one of them.
                for ahead in ahead.iter().step_by(PAGE / S::LANES) {
                    simd.prefetch(ahead.wrapping_add(line * LINE).cast());
                }
                for d in 0..Self::LINE_DIMS {
                    step::<S, E, N, VECTORS>(simd, &keys, queries, line * Self::LINE_DIMS + d, &mut sums);
                }
            }
            for d in whole_lines * Self::LINE_DIMS..self.head_dim {
                step::<S, E, N, VECTORS>(simd, &keys, queries, d, &mut sums);
            }
            for vector in 0..VECTORS {
                let at = vector * S::LANES;
                let scale = if E::SCALED {
                    let page = self.head.page(block * BLOCK_PAGES + page + at / PAGE);
                    simd.load(page.add(self.head.layout.key_scales).cast::<f32>().add(at % PAGE))
                } else {
                    simd.splat(1.0)
                };
                for (i, sums) in sums.iter().enumerate() {
                    let score = if E::SCALED { simd.mul(sums[vector], scale) } else { sums[vector] };
                    simd.store(scores.as_mut_ptr().add(i * BLOCK + page * PAGE + at), score);
                }
            }
        }
        here
    }

    /// Times the scales of the values that the weights are for, page by page.
    #[inline(always)]
    fn scale_weights<S: Simd>(&self, simd: S, block: usize, weights: &mut [f32]) {
        for (number, part) in weights.chunks_exact_mut(S::LANES).enumerate() {
            let at = number * S::LANES;
            let page = self.head.page(block * BLOCK_PAGES + at / PAGE);
            // SAFETY: the part has `LANES` numbers, and `call` has seen that the page is there.
            unsafe {
                let scales = simd.load(page.add(self.head.layout.value_scales).cast::<f32>().add(at % PAGE));
                simd.store(part.as_mut_ptr(), simd.mul(simd.load(part.as_ptr()), scales));
            }
        }
    }

    /// The weighted values of a block for `N` queries, each over as many of its keys as it sees: `[N, padded(head_dim)]`.
    #[inline(always)]
    fn values<S: Simd, const N: usize>(&self, simd: S, block: usize, own: [usize; N], weights: &[f32], to: &mut [f32]) {
        let width = padded(self.head_dim);
        assert!(weights.len() >= N * BLOCK && to.len() >= N * width);
        let mut d = 0;
        while d < width {
            let left = (width - d) / S::LANES;
            d += S::LANES
                * match (S::LANES, N) {
                    (16, ..=4) | (_, ..=2) if left >= 4 => self.value::<S, N, 4>(simd, block, own, d, weights, to),
                    _ if left >= 2 => self.value::<S, N, 2>(simd, block, own, d, weights, to),
                    _ => self.value::<S, N, 1>(simd, block, own, d, weights, to),
                };
        }
    }

    /// `VECTORS` vectors of them, from dimension `d` on; says how many.
    #[inline(always)]
    fn value<S: Simd, const N: usize, const VECTORS: usize>(
        &self,
        simd: S,
        block: usize,
        own: [usize; N],
        d: usize,
        weights: &[f32],
        to: &mut [f32],
    ) -> usize {
        let width = padded(self.head_dim);
        // SAFETY: `values` holds weights and sums to their lengths, d and the vectors lie within a value's padded length, and
        // `call` has seen that the pages are there.
        unsafe {
            let mut sums = [[simd.splat(0.0); VECTORS]; N];
            // Keys that all queries see, then for each query those that only later ones see too.
            self.add_values(simd, block, 0..own[0], d, weights.as_ptr(), own[N - 1], &mut sums);
            for (i, sums) in sums.iter().enumerate() {
                for (vector, sum) in sums.iter().enumerate() {
                    simd.store(to.as_mut_ptr().add(i * width + d + vector * S::LANES), *sum);
                }
            }
            for (i, own_keys) in own.into_iter().enumerate().filter(|(_, keys)| *keys > own[0]) {
                let mut sums = [[simd.splat(0.0); VECTORS]; 1];
                let to = to.as_mut_ptr().add(i * width + d);
                for (vector, sum) in sums[0].iter_mut().enumerate() {
                    *sum = simd.load(to.add(vector * S::LANES));
                }
                self.add_values(simd, block, own[0]..own_keys, d, weights.as_ptr().add(i * BLOCK), own_keys, &mut sums);
                for (vector, sum) in sums[0].iter().enumerate() {
                    simd.store(to.add(vector * S::LANES), *sum);
                }
            }
        }
        VECTORS
    }

    /// Adds the values of some keys to the sums of `N` queries, each by its weight.
    ///
    /// # Safety
    /// The keys have pages; `weights` is valid for reading at all of them, in each of `N` rows of `BLOCK`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the inner loop of `value`, which has them all in registers")]
    unsafe fn add_values<S: Simd, const N: usize, const VECTORS: usize>(
        &self,
        simd: S,
        block: usize,
        keys: Range<usize>,
        d: usize,
        weights: *const f32,
        block_keys: usize,
        sums: &mut [[S::F; VECTORS]; N],
    ) {
        let (width, pages) = (padded(self.head_dim), block_keys.div_ceil(PAGE));
        let mut key = keys.start;
        while key < keys.end {
            let page = key / PAGE;
            let values = self.head.page(block * BLOCK_PAGES + page).wrapping_add(self.head.layout.values).cast::<E>();
            let then = page + PAGES_AHEAD;
            let ahead = if then < pages {
                self.head.page(block * BLOCK_PAGES + then).wrapping_add(self.head.layout.values)
            } else if block_keys == BLOCK {
                self.head.page((block + 1) * BLOCK_PAGES + then - pages)
            } else {
                self.next.page(then - pages)
            };
            let end = ((page + 1) * PAGE).min(keys.end);
            while key < end {
                let at = key % PAGE * width + d;
                for line in 0..(VECTORS * S::LANES * size_of::<E>()).div_ceil(LINE) {
                    simd.prefetch(ahead.wrapping_add(at * size_of::<E>() + line * LINE).cast());
                }
                // SAFETY: the caller's promise.
                unsafe {
                    let mut loaded = [simd.splat(0.0); VECTORS];
                    for (vector, loaded) in loaded.iter_mut().enumerate() {
                        *loaded = E::load(simd, values.add(at + vector * S::LANES));
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let weight = simd.splat(*weights.add(i * BLOCK + key));
                        for (sum, value) in sums.iter_mut().zip(loaded) {
                            *sum = simd.fma(weight, value, *sum);
                        }
                    }
                }
                key += 1;
            }
        }
    }
}

/// One dimension of `N` queries times that of `VECTORS` vectors of keys.
///
/// # Safety
/// All keys are valid for reading a vector at `d * PAGE`, and `queries` for reading `N` numbers at `d * N`.
#[inline(always)]
unsafe fn step<S: Simd, E: Stored, const N: usize, const VECTORS: usize>(
    simd: S,
    keys: &[*const E; VECTORS],
    queries: *const f32,
    d: usize,
    sums: &mut [[S::F; VECTORS]; N],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut loaded = [simd.splat(0.0); VECTORS];
        for (keys, loaded) in keys.iter().zip(&mut loaded) {
            *loaded = E::load(simd, keys.add(d * PAGE));
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            let query = simd.splat(*queries.add(d * N + i));
            for (sum, key) in sums.iter_mut().zip(loaded) {
                *sum = simd.fma(query, key, *sum);
            }
        }
    }
}
