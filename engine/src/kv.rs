//! KV memory in pages: bounded, outside the weights, a list of pages for each sequence.
//!
//! Owns the pages and who holds them. Which sequence may grow is the scheduler's decision: it hands out no more pages than there
//! are. What stands in a page is the kernels' (on the CPU) or [`Ragged`]'s (candle tensors).

use candle_core::{DType, Device, Result};

use crate::engine::StartError;
use crate::kernels::{KvLayout, KvPages};
use crate::ragged::Ragged;
use crate::{KvDtype, memory};

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
    /// Bytes of the keys and values of a whole context.
    pub(crate) fn context_bytes(&self, dtype: KvDtype) -> u64 {
        u64::from(self.context.div_ceil(PAGE_TOKENS)) * self.page_bytes(dtype)
    }

    /// Bytes of a page of all layers.
    pub(crate) fn page_bytes(&self, dtype: KvDtype) -> u64 {
        self.layout(dtype).page_bytes() as u64
    }

    fn layout(&self, dtype: KvDtype) -> KvLayout {
        KvLayout { dtype, layers: self.layers, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }
}

/// How many pages to have: for `tokens`, or for whole contexts of the whole batch as far as a quarter of the free memory goes.
pub(crate) fn pages(shape: Shape, dtype: KvDtype, batch_max: u32, tokens: Option<u64>) -> std::result::Result<u32, StartError> {
    let page = u64::from(PAGE_TOKENS);
    let one = u64::from(shape.context).div_ceil(page);
    let pages = tokens.map_or_else(
        || {
            let wanted = one.saturating_mul(u64::from(batch_max));
            memory::available().map_or(wanted, |bytes| wanted.min(bytes / 4 / shape.page_bytes(dtype)))
        },
        |tokens| tokens / page,
    );
    if pages < one {
        let megabytes = (one * shape.page_bytes(dtype)).div_ceil(1 << 20);
        return Err(StartError::KvMemory { tokens: pages * page, context: shape.context, megabytes });
    }
    Ok(u32::try_from(pages).unwrap_or(u32::MAX))
}

/// All pages of an engine.
pub(crate) struct Cache {
    pub(crate) storage: Storage,
    /// Given back, the latest last: its lines are the likeliest to be in a cache.
    free: Vec<u32>,
    /// Never given out from here on: untouched pages cost no memory.
    fresh: u32,
    pages: u32,
}

/// Where K and V stand.
pub(crate) enum Storage {
    /// In the kernels' layout, all layers together.
    Kernels(KvPages),
    /// In candle tensors on any device.
    Plain(Ragged),
}

/// A sequence's pages: position `p` is in number `p / PAGE_TOKENS`.
#[derive(Debug, Default)]
pub(crate) struct Pages(pub(crate) Vec<u32>);

impl Cache {
    /// Pages for the CPU's kernels.
    pub(crate) fn for_kernels(shape: Shape, dtype: KvDtype, pages: u32) -> Result<Cache> {
        let memory = KvPages::zeroed(shape.layout(dtype), pages)
            .map_err(|error| candle_core::Error::Msg(format!("the system has no memory for the KV pages: {error}")))?;
        Ok(Cache { storage: Storage::Kernels(memory), free: Vec::new(), fresh: 0, pages })
    }

    /// Pages for plain candle operations on any device.
    pub(crate) fn plain(shape: Shape, pages: u32, dtype: DType, device: &Device) -> Result<Cache> {
        let slots = pages as usize * PAGE_TOKENS as usize;
        let ragged = Ragged::new(shape.layers, slots, shape.kv_heads * shape.head_dim, dtype, device)?;
        Ok(Cache { storage: Storage::Plain(ragged), free: Vec::new(), fresh: 0, pages })
    }

    /// Sees to it that a sequence has room for `tokens`.
    pub(crate) fn grow(&mut self, pages: &mut Pages, tokens: usize) -> Result<()> {
        while pages.0.len() < tokens.div_ceil(PAGE_TOKENS as usize) {
            let page = match self.free.pop() {
                Some(page) => page,
                None if self.fresh < self.pages => {
                    self.fresh += 1;
                    self.fresh - 1
                }
                None => {
                    return Err(candle_core::Error::Msg("the KV pages are used up, which the scheduler should prevent".into()));
                }
            };
            pages.0.push(page);
        }
        Ok(())
    }

    /// Takes a sequence's pages back.
    pub(crate) fn release(&mut self, pages: Pages) {
        self.free.extend(pages.0.into_iter().rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { layers: 1, kv_heads: 1, head_dim: 8, context: 100 };

    #[test]
    fn pages_are_given_once_and_come_back() {
        let mut cache = Cache::for_kernels(SHAPE, KvDtype::F32, 3).unwrap();
        let (mut a, mut b) = (Pages::default(), Pages::default());
        cache.grow(&mut a, 17).unwrap();
        cache.grow(&mut b, 1).unwrap();
        assert_eq!((&a.0[..], &b.0[..]), (&[0, 1][..], &[2][..]));
        assert!(cache.grow(&mut b, 17).is_err());
        cache.release(a);
        cache.grow(&mut b, 48).unwrap();
        assert_eq!(b.0, [2, 0, 1]);
    }

    #[test]
    fn a_budget_that_holds_no_whole_context_is_refused() {
        assert_eq!(pages(SHAPE, KvDtype::F32, 4, Some(112)).unwrap(), 7);
        assert!(matches!(pages(SHAPE, KvDtype::F32, 4, Some(111)), Err(StartError::KvMemory { tokens: 96, context: 100, .. })));
        assert!(pages(SHAPE, KvDtype::F32, 4, None).unwrap() <= 28);
    }
}
