//! Keys and values as they stand in memory: pages of positions, in the dtype that was asked for.
//!
//! A page holds [`PAGE`] positions of all layers, `[layers, kv_heads]` heads one behind the other. A head is its keys as
//! `[head_dim, PAGE]`, so that a vector of them makes the scores of neighbours in the sequence; its values as
//! `[PAGE, padded(head_dim)]`; and with 8-bit numbers a scale for each key, then one for each value. Each of these begins on a
//! cache line.

use memmap2::{Advice, MmapMut};

use super::pointwise::load_some;
use super::simd::Simd;
use crate::KvDtype;
use crate::kv::PAGE_TOKENS;

/// Positions of a page.
pub(super) const PAGE: usize = PAGE_TOKENS as usize;

/// Bytes of a cache line, which a vector load should not cross.
pub(super) const LINE: usize = 64;

/// Heads of one layer, and layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvLayout {
    pub(crate) dtype: KvDtype,
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// The pages of an engine.
pub(crate) struct KvPages {
    layout: KvLayout,
    /// Zeroes that cost no memory until they are touched.
    memory: MmapMut,
}

impl KvLayout {
    /// Bytes of a page, of all layers.
    pub(crate) fn page_bytes(&self) -> usize {
        self.layers * self.kv_heads * self.head().bytes
    }

    /// Where a layer begins in a page.
    pub(super) fn layer(&self, layer: usize) -> usize {
        layer * self.kv_heads * self.head().bytes
    }

    pub(super) fn head(&self) -> HeadLayout {
        let (size, scales) = match self.dtype {
            KvDtype::Auto | KvDtype::F32 => (size_of::<f32>(), 0),
            KvDtype::F16 => (size_of::<half::f16>(), 0),
            KvDtype::Q8 => (size_of::<i8>(), PAGE * size_of::<f32>()),
        };
        let values = (self.head_dim * PAGE * size).next_multiple_of(LINE);
        let key_scales = values + (PAGE * padded(self.head_dim) * size).next_multiple_of(LINE);
        let value_scales = key_scales + scales;
        HeadLayout { values, key_scales, value_scales, bytes: value_scales + scales }
    }
}

/// Where a head's parts begin, in bytes from its keys on.
#[derive(Clone, Copy)]
pub(super) struct HeadLayout {
    pub(super) values: usize,
    pub(super) key_scales: usize,
    pub(super) value_scales: usize,
    pub(super) bytes: usize,
}

/// Whole vectors of the widest kind.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

impl KvPages {
    /// So many pages; an error where the system has not so much memory.
    pub(crate) fn zeroed(layout: KvLayout, pages: u32) -> std::io::Result<KvPages> {
        let bytes = layout.page_bytes().checked_mul(pages as usize).ok_or(std::io::ErrorKind::OutOfMemory)?;
        // A mapping of no bytes is an error.
        let memory = MmapMut::map_anon(bytes.max(1))?;
        // A page of ours is many of the processor's, and a step walks through most of them. Without them it only runs slower.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(Advice::HugePage);
        Ok(KvPages { layout, memory })
    }

    pub(super) fn layout(&self) -> KvLayout {
        self.layout
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.len()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.memory.as_mut_ptr()
    }

    /// Fills all pages with a byte, as if others had been there.
    #[cfg(test)]
    pub(super) fn fill(&mut self, byte: u8) {
        self.memory.fill(byte);
    }
}

/// Numbers that are stored together: the most lanes that there are.
pub(super) const CHUNK: usize = 16;

/// A number of a key or a value as it is stored.
pub(super) trait Stored: Copy + Default + Send + Sync + 'static {
    /// Whether each key and each value has a scale, by which what was loaded is to be multiplied.
    const SCALED: bool;

    /// # Safety
    /// `from` is valid for reading `LANES` of them.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::F;

    /// A row's scale, and its inverse.
    fn scale<S: Simd>(simd: S, row: &[f32]) -> (f32, f32);

    /// Up to `CHUNK` numbers of a row, and zeroes.
    fn convert<S: Simd>(simd: S, from: &[f32], inverse: f32, to: &mut [Self; CHUNK]);
}

impl Stored for f32 {
    const SCALED: bool = false;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const f32) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { simd.load(from) }
    }

    #[inline(always)]
    fn scale<S: Simd>(_: S, _: &[f32]) -> (f32, f32) {
        (1.0, 1.0)
    }

    #[inline(always)]
    fn convert<S: Simd>(simd: S, from: &[f32], _: f32, to: &mut [f32; CHUNK]) {
        for (at, to) in to.chunks_exact_mut(S::LANES).enumerate() {
            let x = load_some(simd, &from[(at * S::LANES).min(from.len())..]);
            // SAFETY: the chunk has `LANES` numbers.
            unsafe { simd.store(to.as_mut_ptr(), x) };
        }
    }
}

/// Half precision and not bfloat16: of 16 bits it gives three more to the mantissa, that is an eighth of the error. Its
/// range ends at 65,504, where larger ones stop; keys and values of known models are at most some hundreds.
impl Stored for half::f16 {
    const SCALED: bool = false;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const half::f16) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { simd.load_f16(from) }
    }

    #[inline(always)]
    fn scale<S: Simd>(_: S, _: &[f32]) -> (f32, f32) {
        (1.0, 1.0)
    }

    #[inline(always)]
    fn convert<S: Simd>(simd: S, from: &[f32], _: f32, to: &mut [half::f16; CHUNK]) {
        let (least, most) = (simd.splat(-65_504.0), simd.splat(65_504.0));
        for (at, to) in to.chunks_exact_mut(S::LANES).enumerate() {
            let x = load_some(simd, &from[(at * S::LANES).min(from.len())..]);
            // What is not finite must not turn into a number: it becomes NaN, and whoever samples sees it.
            let x = simd.fma(x, simd.splat(0.0), simd.max(least, simd.min(most, x)));
            // SAFETY: the chunk has `LANES` numbers.
            unsafe { simd.store_f16(to.as_mut_ptr(), x) };
        }
    }
}

/// -127 to 127, of which the row's largest becomes the end.
impl Stored for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const i8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { simd.load_i8(from) }
    }

    #[inline(always)]
    fn scale<S: Simd>(simd: S, row: &[f32]) -> (f32, f32) {
        let (mut most, mut broken) = (simd.splat(0.0), simd.splat(0.0));
        for part in row.chunks(S::LANES) {
            let x = load_some(simd, part);
            most = simd.max(most, simd.max(x, simd.sub(simd.splat(0.0), x)));
            // NaN from here on where anything is not finite, else 0.
            broken = simd.fma(x, simd.splat(0.0), broken);
        }
        let most = simd.most(most);
        // Smaller rows are as good as zero, and their inverse would overflow.
        let inverse = if most > 1e-30 { 127.0 / most } else { 0.0 };
        (most / 127.0 + simd.sum(broken), inverse)
    }

    #[inline(always)]
    fn convert<S: Simd>(simd: S, from: &[f32], inverse: f32, to: &mut [i8; CHUNK]) {
        for (at, to) in to.chunks_exact_mut(S::LANES).enumerate() {
            let x = load_some(simd, &from[(at * S::LANES).min(from.len())..]);
            let mut lanes = [0.0; CHUNK];
            // SAFETY: `lanes` holds the most lanes that there are.
            unsafe { simd.store(lanes.as_mut_ptr(), simd.round(simd.mul(x, simd.splat(inverse)))) };
            for (to, x) in to.iter_mut().zip(lanes) {
                *to = x as i8;
            }
        }
    }
}
