//! A weight matrix in the form in which it is computed with, and where it comes from.

use super::matmul::{PackedF32, matmul_f32};
use super::matmul_q8::{PackedQ8, matmul_q8};
use super::{Epilogue, Isa, Pool};
use crate::profile::{self, Arithmetic, Part, Work};
use crate::{Dtype, LoadError};

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

    /// One column's blocks, where the file has integers of `stored`'s width: they are taken over as they are. False: it has
    /// others, and they have to be made of the floats.
    fn blocks(&self, column: usize, to: &mut [Block]) -> bool {
        let _ = (column, to);
        false
    }
}

/// A packed matrix `[inputs, columns]`.
pub(crate) enum Packed {
    F32(PackedF32),
    Q8(PackedQ8),
}

impl Packed {
    /// Packs a matrix as `dtype`, which is not `auto`.
    pub(crate) fn pack(dtype: Dtype, from: &dyn Columns) -> Result<Packed, LoadError> {
        let (inputs, columns) = (from.inputs(), from.columns());
        // Column after column.
        let mut all = vec![0.0; inputs * columns];
        for (column, to) in all.chunks_exact_mut(inputs).enumerate() {
            from.floats(column, to);
        }
        match dtype {
            Dtype::Auto | Dtype::F32 => Ok(Packed::F32(PackedF32::pack(&all, inputs, columns, [1, inputs]))),
            Dtype::Q8 => Ok(Packed::Q8(PackedQ8::pack(&all, inputs, columns, [1, inputs]))),
            Dtype::Bf16 | Dtype::Q4 => Err(LoadError::Unsupported(format!("{dtype} is not there yet: take f32 or q8"))),
        }
    }

    pub(crate) fn inputs(&self) -> usize {
        match self {
            Packed::F32(packed) => packed.inputs,
            Packed::Q8(packed) => packed.inputs,
        }
    }

    pub(crate) fn columns(&self) -> usize {
        match self {
            Packed::F32(packed) => packed.columns,
            Packed::Q8(packed) => packed.columns,
        }
    }

    /// What a product with so many rows needs at least.
    fn work(&self, rows: usize) -> (Part, Work) {
        let (inputs, columns) = (self.inputs(), self.columns());
        // Bytes of 32 weights; blocks have a scale of 16 bits each.
        let (block_bytes, arithmetic) = match self {
            Packed::F32(_) => (128, Arithmetic::F32),
            Packed::Q8(_) => (34, Arithmetic::Int8),
        };
        let weights = inputs * columns;
        let bytes = (weights * block_bytes / BLOCK + rows * (inputs + columns) * size_of::<f32>()) as u64;
        (Part::Product { inputs, columns }, Work { bytes, operations: 2 * (rows * weights) as u64, arithmetic })
    }

    /// The weights of one column, in order of inputs: an embedding, where the matrix is a tied head.
    pub(crate) fn column(&self, column: usize, to: &mut [f32]) {
        match self {
            Packed::F32(packed) => packed.column(column, to),
            Packed::Q8(packed) => packed.column(column, to),
        }
    }
}

/// `x` (`[rows, inputs]`) times the matrix, plus bias (empty: none), through the epilogue: `[rows, columns]`.
pub(crate) fn matmul(isa: Isa, pool: &Pool, x: &[f32], weights: &Packed, bias: &[f32], epilogue: Epilogue<'_>) -> Vec<f32> {
    let _span = profile::span(|| weights.work(x.len() / weights.inputs().max(1)));
    match weights {
        Packed::F32(weights) => matmul_f32(isa, pool, x, weights, bias, epilogue),
        Packed::Q8(weights) => matmul_q8(isa, pool, x, weights, bias, epilogue),
    }
}
