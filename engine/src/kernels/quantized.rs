//! Rows quantized to 8 bits, as products with 8-bit and 4-bit weights take them.
//!
//! A row is quantized block by block, by itself: what becomes of it does not depend on its neighbours.

use super::matmul::{interleave, row_tiles};
use super::simd::{Op, Simd};
use super::{Isa, Pool, Shared, part, tasks_for};

/// Inputs that one 32-bit lane multiplies at once.
pub(super) const GROUP: usize = 4;
/// 8-bit weights are stored plus this, because x86 multiplies unsigned with signed bytes.
pub(super) const OFFSET: i32 = 128;
/// The most inputs of a block.
pub(super) const BLOCK_MAX: usize = 128;

/// Quantized rows, in the order in which tiles take them: each array is `[tile][blocks, .., rows of the tile]`.
pub(super) struct Quantized {
    pub(super) blocks: usize,
    /// Four signed bytes each, the first lowest: `[tile][blocks, block / GROUP, rows]`.
    pub(super) groups: Vec<i32>,
    pub(super) scales: Vec<f32>,
    /// What the offset of 8-bit weights adds to a block's sum, negated.
    pub(super) corrections: Vec<i32>,
    /// Σ of a block's numbers.
    pub(super) totals: Vec<f32>,
}

impl Quantized {
    /// Quantizes `x` (`[rows, inputs]`) in blocks of `block` inputs.
    pub(super) fn rows(isa: Isa, pool: &Pool, x: &[f32], inputs: usize, block: usize) -> Quantized {
        assert!(block.is_multiple_of(32) && block <= BLOCK_MAX);
        let (rows, blocks) = (x.len() / inputs, inputs.div_ceil(block));
        let groups = block / GROUP;
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
        let tasks = if tiles.len() < 2 { 1 } else { tasks_for(pool, tiles.len()) };
        pool.run(tasks, &|task| {
            for (first, rows) in &tiles[part(tiles.len(), task, tasks)] {
                // SAFETY: the tile's parts lie within the arrays, and no other task has them.
                let tile = unsafe {
                    Quantize {
                        x: &x[first * inputs..(first + rows) * inputs],
                        inputs,
                        block,
                        rows: *rows,
                        groups: to.0.get().add(first * blocks * groups),
                        scales: to.1.get().add(first * blocks),
                        corrections: to.2.get().add(first * blocks),
                        totals: to.3.get().add(first * blocks),
                    }
                };
                isa.run(tile);
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

/// Quantizes a tile's rows. The pointers are to the tile's parts of the arrays, which are its own.
struct Quantize<'a> {
    x: &'a [f32],
    inputs: usize,
    block: usize,
    rows: usize,
    groups: *mut i32,
    scales: *mut f32,
    corrections: *mut i32,
    totals: *mut f32,
}

impl Op for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let groups = self.block / GROUP;
        // A block of each row, before they are laid out.
        let mut bytes = [Bytes([0; BLOCK_MAX]); 8];
        for first in (0..self.inputs).step_by(self.block) {
            let block = first / self.block;
            for (row, x) in self.x.chunks_exact(self.inputs).enumerate() {
                let x = &x[first..(first + self.block).min(self.inputs)];
                let (scale, sum) = if x.len() == self.block {
                    quantize(simd, x, &mut bytes[row].0)
                } else {
                    let mut padded = [0.0; BLOCK_MAX];
                    padded[..x.len()].copy_from_slice(x);
                    quantize(simd, &padded[..self.block], &mut bytes[row].0)
                };
                // SAFETY: row and block lie within the tile's parts.
                unsafe {
                    let at = block * self.rows + row;
                    self.scales.add(at).write(scale);
                    self.corrections.add(at).write(-OFFSET * sum);
                    self.totals.add(at).write(scale * sum as f32);
                }
            }
            // SAFETY: there are at most eight rows, the bytes are aligned as groups are, and the block's groups lie within the
            // tile's part.
            unsafe {
                let to = self.groups.add(block * groups * self.rows);
                interleave(self.rows, groups, bytes.as_ptr().cast(), BLOCK_MAX / GROUP, to);
            }
        }
    }
}

/// A row's block, aligned for whole groups.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Bytes([i8; BLOCK_MAX]);

/// One block, of a length that is a multiple of 32: its scale, and the sum of its bytes.
#[inline(always)]
fn quantize<S: Simd>(simd: S, x: &[f32], bytes: &mut [i8; BLOCK_MAX]) -> (f32, i32) {
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
