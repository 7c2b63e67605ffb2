//! f32 rows times a packed f32 matrix.
//!
//! Each number of the product is one chain of fused multiply-adds over k from 0 up, which begins with the bias: the same in
//! every tile, for every number of rows.

use super::lines::Lines;
use super::pointwise::{gelu, load_some};
use super::simd::{Op, Simd};
use super::{Epilogue, Isa, PANEL, Pool, Shared, part, tasks_for};

/// A matrix `[inputs, columns]` in panels of [`PANEL`] columns, each `[inputs, PANEL]`; columns that are missing from the last
/// one are zero.
pub(crate) struct PackedF32 {
    pub(crate) inputs: usize,
    pub(crate) columns: usize,
    lines: Lines,
}

impl PackedF32 {
    /// Packs a matrix whose element for an input and a column is `weights[input * input_stride + column * column_stride]`.
    pub(crate) fn pack(weights: &[f32], inputs: usize, columns: usize, [input_stride, column_stride]: [usize; 2]) -> Self {
        let panels = columns.div_ceil(PANEL);
        let mut lines = Lines::zeroed(panels * inputs * PANEL * size_of::<f32>());
        for (panel, packed) in lines.as_f32_mut().chunks_exact_mut((inputs * PANEL).max(1)).take(panels).enumerate() {
            let first = panel * PANEL;
            let here = PANEL.min(columns - first);
            for (input, packed) in packed.chunks_exact_mut(PANEL).enumerate() {
                for (column, packed) in packed[..here].iter_mut().enumerate() {
                    *packed = weights[input * input_stride + (first + column) * column_stride];
                }
            }
        }
        PackedF32 { inputs, columns, lines }
    }

    /// The weights of one column, in order of inputs: an embedding, where the matrix is a tied head.
    pub(crate) fn column(&self, column: usize, to: &mut [f32]) {
        let panel = &self.lines.as_f32()[column / PANEL * self.inputs * PANEL..];
        for (input, to) in to.iter_mut().enumerate().take(self.inputs) {
            *to = panel[input * PANEL + column % PANEL];
        }
    }
}

/// `x` (`[rows, inputs]`) times the matrix, plus bias (empty: none), through the epilogue: `[rows, columns]`.
pub(crate) fn matmul_f32(
    isa: Isa,
    pool: &Pool,
    x: &[f32],
    weights: &PackedF32,
    bias: &[f32],
    epilogue: Epilogue<'_>,
) -> Vec<f32> {
    let PackedF32 { inputs, columns, .. } = *weights;
    assert!(inputs > 0 && x.len().is_multiple_of(inputs), "rows of {inputs} inputs");
    assert!(bias.is_empty() || bias.len() == columns, "a bias for each column");
    let rows = x.len() / inputs;
    if let Epilogue::Add(residual) = epilogue {
        assert_eq!(residual.len(), rows * columns, "a residual for each output");
    }
    let mut out: Vec<f32> = Vec::with_capacity(rows * columns);
    let shared = Shared(out.as_mut_ptr());
    let panels = columns.div_ceil(PANEL);
    let tasks = tasks_for(pool, panels);
    pool.run(tasks, &|task| {
        isa.run(Panels { panels: part(panels, task, tasks), rows, x, weights, bias, epilogue, out: shared });
    });
    // SAFETY: the tasks have written all rows of all panels' columns, that is, every number.
    unsafe { out.set_len(rows * columns) };
    out
}

struct Panels<'a> {
    panels: std::ops::Range<usize>,
    rows: usize,
    x: &'a [f32],
    weights: &'a PackedF32,
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
                    8.. if S::TILE_ROWS >= 8 => self.panel::<S, 8>(simd, panel, row),
                    4.. if S::TILE_ROWS >= 4 => self.panel::<S, 4>(simd, panel, row),
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
        // Two rows leave the registers for four vectors each, more only for two.
        if ROWS <= 2 && S::LANES * 4 <= PANEL {
            while part < PANEL {
                self.tile::<S, ROWS, 4>(simd, panel, part, row);
                part += 4 * S::LANES;
            }
        } else {
            while part < PANEL {
                self.tile::<S, ROWS, 2>(simd, panel, part, row);
                part += 2 * S::LANES;
            }
        }
        ROWS
    }

    /// `ROWS` rows times `VECTORS` vectors of columns of one panel, from its column `part` on.
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(&self, simd: S, panel: usize, part: usize, row: usize) {
        let inputs = self.weights.inputs;
        let columns = self.weights.columns;
        let first = panel * PANEL + part;
        if first >= columns {
            return;
        }
        let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
        if !self.bias.is_empty() {
            for vector in 0..VECTORS {
                let from = (first + vector * S::LANES).min(columns);
                let bias = load_some(simd, &self.bias[from..(from + S::LANES).min(columns)]);
                for sums in &mut sums {
                    sums[vector] = bias;
                }
            }
        }
        assert!((row + ROWS) * inputs <= self.x.len() && (panel + 1) * inputs * PANEL <= self.weights.lines.as_f32().len());
        // SAFETY: the assertion above holds every row of `x` and the panel within their slices; `part` and the vectors lie
        // within the panel's width.
        unsafe {
            let x = self.x.as_ptr().add(row * inputs);
            let weights = self.weights.lines.as_f32().as_ptr().add(panel * inputs * PANEL + part);
            for input in 0..inputs {
                let mut vectors = [simd.splat(0.0); VECTORS];
                for (vector, loaded) in vectors.iter_mut().enumerate() {
                    *loaded = simd.load(weights.add(input * PANEL + vector * S::LANES));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = simd.splat(*x.add(row * inputs + input));
                    for (sum, weight) in sums.iter_mut().zip(vectors) {
                        *sum = simd.fma(x, weight, *sum);
                    }
                }
            }
        }
        for (at, sums) in sums.into_iter().enumerate() {
            for (vector, sum) in sums.into_iter().enumerate() {
                let from = first + vector * S::LANES;
                // SAFETY: rows and columns lie within `out` (`store` stops at `columns`), and this task has these columns alone.
                unsafe { store(simd, self.epilogue, self.out.get(), (row + at) * columns, from, columns, sum) };
            }
        }
    }
}

/// Stores a vector of a row's columns from `from` on, as many as there are, through the epilogue.
///
/// # Safety
/// `out` is valid for writing at `start + from..start + columns`, and nobody else writes there now.
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(
    simd: S,
    epilogue: Epilogue<'_>,
    out: *mut f32,
    start: usize,
    from: usize,
    columns: usize,
    sum: S::F,
) {
    if from >= columns {
        return;
    }
    let count = S::LANES.min(columns - from);
    let value = match epilogue {
        Epilogue::None => sum,
        Epilogue::Gelu => gelu(simd, sum),
        Epilogue::Add(residual) => simd.add(load_some(simd, &residual[start + from..start + from + count]), sum),
    };
    // SAFETY: `count` numbers from there are the caller's promise; a whole vector is stored only where `count` is one.
    unsafe {
        let to = out.add(start + from);
        if count == S::LANES {
            simd.store(to, value);
        } else {
            let mut lanes = [0.0; 16];
            simd.store(lanes.as_mut_ptr(), value);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn noise(seed: usize, n: usize) -> Vec<f32> {
        let mut state = seed as u64 * 0x9e37_79b9_7f4a_7c15 + 1;
        (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn plain(x: &[f32], w: &[f32], bias: &[f32], residual: &[f32], inputs: usize, columns: usize) -> Vec<f64> {
        let mut out = Vec::new();
        for (row, x) in x.chunks(inputs).enumerate() {
            for column in 0..columns {
                let dot: f64 = (0..inputs).map(|i| f64::from(x[i]) * f64::from(w[i * columns + column])).sum();
                out.push(dot + f64::from(bias[column]) + f64::from(residual[row * columns + column]));
            }
        }
        out
    }

    #[test]
    fn products_agree_with_the_plain_ones_on_odd_sizes_and_rows_do_not_depend_on_each_other() {
        let pools = [Pool::new(1).unwrap(), Pool::new(3).unwrap()];
        for isa in Isa::all() {
            for (rows, inputs, columns) in
                [(1, 1, 1), (2, 3, 5), (3, 17, 31), (5, 64, 33), (8, 40, 100), (21, 7, 257), (64, 33, 65)]
            {
                let (x, w) = (noise(1, rows * inputs), noise(2, inputs * columns));
                let (bias, residual) = (noise(3, columns), noise(4, rows * columns));
                let packed = PackedF32::pack(&w, inputs, columns, [columns, 1]);
                let epilogue = Epilogue::Add(&residual);
                let out = matmul_f32(isa, &pools[1], &x, &packed, &bias, epilogue);
                for (got, want) in out.iter().zip(plain(&x, &w, &bias, &residual, inputs, columns)) {
                    assert!((f64::from(*got) - want).abs() < 1e-4, "{isa} {rows}×{inputs}×{columns}: {got} and {want}");
                }
                assert_eq!(matmul_f32(isa, &pools[0], &x, &packed, &bias, epilogue), out, "threads change nothing");
                for row in 0..rows {
                    let one = Epilogue::Add(&residual[row * columns..(row + 1) * columns]);
                    let alone = matmul_f32(isa, &pools[1], &x[row * inputs..(row + 1) * inputs], &packed, &bias, one);
                    assert_eq!(alone, out[row * columns..(row + 1) * columns], "{isa}: row {row} of {rows}");
                }
            }
        }
    }

    #[test]
    fn a_transposed_matrix_packs_to_the_same_and_gives_its_columns_back() {
        let (inputs, columns) = (13, 70);
        let w = noise(5, inputs * columns);
        let mut transposed = vec![0.0; w.len()];
        for i in 0..inputs {
            for c in 0..columns {
                transposed[c * inputs + i] = w[i * columns + c];
            }
        }
        let (a, b) =
            (PackedF32::pack(&w, inputs, columns, [columns, 1]), PackedF32::pack(&transposed, inputs, columns, [1, inputs]));
        assert_eq!(a.lines.as_bytes(), b.lines.as_bytes());
        let mut column = vec![0.0; inputs];
        b.column(69, &mut column);
        assert_eq!(column, transposed[69 * inputs..]);
    }
}
