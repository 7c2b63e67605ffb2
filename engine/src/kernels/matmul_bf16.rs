//! Rows in bf16 times weights in bf16, summed in f32.
//!
//! Rows are rounded to bf16 with every instruction set, so that a model's quality is one thing: two numbers of a row and two
//! weights make one step of a chain.

use half::bf16;

use super::lines::Lines;
use super::matmul::{Product, Tile, interleave, multiply, row_tiles};
use super::packed::{Columns, each_column, pack_panels};
use super::simd::{Op, Simd};
use super::{Epilogue, Isa, PANEL, Pool, Shared, part, tasks_for_numbers};

/// Pairs between two looks ahead.
const STEP: usize = 8;

/// A matrix `[inputs, columns]` in panels of [`PANEL`] columns, each `[pairs of inputs, PANEL, 2]`; an input that is missing from
/// the last pair, and columns from the last panel, are zero.
pub(crate) struct PackedBf16 {
    pub(super) inputs: usize,
    pub(super) columns: usize,
    pub(super) lines: Lines,
}

impl PackedBf16 {
    pub(super) fn pack(from: &dyn Columns) -> PackedBf16 {
        let (inputs, columns) = (from.inputs(), from.columns());
        let lines = pack_panels(columns, inputs.div_ceil(2) * PANEL * 2 * size_of::<bf16>(), &|first, here, panel| {
            let panel: &mut [u32] = bytemuck::cast_slice_mut(panel);
            each_column(from, first, here, |column, weights| {
                for (to, weights) in panel.chunks_exact_mut(PANEL).zip(weights.chunks(2)) {
                    to[column] = pair(weights);
                }
            });
        });
        PackedBf16 { inputs, columns, lines }
    }

    /// The weights of one column, in order of inputs.
    pub(super) fn column(&self, column: usize, to: &mut [f32]) {
        let pairs: &[u32] = bytemuck::cast_slice(self.lines.as_bytes());
        let panel = &pairs[column / PANEL * self.inputs.div_ceil(2) * PANEL..];
        for (to, pairs) in to.chunks_mut(2).zip(panel.chunks_exact(PANEL)) {
            let pair = pairs[column % PANEL];
            for (to, bits) in to.iter_mut().zip([pair << 16, pair & 0xffff_0000]) {
                *to = f32::from_bits(bits);
            }
        }
    }
}

/// One or two numbers as bf16, the first in the lower half.
#[inline(always)]
fn pair(numbers: &[f32]) -> u32 {
    round(numbers[0]) | numbers.get(1).map_or(0, |second| round(*second) << 16)
}

/// A bf16's bits, to the nearest, ties to even.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fc0 } else { rounded }
}

/// `x` (`[rows, inputs]`), rounded, times the matrix, plus bias (empty: none), through the epilogue: `[rows, columns]`.
pub(super) fn matmul_bf16(
    isa: Isa,
    pool: &Pool,
    x: &[f32],
    weights: &PackedBf16,
    bias: &[f32],
    epilogue: Epilogue<'_>,
) -> Vec<f32> {
    let rows = x.len() / weights.inputs;
    let product = ProductBf16 { x: rounded(isa, pool, x, weights.inputs), weights };
    multiply(isa, pool, &product, [rows, weights.columns], bias, epilogue)
}

/// Rows as tiles take them: pair after pair, each of all the tile's rows.
fn rounded(isa: Isa, pool: &Pool, x: &[f32], inputs: usize) -> Vec<i32> {
    let (rows, pairs) = (x.len() / inputs, inputs.div_ceil(2));
    let tiles: Vec<_> = row_tiles(isa, rows).collect();
    let mut out: Vec<i32> = Vec::with_capacity(rows * pairs);
    let shared = Shared(out.as_mut_ptr());
    // A part of a tile's rows is a unit, so that a single tile has work for every thread.
    let parts = inputs.div_ceil(PART);
    let units = tiles.len() * parts;
    let tasks = tasks_for_numbers(pool, x.len(), units);
    pool.run(tasks, &|task| {
        for unit in part(units, task, tasks) {
            let ((first, rows), at) = (tiles[unit / parts], unit % parts * PART);
            let x = &x[first * inputs..(first + rows) * inputs];
            // SAFETY: the part's pairs lie within `out`, and no other task has them.
            isa.run(Round { x, inputs, at, to: unsafe { shared.get().add(first * pairs + at / 2 * rows) } });
        }
    });
    // SAFETY: the tasks have written every pair of all tiles.
    unsafe { out.set_len(rows * pairs) };
    out
}

/// Inputs that are rounded, of all of a tile's rows, before they are laid out.
const PART: usize = 128;

/// Rounds a part of a tile's rows.
struct Round<'a> {
    /// The tile's rows.
    x: &'a [f32],
    inputs: usize,
    /// The part's first input.
    at: usize,
    /// `[pairs, rows]`, which are the part's own.
    to: *mut i32,
}

impl Op for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, _: S) {
        let mut rounded = [[0; PART / 2]; 8];
        let inputs = PART.min(self.inputs - self.at);
        let mut rows = 0;
        for (x, to) in self.x.chunks_exact(self.inputs).zip(&mut rounded) {
            let (pairs, last) = x[self.at..self.at + inputs].as_chunks::<2>();
            for (to, numbers) in to.iter_mut().zip(pairs) {
                *to = (round(numbers[0]) | round(numbers[1]) << 16) as i32;
            }
            if let [last] = last {
                to[pairs.len()] = round(*last) as i32;
            }
            rows += 1;
        }
        // SAFETY: there are at most eight rows, and the part has so many pairs.
        unsafe { interleave(rows, inputs.div_ceil(2), rounded.as_ptr().cast(), PART / 2, self.to) };
    }
}

struct ProductBf16<'a> {
    /// `[tile][pairs, rows of the tile]`.
    x: Vec<i32>,
    weights: &'a PackedBf16,
}

impl Product for ProductBf16<'_> {
    fn panels(&self) -> *const u8 {
        self.weights.lines.as_bytes().as_ptr()
    }

    fn panel_bytes(&self) -> usize {
        self.weights.inputs.div_ceil(2) * PANEL * 2 * size_of::<bf16>()
    }

    fn steps(&self) -> usize {
        self.weights.inputs.div_ceil(2).div_ceil(STEP)
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &self,
        simd: S,
        at: Tile,
        sums: &mut [[S::F; VECTORS]; ROWS],
    ) {
        let pairs = self.weights.inputs.div_ceil(2);
        // SAFETY: the caller promises that tile and panel are there; a tile has `ROWS` pairs of numbers, a panel `PANEL`.
        unsafe {
            let mut x = self.x.as_ptr().add(at.row * pairs);
            let mut weights = self.panels().add(at.panel * self.panel_bytes() + at.part * 4);
            for step in 0..pairs / STEP {
                at.look_ahead(simd, step);
                for pair in 0..STEP {
                    add_pair(simd, x.add(pair * ROWS), weights.add(pair * PANEL * 4), sums);
                }
                x = x.add(STEP * ROWS);
                weights = weights.add(STEP * PANEL * 4);
            }
            for pair in 0..pairs % STEP {
                add_pair(simd, x.add(pair * ROWS), weights.add(pair * PANEL * 4), sums);
            }
        }
    }
}

/// Adds the products of one pair of inputs. A function, for a closure is not sure to be compiled for the instruction set.
///
/// # Safety
/// `x` is valid for reading `ROWS` pairs, and `weights` for reading `VECTORS` vectors of pairs.
#[inline(always)]
unsafe fn add_pair<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    x: *const i32,
    weights: *const u8,
    sums: &mut [[S::F; VECTORS]; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut vectors = [simd.splat_i(0); VECTORS];
        for (vector, loaded) in vectors.iter_mut().enumerate() {
            *loaded = simd.load_i(weights.add(vector * S::LANES * 4));
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = *x.add(row);
            for (sum, weights) in sums.iter_mut().zip(&vectors) {
                *sum = simd.dot2(*sum, *weights, x);
            }
        }
    }
}
