//! The model's operations over candle tensors: our kernels on the CPU, candle's own operations elsewhere.
//!
//! The candle versions run on the CPU too: they are what the kernels are compared with.

use std::sync::atomic::AtomicU32;

use candle_core::{D, DType, Device, Result, Storage as Stored, Tensor};

use crate::kernels::{self, Attention, Epilogue, Isa, PEAK_COLUMNS, Packed, Pool, Rotary, Segment};
use crate::kv::Storage;

/// What computes.
#[derive(Clone, Copy)]
pub(crate) enum Compute<'a> {
    /// Our kernels, on these threads.
    Kernels(Isa, &'a Pool),
    /// candle's operations, on the device of the tensors.
    Plain,
}

impl<'a> Compute<'a> {
    fn kernels(self) -> Result<(Isa, &'a Pool)> {
        match self {
            Compute::Kernels(isa, pool) => Ok((isa, pool)),
            Compute::Plain => candle_core::bail!("packed weights are for the kernels"),
        }
    }
}

/// What becomes of a product.
#[derive(Clone, Copy)]
pub(crate) enum Then<'a> {
    Nothing,
    /// `gelu_new`.
    Gelu,
    /// The residual stream takes it up.
    AddTo(&'a Tensor),
    /// It is `[gate, up]`, and becomes `silu(gate) * up`: half as wide.
    SwiGlu,
    /// It is queries, keys and values, and they are turned by their positions.
    Turn(&'a Rotation<'a>),
}

/// Rotary position embedding of queries and keys: dimension `i` of a head with dimension `dim / 2 + i`.
pub(crate) struct Rotation<'a> {
    pub(crate) heads: Heads,
    /// Of each head of queries, and of keys, before it is turned.
    pub(crate) norms: Option<(&'a RmsNorm, &'a RmsNorm)>,
    pub(crate) turns: &'a Turns<'a>,
}

/// By what angles each row of a step is turned.
pub(crate) enum Turns<'a> {
    /// For each row the cosines, then the sines: `[dim / 2]` each.
    Kernels(Vec<&'a [f32]>),
    /// Cosines and sines, `[rows, 1, dim / 2]` each.
    Plain(Tensor, Tensor),
}

impl<'a> Turns<'a> {
    /// Of rows of cosines, then sines: `[dim / 2]` each.
    pub(crate) fn new(on: Compute<'_>, rows: Vec<&'a [f32]>, device: &Device) -> Result<Turns<'a>> {
        if let Compute::Kernels(..) = on {
            return Ok(Turns::Kernels(rows));
        }
        let half = rows.first().map_or(0, |row| row.len() / 2);
        let table = |from: usize| {
            let values: Vec<f32> = rows.iter().flat_map(|row| &row[from..from + half]).copied().collect();
            Tensor::from_vec(values, (rows.len(), 1, half), device)
        };
        Ok(Turns::Plain(table(0)?, table(half)?))
    }
}

/// What the head makes of some rows.
#[derive(Debug, Default)]
pub(crate) struct Logits {
    /// `[rows, vocabulary]`.
    pub(crate) values: Vec<f32>,
    /// The greatest of each [`PEAK_COLUMNS`] of a row, NaN where one is not finite: `[rows, vocabulary / PEAK_COLUMNS, rounded
    /// up]`. Empty where nobody has looked.
    pub(crate) peaks: Vec<f32>,
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
                Then::SwiGlu => {
                    let width = y.dim(1)? / 2;
                    y.narrow(1, 0, width)?.silu()? * y.narrow(1, width, width)?
                }
                Then::Turn(rotation) => rotation.plain(on, &y),
            };
        }
        let mut columns = self.columns()?;
        let y = match then {
            Then::Nothing => self.packed(on, x, Epilogue::None)?,
            Then::Gelu => self.packed(on, x, Epilogue::Gelu)?,
            Then::AddTo(residual) => with_floats(residual, |residual| self.packed(on, x, Epilogue::Add(residual)))??,
            Then::SwiGlu => {
                let wide = self.packed(on, x, Epilogue::None)?;
                columns /= 2;
                let (isa, pool) = on.kernels()?;
                kernels::swiglu(isa, pool, &wide, columns)
            }
            Then::Turn(rotation) => {
                let mut qkv = self.packed(on, x, Epilogue::None)?;
                rotation.turn(on, &mut qkv)?;
                qkv
            }
        };
        Tensor::from_vec(y, (x.dim(0)?, columns), x.device())
    }

    /// The same product as logits on the host, without a copy where it is there already.
    pub(crate) fn logits(&self, on: Compute<'_>, x: &Tensor) -> Result<Logits> {
        if let Linear::Plain { .. } = self {
            let values = self.forward(on, x, Then::Nothing)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            return Ok(Logits { values, peaks: Vec::new() });
        }
        let blocks = x.dim(0)? * self.columns()?.div_ceil(PEAK_COLUMNS);
        let peaks: Vec<AtomicU32> = (0..blocks).map(|_| AtomicU32::new(0)).collect();
        let values = self.packed(on, x, Epilogue::Peaks(&peaks))?;
        Ok(Logits { values, peaks: peaks.into_iter().map(|bits| f32::from_bits(bits.into_inner())).collect() })
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
        let (isa, pool) = on.kernels()?;
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
                let wide = x.to_dtype(DType::F32)?;
                let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
                let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
                let normal = centred.broadcast_div(&(variance + self.epsilon)?.sqrt()?)?;
                normal.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?.to_dtype(x.dtype())
            }
        }
    }
}

/// A root-mean-square norm's parameter, `[width]`.
pub(crate) struct RmsNorm {
    pub(crate) weight: Tensor,
    pub(crate) epsilon: f64,
}

impl RmsNorm {
    /// `[rows, width]`; of candle's operations, also `[.., width]`.
    pub(crate) fn forward(&self, on: Compute<'_>, x: &Tensor) -> Result<Tensor> {
        match on {
            Compute::Kernels(isa, pool) => {
                let y = with_floats(x, |x| {
                    with_floats(&self.weight, |weight| kernels::rms_norm(isa, pool, x, weight, self.epsilon as f32))
                })??;
                Tensor::from_vec(y, x.shape(), x.device())
            }
            Compute::Plain => {
                let wide = x.to_dtype(DType::F32)?;
                let square = wide.sqr()?.mean_keepdim(D::Minus1)?;
                wide.broadcast_div(&(square + self.epsilon)?.sqrt()?)?.broadcast_mul(&self.weight)?.to_dtype(x.dtype())
            }
        }
    }
}

impl Rotation<'_> {
    /// In place.
    fn turn(&self, on: Compute<'_>, qkv: &mut [f32]) -> Result<()> {
        let (isa, pool) = on.kernels()?;
        let Turns::Kernels(turns) = self.turns else {
            candle_core::bail!("the angles are laid out for another way of computing");
        };
        let Heads { queries: heads, kv: kv_heads, dim: head_dim } = self.heads;
        let bare = Rotary { heads, kv_heads, head_dim, norms: None, turns };
        match self.norms {
            None => bare.run(isa, pool, qkv),
            Some((q, k)) => with_floats(&q.weight, |queries| {
                with_floats(&k.weight, |keys| {
                    Rotary { norms: Some((queries, keys, q.epsilon as f32)), ..bare }.run(isa, pool, qkv);
                })
            })??,
        }
        Ok(())
    }

    fn plain(&self, on: Compute<'_>, qkv: &Tensor) -> Result<Tensor> {
        let Turns::Plain(cosines, sines) = self.turns else {
            candle_core::bail!("the angles are laid out for another way of computing");
        };
        let Heads { queries, kv, dim } = self.heads;
        let rows = qkv.dim(0)?;
        let heads = qkv.reshape((rows, queries + 2 * kv, dim))?;
        let turned = |from: usize, count: usize, norm: Option<&RmsNorm>| {
            let mut x = heads.narrow(1, from, count)?.to_dtype(DType::F32)?;
            if let Some(norm) = norm {
                x = norm.forward(on, &x)?;
            }
            let (a, b) = (x.narrow(2, 0, dim / 2)?, x.narrow(2, dim / 2, dim / 2)?);
            let first = (a.broadcast_mul(cosines)? - b.broadcast_mul(sines)?)?;
            let second = (b.broadcast_mul(cosines)? + a.broadcast_mul(sines)?)?;
            Tensor::cat(&[first, second], 2)?.to_dtype(qkv.dtype())
        };
        let (q, k) = (self.norms.map(|norms| norms.0), self.norms.map(|norms| norms.1));
        let parts = [turned(0, queries, q)?, turned(queries, kv, k)?, heads.narrow(1, queries + kv, kv)?];
        Tensor::cat(&parts, 1)?.reshape(qkv.shape())
    }
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
        (Compute::Kernels(isa, pool), Storage::Kernels(pages)) => {
            let attend = |qkv: &[f32]| Attention { heads, kv_heads, head_dim, scale, qkv, segments, pages, layer }.run(isa, pool);
            let y = with_floats(qkv, attend)?;
            Tensor::from_vec(y, (qkv.dim(0)?, heads * head_dim), qkv.device())
        }
        (Compute::Plain, Storage::Plain(ragged)) => ragged.attend(layer, qkv, shape, scale, segments),
        _ => candle_core::bail!("the KV pages are laid out for another way of computing"),
    }
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
