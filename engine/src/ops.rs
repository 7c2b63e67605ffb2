//! The model's operations over candle tensors: our kernels on the CPU, candle's own operations elsewhere.
//!
//! The candle versions run on the CPU too: they are what the kernels are compared with.

use candle_core::{D, DType, Result, Storage as Stored, Tensor};
use candle_nn::ops::softmax_last_dim;

use crate::kernels::{self, Attention, Epilogue, Isa, Packed, Pool, Segment};
use crate::kv::{PAGE_TOKENS, Storage};

/// What computes.
#[derive(Clone, Copy)]
pub(crate) enum Compute<'a> {
    /// Our kernels, on these threads.
    Kernels(Isa, &'a Pool),
    /// candle's operations, on the device of the tensors.
    Plain,
}

/// What becomes of a product.
#[derive(Clone, Copy)]
pub(crate) enum Then<'a> {
    Nothing,
    /// `gelu_new`.
    Gelu,
    /// The residual stream takes it up.
    AddTo(&'a Tensor),
}

/// A matrix `[inputs, columns]` and its bias.
pub(crate) enum Linear {
    Packed { weight: Packed, bias: Vec<f32> },
    Plain { weight: Tensor, bias: Option<Tensor> },
}

impl Linear {
    /// `[rows, inputs]` to `[rows, columns]`.
    pub(crate) fn forward(&self, on: Compute<'_>, x: &Tensor, then: Then<'_>) -> Result<Tensor> {
        if let Linear::Plain { weight, bias } = self {
            let mut y = x.matmul(weight)?;
            if let Some(bias) = bias {
                y = y.broadcast_add(bias)?;
            }
            return match then {
                Then::Nothing => Ok(y),
                Then::Gelu => y.gelu(),
                Then::AddTo(residual) => residual + y,
            };
        }
        let y = match then {
            Then::Nothing => self.packed(on, x, Epilogue::None)?,
            Then::Gelu => self.packed(on, x, Epilogue::Gelu)?,
            Then::AddTo(residual) => with_floats(residual, |residual| self.packed(on, x, Epilogue::Add(residual)))??,
        };
        Tensor::from_vec(y, (x.dim(0)?, self.columns()?), x.device())
    }

    /// The same product as numbers on the host, without a copy where it is there already.
    pub(crate) fn forward_to_host(&self, on: Compute<'_>, x: &Tensor) -> Result<Vec<f32>> {
        match self {
            Linear::Plain { .. } => self.forward(on, x, Then::Nothing)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1(),
            _ => self.packed(on, x, Epilogue::None),
        }
    }

    /// Columns of a matrix that is a tied head, as rows of an embedding: `[tokens, inputs]`.
    pub(crate) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let rows = |inputs: usize, column: &dyn Fn(usize, &mut [f32])| {
            let mut rows = vec![0.0; tokens.len() * inputs];
            for (token, row) in tokens.iter().zip(rows.chunks_exact_mut(inputs)) {
                column(*token as usize, row);
            }
            Tensor::from_vec(rows, (tokens.len(), inputs), &candle_core::Device::Cpu)
        };
        match self {
            Linear::Packed { weight, .. } => rows(weight.inputs(), &|token, row| weight.column(token, row)),
            // Kept as `[columns, inputs]` and transposed in name only.
            Linear::Plain { weight, .. } => weight.t()?.index_select(&Tensor::new(tokens, weight.device())?, 0),
        }
    }

    fn columns(&self) -> Result<usize> {
        match self {
            Linear::Packed { weight, .. } => Ok(weight.columns()),
            Linear::Plain { weight, .. } => weight.dim(1),
        }
    }

    fn packed(&self, on: Compute<'_>, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Vec<f32>> {
        let Compute::Kernels(isa, pool) = on else {
            candle_core::bail!("packed weights are for the kernels");
        };
        with_floats(x, |x| match self {
            Linear::Packed { weight, bias } => Ok(kernels::matmul(isa, pool, x, weight, bias, epilogue)),
            Linear::Plain { .. } => candle_core::bail!("plain weights are for candle's operations"),
        })?
    }
}

/// A layer norm's parameters, `[width]` each.
pub(crate) struct LayerNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) epsilon: f64,
}

impl LayerNorm {
    /// `[rows, width]`.
    pub(crate) fn forward(&self, on: Compute<'_>, x: &Tensor) -> Result<Tensor> {
        match on {
            Compute::Kernels(isa, pool) => {
                let y = with_floats(x, |x| {
                    with_floats(&self.weight, |weight| {
                        with_floats(&self.bias, |bias| kernels::layer_norm(isa, pool, x, weight, bias, self.epsilon as f32))
                    })
                })???;
                Tensor::from_vec(y, x.shape(), x.device())
            }
            Compute::Plain => {
                let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
                let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
                let normal = centred.broadcast_div(&(variance + self.epsilon)?.sqrt()?)?;
                normal.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
            }
        }
    }
}

/// A root mean square norm's parameter, `[width]`.
#[allow(dead_code, reason = "the llama family's")]
pub(crate) struct RmsNorm {
    pub(crate) weight: Tensor,
    pub(crate) epsilon: f64,
}

/// How many heads, and how wide.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    /// Of queries.
    pub(crate) queries: usize,
    /// Of keys and values.
    pub(crate) kv: usize,
    /// Numbers of each.
    pub(crate) dim: usize,
}

/// Stores keys and values of `qkv` (`[rows, (heads.queries + 2 * heads.kv) * heads.dim]`) in one layer's pages, and attends
/// causally: `[rows, heads.queries * heads.dim]`. Every row is in one segment, in order.
pub(crate) fn attention(
    on: Compute<'_>,
    qkv: &Tensor,
    shape: Heads,
    scale: f32,
    segments: &[Segment<'_>],
    cache: &mut Storage,
    layer: usize,
) -> Result<Tensor> {
    let Heads { queries: heads, kv: kv_heads, dim: head_dim } = shape;
    match (on, cache) {
        (Compute::Kernels(isa, pool), Storage::Kernels(layers)) => {
            let cache = &mut layers[layer];
            let y = with_floats(qkv, |qkv| Attention { heads, kv_heads, head_dim, scale, qkv, segments, cache }.run(isa, pool))?;
            Tensor::from_vec(y, (qkv.dim(0)?, heads * head_dim), qkv.device())
        }
        (Compute::Plain, Storage::Plain(layers)) => {
            let (keys, values) = &layers[layer];
            let parts = segments.iter().map(|segment| {
                plain_attention(&qkv.narrow(0, segment.row, segment.rows)?, [heads, head_dim], scale, *segment, keys, values)
            });
            Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
        }
        _ => candle_core::bail!("the KV pages are laid out for another way of computing"),
    }
}

/// One segment, gathered and materialised.
fn plain_attention(
    qkv: &Tensor,
    [heads, head_dim]: [usize; 2],
    scale: f32,
    segment: Segment<'_>,
    keys: &Tensor,
    values: &Tensor,
) -> Result<Tensor> {
    let (rows, width) = (segment.rows, heads * head_dim);
    let page_tokens = PAGE_TOKENS as usize;
    let slot = |position: usize| segment.pages[position / page_tokens] as usize * page_tokens + position % page_tokens;
    // Page by page, because only within one do neighbours in the sequence stand together.
    let mut row = 0;
    while row < rows {
        let position = segment.position + row;
        let count = (page_tokens - position % page_tokens).min(rows - row);
        let new = qkv.narrow(0, row, count)?;
        keys.slice_set(&new.narrow(1, width, width)?.contiguous()?, 0, slot(position))?;
        values.slice_set(&new.narrow(1, 2 * width, width)?.contiguous()?, 0, slot(position))?;
        row += count;
    }
    let length = segment.position + rows;
    let slots = (0..length).map(|position| slot(position) as u32).collect::<Vec<_>>();
    let slots = Tensor::from_vec(slots, length, qkv.device())?;
    let by_head = |x: &Tensor, rows: usize| x.reshape((rows, heads, head_dim))?.transpose(0, 1)?.contiguous();
    let queries = (by_head(&qkv.narrow(1, 0, width)?.contiguous()?, rows)? * f64::from(scale))?;
    let keys = by_head(&keys.index_select(&slots, 0)?, length)?;
    let values = by_head(&values.index_select(&slots, 0)?, length)?;
    let sees =
        (0..rows).flat_map(|row| (0..length).map(move |key| if key <= segment.position + row { 0.0 } else { f32::NEG_INFINITY }));
    let mask = Tensor::from_vec(sees.collect::<Vec<_>>(), (rows, length), qkv.device())?.to_dtype(qkv.dtype())?;
    let scores = queries.matmul(&keys.transpose(1, 2)?.contiguous()?)?.broadcast_add(&mask)?;
    softmax_last_dim(&scores)?.matmul(&values)?.transpose(0, 1)?.contiguous()?.reshape((rows, width))
}

/// A contiguous f32 tensor's numbers on the CPU.
pub(crate) fn with_floats<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    let Stored::Cpu(storage) = &*storage else {
        candle_core::bail!("the kernels compute on the CPU only");
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("the kernels want contiguous tensors");
    };
    Ok(f(&storage.as_slice::<f32>()?[start..end]))
}
