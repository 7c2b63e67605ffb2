//! f32 rows times a matrix in Q8_0: blocks of 32 inputs, each with 8-bit numbers and one scale (ggml's `block_q8_0`).
//!
//! A row is quantized block by block in the same way, by itself. Within a block everything is exact integer arithmetic; the
//! blocks' sums are one chain of fused multiply-adds from the first to the last, which begins with the bias: the same in every
//! tile, for every number of rows.

use half::f16;

use super::lines::Lines;
use super::matmul::store;
use super::pointwise::load_some;
use super::simd::{Op, Simd};
use super::{Epilogue, Isa, PANEL, Pool, Shared, part, tasks_for};

/// Inputs that share a scale.
const BLOCK: usize = 32;
/// Inputs that one 32-bit lane multiplies at once.
const GROUP: usize = 4;
/// Weights are stored plus this, because x86 multiplies unsigned with signed bytes.
const OFFSET: i32 = 128;
/// A panel's part of a block: a scale for each column, then `[BLOCK / GROUP, PANEL, GROUP]` weights.
const SCALES_BYTES: usize = PANEL * size_of::<f16>();
const BLOCK_BYTES: usize = SCALES_BYTES + PANEL * BLOCK;

/// A matrix `[inputs, columns]` in panels of [`PANEL`] columns; inputs that are missing from the last block, and columns from the
/// last panel, are zero.
pub(crate) struct PackedQ8 {
    pub(crate) inputs: usize,
    pub(crate) columns: usize,
    lines: Lines,
}

impl PackedQ8 {
    /// Quantizes and packs a matrix whose element for an input and a column is
    /// `weights[input * input_stride + column * column_stride]`.
    pub(crate) fn pack(weights: &[f32], inputs: usize, columns: usize, [input_stride, column_stride]: [usize; 2]) -> Self {
        let (panels, blocks) = (columns.div_ceil(PANEL), inputs.div_ceil(BLOCK));
        let mut lines = Lines::zeroed(panels * blocks * BLOCK_BYTES);
        for (index, packed) in lines.as_bytes_mut().chunks_exact_mut(BLOCK_BYTES).take(panels * blocks).enumerate() {
            let (panel, block) = (index / blocks, index % blocks);
            let (scales, packed) = packed.split_at_mut(SCALES_BYTES);
            packed.fill(OFFSET as u8);
            for column in 0..PANEL.min(columns - panel * PANEL) {
                let at = (panel * PANEL + column) * column_stride;
                let mut values = [0.0f32; BLOCK];
                for (input, value) in (block * BLOCK..inputs).zip(&mut values) {
                    *value = weights[at + input * input_stride];
                }
                let most = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                // The scale is rounded up front, so that what is stored is quantized by the scale that is stored. One that
                // underflows makes the block zero, which is off by no more than the smallest f16.
                let scale = f16::from_f32((most / 127.0).min(f16::MAX.to_f32()));
                let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
                scales[column * 2..column * 2 + 2].copy_from_slice(&scale.to_le_bytes());
                for (input, value) in values.iter().enumerate() {
                    let stored = quantize(value * inverse) + OFFSET;
                    packed[(input / GROUP * PANEL + column) * GROUP + input % GROUP] = stored as u8;
                }
            }
        }
        PackedQ8 { inputs, columns, lines }
    }

    /// The weights of one column, in order of inputs: an embedding, where the matrix is a tied head.
    pub(crate) fn column(&self, column: usize, to: &mut [f32]) {
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

/// To the nearest of -127..=127, ties to even.
#[inline(always)]
fn quantize(value: f32) -> i32 {
    // Adding and taking away 1.5 · 2^23 rounds in every instruction set; `round_ties_even` is a library call without SSE4.1.
    const ROUND: f32 = 12_582_912.0;
    ((value.clamp(-127.0, 127.0) + ROUND) - ROUND) as i32
}

/// Quantized rows.
struct Rows {
    blocks: usize,
    /// `[rows, blocks, BLOCK / GROUP]`: four signed bytes each, the first lowest.
    groups: Vec<i32>,
    /// `[rows, blocks]`.
    scales: Vec<f32>,
    /// `[rows, blocks]`: what the weights' offset adds to a block's sum, negated.
    corrections: Vec<i32>,
}

impl Rows {
    fn quantize(isa: Isa, pool: &Pool, x: &[f32], inputs: usize) -> Rows {
        let rows = x.len() / inputs;
        let blocks = inputs.div_ceil(BLOCK);
        let mut quantized = Rows {
            blocks,
            groups: vec![0; rows * blocks * (BLOCK / GROUP)],
            scales: vec![0.0; rows * blocks],
            corrections: vec![0; rows * blocks],
        };
        let groups = Shared(quantized.groups.as_mut_ptr());
        let scales = Shared(quantized.scales.as_mut_ptr());
        let corrections = Shared(quantized.corrections.as_mut_ptr());
        let tasks = if rows < 8 { 1 } else { tasks_for(pool, rows) };
        pool.run(tasks, &|task| {
            for row in part(rows, task, tasks) {
                // SAFETY: the row's parts lie within the three vectors, and no other task has them.
                let (groups, scales, corrections) = unsafe {
                    (
                        std::slice::from_raw_parts_mut(groups.get().add(row * blocks * 8), blocks * 8),
                        std::slice::from_raw_parts_mut(scales.get().add(row * blocks), blocks),
                        std::slice::from_raw_parts_mut(corrections.get().add(row * blocks), blocks),
                    )
                };
                isa.run(Quantize { x: &x[row * inputs..(row + 1) * inputs], groups, scales, corrections });
            }
        });
        quantized
    }
}

struct Quantize<'a> {
    x: &'a [f32],
    groups: &'a mut [i32],
    scales: &'a mut [f32],
    corrections: &'a mut [i32],
}

impl Op for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        for (block, x) in self.x.chunks(BLOCK).enumerate() {
            let mut values = [0.0f32; BLOCK];
            values[..x.len()].copy_from_slice(x);
            let mut most = simd.splat(0.0);
            for part in values.chunks_exact(S::LANES) {
                // SAFETY: the part has `LANES` numbers.
                let part = unsafe { simd.load(part.as_ptr()) };
                // A NaN loses to what was there before.
                most = simd.max(simd.max(part, simd.sub(simd.splat(0.0), part)), most);
            }
            let most = simd.most(most);
            // Finite whatever `most` is: an overflowed activation becomes a large one, as in f32.
            let scale = most.min(f32::MAX) / 127.0;
            let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
            let mut bytes = [0i8; BLOCK];
            let mut sum = 0i32;
            for (byte, value) in bytes.iter_mut().zip(values) {
                *byte = quantize(value * inverse) as i8;
                sum += i32::from(*byte);
            }
            self.scales[block] = scale;
            self.corrections[block] = -OFFSET * sum;
            for (group, bytes) in self.groups[block * 8..block * 8 + 8].iter_mut().zip(bytes.as_chunks::<GROUP>().0) {
                *group = i32::from_le_bytes(bytes.map(|byte| byte as u8));
            }
        }
    }
}

/// `x` (`[rows, inputs]`), quantized, times the matrix, plus bias (empty: none), through the epilogue: `[rows, columns]`.
pub(crate) fn matmul_q8(isa: Isa, pool: &Pool, x: &[f32], weights: &PackedQ8, bias: &[f32], epilogue: Epilogue<'_>) -> Vec<f32> {
    let PackedQ8 { inputs, columns, .. } = *weights;
    assert!(inputs > 0 && x.len().is_multiple_of(inputs), "rows of {inputs} inputs");
    assert!(bias.is_empty() || bias.len() == columns, "a bias for each column");
    let rows = x.len() / inputs;
    if let Epilogue::Add(residual) = epilogue {
        assert_eq!(residual.len(), rows * columns, "a residual for each output");
    }
    let mut out: Vec<f32> = Vec::with_capacity(rows * columns);
    let quantized = Rows::quantize(isa, pool, x, inputs);
    let shared = Shared(out.as_mut_ptr());
    let panels = columns.div_ceil(PANEL);
    let tasks = tasks_for(pool, panels);
    pool.run(tasks, &|task| {
        let panels = part(panels, task, tasks);
        isa.run(Panels { panels, rows, x: &quantized, weights, bias, epilogue, out: shared });
    });
    // SAFETY: the tasks have written all rows of all panels' columns, that is, every number.
    unsafe { out.set_len(rows * columns) };
    out
}

struct Panels<'a> {
    panels: std::ops::Range<usize>,
    rows: usize,
    x: &'a Rows,
    weights: &'a PackedQ8,
    bias: &'a [f32],
    epilogue: Epilogue<'a>,
    /// `[rows, columns]`, of which this task writes its panels' columns.
    out: Shared<f32>,
}

impl Op for Panels<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        for panel in self.panels.clone() {
            let mut row = 0;
            while row < self.rows {
                row += match self.rows - row {
                    4.. if S::TILE_ROWS_Q8 >= 4 => self.panel::<S, 4>(simd, panel, row),
                    2.. => self.panel::<S, 2>(simd, panel, row),
                    _ => self.panel::<S, 1>(simd, panel, row),
                };
            }
        }
    }
}

impl Panels<'_> {
    /// `ROWS` rows of one panel, from `row` on; says how many.
    #[inline(always)]
    fn panel<S: Simd, const ROWS: usize>(&self, simd: S, panel: usize, row: usize) -> usize {
        let mut part = 0;
        while part < PANEL {
            self.tile::<S, ROWS, 2>(simd, panel, part, row);
            part += 2 * S::LANES;
        }
        ROWS
    }

    /// `ROWS` rows times `VECTORS` vectors of columns of one panel, from its column `part` on.
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(&self, simd: S, panel: usize, part: usize, row: usize) {
        let blocks = self.x.blocks;
        let columns = self.weights.columns;
        let first = panel * PANEL + part;
        if first >= columns {
            return;
        }
        let mut totals = [[simd.splat(0.0); VECTORS]; ROWS];
        if !self.bias.is_empty() {
            for vector in 0..VECTORS {
                let from = (first + vector * S::LANES).min(columns);
                let bias = load_some(simd, &self.bias[from..(from + S::LANES).min(columns)]);
                for totals in &mut totals {
                    totals[vector] = bias;
                }
            }
        }
        assert!((row + ROWS) * blocks <= self.x.scales.len());
        assert!((panel + 1) * blocks * BLOCK_BYTES <= self.weights.lines.as_bytes().len());
        // SAFETY: the assertions hold the rows' blocks and the panel's within their vectors (`groups` has eight and
        // `corrections` one for each of `scales`); `part` and the vectors lie within the panel's width.
        unsafe {
            let groups = self.x.groups.as_ptr().add(row * blocks * 8);
            let scales = self.x.scales.as_ptr().add(row * blocks);
            let corrections = self.x.corrections.as_ptr().add(row * blocks);
            let mut packed = self.weights.lines.as_bytes().as_ptr().add(panel * blocks * BLOCK_BYTES);
            for block in 0..blocks {
                let mut sums = [[simd.splat_i(0); VECTORS]; ROWS];
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = [simd.splat_i(*corrections.add(row * blocks + block)); VECTORS];
                }
                for group in 0..BLOCK / GROUP {
                    for vector in 0..VECTORS {
                        let at = SCALES_BYTES + (group * PANEL + part + vector * S::LANES) * GROUP;
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let x = *groups.add((row * blocks + block) * 8 + group);
                            sums[vector] = simd.dot4(sums[vector], packed.add(at), x);
                        }
                    }
                }
                for vector in 0..VECTORS {
                    let weight_scales = simd.load_f16(packed.cast::<f16>().add(part + vector * S::LANES));
                    for (row, (totals, sums)) in totals.iter_mut().zip(&sums).enumerate() {
                        let scale = simd.mul(weight_scales, simd.splat(*scales.add(row * blocks + block)));
                        totals[vector] = simd.fma(simd.to_f(sums[vector]), scale, totals[vector]);
                    }
                }
                packed = packed.add(BLOCK_BYTES);
            }
        }
        for (at, totals) in totals.into_iter().enumerate() {
            for (vector, total) in totals.into_iter().enumerate() {
                let from = first + vector * S::LANES;
                // SAFETY: rows and columns lie within `out` (`store` stops at `columns`), and this task has these columns alone.
                unsafe { store(simd, self.epilogue, self.out.get(), (row + at) * columns, from, columns, total) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::matmul::tests::noise;

    /// What block quantization makes of consecutive numbers.
    fn rounded(x: &[f32], half_scale: bool) -> Vec<f32> {
        x.chunks(BLOCK)
            .flat_map(|block| {
                let mut scale = block.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
                if half_scale {
                    scale = f16::from_f32(scale).to_f32();
                }
                block
                    .iter()
                    .map(move |x| if scale > 0.0 { (x / scale).round_ties_even().clamp(-127.0, 127.0) * scale } else { 0.0 })
            })
            .collect()
    }

    #[test]
    fn products_agree_with_those_of_the_rounded_numbers_and_rows_do_not_depend_on_each_other() {
        let pools = [Pool::new(1).unwrap(), Pool::new(3).unwrap()];
        for isa in Isa::all() {
            for (rows, inputs, columns) in
                [(1, 1, 1), (2, 31, 5), (3, 33, 31), (5, 64, 33), (8, 40, 100), (21, 7, 257), (64, 96, 65)]
            {
                let (x, w) = (noise(1, rows * inputs), noise(2, inputs * columns));
                let (bias, residual) = (noise(3, columns), noise(4, rows * columns));
                let packed = PackedQ8::pack(&w, inputs, columns, [1, inputs]);
                let epilogue = Epilogue::Add(&residual);
                let out = matmul_q8(isa, &pools[1], &x, &packed, &bias, epilogue);
                for row in 0..rows {
                    let x = &x[row * inputs..(row + 1) * inputs];
                    let exact = rounded(x, false);
                    let residual = &residual[row * columns..(row + 1) * columns];
                    for column in 0..columns {
                        let mut weights = vec![0.0; inputs];
                        packed.column(column, &mut weights);
                        for (weight, want) in weights.iter().zip(rounded(&w[column * inputs..(column + 1) * inputs], true)) {
                            assert!((weight - want).abs() < 1e-2 * want.abs().max(0.5), "{weight} and {want}");
                        }
                        let dot: f64 = exact.iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                        let want = dot + f64::from(bias[column]) + f64::from(residual[column]);
                        let got = out[row * columns + column];
                        // A number that lies between two may be rounded either way.
                        assert!((f64::from(got) - want).abs() < 1e-2, "{isa} {rows}×{inputs}×{columns}: {got} and {want}");
                    }
                    let alone = matmul_q8(isa, &pools[1], x, &packed, &bias, Epilogue::Add(residual));
                    assert_eq!(alone, out[row * columns..(row + 1) * columns], "{isa}: row {row} of {rows}");
                }
                assert_eq!(matmul_q8(isa, &pools[0], &x, &packed, &bias, epilogue), out, "threads change nothing");
            }
        }
    }

    #[test]
    fn blocks_of_extremes_stay_finite() {
        for isa in Isa::all() {
            let pool = Pool::new(1).unwrap();
            let mut x = vec![0.0; 96];
            x[..32].fill(f32::MAX);
            x[32..64].fill(f32::MIN_POSITIVE / 4.0);
            let packed = PackedQ8::pack(&vec![1e-9; 96 * 3], 96, 3, [3, 1]);
            assert!(matmul_q8(isa, &pool, &x, &packed, &[], Epilogue::None).iter().all(|y| y.is_finite()));
            let packed = PackedQ8::pack(&vec![-1.0; 96 * 3], 96, 3, [3, 1]);
            x.fill(-2.0);
            let out = matmul_q8(isa, &pool, &x, &packed, &[], Epilogue::None);
            assert!(out.iter().all(|y| (y - 192.0).abs() < 0.2), "{out:?}");
        }
    }
}
