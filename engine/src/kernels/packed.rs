//! A weight matrix in the form in which it is computed with, and where it comes from.

use super::lines::Lines;
use super::matmul_bf16::{PackedBf16, matmul_bf16};
use super::matmul_f32::{PackedF32, matmul_f32};
use super::matmul_q4::{PackedQ4, matmul_q4};
use super::matmul_q8::{PackedQ8, matmul_q8};
use super::{Epilogue, Isa, PANEL, Pool, part};
use crate::profile::{self, Arithmetic, Part, Work};
use crate::{Dtype, LoadError, threads};

/// Inputs of a quantized block as files have them.
pub(crate) const BLOCK: usize = 32;

/// Thirty-two numbers as a file has them: `scale * value + least` each. Exact where `scale` and `least` are halves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Block {
    pub(crate) scale: f32,
    pub(crate) least: f32,
    pub(crate) values: [i8; BLOCK],
}

/// A matrix on its way into panels, column by column: a column holds the weights of one output, in order of inputs. Read by
/// several threads at once.
pub(crate) trait Columns: Sync {
    /// Weights of a column.
    fn inputs(&self) -> usize;

    /// Outputs.
    fn columns(&self) -> usize;

    /// What `Dtype::Auto` makes of it: the form in which the file has it.
    fn stored(&self) -> Dtype;

    /// One column's weights.
    fn floats(&self, column: usize, to: &mut [f32]);

    /// The weights of a panel's columns, `[inputs, PANEL]` from column `first` on, where that is the order in which they lie: one
    /// column after the other would look at every page of them for each. False: they lie in another order.
    fn by_inputs(&self, first: usize, columns: usize, to: &mut [f32]) -> bool {
        let _ = (first, columns, to);
        false
    }

    /// One column's blocks, where the file has integers of `stored`'s width (those of 8 bits without a least value): they are
    /// taken over as they are. False: it has others, and they have to be made of the floats.
    fn blocks(&self, column: usize, to: &mut [Block]) -> bool {
        let _ = (column, to);
        false
    }
}

/// A packed matrix `[inputs, columns]`.
pub(crate) enum Packed {
    F32(PackedF32),
    Bf16(PackedBf16),
    Q8(PackedQ8),
    Q4(PackedQ4),
}

impl Packed {
    /// Packs a matrix as `dtype`; `auto` is the form that the file has it in.
    pub(crate) fn pack(dtype: Dtype, from: &dyn Columns) -> Result<Packed, LoadError> {
        let dtype = if dtype == Dtype::Auto { from.stored() } else { dtype };
        Ok(match dtype {
            Dtype::Auto | Dtype::F32 => Packed::F32(PackedF32::pack(from)),
            Dtype::Bf16 => Packed::Bf16(PackedBf16::pack(from)),
            Dtype::Q8 => Packed::Q8(PackedQ8::pack(from)),
            Dtype::Q4 => Packed::Q4(PackedQ4::pack(from)),
        })
    }

    pub(crate) fn inputs(&self) -> usize {
        match self {
            Packed::F32(packed) => packed.inputs,
            Packed::Bf16(packed) => packed.inputs,
            Packed::Q8(packed) => packed.inputs,
            Packed::Q4(packed) => packed.inputs,
        }
    }

    pub(crate) fn columns(&self) -> usize {
        match self {
            Packed::F32(packed) => packed.columns,
            Packed::Bf16(packed) => packed.columns,
            Packed::Q8(packed) => packed.columns,
            Packed::Q4(packed) => packed.columns,
        }
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Packed::F32(packed) => &packed.lines,
            Packed::Bf16(packed) => &packed.lines,
            Packed::Q8(packed) => &packed.lines,
            Packed::Q4(packed) => &packed.lines,
        }
        .as_bytes()
        .len()
    }

    /// What a product with so many rows needs at least.
    fn work(&self, rows: usize) -> (Part, Work) {
        let (inputs, columns) = (self.inputs(), self.columns());
        let arithmetic = match self {
            Packed::F32(_) => Arithmetic::F32,
            Packed::Bf16(_) => Arithmetic::Bf16,
            Packed::Q8(_) | Packed::Q4(_) => Arithmetic::Int8,
        };
        let bytes = (self.bytes() + rows * (inputs + columns) * size_of::<f32>()) as u64;
        (Part::Product { inputs, columns }, Work { bytes, operations: 2 * (rows * inputs * columns) as u64, arithmetic })
    }

    /// The weights of one column, in order of inputs: an embedding, where the matrix is a tied head.
    pub(crate) fn column(&self, column: usize, to: &mut [f32]) {
        assert!(column < self.columns() && to.len() == self.inputs(), "a column that is there, and its length");
        match self {
            Packed::F32(packed) => packed.column(column, to),
            Packed::Bf16(packed) => packed.column(column, to),
            Packed::Q8(packed) => packed.column(column, to),
            Packed::Q4(packed) => packed.column(column, to),
        }
    }
}

/// `x` (`[rows, inputs]`) times the matrix, plus bias (empty: none), through the epilogue: `[rows, columns]`.
pub(crate) fn matmul(isa: Isa, pool: &Pool, x: &[f32], weights: &Packed, bias: &[f32], epilogue: Epilogue<'_>) -> Vec<f32> {
    let inputs = weights.inputs();
    assert!(inputs > 0 && x.len().is_multiple_of(inputs), "rows of {inputs} inputs");
    let _span = profile::span(|| weights.work(x.len() / inputs));
    match weights {
        Packed::F32(weights) => matmul_f32(isa, pool, x, weights, bias, epilogue),
        Packed::Bf16(weights) => matmul_bf16(isa, pool, x, weights, bias, epilogue),
        Packed::Q8(weights) => matmul_q8(isa, pool, x, weights, bias, epilogue),
        Packed::Q4(weights) => matmul_q4(isa, pool, x, weights, bias, epilogue),
    }
}

/// Hands each of a panel's columns out, with its number in the panel.
pub(super) fn each_column(from: &dyn Columns, first: usize, columns: usize, mut take: impl FnMut(usize, &[f32])) {
    let inputs = from.inputs();
    let (mut rows, mut weights) = (vec![0.0; inputs * PANEL], vec![0.0; inputs]);
    let together = from.by_inputs(first, columns, &mut rows);
    for column in 0..columns {
        if together {
            let rows = rows.chunks_exact(PANEL);
            weights.iter_mut().zip(rows).for_each(|(weight, row)| *weight = row[column]);
        } else {
            from.floats(first + column, &mut weights);
        }
        take(column, &weights);
    }
}

/// Bytes of a matrix from which on it is packed by several threads. A model's layers are packed at once by their own; its
/// head is as large as several of them, and would be waited for.
const ALONE_BYTES_MAX: usize = 16 << 20;

/// Makes the panels of a matrix: `pack` is given a panel's first column, how many columns it has, and its bytes, all zero.
pub(super) fn pack_panels(columns: usize, panel_bytes: usize, pack: &(dyn Fn(usize, usize, &mut [u8]) + Sync)) -> Lines {
    let panels = columns.div_ceil(PANEL);
    let mut lines = Lines::zeroed(panels * panel_bytes);
    let bytes = &mut lines.as_bytes_mut()[..panels * panel_bytes];
    let threads = if bytes.len() > ALONE_BYTES_MAX { threads::available() } else { 1 };
    std::thread::scope(|scope| {
        let mut rest = bytes;
        for task in 0..threads {
            let range = part(panels, task, threads);
            let (mine, others) = rest.split_at_mut(range.len() * panel_bytes);
            rest = others;
            let work = move || {
                for (panel, bytes) in range.zip(mine.chunks_exact_mut(panel_bytes.max(1))) {
                    let first = panel * PANEL;
                    pack(first, PANEL.min(columns - first), bytes);
                }
            };
            if task + 1 == threads {
                work();
            } else {
                scope.spawn(work);
            }
        }
    });
    lines
}
