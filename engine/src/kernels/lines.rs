//! Memory in cache lines: a vector load never crosses one.

use bytemuck::{Pod, Zeroable};

/// 64 bytes, aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: 64 bytes, all of which may be zero.
unsafe impl Zeroable for Line {}
// SAFETY: 64 bytes without padding; any bits are valid.
unsafe impl Pod for Line {}

/// A buffer that begins on a cache line and holds whole ones.
pub(super) struct Lines(Vec<Line>);

impl Lines {
    /// Zeroes, which cost no memory until they are written.
    pub(super) fn zeroed(bytes: usize) -> Lines {
        Lines(bytemuck::allocation::zeroed_vec(bytes.div_ceil(size_of::<Line>())))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    pub(super) fn as_bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    pub(super) fn as_f32(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}
