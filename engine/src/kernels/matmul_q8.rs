//! Rows times a matrix of 8-bit numbers in blocks of 32 inputs with one scale each (ggml's `block_q8_0`).
//!
//! Larger blocks cost less to sum, a tenth at many rows, but a row's few great numbers then take the others' precision away: with
//! blocks of 64 SmolLM2's perplexity rises by 1.1 % instead of 0.4 %.
//!
//! Rows are quantized block by block in the same way. Within a block everything is exact integer arithmetic; the blocks' sums
//! are one chain of fused multiply-adds.

use half::f16;

use super::lines::Lines;
use super::matmul::{Product, Tile, multiply};
use super::packed::{BLOCK, Block, Columns, each_column, pack_panels};
use super::quantized::{GROUP, OFFSET, Quantized};
use super::simd::Simd;
use super::{Epilogue, Isa, PANEL, Pool};
use crate::Dtype;

/// A panel's scales of a block, one for each column.
const SCALES_BYTES: usize = PANEL * size_of::<f16>();
/// A panel's part of a block.
const BLOCK_BYTES: usize = SCALES_BYTES + PANEL * BLOCK;

/// A matrix `[inputs, columns]` in panels of [`PANEL`] columns. A panel's part of a block is its scales, then `[block / GROUP,
/// PANEL, GROUP]` weights, each plus [`OFFSET`]. Inputs that are missing from the last block, and columns from the last panel,
/// are zero.
pub(crate) struct PackedQ8 {
    pub(super) inputs: usize,
    pub(super) columns: usize,
    pub(super) lines: Lines,
}

impl PackedQ8 {
    /// Takes a file's integers over where it has such, and else makes them of its floats.
    pub(super) fn pack(from: &dyn Columns) -> PackedQ8 {
        let (inputs, columns) = (from.inputs(), from.columns());
        let mut first = vec![Block::default(); inputs.div_ceil(BLOCK)];
        let stored = columns > 0 && from.stored() == Dtype::Q8 && from.blocks(0, &mut first);
        let blocks = inputs.div_ceil(BLOCK);
        let lines = pack_panels(columns, blocks * BLOCK_BYTES, &|first, here, panel| {
            for packed in panel.chunks_exact_mut(BLOCK_BYTES) {
                packed[SCALES_BYTES..].fill(OFFSET as u8);
            }
            if !stored {
                return each_column(from, first, here, |column, weights| put_quantized(panel, column, weights));
            }
            let (mut given, mut weights) = (vec![Block::default(); blocks], vec![0.0; inputs]);
            for column in 0..here {
                if !from.blocks(first + column, &mut given) {
                    from.floats(first + column, &mut weights);
                    put_quantized(panel, column, &weights);
                    continue;
                }
                for (packed, given) in panel.chunks_exact_mut(BLOCK_BYTES).zip(&given) {
                    put(packed, column, f16::from_f32(given.scale), &given.values);
                }
            }
        });
        PackedQ8 { inputs, columns, lines }
    }

    /// The weights of one column, in order of inputs.
    pub(super) fn column(&self, column: usize, to: &mut [f32]) {
        let blocks = self.inputs.div_ceil(BLOCK);
        let panel = &self.lines.as_bytes()[column / PANEL * blocks * BLOCK_BYTES..];
        let column = column % PANEL;
        for (block, to) in panel.chunks_exact(BLOCK_BYTES).zip(to.chunks_mut(BLOCK)) {
            let scale = f16::from_le_bytes([block[column * 2], block[column * 2 + 1]]).to_f32();
            for (input, to) in to.iter_mut().enumerate() {
                let stored = block[SCALES_BYTES + (input / GROUP * PANEL + column) * GROUP + input % GROUP];
                *to = (i32::from(stored) - OFFSET) as f32 * scale;
            }
        }
    }
}

/// Quantizes a column's weights on their way into a panel.
fn put_quantized(panel: &mut [u8], column: usize, weights: &[f32]) {
    for (packed, weights) in panel.chunks_exact_mut(BLOCK_BYTES).zip(weights.chunks(BLOCK)) {
        let mut values = [0; BLOCK];
        let scale = quantize(weights, &mut values);
        put(packed, column, scale, &values);
    }
}

/// Quantizes a block's weights, and says by what scale.
fn quantize(weights: &[f32], values: &mut [i8]) -> f16 {
    // In lanes, for one comparison after the other takes longer than all the rest.
    let mut lanes = [0.0f32; 16];
    for weights in weights.chunks(16) {
        for (most, weight) in lanes.iter_mut().zip(weights) {
            *most = if weight.abs() > *most { weight.abs() } else { *most };
        }
    }
    let most = lanes.into_iter().fold(0.0f32, f32::max);
    // The scale is rounded up front, so that what is stored is quantized by the scale that is stored. One that underflows
    // makes the block zero, which is off by no more than the smallest f16.
    let scale = f16::from_f32((most / 127.0).min(f16::MAX.to_f32()));
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    // Adding and taking away 1.5 · 2^23 rounds, ties to even; `round_ties_even` is a library call without SSE4.1.
    const ROUND: f32 = 12_582_912.0;
    for (value, weight) in values.iter_mut().zip(weights) {
        *value = (((weight * inverse).clamp(-127.0, 127.0) + ROUND) - ROUND) as i8;
    }
    scale
}

/// Puts a column's numbers where the products find them.
fn put(packed: &mut [u8], column: usize, scale: f16, values: &[i8]) {
    packed[column * 2..column * 2 + 2].copy_from_slice(&scale.to_le_bytes());
    let groups = packed[SCALES_BYTES..].chunks_exact_mut(PANEL * GROUP);
    for (packed, values) in groups.zip(values.as_chunks::<GROUP>().0) {
        // Adding 128 to a signed byte turns its highest bit around.
        packed[column * GROUP..(column + 1) * GROUP].copy_from_slice(&values.map(|value| value as u8 ^ 0x80));
    }
}

/// `x` (`[rows, inputs]`), quantized, times the matrix, plus bias (empty: none), through the epilogue: `[rows, columns]`.
pub(super) fn matmul_q8(isa: Isa, pool: &Pool, x: &[f32], weights: &PackedQ8, bias: &[f32], epilogue: Epilogue<'_>) -> Vec<f32> {
    let shape = [x.len() / weights.inputs, weights.columns];
    let x = Quantized::rows(isa, pool, x, weights.inputs);
    multiply(isa, pool, &ProductQ8 { x, weights }, shape, bias, epilogue)
}

struct ProductQ8<'a> {
    x: Quantized,
    weights: &'a PackedQ8,
}

impl Product for ProductQ8<'_> {
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
        // SAFETY: the caller promises that tile and panel are there: a tile has `ROWS` groups, scales and corrections of each
        // block's, a panel's block its scales and `PANEL` groups of weights.
        unsafe {
            let mut groups = self.x.groups.as_ptr().add(at.row * blocks * (BLOCK / GROUP));
            let mut scales = self.x.scales.as_ptr().add(at.row * blocks);
            let mut corrections = self.x.corrections.as_ptr().add(at.row * blocks);
            let mut packed = self.panels().add(at.panel * self.panel_bytes());
            for block in 0..blocks {
                let mut sums = [[simd.splat_i(0); VECTORS]; ROWS];
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = [simd.splat_i(*corrections.add(row)); VECTORS];
                }
                let mut weights = packed.add(SCALES_BYTES + at.part * GROUP);
                at.look_ahead(simd, block);
                for _ in 0..BLOCK / GROUP {
                    let mut vectors = [simd.splat_i(0); VECTORS];
                    for (vector, loaded) in vectors.iter_mut().enumerate() {
                        *loaded = simd.load_i(weights.add(vector * S::LANES * GROUP));
                    }
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let x = *groups.add(row);
                        for (sum, weights) in sums.iter_mut().zip(&vectors) {
                            *sum = simd.dot4(*sum, *weights, x);
                        }
                    }
                    groups = groups.add(ROWS);
                    weights = weights.add(PANEL * GROUP);
                }
                for vector in 0..VECTORS {
                    let weight_scales = simd.load_f16(packed.cast::<f16>().add(at.part + vector * S::LANES));
                    for (row, (totals, sums)) in totals.iter_mut().zip(&sums).enumerate() {
                        let scale = simd.mul(weight_scales, simd.splat(*scales.add(row)));
                        totals[vector] = simd.fma(simd.to_f(sums[vector]), scale, totals[vector]);
                    }
                }
                scales = scales.add(ROWS);
                corrections = corrections.add(ROWS);
                packed = packed.add(BLOCK_BYTES);
            }
        }
    }
}
