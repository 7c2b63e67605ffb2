//! Rows times a matrix of 4-bit numbers in blocks of 32 inputs with a scale and a least value each: `scale * value + least`, of
//! which ggml's `block_q4_0`, `block_q4_1` and the blocks of `block_q4_K` are cases.
//!
//! Rows are quantized to 8 bits block by block. Within a block everything is exact integer arithmetic; what the blocks add, the
//! values' part and then the least value's, is one chain of fused multiply-adds.

use half::f16;

use super::lines::Lines;
use super::matmul::{Product, Tile, multiply};
use super::packed::{BLOCK, Block, Columns, each_column, pack_panels};
use super::quantized::{GROUP, Quantized};
use super::simd::{Op, Simd};
use super::{Epilogue, Isa, PANEL, Pool};
use crate::Dtype;

/// A panel's scales of a block, or its least values, one for each column.
const SCALES_BYTES: usize = PANEL * size_of::<f16>();
/// A panel's part of a block: scales, least values, then `[BLOCK / GROUP / 2, PANEL, GROUP]` bytes, whose lower halves are one
/// group's weights and whose upper halves the next one's.
const BLOCK_BYTES: usize = 2 * SCALES_BYTES + PANEL * BLOCK / 2;
/// The greatest value of a weight.
const MOST: f32 = 15.0;

/// A matrix `[inputs, columns]` in panels of [`PANEL`] columns; inputs that are missing from the last block, and columns from
/// the last panel, meet zeroes in the rows or are left out.
pub(crate) struct PackedQ4 {
    pub(super) inputs: usize,
    pub(super) columns: usize,
    pub(super) lines: Lines,
}

impl PackedQ4 {
    /// Takes a file's integers over where it has such, and else makes them of its floats.
    pub(super) fn pack(from: &dyn Columns) -> PackedQ4 {
        let (inputs, columns) = (from.inputs(), from.columns());
        let blocks = inputs.div_ceil(BLOCK);
        let isa = Isa::detect();
        let lines = pack_panels(columns, blocks * BLOCK_BYTES, &|first, here, panel| {
            if from.stored() != Dtype::Q4 {
                return each_column(from, first, here, |column, weights| {
                    for (packed, weights) in panel.chunks_exact_mut(BLOCK_BYTES).zip(weights.chunks(BLOCK)) {
                        put(packed, column, &isa.run(Quantize(weights)));
                    }
                });
            }
            let mut given = vec![Block::default(); blocks];
            let mut weights = vec![0.0; inputs];
            for column in 0..here {
                if !from.blocks(first + column, &mut given) {
                    from.floats(first + column, &mut weights);
                    for (block, weights) in given.iter_mut().zip(weights.chunks(BLOCK)) {
                        *block = isa.run(Quantize(weights));
                    }
                }
                for (packed, block) in panel.chunks_exact_mut(BLOCK_BYTES).zip(&given) {
                    put(packed, column, block);
                }
            }
        });
        PackedQ4 { inputs, columns, lines }
    }

    /// The weights of one column, in order of inputs.
    pub(super) fn column(&self, column: usize, to: &mut [f32]) {
        let blocks = self.inputs.div_ceil(BLOCK);
        let panel = &self.lines.as_bytes()[column / PANEL * blocks * BLOCK_BYTES..];
        let column = column % PANEL;
        for (block, to) in panel.chunks_exact(BLOCK_BYTES).zip(to.chunks_mut(BLOCK)) {
            let half = |at: usize| f16::from_le_bytes([block[at + column * 2], block[at + column * 2 + 1]]).to_f32();
            let (scale, least) = (half(0), half(SCALES_BYTES));
            for (input, to) in to.iter_mut().enumerate() {
                let group = input / GROUP;
                let byte = block[2 * SCALES_BYTES + (group / 2 * PANEL + column) * GROUP + input % GROUP];
                *to = f32::from(byte >> (group % 2 * 4) & 0xf) * scale + least;
            }
        }
    }
}

/// Makes a block of up to 32 weights: of several ways to place the sixteen values, the one with the least square error. Its
/// numbers are the same with every instruction set, whose sums all add the halves of what is left.
struct Quantize<'a>(&'a [f32]);

/// Vectors of a block, at most.
const VECTORS_MAX: usize = BLOCK / 8;

impl Op for Quantize<'_> {
    type Output = Block;

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) -> Block {
        let mut padded = [self.0[0]; BLOCK];
        padded[..self.0.len()].copy_from_slice(self.0);
        let mut weights = [simd.splat(0.0); VECTORS_MAX];
        let (mut least, mut most) = (simd.splat(f32::MAX), simd.splat(f32::MIN));
        for (weights, part) in weights.iter_mut().zip(padded.chunks_exact(S::LANES)) {
            // SAFETY: the part has `LANES` numbers.
            *weights = unsafe { simd.load(part.as_ptr()) };
            (least, most) = (simd.min(*weights, least), simd.max(*weights, most));
        }
        let least = -simd.most(simd.sub(simd.splat(0.0), least));
        let most = simd.most(most);
        let mut best = place(simd, &weights, (most - least) / MOST, least);
        let y = total(simd, weights);
        // Ends somewhat within the extremes bring the values nearer to everything else.
        for within in [0.0, 0.25, 0.5, 0.75] {
            let step = (most - least) / MOST;
            let first = place(simd, &weights, (most - least - 2.0 * within * step) / MOST, least + within * step);
            best = if first.error < best.error { first } else { best };
            // The line of least squares through (value, weight).
            let (mut squares, mut products) = (first.values, first.values);
            for i in 0..BLOCK / S::LANES {
                squares[i] = simd.mul(first.values[i], first.values[i]);
                products[i] = simd.mul(first.values[i], weights[i]);
            }
            let (n, x, xx, xy) = (BLOCK as f32, total(simd, first.values), total(simd, squares), total(simd, products));
            let spread = n * xx - x * x;
            if spread > 0.0 {
                let scale = (n * xy - x * y) / spread;
                let fitted = place(simd, &weights, scale, (y - scale * x) / n);
                best = if fitted.error < best.error { fitted } else { best };
            }
        }
        let mut block = Block { scale: best.scale, least: best.least, values: [0; BLOCK] };
        for (part, value) in block.values.chunks_exact_mut(S::LANES).zip(&best.values) {
            // SAFETY: the part has `LANES` bytes, and the values are from 0 to 15.
            unsafe { simd.store_bytes(part.as_mut_ptr(), simd.round_i(*value)) };
        }
        block
    }
}

#[derive(Clone, Copy)]
struct Placed<F> {
    error: f32,
    scale: f32,
    least: f32,
    values: [F; VECTORS_MAX],
}

/// A block's values, by a scale and a least value, which are rounded up front.
#[inline(always)]
fn place<S: Simd>(simd: S, weights: &[S::F; VECTORS_MAX], scale: f32, least: f32) -> Placed<S::F> {
    let half = |x: f32| f16::from_f32(x.clamp(-f16::MAX.to_f32(), f16::MAX.to_f32())).to_f32();
    let (scale, least) = (half(scale), half(least));
    let inverse = simd.splat(if scale == 0.0 { 0.0 } else { 1.0 / scale });
    let (mut values, mut errors) = ([simd.splat(0.0); VECTORS_MAX], [simd.splat(0.0); VECTORS_MAX]);
    for i in 0..BLOCK / S::LANES {
        let value = simd.mul(simd.sub(weights[i], simd.splat(least)), inverse);
        values[i] = simd.round(simd.max(simd.min(value, simd.splat(MOST)), simd.splat(0.0)));
        let off = simd.sub(weights[i], simd.add(simd.mul(values[i], simd.splat(scale)), simd.splat(least)));
        errors[i] = simd.mul(off, off);
    }
    Placed { error: total(simd, errors), scale, least, values }
}

/// Σ of a block's numbers.
#[inline(always)]
fn total<S: Simd>(simd: S, mut x: [S::F; VECTORS_MAX]) -> f32 {
    let mut half = BLOCK / S::LANES / 2;
    while half > 0 {
        for i in 0..half {
            x[i] = simd.add(x[i], x[i + half]);
        }
        half /= 2;
    }
    simd.sum(x[0])
}

/// Puts a column's block where the products find it.
fn put(packed: &mut [u8], column: usize, block: &Block) {
    // Values around zero, as some formats have them, start at 0 by a lower least value.
    let shift = if block.values.iter().any(|value| *value < 0) { 8 } else { 0 };
    let least = block.least - block.scale * f32::from(shift);
    packed[column * 2..column * 2 + 2].copy_from_slice(&f16::from_f32(block.scale).to_le_bytes());
    let at = SCALES_BYTES + column * 2;
    packed[at..at + 2].copy_from_slice(&f16::from_f32(least).to_le_bytes());
    let pairs = packed[2 * SCALES_BYTES..].chunks_exact_mut(PANEL * GROUP);
    for (packed, values) in pairs.zip(block.values.as_chunks::<{ 2 * GROUP }>().0) {
        let values = values.map(|value| (value + shift) as u8);
        for (at, byte) in packed[column * GROUP..(column + 1) * GROUP].iter_mut().enumerate() {
            *byte = values[at] | values[GROUP + at] << 4;
        }
    }
}

/// `x` (`[rows, inputs]`), quantized, times the matrix, plus bias (empty: none), through the epilogue: `[rows, columns]`.
pub(super) fn matmul_q4(isa: Isa, pool: &Pool, x: &[f32], weights: &PackedQ4, bias: &[f32], epilogue: Epilogue<'_>) -> Vec<f32> {
    let shape = [x.len() / weights.inputs, weights.columns];
    let x = Quantized::rows(isa, pool, x, weights.inputs);
    multiply(isa, pool, &ProductQ4 { x, weights }, shape, bias, epilogue)
}

struct ProductQ4<'a> {
    x: Quantized,
    weights: &'a PackedQ4,
}

impl Product for ProductQ4<'_> {
    fn panels(&self) -> *const u8 {
        self.weights.lines.as_bytes().as_ptr()
    }

    fn panel_bytes(&self) -> usize {
        self.x.blocks * BLOCK_BYTES
    }

    fn steps(&self) -> usize {
        self.x.blocks
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &self,
        simd: S,
        at: Tile,
        totals: &mut [[S::F; VECTORS]; ROWS],
    ) {
        let blocks = self.x.blocks;
        // SAFETY: the caller promises that tile and panel are there: a tile has `ROWS` groups, scales and totals of each
        // block's, a panel's block its scales, least values and `PANEL` groups of weights in pairs.
        unsafe {
            let mut groups = self.x.groups.as_ptr().add(at.row * blocks * (BLOCK / GROUP));
            let mut scales = self.x.scales.as_ptr().add(at.row * blocks);
            let mut row_totals = self.x.totals.as_ptr().add(at.row * blocks);
            let mut packed = self.panels().add(at.panel * self.panel_bytes());
            for block in 0..blocks {
                at.look_ahead(simd, block);
                let mut sums = [[simd.splat_i(0); VECTORS]; ROWS];
                let mut weights = packed.add(2 * SCALES_BYTES + at.part * GROUP);
                for _ in 0..BLOCK / GROUP / 2 {
                    let mut vectors = [[simd.splat_i(0); 2]; VECTORS];
                    for (vector, loaded) in vectors.iter_mut().enumerate() {
                        *loaded = simd.nibbles(simd.load_i(weights.add(vector * S::LANES * GROUP)));
                    }
                    for half in 0..2 {
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let x = *groups.add(row);
                            for (sum, weights) in sums.iter_mut().zip(&vectors) {
                                *sum = simd.dot4(*sum, weights[half], x);
                            }
                        }
                        groups = groups.add(ROWS);
                    }
                    weights = weights.add(PANEL * GROUP);
                }
                for vector in 0..VECTORS {
                    let halves = packed.cast::<f16>().add(at.part + vector * S::LANES);
                    let (weight_scales, least) = (simd.load_f16(halves), simd.load_f16(halves.add(PANEL)));
                    for (row, (totals, sums)) in totals.iter_mut().zip(&sums).enumerate() {
                        let scale = simd.mul(weight_scales, simd.splat(*scales.add(row)));
                        let total = simd.fma(simd.to_f(sums[vector]), scale, totals[vector]);
                        totals[vector] = simd.fma(least, simd.splat(*row_totals.add(row)), total);
                    }
                }
                scales = scales.add(ROWS);
                row_totals = row_totals.add(ROWS);
                packed = packed.add(BLOCK_BYTES);
            }
        }
    }
}
