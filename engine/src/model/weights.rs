//! Tensors by name, checked against the shapes that the architecture wants, on their way into the forms that compute.

use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};
use std::sync::Mutex;

use super::Dtype;
use crate::kernels::{Columns, Packed};
use crate::ops::{LayerNorm, Linear, with_floats};
use crate::{Checkpoint, LoadError};

/// Where tensors come from, and what they become.
pub(crate) struct Weights<'a> {
    pub(crate) source: From<'a>,
    pub(crate) form: Form,
    pub(crate) device: Device,
    /// What was taken so far: a line for each tensor.
    pub(crate) taken: Mutex<Vec<String>>,
}

/// Where tensors come from.
pub(crate) enum From<'a> {
    /// A checkpoint, and what the names of the body begin with in it.
    Checkpoint(&'a Checkpoint, &'static str),
    /// Noise as at the beginning of a training, for benchmarks and tests: the same for the same names.
    Random,
}

/// What matrices become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Panels for the CPU's kernels.
    Packed(Dtype),
    /// candle tensors in f32.
    Plain,
}

impl Weights<'_> {
    /// A tensor in f32 on the device.
    pub(crate) fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor, LoadError> {
        let tensor = match &self.source {
            From::Checkpoint(checkpoint, prefix) => {
                let name = stored(prefix, name);
                let got = checkpoint.shape(&name)?;
                if got != dims {
                    return Err(LoadError::TensorShape { name, got, want: dims.to_vec() });
                }
                // Widened on the CPU, where the fingerprint is taken: a device need not know the stored type.
                checkpoint.tensor(&name, &Device::Cpu)?.to_dtype(DType::F32).and_then(|tensor| tensor.contiguous())
            }
            From::Random => Tensor::from_vec(noise(name, dims), dims, &Device::Cpu),
        };
        let tensor = tensor.map_err(LoadError::Prepare)?;
        let (digest, broken) =
            with_floats(&tensor, |values| (digest(values), first_broken(values))).map_err(LoadError::Prepare)?;
        if let (Some((element, value)), From::Checkpoint(checkpoint, prefix)) = (broken, &self.source) {
            let (folder, name) = (checkpoint.folder().to_string(), stored(prefix, name));
            return Err(LoadError::NotFinite { folder, name, element, value });
        }
        let line = format!("{name} {dims:?} {digest:016x}");
        self.taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(line);
        tensor.to_device(&self.device).map_err(LoadError::Prepare)
    }

    /// A `Conv1D`: `weight` is `[inputs, columns]`.
    pub(crate) fn conv1d(&self, name: &str, inputs: usize, columns: usize) -> Result<Linear, LoadError> {
        let weight = self.tensor(&format!("{name}.weight"), &[inputs, columns])?;
        let bias = self.tensor(&format!("{name}.bias"), &[columns])?;
        self.linear(weight, [inputs, columns], [columns, 1], Some(bias))
    }

    /// A matrix stored as `[columns, inputs]`, without a bias: an embedding or a head.
    pub(crate) fn head(&self, name: &str, inputs: usize, columns: usize) -> Result<Linear, LoadError> {
        let weight = self.tensor(name, &[columns, inputs])?;
        self.linear(weight, [inputs, columns], [1, inputs], None)
    }

    pub(crate) fn layer_norm(&self, name: &str, width: usize, epsilon: f64) -> Result<LayerNorm, LoadError> {
        let weight = self.tensor(&format!("{name}.weight"), &[width])?;
        let bias = self.tensor(&format!("{name}.bias"), &[width])?;
        Ok(LayerNorm { weight, bias, epsilon })
    }

    fn linear(
        &self,
        weight: Tensor,
        [inputs, columns]: [usize; 2],
        strides: [usize; 2],
        bias: Option<Tensor>,
    ) -> Result<Linear, LoadError> {
        let Form::Packed(dtype) = self.form else {
            let weight = if strides[0] == 1 { weight.t().map_err(LoadError::Prepare)? } else { weight };
            return Ok(Linear::Plain { weight, bias });
        };
        let bias = match bias {
            Some(bias) => bias.to_vec1().map_err(LoadError::Prepare)?,
            None => Vec::new(),
        };
        let weight = with_floats(&weight, |weights| Packed::pack(dtype, &Floats { weights, inputs, columns, strides }));
        Ok(Linear::Packed { weight: weight.map_err(LoadError::Prepare)??, bias })
    }

    /// What identifies everything that was taken.
    pub(crate) fn identity(&self) -> [u8; 32] {
        let mut taken = self.taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        taken.sort_unstable();
        Sha256::digest(taken.join("\n")).into()
    }
}

/// A matrix in f32 whose element for an input and a column is `weights[input * strides[0] + column * strides[1]]`.
struct Floats<'a> {
    weights: &'a [f32],
    inputs: usize,
    columns: usize,
    strides: [usize; 2],
}

impl Columns for Floats<'_> {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn stored(&self) -> Dtype {
        Dtype::F32
    }

    fn floats(&self, column: usize, to: &mut [f32]) {
        for (input, to) in to.iter_mut().enumerate() {
            *to = self.weights[input * self.strides[0] + column * self.strides[1]];
        }
    }
}

/// What a checkpoint calls a tensor: the prefix is the body's, and the head stands beside it.
fn stored(prefix: &str, name: &str) -> String {
    if name.starts_with("lm_head.") { name.to_owned() } else { format!("{prefix}{name}") }
}

/// A number that two tensors share only if they are equal, but by an accident of one in 2^64: it guards against mixed-up
/// weights, not against an adversary, and costs a tenth of a cryptographic one.
fn digest(values: &[f32]) -> u64 {
    let mut lanes = [0x9e37_79b9_7f4a_7c15u64, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];
    for chunk in values.chunks(8) {
        for (lane, pair) in lanes.iter_mut().zip(chunk.chunks(2)) {
            let bits = u64::from(pair[0].to_bits()) | u64::from(pair.get(1).map_or(0, |value| value.to_bits())) << 32;
            *lane = (*lane ^ bits).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29);
        }
    }
    lanes
        .into_iter()
        .fold(values.len() as u64, |digest, lane| (digest ^ lane).wrapping_mul(0xc4ce_b9fe_1a85_ec53).rotate_left(31))
}

/// The first value that is no finite number, and where it stands.
fn first_broken(values: &[f32]) -> Option<(usize, f32)> {
    // By blocks, without a branch for each value: it costs a tenth of reading them.
    let finite = |block: &[f32]| block.iter().fold(true, |finite, value| finite & value.is_finite());
    let block = values.chunks(1024).position(|block| !finite(block))?;
    let from = block * 1024;
    values[from..].iter().position(|value| !value.is_finite()).map(|at| (from + at, values[from + at]))
}

/// GPT-2's initial weights, nearly: a standard deviation of 0.02 (uniform, not normal), norms of 1, biases of 0.
pub(super) fn noise(name: &str, dims: &[usize]) -> Vec<f32> {
    let count = dims.iter().product();
    match () {
        () if name.ends_with(".bias") => vec![0.0; count],
        () if dims.len() == 1 => vec![1.0; count],
        () => {
            let mut state = name.bytes().fold(0x9e37_79b9_7f4a_7c15u64, |state, byte| {
                (state ^ u64::from(byte)).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31)
            });
            let mut next = || {
                // xorshift64*, Vigna, arXiv:1402.6246.
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                let unit = (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u64 << 24) as f32;
                (unit - 0.5) * (0.02 * 12f32.sqrt())
            };
            (0..count).map(|_| next()).collect()
        }
    }
}
