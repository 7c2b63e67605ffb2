//! Rows times a packed matrix, whatever its form: panels over threads, rows in register tiles, bias before and epilogue after.
//!
//! A form's part is [`Product::tile`]. Each number of the product is one chain of operations over the inputs from the first to
//! the last, which begins with the bias: the same in every tile, for every number of rows.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::pointwise::{gelu, load_some};
use super::simd::{Op, Simd};
use super::{Epilogue, Isa, PANEL, PEAK_COLUMNS, Pool, Shared};

/// How far a single tile looks ahead: what a core computes with while memory answers.
const AHEAD_BYTES: usize = 8192;
/// Rows from which on a tile looks ahead. With fewer, loads run ahead by themselves, and fetching as well only delays them.
const AHEAD_ROWS_MIN: usize = 4;
/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// A packed matrix and the rows that it is to be multiplied with, in the form in which they meet.
pub(super) trait Product: Sync {
    /// Where the panels begin; each follows the one before.
    fn panels(&self) -> *const u8;

    /// Bytes of a panel.
    fn panel_bytes(&self) -> usize;

    /// How often [`Product::tile`] looks ahead in a panel.
    fn steps(&self) -> usize;

    /// Adds to `sums` the products of `ROWS` rows, the tile that begins at `row`, with `VECTORS` vectors of columns.
    ///
    /// # Safety
    /// The rows and the panel are there, and `at.part` and the vectors lie within the panel's width.
    unsafe fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &self,
        simd: S,
        at: Tile,
        sums: &mut [[S::F; VECTORS]; ROWS],
    );
}

/// Which tile, and what to have on its way into the cache meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) row: usize,
    pub(super) panel: usize,
    /// The first of the tile's columns in the panel.
    pub(super) part: usize,
    ahead: *const u8,
    /// Lines to fetch in [`RATE`] steps.
    rate: usize,
}

/// Steps, a power of two, so many that whole lines in them are a fine measure.
const RATE: usize = 256;

impl Tile {
    /// Fetches what belongs to a step.
    #[inline(always)]
    pub(super) fn look_ahead<S: Simd>(self, simd: S, step: usize) {
        for line in step * self.rate / RATE..(step + 1) * self.rate / RATE {
            simd.prefetch_far(self.ahead.wrapping_add(line * LINE_BYTES));
        }
    }
}

/// The row tiles of `rows` rows: where each begins, and how many rows it has.
pub(super) fn row_tiles(isa: Isa, rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let most = isa.tile_rows();
    let mut row = 0;
    std::iter::from_fn(move || {
        let tile = (row, tile_rows(most, rows - row));
        row += tile.1;
        (tile.1 > 0).then_some(tile)
    })
}

/// Rows of the next tile, when `rows` are left.
#[inline(always)]
fn tile_rows(most: usize, rows: usize) -> usize {
    match rows {
        8.. if most >= 8 => 8,
        4.. if most >= 4 => 4,
        2.. => 2,
        rows => rows,
    }
}

/// Lays a tile's rows out as tiles take them: of `[rows, count]`, whose rows are `stride` apart, it makes `[count, rows]`.
///
/// # Safety
/// `from` is valid for reading the rows, and `to` for writing `rows * count` numbers.
#[inline(always)]
pub(super) unsafe fn interleave<T: Copy>(rows: usize, count: usize, from: *const T, stride: usize, to: *mut T) {
    #[inline(always)]
    unsafe fn tile<T: Copy, const ROWS: usize>(count: usize, from: *const T, stride: usize, to: *mut T) {
        for at in 0..count {
            for row in 0..ROWS {
                // SAFETY: the caller promises `ROWS` rows of `count` numbers on both sides.
                unsafe { to.add(at * ROWS + row).write(*from.add(row * stride + at)) };
            }
        }
    }
    // SAFETY: the caller's promise, for the number of rows that it is.
    unsafe {
        match rows {
            8 => tile::<T, 8>(count, from, stride, to),
            4 => tile::<T, 4>(count, from, stride, to),
            2 => tile::<T, 2>(count, from, stride, to),
            _ => tile::<T, 1>(count, from, stride, to),
        }
    }
}

/// `rows` rows times the matrix, plus bias (empty: none), through the epilogue: `[rows, columns]`.
pub(super) fn multiply<P: Product>(
    isa: Isa,
    pool: &Pool,
    product: &P,
    [rows, columns]: [usize; 2],
    bias: &[f32],
    epilogue: Epilogue<'_>,
) -> Vec<f32> {
    assert!(bias.is_empty() || bias.len() == columns, "a bias for each column");
    if let Epilogue::Add(residual) = epilogue {
        assert_eq!(residual.len(), rows * columns, "a residual for each output");
    }
    if let Epilogue::Peaks(peaks) = epilogue {
        assert_eq!(peaks.len(), rows * columns.div_ceil(PEAK_COLUMNS), "a peak for each block of columns");
    }
    let mut out: Vec<f32> = Vec::with_capacity(rows * columns);
    let shared = Shared(out.as_mut_ptr());
    let panels = columns.div_ceil(PANEL);
    // A panel is a task: a thread takes them one after the other, as they lie in memory. What is noted together is one task's.
    let together = if let Epilogue::Peaks(_) = epilogue { PEAK_COLUMNS / PANEL } else { 1 };
    pool.run(panels.div_ceil(together), &|task| {
        for panel in task * together..panels.min((task + 1) * together) {
            isa.run(Panel { panel, rows, columns, product, bias, epilogue, out: shared });
        }
        if let Epilogue::Peaks(peaks) = epilogue {
            isa.run(Note { block: task, rows, columns, out: shared, peaks });
        }
    });
    // SAFETY: the tasks have written all rows of all panels' columns, that is, every number.
    unsafe { out.set_len(rows * columns) };
    out
}

struct Panel<'a, P> {
    panel: usize,
    rows: usize,
    columns: usize,
    product: &'a P,
    bias: &'a [f32],
    epilogue: Epilogue<'a>,
    /// `[rows, columns]`, of which this task writes its panel's columns.
    out: Shared<f32>,
}

impl<P: Product> Op for Panel<'_, P> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let tiles = self.rows.div_ceil(S::TILE_ROWS);
        // While the rows' tiles take turns with a panel, the next one is fetched, spread evenly over them; a single tile fetches
        // what it needs soon.
        let distance = if tiles > 1 { self.product.panel_bytes() } else { AHEAD_BYTES };
        let lines = (self.product.panel_bytes() / LINE_BYTES).div_ceil(tiles.max(1));
        let rate = if self.rows < AHEAD_ROWS_MIN { 0 } else { (lines * RATE).div_ceil(self.product.steps().max(1)) };
        let panel = self.panel;
        let mut row = 0;
        while row < self.rows {
            let ahead = panel * self.product.panel_bytes() + distance + row / S::TILE_ROWS * lines * LINE_BYTES;
            let at = Tile { row, panel, part: 0, ahead: self.product.panels().wrapping_add(ahead), rate };
            let rows = tile_rows(S::TILE_ROWS, self.rows - row);
            match rows {
                8 if S::TILE_ROWS >= 8 => self.tile::<S, 8>(simd, at),
                4 if S::TILE_ROWS >= 4 => self.tile::<S, 4>(simd, at),
                2 => self.tile::<S, 2>(simd, at),
                _ => self.tile::<S, 1>(simd, at),
            }
            row += rows;
        }
    }
}

impl<P: Product> Panel<'_, P> {
    /// One tile of a panel's whole width.
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize>(&self, simd: S, mut at: Tile) {
        while at.part < PANEL {
            self.part::<S, ROWS, 2>(simd, at);
            at.part += 2 * S::LANES;
            at.rate = 0;
        }
    }

    #[inline(always)]
    fn part<S: Simd, const ROWS: usize, const VECTORS: usize>(&self, simd: S, at: Tile) {
        let first = at.panel * PANEL + at.part;
        if first >= self.columns {
            return;
        }
        let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
        if !self.bias.is_empty() {
            for vector in 0..VECTORS {
                let from = (first + vector * S::LANES).min(self.columns);
                let bias = load_some(simd, &self.bias[from..(from + S::LANES).min(self.columns)]);
                for sums in &mut sums {
                    sums[vector] = bias;
                }
            }
        }
        // SAFETY: rows, panels and parts are counted above as the product has them.
        unsafe { self.product.tile(simd, at, &mut sums) };
        for (row, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                let from = first + vector * S::LANES;
                // SAFETY: rows and columns lie within `out` (`store` stops at `columns`), and this task has these columns alone.
                unsafe {
                    store(simd, self.epilogue, self.out.get(), (at.row + row) * self.columns, from, self.columns, *sum);
                }
            }
        }
    }
}

/// The peaks of a block of columns, of all rows.
struct Note<'a> {
    block: usize,
    rows: usize,
    columns: usize,
    /// `[rows, columns]`, of which this task has just written the block.
    out: Shared<f32>,
    peaks: &'a [AtomicU32],
}

impl Op for Note<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let (first, blocks) = (self.block * PEAK_COLUMNS, self.columns.div_ceil(PEAK_COLUMNS));
        let count = PEAK_COLUMNS.min(self.columns - first);
        for row in 0..self.rows {
            // SAFETY: the task has written these columns of all rows, and has them alone.
            let x = unsafe { std::slice::from_raw_parts(self.out.get().add(row * self.columns + first), count) };
            self.peaks[row * blocks + self.block].store(peak(simd, x).to_bits(), Relaxed);
        }
    }
}

/// The greatest number, or NaN where one is not finite.
#[inline(always)]
fn peak<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (mut most, mut broken) = (simd.splat(f32::MIN), simd.splat(0.0));
    let parts = x.chunks_exact(S::LANES);
    let rest = parts.remainder();
    for part in parts {
        // SAFETY: the part has `LANES` numbers.
        let x = unsafe { simd.load(part.as_ptr()) };
        most = simd.max(most, x);
        // 0 for a number, else NaN from here on.
        broken = simd.fma(x, simd.splat(0.0), broken);
    }
    let add = |(most, broken): (f32, f32), x: &f32| (if *x > most { *x } else { most }, broken + x * 0.0);
    let (most, broken) = rest.iter().fold((simd.most(most), simd.sum(broken)), add);
    most + broken
}

/// Stores a vector of a row's columns from `from` on, as many as there are, through the epilogue.
///
/// # Safety
/// `out` is valid for writing at `start + from..start + columns`, and nobody else writes there now.
#[inline(always)]
unsafe fn store<S: Simd>(simd: S, epilogue: Epilogue<'_>, out: *mut f32, start: usize, from: usize, columns: usize, sum: S::F) {
    if from >= columns {
        return;
    }
    let count = S::LANES.min(columns - from);
    let value = match epilogue {
        Epilogue::None | Epilogue::Peaks(_) => sum,
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
pub(super) mod tests;
