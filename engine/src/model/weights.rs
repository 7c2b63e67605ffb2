//! Tensors by name, checked against the shapes that the architecture wants, on their way into the forms that compute.
//!
//! A matrix goes from where the file has it straight into panels, on all threads, and no second copy of it exists.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use super::Dtype;
use crate::kernels::{Columns, Packed, Pool};
use crate::ops::{LayerNorm, Linear, RmsNorm};
use crate::progress::Loading;
use crate::stored::{Content, Kind, Matrix, Order, Stored};
use crate::{Checkpoint, LoadError, threads};

/// Where tensors come from, and what they become.
pub(crate) struct Weights<'a> {
    source: From<'a>,
    pub(crate) form: Form,
    pub(crate) device: Device,
    pool: Pool,
    /// What was taken so far: a line for each tensor.
    taken: Mutex<Vec<String>>,
    /// Weights that were packed so far, by what they are and what they became.
    packed: Mutex<Vec<(Role, Dtype, u64)>>,
}

/// Where tensors come from.
pub(crate) enum From<'a> {
    /// A checkpoint, what the names of the body begin with in it, and whom to tell how far it is.
    Checkpoint(&'a Checkpoint, &'static str, Loading<'a>),
    /// Noise as at the beginning of a training, for benchmarks and tests: the same for the same names.
    Random,
}

/// What matrices become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Panels for the CPU's kernels; `auto` is settled matrix by matrix.
    Packed(Dtype),
    /// candle tensors, of f32, f16 or bf16.
    Plain(DType),
}

/// What a matrix is to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It makes a layer's activations of others.
    Projection,
    /// The same in one of the first layers, where the network is so made that errors there are worth more bits.
    Early,
    /// It makes activations of tokens, or logits of activations.
    Vocabulary,
}

impl Form {
    /// What a GPU computes with: what is asked for, or with `auto` what most of the checkpoint's weights are, where those are
    /// numbers that it computes with. `None`: what it can't.
    pub(crate) fn on_gpu(asked: Dtype, checkpoint: &Checkpoint) -> Option<Form> {
        let matrices = || checkpoint.parameters().filter(|(_, dims, _)| dims.len() == 2);
        let count = |dims: &[usize]| dims.iter().product::<usize>() as u64;
        let all: u64 = matrices().map(|(_, dims, _)| count(dims)).sum();
        let weights = |wanted| matrices().filter(|of| of.2 == wanted).map(|(_, dims, _)| count(dims)).sum::<u64>();
        match asked {
            Dtype::Auto if weights(Kind::F16) * 2 > all => Some(Form::Plain(DType::F16)),
            Dtype::Auto if weights(Kind::Bf16) * 2 > all => Some(Form::Plain(DType::BF16)),
            Dtype::Auto | Dtype::F32 => Some(Form::Plain(DType::F32)),
            Dtype::Bf16 => Some(Form::Plain(DType::BF16)),
            Dtype::Q8 | Dtype::Q4 => None,
        }
    }

    /// What a matrix of the checkpoint's `stored` form becomes. Of candle's tensors, what is as large.
    pub(crate) fn dtype(self, role: Role, stored: Dtype) -> Dtype {
        match self {
            Form::Plain(DType::BF16 | DType::F16) => Dtype::Bf16,
            Form::Plain(_) => Dtype::F32,
            Form::Packed(Dtype::Auto) => stored,
            // Four bits for the vocabulary cost more quality than they save memory.
            Form::Packed(Dtype::Q4) if role == Role::Vocabulary => Dtype::Q8,
            // More bits make nothing better of what the file has in four.
            Form::Packed(Dtype::Q4) if role == Role::Early && stored != Dtype::Q4 => Dtype::Q8,
            Form::Packed(dtype) => dtype,
        }
    }
}

impl<'a> Weights<'a> {
    pub(crate) fn new(source: From<'a>, form: Form, device: Device) -> Result<Weights<'a>, LoadError> {
        let pool = Pool::shared(threads::available());
        let pool = pool.map_err(|error| LoadError::Device(format!("no threads to load with: {error}")))?;
        Ok(Weights { source, form, device, pool, taken: Mutex::default(), packed: Mutex::default() })
    }

    /// Makes a network's layers, several at a time.
    pub(crate) fn layers<T: Send + Sync>(
        &self,
        count: usize,
        layer: impl Fn(usize) -> Result<T, LoadError> + Sync,
    ) -> Result<Vec<T>, LoadError> {
        let layers: Vec<_> = (0..count).map(|_| std::sync::OnceLock::new()).collect();
        self.pool.run(count, &|index| {
            // Each layer is one task, so nobody else fills its place.
            let _ = layers[index].set(layer(index));
        });
        layers.into_iter().map(|layer| layer.into_inner().expect("the pool runs every task")).collect()
    }

    /// A tensor on the device: a vector in f32, because norms compute in it; a table as what activations are.
    pub(crate) fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor, LoadError> {
        let values = self.take(name, dims)?.floats();
        let dtype = match self.form {
            Form::Plain(dtype) if dims.len() > 1 => dtype,
            _ => DType::F32,
        };
        self.on_device(values, dims, dtype)
    }

    fn on_device(&self, values: Vec<f32>, dims: &[usize], dtype: DType) -> Result<Tensor, LoadError> {
        // Narrowed before it goes: a device that is nearly full has no room for both.
        let tensor = Tensor::from_vec(values, dims, &Device::Cpu).and_then(|tensor| tensor.to_dtype(dtype));
        tensor.and_then(|tensor| tensor.to_device(&self.device)).map_err(LoadError::Prepare)
    }

    /// A `Conv1D`: `weight` is `[inputs, columns]`.
    pub(crate) fn conv1d(&self, name: &str, inputs: usize, columns: usize) -> Result<Linear, LoadError> {
        let weight = Matrix::of_columns(self.take(&format!("{name}.weight"), &[inputs, columns])?);
        let bias = self.take(&format!("{name}.bias"), &[columns])?.floats();
        self.linear_of(Role::Projection, weight, Some(bias))
    }

    /// A `Linear`: `weight` is `[columns, inputs]`.
    pub(crate) fn linear(&self, role: Role, name: &str, inputs: usize, columns: usize, bias: bool) -> Result<Linear, LoadError> {
        self.fused(role, &[(name, columns)], inputs, bias)
    }

    /// Several `Linear`s of the same inputs as one matrix, side by side: `(name, columns)` each.
    pub(crate) fn fused(&self, role: Role, parts: &[(&str, usize)], inputs: usize, bias: bool) -> Result<Linear, LoadError> {
        let weight = |(name, columns): &(&str, usize)| self.take(&format!("{name}.weight"), &[*columns, inputs]);
        let weights = parts.iter().map(weight).collect::<Result<Vec<_>, LoadError>>()?;
        let mut biases = Vec::new();
        for (name, columns) in parts.iter().filter(|_| bias) {
            biases.extend(self.take(&format!("{name}.bias"), &[*columns])?.floats());
        }
        self.linear_of(role, Matrix::of_rows(weights), bias.then_some(biases))
    }

    /// A matrix stored as `[columns, inputs]`, without a bias: an embedding or a head.
    pub(crate) fn head(&self, name: &str, inputs: usize, columns: usize) -> Result<Linear, LoadError> {
        let weight = self.take(name, &[columns, inputs])?;
        self.linear_of(Role::Vocabulary, Matrix::of_rows(vec![weight]), None)
    }

    pub(crate) fn layer_norm(&self, name: &str, width: usize, epsilon: f64) -> Result<LayerNorm, LoadError> {
        let weight = self.tensor(&format!("{name}.weight"), &[width])?;
        let bias = self.tensor(&format!("{name}.bias"), &[width])?;
        Ok(LayerNorm { weight, bias, epsilon })
    }

    pub(crate) fn rms_norm(&self, name: &str, width: usize, epsilon: f64) -> Result<RmsNorm, LoadError> {
        Ok(RmsNorm { weight: self.tensor(&format!("{name}.weight"), &[width])?, epsilon })
    }

    fn linear_of(&self, role: Role, matrix: Matrix<'_>, bias: Option<Vec<f32>>) -> Result<Linear, LoadError> {
        let (inputs, columns) = (matrix.inputs(), Columns::columns(&matrix));
        if let Form::Plain(dtype) = self.form {
            let weight = self.on_device(matrix.floats(), &[columns, inputs], dtype)?.t().map_err(LoadError::Prepare)?;
            let bias = bias.map(|bias| self.on_device(bias, &[columns], dtype)).transpose()?;
            self.packed.lock().unwrap_or_else(PoisonError::into_inner).push((
                role,
                self.form.dtype(role, Dtype::F32),
                weight.elem_count() as u64,
            ));
            return Ok(Linear::Plain { weight, bias });
        }
        let dtype = self.form.dtype(role, matrix.stored());
        let weight = Packed::pack(dtype, &matrix)?;
        if let From::Checkpoint(_, _, loading) = &self.source {
            loading.advance(matrix.bytes());
        }
        self.packed.lock().unwrap_or_else(PoisonError::into_inner).push((role, dtype, (inputs * columns) as u64));
        Ok(Linear::Packed { weight, bias: bias.unwrap_or_default() })
    }

    /// A tensor of these dimensions whose content is sound.
    fn take(&self, name: &str, dims: &[usize]) -> Result<Stored<'_>, LoadError> {
        let stored = match &self.source {
            From::Checkpoint(checkpoint, prefix, _) => checkpoint.stored(&in_checkpoint(prefix, name))?,
            From::Random => {
                let content = Content::Own(noise(name, dims));
                Stored { kind: Kind::F32, order: Order::AsIs, dims: dims.to_vec(), content }
            }
        };
        if stored.dims != dims {
            return Err(LoadError::TensorShape { name: name.into(), got: stored.dims, want: dims.to_vec() });
        }
        let seen = stored.see(&self.pool);
        if let (Some((element, value)), From::Checkpoint(checkpoint, prefix, _)) = (seen.broken, &self.source) {
            let (folder, name) = (checkpoint.folder().to_string(), in_checkpoint(prefix, name));
            return Err(LoadError::NotFinite { folder, name, element, value });
        }
        let line = format!("{name} {dims:?} {} {:016x}", stored.kind, seen.digest);
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        Ok(stored)
    }

    /// What most weights of the layers became.
    pub(crate) fn dtype(&self) -> Dtype {
        DTYPES
            .into_iter()
            .max_by_key(|dtype| [Role::Projection, Role::Early].map(|role| self.packed(role, *dtype)))
            .expect("some dtype")
    }

    /// Weights that were packed so.
    fn packed(&self, role: Role, dtype: Dtype) -> u64 {
        let packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        packed.iter().filter(|packed| (packed.0, packed.1) == (role, dtype)).map(|packed| packed.2).sum()
    }

    /// What identifies everything that was taken, and what it became.
    pub(crate) fn identity(&self) -> [u8; 32] {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        taken.sort_unstable();
        for dtype in DTYPES {
            let [projections, vocabulary] = [Role::Projection, Role::Vocabulary].map(|role| self.packed(role, dtype));
            taken.push(format!("{dtype} {projections} {vocabulary}"));
        }
        Sha256::digest(taken.join("\n")).into()
    }
}

/// What matrices may become; of two that are as many, the later one names a model. Plain tensors are f32.
const DTYPES: [Dtype; 4] = [Dtype::Q4, Dtype::Q8, Dtype::Bf16, Dtype::F32];

/// What a checkpoint calls a tensor: the prefix is the body's, and the head stands beside it.
fn in_checkpoint(prefix: &str, name: &str) -> String {
    if name.starts_with("lm_head.") { name.to_owned() } else { format!("{prefix}{name}") }
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
