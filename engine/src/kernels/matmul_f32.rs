//! f32 rows times f32 weights.

use std::borrow::Cow;

use super::lines::Lines;
use super::matmul::{Product, Tile, interleave, multiply, row_tiles};
use super::packed::{Columns, each_column, pack_panels};
use super::simd::Simd;
use super::{Epilogue, Isa, PANEL, Pool, Shared, part, tasks_for_numbers};

/// Inputs between two looks ahead.
const STEP: usize = 8;

/// A matrix `[inputs, columns]` in panels of [`PANEL`] columns, each `[inputs, PANEL]`; columns that are missing from the last
/// one are zero.
pub(crate) struct PackedF32 {
    pub(super) inputs: usize,
    pub(super) columns: usize,
    pub(super) lines: Lines,
}

impl PackedF32 {
    pub(super) fn pack(from: &dyn Columns) -> PackedF32 {
        let (inputs, columns) = (from.inputs(), from.columns());
        let lines = pack_panels(columns, inputs * PANEL * size_of::<f32>(), &|first, here, panel| {
            let panel: &mut [f32] = bytemuck::cast_slice_mut(panel);
            if from.by_inputs(first, here, panel) {
                return;
            }
            each_column(from, first, here, |column, weights| {
                for (to, weight) in panel.chunks_exact_mut(PANEL).zip(weights) {
                    to[column] = *weight;
                }
            });
        });
        PackedF32 { inputs, columns, lines }
    }

    /// The weights of one column, in order of inputs.
    pub(super) fn column(&self, column: usize, to: &mut [f32]) {
        let panel = &self.lines.as_f32()[column / PANEL * self.inputs * PANEL..];
        for (to, weights) in to.iter_mut().zip(panel.chunks_exact(PANEL)).take(self.inputs) {
            *to = weights[column % PANEL];
        }
    }
}

/// `x` (`[rows, inputs]`) times the matrix, plus bias (empty: none), through the epilogue: `[rows, columns]`.
pub(super) fn matmul_f32(
    isa: Isa,
    pool: &Pool,
    x: &[f32],
    weights: &PackedF32,
    bias: &[f32],
    epilogue: Epilogue<'_>,
) -> Vec<f32> {
    let rows = x.len() / weights.inputs;
    let product = ProductF32 { x: interleaved(isa, pool, x, weights.inputs), weights };
    assert_eq!(product.x.len(), rows * weights.inputs);
    multiply(isa, pool, &product, [rows, weights.columns], bias, epilogue)
}

/// Inputs that are laid out at a time, of all of a tile's rows.
const PART: usize = 128;

/// Rows as tiles take them: input after input, each of all the tile's rows.
fn interleaved<'a>(isa: Isa, pool: &Pool, x: &'a [f32], inputs: usize) -> Cow<'a, [f32]> {
    let rows = x.len() / inputs;
    if rows < 2 {
        return Cow::Borrowed(x);
    }
    let tiles: Vec<_> = row_tiles(isa, rows).collect();
    let mut out: Vec<f32> = Vec::with_capacity(x.len());
    let shared = Shared(out.as_mut_ptr());
    // A part of a tile's rows is a unit, so that a single tile has work for every thread.
    let parts = inputs.div_ceil(PART);
    let units = tiles.len() * parts;
    let tasks = tasks_for_numbers(pool, x.len(), units);
    pool.run(tasks, &|task| {
        for unit in part(units, task, tasks) {
            let ((first, rows), at) = (tiles[unit / parts], unit % parts * PART);
            let x = &x[first * inputs..(first + rows) * inputs];
            let to = first * inputs + at * rows;
            // SAFETY: the part lies within the tile's rows, and it has the same place in `out`, which no other task has.
            unsafe { interleave(rows, PART.min(inputs - at), x[at..].as_ptr(), inputs, shared.get().add(to)) };
        }
    });
    // SAFETY: the tasks have written every number of all tiles.
    unsafe { out.set_len(x.len()) };
    Cow::Owned(out)
}

struct ProductF32<'a> {
    /// `[tile][inputs, rows of the tile]`.
    x: Cow<'a, [f32]>,
    weights: &'a PackedF32,
}

impl Product for ProductF32<'_> {
    fn panels(&self) -> *const u8 {
        self.weights.lines.as_bytes().as_ptr()
    }

    fn panel_bytes(&self) -> usize {
        self.weights.inputs * PANEL * size_of::<f32>()
    }

    fn steps(&self) -> usize {
        self.weights.inputs.div_ceil(STEP)
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &self,
        simd: S,
        at: Tile,
        sums: &mut [[S::F; VECTORS]; ROWS],
    ) {
        let inputs = self.weights.inputs;
        // SAFETY: the caller promises that tile and panel are there; a tile has `ROWS` numbers of each input, a panel `PANEL`.
        unsafe {
            let mut x = self.x.as_ptr().add(at.row * inputs);
            let mut weights = self.weights.lines.as_f32().as_ptr().add(at.panel * inputs * PANEL + at.part);
            for step in 0..inputs / STEP {
                at.look_ahead(simd, step);
                for input in 0..STEP {
                    add_input(simd, x.add(input * ROWS), weights.add(input * PANEL), sums);
                }
                x = x.add(STEP * ROWS);
                weights = weights.add(STEP * PANEL);
            }
            for input in 0..inputs % STEP {
                add_input(simd, x.add(input * ROWS), weights.add(input * PANEL), sums);
            }
        }
    }
}

/// Adds the products of one input. A function, for a closure is not sure to be compiled for the instruction set.
///
/// # Safety
/// `x` is valid for reading `ROWS` numbers, and `weights` for reading `VECTORS` vectors.
#[inline(always)]
unsafe fn add_input<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    x: *const f32,
    weights: *const f32,
    sums: &mut [[S::F; VECTORS]; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut vectors = [simd.splat(0.0); VECTORS];
        for (vector, loaded) in vectors.iter_mut().enumerate() {
            *loaded = simd.load(weights.add(vector * S::LANES));
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = simd.splat(*x.add(row));
            for (sum, weight) in sums.iter_mut().zip(&vectors) {
                *sum = simd.fma(x, *weight, *sum);
            }
        }
    }
}
