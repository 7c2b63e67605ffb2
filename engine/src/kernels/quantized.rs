//! Rows quantized to 8 bits, as products with 8-bit and 4-bit weights take them.
//!
//! A row is quantized block by block, by itself: what becomes of it does not depend on its neighbours.

use super::matmul::{interleave, row_tiles};
use super::packed::BLOCK;
use super::simd::{Op, Simd};
use super::{Isa, Pool, Shared, part, tasks_for_numbers};

/// Inputs that one 32-bit lane multiplies at once.
pub(super) const GROUP: usize = 4;
/// 8-bit weights are stored plus this, because x86 multiplies unsigned with signed bytes.
pub(super) const OFFSET: i32 = 128;

/// Quantized rows, in the order in which tiles take them: each array is `[tile][blocks, .., rows of the tile]`.
pub(super) struct Quantized {
    pub(super) blocks: usize,
    /// Four signed bytes each, the first lowest: `[tile][blocks, BLOCK / GROUP, rows]`.
    pub(super) groups: Vec<i32>,
    pub(super) scales: Vec<f32>,
    /// What the offset of 8-bit weights adds to a block's sum, negated.
    pub(super) corrections: Vec<i32>,
    /// Σ of a block's numbers.
    pub(super) totals: Vec<f32>,
}

impl Quantized {
    /// Quantizes `x` (`[rows, inputs]`).
    pub(super) fn rows(isa: Isa, pool: &Pool, x: &[f32], inputs: usize) -> Quantized {
        let (rows, blocks) = (x.len() / inputs, inputs.div_ceil(BLOCK));
        let groups = BLOCK / GROUP;
        let tiles: Vec<_> = row_tiles(isa, rows).collect();
        let mut quantized = Quantized {
            blocks,
            groups: Vec::with_capacity(rows * blocks * groups),
            scales: Vec::with_capacity(rows * blocks),
            corrections: Vec::with_capacity(rows * blocks),
            totals: Vec::with_capacity(rows * blocks),
        };
        let to = (
            Shared(quantized.groups.as_mut_ptr()),
            Shared(quantized.scales.as_mut_ptr()),
            Shared(quantized.corrections.as_mut_ptr()),
            Shared(quantized.totals.as_mut_ptr()),
        );
        // A block of a tile's rows is a unit, so that a single tile has work for every thread.
        let units = tiles.len() * blocks;
        let tasks = tasks_for_numbers(pool, x.len(), units);
        pool.run(tasks, &|task| {
            for unit in part(units, task, tasks) {
                let ((first, rows), at) = (tiles[unit / blocks], unit % blocks);
                let to_block = first * blocks + at * rows;
                // SAFETY: the tile's block lies within the arrays, and no other task has it.
                let unit = unsafe {
                    Quantize {
                        x: &x[first * inputs..(first + rows) * inputs],
                        inputs,
                        at,
                        groups: to.0.get().add(to_block * groups),
                        scales: to.1.get().add(to_block),
                        corrections: to.2.get().add(to_block),
                        totals: to.3.get().add(to_block),
                    }
                };
                isa.run(unit);
            }
        });
        // SAFETY: the tasks have written every block of every row.
        unsafe {
            quantized.groups.set_len(rows * blocks * groups);
            quantized.scales.set_len(rows * blocks);
            quantized.corrections.set_len(rows * blocks);
            quantized.totals.set_len(rows * blocks);
        }
        quantized
    }
}

/// Quantizes a block of a tile's rows. The pointers are to the block's parts of the arrays, which are its own.
struct Quantize<'a> {
    /// The tile's rows.
    x: &'a [f32],
    inputs: usize,
    /// Which block.
    at: usize,
    groups: *mut i32,
    scales: *mut f32,
    corrections: *mut i32,
    totals: *mut f32,
}

impl Op for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        // Before they are laid out.
        let mut bytes = [Bytes([0; BLOCK]); 8];
        let first = self.at * BLOCK;
        let mut rows = 0;
        for (x, bytes) in self.x.chunks_exact(self.inputs).zip(&mut bytes) {
            let mut padded = [0.0; BLOCK];
            let x = match x[first..].first_chunk::<BLOCK>() {
                Some(x) => x,
                None => {
                    padded[..x.len() - first].copy_from_slice(&x[first..]);
                    &padded
                }
            };
            let (scale, sum) = quantize(simd, x, &mut bytes.0);
            // SAFETY: the row lies within the tile.
            unsafe {
                self.scales.add(rows).write(scale);
                self.corrections.add(rows).write(-OFFSET * sum);
                self.totals.add(rows).write(scale * sum as f32);
            }
            rows += 1;
        }
        // SAFETY: there are at most eight rows, the bytes are aligned as groups are, and so many groups are the block's.
        unsafe { interleave(rows, BLOCK / GROUP, bytes.as_ptr().cast(), BLOCK / GROUP, self.groups) };
    }
}

/// A row's block, aligned as groups are.
#[derive(Clone, Copy)]
#[repr(align(4))]
struct Bytes([i8; BLOCK]);

/// One block: its scale, and the sum of its bytes.
#[inline(always)]
fn quantize<S: Simd>(simd: S, x: &[f32; BLOCK], bytes: &mut [i8; BLOCK]) -> (f32, i32) {
    let mut most = simd.splat(0.0);
    for part in x.chunks_exact(S::LANES) {
        // SAFETY: the part has `LANES` numbers.
        let part = unsafe { simd.load(part.as_ptr()) };
        // A NaN loses to what was there before.
        most = simd.max(simd.max(part, simd.sub(simd.splat(0.0), part)), most);
    }
    // Finite whatever the most is: an overflowed activation becomes a large one, as in f32.
    let scale = simd.most(most).min(f32::MAX) / 127.0;
    let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    let (inverse, limit) = (simd.splat(inverse), simd.splat(127.0));
    let mut sum = simd.splat_i(0);
    for (part, bytes) in x.chunks_exact(S::LANES).zip(bytes.chunks_exact_mut(S::LANES)) {
        // SAFETY: the part has `LANES` numbers, and there are as many bytes.
        unsafe {
            let value = simd.mul(simd.load(part.as_ptr()), inverse);
            let value = simd.round_i(simd.max(simd.min(value, limit), simd.splat(-127.0)));
            sum = simd.add_i(sum, value);
            simd.store_bytes(bytes.as_mut_ptr(), value);
        }
    }
    (scale, simd.sum_i(sum))
}
