//! Weights that are a function of their names, the same bits as golden/weights.py makes.

use crate::splitmix::{STEP, mix};

/// FNV-1a, 64 bits.
pub(crate) fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |value, byte| (value ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// Factor and offset of a tensor's elements.
fn scale(name: &str) -> (f32, f32) {
    match name {
        _ if name.ends_with(".weight") && name.contains("ln_") => (0.125, 1.0),
        _ if name.ends_with("wte.weight") || name.ends_with("attn.c_attn.weight") => (0.0625, 0.0),
        _ => (0.03125, 0.0),
    }
}

/// A tensor's elements in the order in which they are stored.
pub(crate) fn elements(name: &str, count: usize) -> impl Iterator<Item = f32> {
    let (factor, offset) = scale(name);
    let key = fnv1a64(name);
    (1..=count as u64).map(move |i| {
        let hash = mix(i.wrapping_mul(STEP).wrapping_add(key));
        ((hash >> 40) as i32 - (1 << 23)) as f32 / (1u32 << 23) as f32 * factor + offset
    })
}
