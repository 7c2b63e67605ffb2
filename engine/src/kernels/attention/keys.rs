//! One head of keys and values, read page by page: scores with queries, and values by their weights.

use std::marker::PhantomData;
use std::ops::Range;

use crate::kernels::Shared;
use crate::kernels::kv_pages::{HeadLayout, LINE, PAGE, Stored, padded};
use crate::kernels::simd::Simd;

/// Keys whose scores are in memory together: with eight queries a quarter of the first cache. Shorter ones, and merging them
/// shows.
pub(super) const BLOCK: usize = 256;
const BLOCK_PAGES: usize = BLOCK / PAGE;
/// How many pages of values are on their way before they are needed.
const PAGES_AHEAD: usize = 2;

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
    pub(super) fn scores<S: Simd, const N: usize>(
        &self,
        simd: S,
        block: usize,
        pages: usize,
        queries: &[f32],
        scores: &mut [f32],
    ) {
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
        // SAFETY: `scores` holds queries and scores to their lengths, and `Tile` has seen that the pages are there.
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
    pub(super) fn scale_weights<S: Simd>(&self, simd: S, block: usize, weights: &mut [f32]) {
        for (number, part) in weights.chunks_exact_mut(S::LANES).enumerate() {
            let at = number * S::LANES;
            let page = self.head.page(block * BLOCK_PAGES + at / PAGE);
            // SAFETY: the part has `LANES` numbers, and `Tile` has seen that the page is there.
            unsafe {
                let scales = simd.load(page.add(self.head.layout.value_scales).cast::<f32>().add(at % PAGE));
                simd.store(part.as_mut_ptr(), simd.mul(simd.load(part.as_ptr()), scales));
            }
        }
    }

    /// The weighted values of a block for `N` queries, each over as many of its keys as it sees: `[N, padded(head_dim)]`.
    #[inline(always)]
    pub(super) fn values<S: Simd, const N: usize>(
        &self,
        simd: S,
        block: usize,
        own: [usize; N],
        weights: &[f32],
        to: &mut [f32],
    ) {
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
        // `Tile` has seen that the pages are there.
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
