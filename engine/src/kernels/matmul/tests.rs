//! Every form with every instruction set against the plain product of the numbers that it says it has.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use half::{bf16, f16};

use crate::Dtype;
use crate::kernels::{Block, Columns, Epilogue, Isa, PEAK_COLUMNS, Packed, Pool, matmul};

const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::Bf16, Dtype::Q8, Dtype::Q4];
/// Rows, inputs, columns.
const SHAPES: &[[usize; 3]] = if cfg!(miri) {
    &[[3, 35, 33], [9, 64, 5]]
} else {
    &[[1, 1, 1], [2, 31, 5], [3, 33, 31], [5, 64, 33], [8, 40, 100], [21, 7, 257], [64, 96, 65], [13, 256, 40]]
};

pub(crate) fn noise(seed: usize, n: usize) -> Vec<f32> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A matrix column after column, with a file's blocks where it has such.
struct Matrix<'a> {
    inputs: usize,
    columns: usize,
    weights: &'a [f32],
    stored: Dtype,
    blocks: &'a [Block],
}

impl<'a> Matrix<'a> {
    fn new(weights: &'a [f32], inputs: usize) -> Self {
        Matrix { inputs, columns: weights.len() / inputs, weights, stored: Dtype::F32, blocks: &[] }
    }
}

impl Columns for Matrix<'_> {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn stored(&self) -> Dtype {
        self.stored
    }

    fn floats(&self, column: usize, to: &mut [f32]) {
        to.copy_from_slice(&self.weights[column * self.inputs..(column + 1) * self.inputs]);
    }

    fn blocks(&self, column: usize, to: &mut [Block]) -> bool {
        if self.blocks.is_empty() {
            return false;
        }
        to.copy_from_slice(&self.blocks[column * to.len()..(column + 1) * to.len()]);
        true
    }
}

fn columns(packed: &Packed) -> Vec<Vec<f32>> {
    (0..packed.columns())
        .map(|column| {
            let mut weights = vec![0.0; packed.inputs()];
            packed.column(column, &mut weights);
            weights
        })
        .collect()
}

/// What a dtype's products make of a row.
fn rounded(dtype: Dtype, x: &[f32]) -> Vec<f32> {
    match dtype {
        Dtype::Bf16 => x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
        Dtype::Q8 | Dtype::Q4 => x
            .chunks(32)
            .flat_map(|block| {
                let scale = block.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
                block.iter().map(move |x| if scale > 0.0 { (x / scale).round_ties_even() * scale } else { 0.0 })
            })
            .collect(),
        _ => x.to_vec(),
    }
}

#[test]
fn products_agree_with_the_plain_ones_on_odd_sizes_and_rows_do_not_depend_on_each_other() {
    let pools = [Pool::new(1).unwrap(), Pool::new(3).unwrap()];
    for (isa, dtype) in Isa::all().into_iter().flat_map(|isa| DTYPES.map(|dtype| (isa, dtype))) {
        for &[rows, inputs, outputs] in SHAPES {
            let (x, w) = (noise(1, rows * inputs), noise(2, inputs * outputs));
            let (bias, residual) = (noise(3, outputs), noise(4, rows * outputs));
            let packed = Packed::pack(dtype, &Matrix::new(&w, inputs)).unwrap();
            let epilogue = Epilogue::Add(&residual);
            let out = matmul(isa, &pools[1], &x, &packed, &bias, epilogue);
            assert_eq!(matmul(isa, &pools[0], &x, &packed, &bias, epilogue), out, "threads change nothing");
            let weights = columns(&packed);
            for row in 0..rows {
                let x = &x[row * inputs..(row + 1) * inputs];
                let exact = rounded(dtype, x);
                let (residual, out) = (&residual[row * outputs..(row + 1) * outputs], &out[row * outputs..(row + 1) * outputs]);
                for (column, weights) in weights.iter().enumerate() {
                    let dot: f64 = exact.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let want = dot + f64::from(bias[column]) + f64::from(residual[column]);
                    // An activation that lies between two integers may be rounded either way.
                    let off = if matches!(dtype, Dtype::Q8 | Dtype::Q4) { 1e-2 } else { 1e-4 };
                    let got = out[column];
                    assert!((f64::from(got) - want).abs() < off, "{isa} {dtype} {rows}×{inputs}×{outputs}: {got} and {want}");
                }
                let alone = matmul(isa, &pools[1], x, &packed, &bias, Epilogue::Add(residual));
                assert_eq!(alone, out, "{isa} {dtype}: row {row} of {rows}");
            }
        }
    }
}

#[test]
fn the_greatest_of_each_block_of_columns_is_noted_and_nothing_else_changes() {
    let pools = [Pool::new(1).unwrap(), Pool::new(3).unwrap()];
    for (isa, dtype) in Isa::all().into_iter().flat_map(|isa| DTYPES.map(|dtype| (isa, dtype))) {
        for [rows, inputs, outputs] in [[1, 32, 5], [3, 40, 256], [9, 32, 1000], [2, 64, 770]] {
            let (x, mut w) = (noise(1, rows * inputs), noise(2, inputs * outputs));
            if outputs < 16 {
                // All below zero, which is what stands behind the last column.
                w.chunks_exact_mut(inputs).for_each(|w| w.iter_mut().zip(&x).for_each(|(w, x)| *w = -x));
            }
            let packed = Packed::pack(dtype, &Matrix::new(&w, inputs)).unwrap();
            let blocks = outputs.div_ceil(PEAK_COLUMNS);
            let plain = matmul(isa, &pools[0], &x, &packed, &[], Epilogue::None);
            for pool in &pools {
                let peaks: Vec<AtomicU32> = (0..rows * blocks).map(|_| AtomicU32::new(0)).collect();
                let out = matmul(isa, pool, &x, &packed, &[], Epilogue::Peaks(&peaks));
                assert_eq!(out, plain, "{isa} {dtype}");
                for (row, peaks) in out.chunks(outputs).zip(peaks.chunks(blocks)) {
                    for (block, peak) in row.chunks(PEAK_COLUMNS).zip(peaks) {
                        let want = block.iter().copied().fold(f32::MIN, f32::max);
                        assert_eq!(f32::from_bits(peak.load(Relaxed)), want, "{isa} {dtype}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_column_that_is_no_number_makes_its_peak_none() {
    let pool = Pool::new(2).unwrap();
    for isa in Isa::all() {
        for (column, weight) in [(0, f32::MAX), (300, f32::MIN), (511, f32::MAX), (512, f32::MAX)] {
            let mut w = vec![0.5; 2 * 513];
            w[2 * column..2 * column + 2].fill(weight);
            let packed = Packed::pack(Dtype::F32, &Matrix::new(&w, 2)).unwrap();
            let peaks: Vec<AtomicU32> = (0..3).map(|_| AtomicU32::new(0)).collect();
            matmul(isa, &pool, &[3.0, 3.0], &packed, &[], Epilogue::Peaks(&peaks));
            for (block, peak) in peaks.iter().enumerate() {
                let peak = f32::from_bits(peak.load(Relaxed));
                assert_eq!(peak.is_nan(), block == column / PEAK_COLUMNS, "{isa}: {peak} of block {block}");
            }
        }
    }
}

#[test]
fn weights_come_back_as_their_form_rounds_them() {
    for (dtype, off) in [(Dtype::F32, 0.0), (Dtype::Bf16, 1.0 / 256.0), (Dtype::Q8, 1.01 / 254.0), (Dtype::Q4, 2.5 / 15.0)] {
        for inputs in [1, 13, 32, 64, 70, 384] {
            let w = noise(5, inputs * 37);
            let packed = Packed::pack(dtype, &Matrix::new(&w, inputs)).unwrap();
            for (weights, w) in columns(&packed).iter().zip(w.chunks(inputs)) {
                for (got, want) in weights.iter().zip(w) {
                    assert!((got - want).abs() <= off, "{dtype}, {inputs} inputs: {got} and {want}");
                }
            }
        }
    }
}

#[test]
fn a_files_integers_are_taken_over_as_they_are() {
    let half = |x: f32| f16::from_f32(x).to_f32();
    let value = |i: usize, least: i32, count: usize| (least + (i * 7919 % count) as i32) as i8;
    let block = |n: usize, least: f32, first: i32, count: usize| Block {
        scale: half(0.01 * (n + 1) as f32),
        least: half(least),
        values: std::array::from_fn(|i| value(n * 31 + i, first, count)),
    };
    // Q8_0, Q4_1 and Q4_0.
    for (dtype, least, first, count) in [(Dtype::Q8, 0.0, -127, 255), (Dtype::Q4, -0.3, 0, 16), (Dtype::Q4, 0.0, -8, 16)] {
        let blocks: Vec<_> = (0..4 * 5).map(|n| block(n, least, first, count)).collect();
        let matrix = Matrix { inputs: 128, columns: 5, weights: &[], stored: dtype, blocks: &blocks };
        let packed = Packed::pack(Dtype::Auto, &matrix).unwrap();
        for (weights, blocks) in columns(&packed).iter().zip(blocks.chunks(4)) {
            let want = blocks.iter().flat_map(|block| block.values.map(|value| f32::from(value) * block.scale + block.least));
            for (got, want) in weights.iter().zip(want) {
                assert!((got - want).abs() <= 1e-6, "{got} and {want}");
            }
        }
    }
}

#[test]
fn a_large_matrix_is_packed_by_several_threads_to_the_same() {
    let (inputs, outputs) = (64, if cfg!(miri) { 40 } else { 70_001 });
    let w = noise(6, inputs * outputs);
    for dtype in [Dtype::F32, Dtype::Q4] {
        let packed = Packed::pack(dtype, &Matrix::new(&w, inputs)).unwrap();
        for column in [0, 31, 32, outputs / 2, outputs - 1] {
            let w = &w[column * inputs..(column + 1) * inputs];
            let (mut all, mut one) = (vec![0.0; inputs], vec![0.0; inputs]);
            packed.column(column, &mut all);
            Packed::pack(dtype, &Matrix::new(w, inputs)).unwrap().column(0, &mut one);
            assert_eq!(all, one);
        }
    }
}

#[test]
fn blocks_of_extremes_stay_finite() {
    let pool = Pool::new(1).unwrap();
    for (isa, dtype) in Isa::all().into_iter().flat_map(|isa| [Dtype::Q8, Dtype::Q4].map(|dtype| (isa, dtype))) {
        let mut x = vec![0.0; 96];
        x[..32].fill(1e37);
        x[32..64].fill(f32::MIN_POSITIVE / 4.0);
        let packed = Packed::pack(dtype, &Matrix::new(&vec![1e-9; 96 * 3], 96)).unwrap();
        assert!(matmul(isa, &pool, &x, &packed, &[], Epilogue::None).iter().all(|y| y.is_finite()));
        let packed = Packed::pack(dtype, &Matrix::new(&vec![-1.0; 96 * 3], 96)).unwrap();
        x.fill(-2.0);
        let out = matmul(isa, &pool, &x, &packed, &[], Epilogue::None);
        assert!(out.iter().all(|y| (y - 192.0).abs() < 0.2), "{out:?}");
    }
}
