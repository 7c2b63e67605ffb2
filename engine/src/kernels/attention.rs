//! Causal attention of ragged sequences over paged K and V.
//!
//! A query's result is computed by itself: a score is four interleaved chains over the head's dimensions, the greatest score and
//! the exponentials are exact functions of the scores, their sum is taken page by page, and each output is one chain over the
//! keys from the first on. All of it is read from the KV pages, the query's own K and V included. So it does not matter how
//! many queries come at once.

use super::pointwise::{exp, store_some};
use super::simd::{Op, Simd};
use super::{Isa, Pool, Shared};
use crate::kv::PAGE_TOKENS;
use crate::profile::{self, Arithmetic, Part, Work};

/// Keys of a page.
const PAGE: usize = PAGE_TOKENS as usize;
/// Queries that share a load of K or V.
const QUERIES: usize = 4;

/// Floats of one head in one page: K as `[head_dim, PAGE]`, so that the scores of a page are vectors; V as
/// `[PAGE, padded(head_dim)]`.
fn head_floats(head_dim: usize) -> usize {
    PAGE * (head_dim + padded(head_dim))
}

/// Whole vectors of the widest kind.
fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// Floats of one layer in one page: `[heads, K and V]`.
pub(crate) fn page_floats(heads: usize, head_dim: usize) -> usize {
    heads * head_floats(head_dim)
}

/// A sequence's rows in a step.
#[derive(Clone, Copy)]
pub(crate) struct Segment<'a> {
    /// The first of its rows.
    pub(crate) row: usize,
    /// How many rows.
    pub(crate) rows: usize,
    /// The position of the first row in the sequence; all before it are in the pages.
    pub(crate) position: usize,
    /// The sequence's pages: position `p` is in `pages[p / PAGE]`.
    pub(crate) pages: &'a [u32],
}

/// One layer's attention.
pub(crate) struct Attention<'a> {
    pub(crate) heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` heads of queries (grouped-query attention, arXiv:2305.13245).
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Times a query, before anything else.
    pub(crate) scale: f32,
    /// `[rows, heads + 2 * kv_heads, head_dim]`: queries, keys, values.
    pub(crate) qkv: &'a [f32],
    /// Each row in at most one; rows in none get zeroes.
    pub(crate) segments: &'a [Segment<'a>],
    /// The layer's pages. No two segments share one that either writes.
    pub(crate) cache: &'a mut [f32],
}

impl Attention<'_> {
    /// Stores the rows' keys and values, then attends: `[rows, heads, head_dim]`.
    pub(crate) fn run(self, isa: Isa, pool: &Pool) -> Vec<f32> {
        let Attention { heads, kv_heads, head_dim, scale, qkv, segments, cache } = self;
        assert_eq!(heads, kv_heads, "grouped queries are not there yet");
        let width = heads * head_dim;
        assert!(width > 0 && qkv.len().is_multiple_of(3 * width), "rows of q, k and v");
        let rows = qkv.len() / (3 * width);
        let page_size = page_floats(heads, head_dim);
        for segment in segments {
            assert!(segment.row + segment.rows <= rows, "a segment's rows are there");
            let needed = (segment.position + segment.rows).div_ceil(PAGE);
            assert!(segment.pages.len() >= needed, "a segment's pages are there");
            let in_cache = |page: &u32| (*page as usize + 1) * page_size <= cache.len();
            assert!(segment.pages[..needed].iter().all(in_cache), "pages lie within the cache");
        }
        // Not left as it comes: rows that no segment has stay zero.
        let _span = profile::span(|| {
            let keys = |segment: &Segment<'_>| segment.position + segment.rows;
            // A row sees the keys up to its own position.
            let seen = |segment: &Segment<'_>| (0..segment.rows).map(|row| segment.position + row + 1).sum::<usize>();
            let kv: usize = segments.iter().map(keys).sum::<usize>() * 2 * kv_heads * head_dim * size_of::<f32>();
            let operations: usize = segments.iter().map(seen).sum::<usize>() * 4 * heads * head_dim;
            let bytes = (kv + size_of_val(qkv) + rows * width * size_of::<f32>()) as u64;
            (Part::Attention, Work { bytes, operations: operations as u64, arithmetic: Arithmetic::F32 })
        });
        let mut out = vec![0.0; rows * width];
        let (shared_out, shared_cache) = (Shared(out.as_mut_ptr()), Shared(cache.as_mut_ptr()));
        pool.run(segments.len() * heads, &|task| {
            let (segment, head) = (segments[task / heads], task % heads);
            let pages = segment.pages.iter().map(|page| *page as usize * page_size + head * head_floats(head_dim)).collect();
            isa.run(Head { head, heads, head_dim, scale, qkv, segment, pages, cache: shared_cache, out: shared_out });
        });
        out
    }
}

/// One head of one segment.
struct Head<'a> {
    head: usize,
    heads: usize,
    head_dim: usize,
    scale: f32,
    qkv: &'a [f32],
    segment: Segment<'a>,
    /// Where this head begins in each of the sequence's pages.
    pages: Vec<usize>,
    /// Of which this task alone reads and writes the head's part of the segment's pages.
    cache: Shared<f32>,
    /// `[rows, heads, head_dim]`, of which this task alone writes the head's part of the segment's rows.
    out: Shared<f32>,
}

impl Op for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        self.remember();
        let stride = (self.segment.position + self.segment.rows).next_multiple_of(PAGE);
        let queries = vec![0.0; QUERIES * self.head_dim];
        let mut scratch = Scratch { scores: vec![0.0; QUERIES * stride], stride, queries };
        let mut row = 0;
        while row < self.segment.rows {
            row += if self.segment.rows - row >= QUERIES {
                self.queries::<S, QUERIES>(simd, row, &mut scratch)
            } else {
                self.queries::<S, 1>(simd, row, &mut scratch)
            };
        }
    }
}

impl Head<'_> {
    /// A row's query (0), key (1) or value (2).
    #[inline(always)]
    fn of(&self, row: usize, which: usize) -> &[f32] {
        let at = (((self.segment.row + row) * 3 + which) * self.heads + self.head) * self.head_dim;
        &self.qkv[at..at + self.head_dim]
    }

    /// Writes the rows' keys and values to their pages.
    #[inline(always)]
    fn remember(&self) {
        let dim = self.head_dim;
        for row in 0..self.segment.rows {
            let position = self.segment.position + row;
            // SAFETY: `run` has checked that the page lies within the cache; this head's part of it is this task's alone.
            unsafe {
                let page = self.cache.get().add(self.pages[position / PAGE]);
                for (d, key) in self.of(row, 1).iter().enumerate() {
                    *page.add(d * PAGE + position % PAGE) = *key;
                }
                let value = page.add(dim * PAGE + position % PAGE * padded(dim));
                std::ptr::copy_nonoverlapping(self.of(row, 2).as_ptr(), value, dim);
            }
        }
    }

    /// The attention of `N` queries from `row` on; says how many.
    #[inline(always)]
    fn queries<S: Simd, const N: usize>(&self, simd: S, row: usize, scratch: &mut Scratch) -> usize {
        let dim = self.head_dim;
        // Query i sees the keys 0..=first + i.
        let first = self.segment.position + row;
        for (i, query) in scratch.queries.chunks_exact_mut(dim).enumerate().take(N) {
            for (scaled, query) in query.iter_mut().zip(self.of(row + i, 0)) {
                *scaled = query * self.scale;
            }
        }
        self.scores::<S, N>(simd, first, scratch);
        let mut inverse = [0.0; N];
        for (i, inverse) in inverse.iter_mut().enumerate() {
            let keys = first + i + 1;
            let scores = &mut scratch.scores[i * scratch.stride..][..keys.next_multiple_of(PAGE)];
            *inverse = 1.0 / softmax(simd, scores, keys);
        }
        let mut d = 0;
        while d < padded(dim) {
            d += S::LANES
                * match (padded(dim) - d) / S::LANES {
                    4.. => self.values::<S, N, 4>(simd, first, row, d, inverse, scratch),
                    2.. => self.values::<S, N, 2>(simd, first, row, d, inverse, scratch),
                    _ => self.values::<S, N, 1>(simd, first, row, d, inverse, scratch),
                };
        }
        N
    }

    /// The scores of `N` queries with all keys of the pages that the last of them sees.
    #[inline(always)]
    fn scores<S: Simd, const N: usize>(&self, simd: S, first: usize, scratch: &mut Scratch) {
        let dim = self.head_dim;
        let pages = (first + N).div_ceil(PAGE);
        assert!(scratch.queries.len() >= N * dim && scratch.scores.len() >= (N - 1) * scratch.stride + pages * PAGE);
        for (page, start) in self.pages[..pages].iter().enumerate() {
            // The processor's own prefetching stops at the borders of memory pages, and a head's K is about one of them.
            let next = self.cache.get().wrapping_add(self.pages[(page + 1).min(pages - 1)]);
            let mut part = 0;
            while part < PAGE {
                let mut sums = [[simd.splat(0.0); 4]; N];
                // SAFETY: `run` has checked that the page lies within the cache, and nobody else writes this head's part of
                // it; queries and scores are as long as was asserted above.
                unsafe {
                    let keys = self.cache.get().add(start + part);
                    let queries = scratch.queries.as_ptr();
                    // Whole turns of the four chains, then what is left, with constant indices that stay in registers.
                    for d in (0..dim / 4 * 4).step_by(4) {
                        for chain in 0..4 {
                            simd.prefetch(next.wrapping_add((d + chain) * PAGE));
                            score_step::<S, N>(simd, keys, queries, dim, d + chain, &mut sums, chain);
                        }
                    }
                    let rest = dim / 4 * 4;
                    for chain in 0..3 {
                        if rest + chain < dim {
                            score_step::<S, N>(simd, keys, queries, dim, rest + chain, &mut sums, chain);
                        }
                    }
                    for (i, [a, b, c, d]) in sums.into_iter().enumerate() {
                        let to = scratch.scores.as_mut_ptr().add(i * scratch.stride + page * PAGE + part);
                        simd.store(to, simd.add(simd.add(a, b), simd.add(c, d)));
                    }
                }
                part += S::LANES;
            }
        }
    }

    /// `VECTORS` vectors of the outputs of `N` queries, from dimension `d` on; says how many vectors.
    #[inline(always)]
    fn values<S: Simd, const N: usize, const VECTORS: usize>(
        &self,
        simd: S,
        first: usize,
        row: usize,
        d: usize,
        inverse: [f32; N],
        scratch: &Scratch,
    ) -> usize {
        let mut sums = [[simd.splat(0.0); VECTORS]; N];
        // Keys that all queries see, then those that only the later ones do.
        for (page, start) in self.pages.iter().enumerate().take(first / PAGE + 1) {
            let next = self.pages[(page + 1).min(first / PAGE)] + self.head_dim * PAGE + d;
            for key in page * PAGE..((page + 1) * PAGE).min(first + 1) {
                for vector in 0..VECTORS {
                    let ahead = next + key % PAGE * padded(self.head_dim) + vector * S::LANES;
                    simd.prefetch(self.cache.get().wrapping_add(ahead));
                }
                self.add_value(simd, *start, key, d, 0, &mut sums, scratch);
            }
        }
        for key in first + 1..first + N {
            self.add_value(simd, self.pages[key / PAGE], key, d, key - first, &mut sums, scratch);
        }
        for (i, sums) in sums.into_iter().enumerate() {
            let at = ((self.segment.row + row + i) * self.heads + self.head) * self.head_dim;
            for (vector, sum) in sums.into_iter().enumerate() {
                let from = (d + vector * S::LANES).min(self.head_dim);
                let to = (from + S::LANES).min(self.head_dim);
                // SAFETY: the head's part of the row lies within `out`, and is this task's alone.
                let out = unsafe { std::slice::from_raw_parts_mut(self.out.get().add(at + from), to - from) };
                store_some(simd, out, simd.mul(sum, simd.splat(inverse[i])));
            }
        }
        VECTORS
    }

    /// Adds one key's value to the sums of the queries from `from` on, each by its weight.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the inner step of `values`, which has them all in registers")]
    fn add_value<S: Simd, const N: usize, const VECTORS: usize>(
        &self,
        simd: S,
        page: usize,
        key: usize,
        d: usize,
        from: usize,
        sums: &mut [[S::F; VECTORS]; N],
        scratch: &Scratch,
    ) {
        debug_assert!((N - 1) * scratch.stride + key < scratch.scores.len());
        // SAFETY: `run` has checked that the page lies within the cache, and d and the vectors lie within a value's padded
        // length; `scores` asserted that there is one for each query and key.
        unsafe {
            let value = self.cache.get().add(page + self.head_dim * PAGE + key % PAGE * padded(self.head_dim) + d);
            let mut loaded = [simd.splat(0.0); VECTORS];
            for (vector, loaded) in loaded.iter_mut().enumerate() {
                *loaded = simd.load(value.add(vector * S::LANES));
            }
            for (i, sums) in sums.iter_mut().enumerate().skip(from) {
                let weight = simd.splat(*scratch.scores.as_ptr().add(i * scratch.stride + key));
                for (sum, value) in sums.iter_mut().zip(loaded) {
                    *sum = simd.fma(weight, value, *sum);
                }
            }
        }
    }
}

/// One dimension of `N` queries times that of a vector of keys.
///
/// # Safety
/// `keys` is valid for reading a vector at `d * PAGE`, and `queries` at `d` of each of `N` rows of `dim`.
#[inline(always)]
unsafe fn score_step<S: Simd, const N: usize>(
    simd: S,
    keys: *const f32,
    queries: *const f32,
    dim: usize,
    d: usize,
    sums: &mut [[S::F; 4]; N],
    chain: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let key = simd.load(keys.add(d * PAGE));
        for (i, sums) in sums.iter_mut().enumerate() {
            sums[chain] = simd.fma(simd.splat(*queries.add(i * dim + d)), key, sums[chain]);
        }
    }
}

/// What one head's task writes to and reads again.
struct Scratch {
    /// `[QUERIES, stride]`.
    scores: Vec<f32>,
    /// Whole pages of keys.
    stride: usize,
    /// `[QUERIES, head_dim]`, scaled.
    queries: Vec<f32>,
}

/// Scores to weights `e^(score - greatest)`, of which the first `keys` count; says their sum.
#[inline(always)]
fn softmax<S: Simd>(simd: S, scores: &mut [f32], keys: usize) -> f32 {
    scores[keys..].fill(f32::NEG_INFINITY);
    let mut most = simd.splat(f32::NEG_INFINITY);
    for part in scores.chunks_exact(S::LANES) {
        // SAFETY: the part has `LANES` numbers.
        most = simd.max(most, unsafe { simd.load(part.as_ptr()) });
    }
    let most = simd.splat(simd.most(most));
    for part in scores.chunks_exact_mut(S::LANES) {
        // SAFETY: the part has `LANES` numbers.
        unsafe { simd.store(part.as_mut_ptr(), exp(simd, simd.sub(simd.load(part.as_ptr()), most))) };
    }
    scores[keys..].fill(0.0);
    let mut sum = simd.splat(0.0);
    for part in scores.chunks_exact(S::LANES) {
        // SAFETY: the part has `LANES` numbers.
        sum = simd.add(sum, unsafe { simd.load(part.as_ptr()) });
    }
    simd.sum(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::matmul::tests::noise;

    /// Attention of one whole sequence, from the definition.
    fn plain(qkv: &[f32], heads: usize, dim: usize, scale: f32) -> Vec<f64> {
        let width = heads * dim;
        let rows = qkv.len() / (3 * width);
        let at = |row: usize, which: usize, head: usize, d: usize| f64::from(qkv[(row * 3 + which) * width + head * dim + d]);
        let mut out = vec![0.0; rows * width];
        for row in 0..rows {
            for head in 0..heads {
                let score =
                    |key: usize| (0..dim).map(|d| at(row, 0, head, d) * at(key, 1, head, d)).sum::<f64>() * f64::from(scale);
                let most = (0..=row).map(score).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = (0..=row).map(|key| (score(key) - most).exp()).sum();
                for d in 0..dim {
                    let value: f64 = (0..=row).map(|key| (score(key) - most).exp() * at(key, 2, head, d)).sum();
                    out[row * width + head * dim + d] = value / sum;
                }
            }
        }
        out
    }

    fn run(isa: Isa, pool: &Pool, shape: (usize, usize), qkv: &[f32], segments: &[Segment<'_>], cache: &mut [f32]) -> Vec<f32> {
        Attention { heads: shape.0, kv_heads: shape.0, head_dim: shape.1, scale: 0.3, qkv, segments, cache }.run(isa, pool)
    }

    #[test]
    fn it_agrees_with_the_definition_in_any_chunking_and_company() {
        let pools = [Pool::new(1).unwrap(), Pool::new(3).unwrap()];
        for isa in Isa::all() {
            for (heads, dim) in [(1, 1), (3, 5), (2, 16), (2, 24), (1, 64), (2, 96)] {
                let (width, rows) = (heads * dim, 37);
                let qkv = noise(dim, rows * 3 * width);
                // Pages out of order, and full of what others left there.
                let pages: [u32; 3] = [4, 0, 2];
                let mut cache = vec![f32::NAN; 6 * page_floats(heads, dim)];
                let whole = [Segment { row: 0, rows, position: 0, pages: &pages }];
                let all = run(isa, &pools[1], (heads, dim), &qkv, &whole, &mut cache);
                for (got, want) in all.iter().zip(plain(&qkv, heads, dim, 0.3)) {
                    assert!((f64::from(*got) - want).abs() < 1e-5, "{isa} {heads}×{dim}: {got} and {want}");
                }
                for chunk in [1, 3, 16, 20] {
                    let mut cache = vec![f32::NAN; 6 * page_floats(heads, dim)];
                    let neighbour: [u32; 3] = [1, 3, 5];
                    for position in (0..rows).step_by(chunk) {
                        let count = chunk.min(rows - position);
                        let mine = &qkv[position * 3 * width..(position + count) * 3 * width];
                        // A neighbour in front that is somewhere else in the same text.
                        let both = [&qkv[position * 3 * width..(position + 1) * 3 * width], mine].concat();
                        let segments = [
                            Segment { row: 0, rows: 1, position: position / chunk, pages: &neighbour },
                            Segment { row: 1, rows: count, position, pages: &pages },
                        ];
                        let out = run(isa, &pools[chunk % 2], (heads, dim), &both, &segments, &mut cache);
                        assert_eq!(
                            out[width..],
                            all[position * width..(position + count) * width],
                            "{isa} {heads}×{dim} by {chunk}"
                        );
                    }
                }
            }
        }
    }
}
