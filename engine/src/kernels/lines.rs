//! Memory in cache lines: a vector load never crosses one.

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

/// Bytes from which on a buffer has pages of its own, large ones where the system has such: what is read from end to end at
/// every step costs fewer look-ups of addresses then.
const MAPPED_BYTES_MIN: usize = if cfg!(miri) { usize::MAX } else { 1 << 18 };

/// 64 bytes, aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: 64 bytes, all of which may be zero.
unsafe impl Zeroable for Line {}
// SAFETY: 64 bytes without padding; any bits are valid.
unsafe impl Pod for Line {}

/// A buffer that begins on a cache line and holds whole ones.
pub(super) struct Lines(Memory);

enum Memory {
    Allocated(Vec<Line>),
    Mapped(MmapMut),
}

impl Lines {
    /// Zeroes, which cost no memory until they are written.
    pub(super) fn zeroed(bytes: usize) -> Lines {
        let bytes = bytes.next_multiple_of(size_of::<Line>());
        if bytes >= MAPPED_BYTES_MIN
            && let Ok(mapped) = MmapMut::map_anon(bytes)
        {
            // Where the system has no large pages, small ones do.
            #[cfg(target_os = "linux")]
            let _ = mapped.advise(memmap2::Advice::HugePage);
            return Lines(Memory::Mapped(mapped));
        }
        Lines(Memory::Allocated(bytemuck::allocation::zeroed_vec(bytes / size_of::<Line>())))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Memory::Allocated(lines) => bytemuck::cast_slice(lines),
            Memory::Mapped(mapped) => mapped,
        }
    }

    pub(super) fn as_bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Allocated(lines) => bytemuck::cast_slice_mut(lines),
            Memory::Mapped(mapped) => mapped,
        }
    }

    pub(super) fn as_f32(&self) -> &[f32] {
        bytemuck::cast_slice(self.as_bytes())
    }
}
