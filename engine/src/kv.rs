//! KV memory in pages: bounded, outside the weights.
//!
//! Owns the bytes. Who holds which page is the scheduler's affair, and what stands in a page the kernels' (on the CPU) or
//! [`Ragged`]'s (candle tensors).

use candle_core::{DType, Device, Result};

use crate::KvDtype;
use crate::kernels::{KvLayout, KvPages};
use crate::ragged::Ragged;

/// Positions of a page: one AVX-512 vector of scores.
pub(crate) const PAGE_TOKENS: u32 = 16;

/// What the pages of a model must hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    /// Of keys and values.
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) context: u32,
}

impl Shape {
    /// Bytes of a page of all layers.
    pub(crate) fn page_bytes(&self, dtype: KvDtype) -> u64 {
        self.layout(dtype).page_bytes() as u64
    }

    fn layout(&self, dtype: KvDtype) -> KvLayout {
        KvLayout { dtype, layers: self.layers, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }
}

/// Where K and V stand.
pub(crate) enum Storage {
    /// In the kernels' layout, all layers together.
    Kernels(KvPages),
    /// In candle tensors on any device.
    Plain(Ragged),
}

impl Storage {
    /// Pages for the CPU's kernels.
    pub(crate) fn for_kernels(shape: Shape, dtype: KvDtype, pages: u32) -> Result<Storage> {
        let memory = KvPages::zeroed(shape.layout(dtype), pages)
            .map_err(|error| candle_core::Error::Msg(format!("the system has no memory for the KV pages: {error}")))?;
        Ok(Storage::Kernels(memory))
    }

    /// Pages for plain candle operations on any device.
    pub(crate) fn plain(shape: Shape, pages: u32, dtype: DType, device: &Device) -> Result<Storage> {
        let slots = pages as usize * PAGE_TOKENS as usize;
        let ragged = Ragged::new(shape.layers, slots, shape.kv_heads * shape.head_dim, dtype, device)?;
        Ok(Storage::Plain(ragged))
    }
}
