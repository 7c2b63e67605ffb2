//! The CPU's inner loops: the one place with `unsafe` code.
//!
//! Owns packed weights and the bit guarantee: every number that leaves a kernel is computed by one chain of operations whose
//! order depends on its own operands alone, never on how many rows are computed together, on which thread, or in which
//! tile. So a position's results are the same by decode, by any chunking of prefill, in any batch, with any number of
//! threads. Where numbers are and what they mean is left to `ops`.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicU32;

mod attention;
mod heap;
mod kv_pages;
mod limits;
mod lines;
mod matmul;
mod matmul_bf16;
mod matmul_f32;
mod matmul_q4;
mod matmul_q8;
mod norm;
mod packed;
mod pointwise;
mod pool;
mod quantized;
mod rotary;
mod simd;

pub(crate) use attention::{Attention, Segment};
pub(crate) use heap::give_back;
pub(crate) use kv_pages::{KvLayout, KvPages};
pub(crate) use limits::{Buffer as LimitsBuffer, bf16_rate, f32_rate, int8_rate};
pub(crate) use norm::{layer_norm, rms_norm};
pub(crate) use packed::{BLOCK, Block, Columns, Packed, matmul};
pub(crate) use pointwise::swiglu;
pub(crate) use pool::Pool;
pub(crate) use rotary::Rotary;
pub(crate) use simd::Isa;

/// Columns of a packed panel: two AVX-512 vectors, so that one row's products run in two chains, and narrow matrices still
/// have panels for many threads.
pub(crate) const PANEL: usize = 32;

/// What becomes of a product before it is stored.
#[derive(Clone, Copy)]
pub(crate) enum Epilogue<'a> {
    /// It stays as it is.
    None,
    /// `gelu_new`: the tanh form.
    Gelu,
    /// It is added to what the residual stream holds at its place: `[rows, columns]`.
    Add(&'a [f32]),
    /// It stays as it is, and the greatest of each [`PEAK_COLUMNS`] columns is noted, as the bits of an f32:
    /// `[rows, columns / PEAK_COLUMNS, rounded up]`. NaN where one of them is not finite.
    Peaks(&'a [AtomicU32]),
}

/// Columns whose greatest is noted together. Whole panels, still in the cache when their turn comes; fewer would be too many to
/// look through, more too long to pass over.
pub(crate) const PEAK_COLUMNS: usize = 8 * PANEL;

/// A pointer that tasks may share: they write disjoint parts.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);

// SAFETY: every use states which part its task alone writes.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    /// A method, so that closures capture the whole and not its field.
    fn get(&self) -> *mut T {
        self.0
    }
}

/// How many tasks to cut `units` into: a few for each thread, so that a thread whose core is taken away for a moment holds
/// up little, and not more, because each costs an atomic operation.
fn tasks_for(pool: &Pool, units: usize) -> usize {
    if pool.threads() == 1 { 1.min(units) } else { units.min(pool.threads() * 4) }
}

/// The same where a unit takes little, some nanoseconds for each of `numbers` in all: below a microsecond or two, waking
/// anybody costs more.
fn tasks_for_numbers(pool: &Pool, numbers: usize, units: usize) -> usize {
    if numbers < 8192 { 1.min(units) } else { tasks_for(pool, units) }
}

/// The part of `units` that is task `index` of `tasks`.
fn part(units: usize, index: usize, tasks: usize) -> std::ops::Range<usize> {
    units * index / tasks..units * (index + 1) / tasks
}

/// Zeroes that cost no memory until they are touched; `None` where the system has not so many.
pub(crate) fn zeroed(floats: usize) -> Option<Vec<f32>> {
    bytemuck::allocation::try_zeroed_vec(floats).ok()
}
