//! The forms in which files have numbers, and what they stand for.
//!
//! Blocks are ggml's (ggml/src/ggml-common.h and ggml-quants.c of llama.cpp): halves are little-endian, nibbles of a block lie
//! with the first half of its values in the low ones.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::Dtype;
use crate::kernels::{BLOCK, Block};

/// Values of a block of the K types.
const SUPER: usize = 256;

/// How a file has a tensor's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the names that ggml gave them")]
pub(crate) enum Kind {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl Kind {
    /// Every kind.
    #[cfg(test)]
    const ALL: [Kind; 13] = [
        Kind::F32,
        Kind::F16,
        Kind::Bf16,
        Kind::Q4_0,
        Kind::Q4_1,
        Kind::Q5_0,
        Kind::Q5_1,
        Kind::Q8_0,
        Kind::Q2_K,
        Kind::Q3_K,
        Kind::Q4_K,
        Kind::Q5_K,
        Kind::Q6_K,
    ];

    /// Values of a block.
    pub(crate) fn values(self) -> usize {
        match self {
            Kind::F32 | Kind::F16 | Kind::Bf16 => 1,
            Kind::Q4_0 | Kind::Q4_1 | Kind::Q5_0 | Kind::Q5_1 | Kind::Q8_0 => BLOCK,
            Kind::Q2_K | Kind::Q3_K | Kind::Q4_K | Kind::Q5_K | Kind::Q6_K => SUPER,
        }
    }

    /// Bytes of a block.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::F16 | Kind::Bf16 => 2,
            Kind::Q4_0 => 18,
            Kind::Q4_1 => 20,
            Kind::Q5_0 => 22,
            Kind::Q5_1 => 24,
            Kind::Q8_0 => 34,
            Kind::Q2_K => 84,
            Kind::Q3_K => 110,
            Kind::Q4_K => 144,
            Kind::Q5_K => 176,
            Kind::Q6_K => 210,
        }
    }

    /// Bytes of so many values, where they make whole blocks.
    pub(crate) fn bytes_of(self, values: usize) -> Option<usize> {
        values.is_multiple_of(self.values()).then(|| values / self.values())?.checked_mul(self.bytes())
    }

    /// What `--dtype auto` makes of it: nothing that has more numbers to a weight than the file. Floats stay floats, because
    /// only f32 gives the model's own text.
    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Kind::F32 | Kind::F16 | Kind::Bf16 => Dtype::F32,
            Kind::Q4_0 | Kind::Q4_1 | Kind::Q2_K | Kind::Q3_K | Kind::Q4_K => Dtype::Q4,
            Kind::Q5_0 | Kind::Q5_1 | Kind::Q8_0 | Kind::Q5_K | Kind::Q6_K => Dtype::Q8,
        }
    }

    /// The numbers of whole blocks.
    pub(crate) fn floats(self, bytes: &[u8], to: &mut [f32]) {
        debug_assert_eq!(self.bytes_of(to.len()), Some(bytes.len()));
        let blocks = bytes.chunks_exact(self.bytes()).zip(to.chunks_exact_mut(self.values()));
        match self {
            Kind::F32 => {
                for (to, bytes) in to.iter_mut().zip(bytes.chunks_exact(4)) {
                    *to = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
                }
            }
            Kind::F16 => {
                let mut halves = [f16::ZERO; 512];
                for (to, bytes) in to.chunks_mut(halves.len()).zip(bytes.chunks(2 * halves.len())) {
                    for (half, bytes) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
                        *half = f16::from_le_bytes([bytes[0], bytes[1]]);
                    }
                    // All at once: the processor has an instruction for eight.
                    halves[..to.len()].convert_to_f32_slice(to);
                }
            }
            Kind::Bf16 => {
                for (to, bytes) in to.iter_mut().zip(bytes.chunks_exact(2)) {
                    *to = f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16);
                }
            }
            Kind::Q2_K => blocks.for_each(|(block, to)| q2_k(block, to)),
            Kind::Q3_K => blocks.for_each(|(block, to)| q3_k(block, to)),
            Kind::Q6_K => blocks.for_each(|(block, to)| q6_k(block, to)),
            _ => {
                let mut parts = [Block::default(); SUPER / BLOCK];
                for (bytes, to) in blocks {
                    let parts = &mut parts[..self.values() / BLOCK];
                    self.block(bytes, parts);
                    for (part, to) in parts.iter().zip(to.chunks_exact_mut(BLOCK)) {
                        for (to, value) in to.iter_mut().zip(part.values) {
                            *to = part.scale * f32::from(value) + part.least;
                        }
                    }
                }
            }
        }
    }

    /// The same as integers with a scale for each 32 and, where `dtype` has four bits, a least value; false where the kind has
    /// none such.
    pub(crate) fn blocks(self, bytes: &[u8], to: &mut [Block]) -> bool {
        match self {
            Kind::Q4_0 | Kind::Q4_1 | Kind::Q4_K | Kind::Q5_0 | Kind::Q8_0 => {}
            _ => return false,
        }
        for (bytes, to) in bytes.chunks_exact(self.bytes()).zip(to.chunks_exact_mut(self.values() / BLOCK)) {
            self.block(bytes, to);
        }
        true
    }

    /// Whether all numbers of whole blocks are finite. Integers are: it is the floats among them that may not be.
    pub(crate) fn finite(self, bytes: &[u8]) -> bool {
        fn all<const N: usize>(bytes: &[u8], mask: [u8; N]) -> bool {
            // Without a branch for each number: it costs no more than reading them.
            bytes.chunks_exact(N).fold(true, |finite, number| {
                finite & !number.iter().zip(mask).fold(true, |full, (byte, mask)| full & (byte & mask == mask))
            })
        }
        let halves: &[usize] = match self {
            Kind::F32 => return all(bytes, [0, 0, 0x80, 0x7f]),
            Kind::F16 => return all(bytes, [0, 0x7c]),
            Kind::Bf16 => return all(bytes, [0x80, 0x7f]),
            Kind::Q4_0 | Kind::Q5_0 | Kind::Q8_0 => &[0],
            Kind::Q4_1 | Kind::Q5_1 | Kind::Q4_K | Kind::Q5_K => &[0, 2],
            Kind::Q2_K => &[80, 82],
            Kind::Q3_K => &[108],
            Kind::Q6_K => &[208],
        };
        bytes.chunks_exact(self.bytes()).all(|block| halves.iter().all(|&at| half(block, at).is_finite()))
    }

    /// One block's parts of 32.
    fn block(self, bytes: &[u8], to: &mut [Block]) {
        let nibbles = |bytes: &[u8], to: &mut Block, offset: i8| {
            for (at, byte) in bytes.iter().enumerate() {
                to.values[at] = (byte & 15) as i8 + offset;
                to.values[at + 16] = (byte >> 4) as i8 + offset;
            }
        };
        // The fifth bits of 32 values, from the least significant one.
        let fifth = |bytes: &[u8], to: &mut Block| {
            for (at, value) in to.values.iter_mut().enumerate() {
                *value += ((bytes[at / 8] >> (at % 8) & 1) << 4) as i8;
            }
        };
        match self {
            Kind::Q4_0 => {
                (to[0].scale, to[0].least) = (half(bytes, 0), 0.0);
                nibbles(&bytes[2..], &mut to[0], -8);
            }
            Kind::Q4_1 => {
                (to[0].scale, to[0].least) = (half(bytes, 0), half(bytes, 2));
                nibbles(&bytes[4..], &mut to[0], 0);
            }
            Kind::Q5_0 => {
                (to[0].scale, to[0].least) = (half(bytes, 0), 0.0);
                nibbles(&bytes[6..], &mut to[0], -16);
                fifth(&bytes[2..6], &mut to[0]);
            }
            Kind::Q5_1 => {
                (to[0].scale, to[0].least) = (half(bytes, 0), half(bytes, 2));
                nibbles(&bytes[8..], &mut to[0], 0);
                fifth(&bytes[4..8], &mut to[0]);
            }
            Kind::Q8_0 => {
                (to[0].scale, to[0].least) = (half(bytes, 0), 0.0);
                to[0].values.iter_mut().zip(&bytes[2..]).for_each(|(value, byte)| *value = *byte as i8);
            }
            Kind::Q4_K | Kind::Q5_K => {
                let five = self == Kind::Q5_K;
                let (scale, least) = (half(bytes, 0), half(bytes, 2));
                let (high, low) = bytes[16..].split_at(if five { 32 } else { 0 });
                for (part, to) in to.iter_mut().enumerate() {
                    let (scales, leasts) = six_bits(&bytes[4..16], part);
                    // Products of 11 and 6 bits: exact.
                    (to.scale, to.least) = (scale * scales, -(least * leasts));
                    for (at, value) in to.values.iter_mut().enumerate() {
                        let nibble = low[part / 2 * 32 + at] >> (part % 2 * 4) & 15;
                        let fifth = if five { (high[at] >> part & 1) << 4 } else { 0 };
                        *value = (nibble | fifth) as i8;
                    }
                }
            }
            _ => unreachable!("`blocks` and `floats` know who has parts of 32"),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Bf16 => f.write_str("BF16"),
            other => write!(f, "{other:?}"),
        }
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Scale and least value of a part in Q4_K and Q5_K: six bits each, the later ones' upper bits beside the earlier ones.
fn six_bits(packed: &[u8], part: usize) -> (f32, f32) {
    let (scale, least) = match part {
        0..4 => (packed[part] & 63, packed[part + 4] & 63),
        _ => (packed[part + 4] & 15 | packed[part - 4] >> 6 << 4, packed[part + 4] >> 4 | packed[part] >> 6 << 4),
    };
    (f32::from(scale), f32::from(least))
}

/// scales of 4 bits [16], values of 2 bits [64], scale, scale of the least values.
fn q2_k(bytes: &[u8], to: &mut [f32]) {
    let (scale, least) = (half(bytes, 80), half(bytes, 82));
    for (part, to) in to.chunks_exact_mut(16).enumerate() {
        let (scale, least) = (scale * f32::from(bytes[part] & 15), least * f32::from(bytes[part] >> 4));
        let (half, shift) = (part / 8, part / 2 % 4 * 2);
        for (to, byte) in to.iter_mut().zip(&bytes[16 + half * 32 + part % 2 * 16..]) {
            *to = scale * f32::from(byte >> shift & 3) - least;
        }
    }
}

/// third bits [32], lower bits [64], scales of 6 bits [12], scale.
fn q3_k(bytes: &[u8], to: &mut [f32]) {
    let scale = half(bytes, 108);
    let scales = &bytes[96..108];
    for (part, to) in to.chunks_exact_mut(16).enumerate() {
        // Four bits in the first eight bytes, two more in the last four.
        let low = scales[part % 8] >> (part / 8 * 4) & 15;
        let high = scales[8 + part % 4] >> (part / 4 * 2) & 3;
        let scale = scale * (f32::from(low | high << 4) - 32.0);
        let (half, shift, at) = (part / 8, part / 2 % 4 * 2, part % 2 * 16);
        let (thirds, values) = (&bytes[at..], &bytes[32 + half * 32 + at..]);
        for ((to, byte), third) in to.iter_mut().zip(values).zip(thirds) {
            let below = if third >> (part / 2) & 1 == 1 { 0.0 } else { 4.0 };
            *to = scale * (f32::from(byte >> shift & 3) - below);
        }
    }
}

/// lower bits [128], upper bits [64], scales of 8 bits [16], scale.
fn q6_k(bytes: &[u8], to: &mut [f32]) {
    let scale = half(bytes, 208);
    for (part, to) in to.chunks_exact_mut(16).enumerate() {
        let scale = scale * f32::from(bytes[192 + part] as i8);
        // 128 values at a time, in four rows of 32.
        let (half, row, at) = (part / 8, part / 2 % 4, part % 2 * 16);
        let low = &bytes[half * 64 + row % 2 * 32 + at..];
        let high = &bytes[128 + half * 32 + at..];
        for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
            let value = low >> (row / 2 * 4) & 15 | (high >> (row * 2) & 3) << 4;
            *to = scale * (f32::from(value) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    use super::*;

    fn ggml(kind: Kind) -> GgmlDType {
        match kind {
            Kind::F32 => GgmlDType::F32,
            Kind::F16 => GgmlDType::F16,
            Kind::Bf16 => GgmlDType::BF16,
            Kind::Q4_0 => GgmlDType::Q4_0,
            Kind::Q4_1 => GgmlDType::Q4_1,
            Kind::Q5_0 => GgmlDType::Q5_0,
            Kind::Q5_1 => GgmlDType::Q5_1,
            Kind::Q8_0 => GgmlDType::Q8_0,
            Kind::Q2_K => GgmlDType::Q2K,
            Kind::Q3_K => GgmlDType::Q3K,
            Kind::Q4_K => GgmlDType::Q4K,
            Kind::Q5_K => GgmlDType::Q5K,
            Kind::Q6_K => GgmlDType::Q6K,
        }
    }

    /// Bytes from a seed.
    fn noise(mut seed: u64, count: usize) -> Vec<u8> {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        };
        (0..count).map(|_| next()).collect()
    }

    proptest! {
        #[test]
        fn every_kind_stands_for_the_numbers_that_candle_reads(seed: u64, kind in prop::sample::select(&Kind::ALL[..])) {
            let values = 2 * SUPER;
            let bytes = noise(seed, kind.bytes_of(values).unwrap());
            let theirs = qtensor_from_ggml(ggml(kind), &bytes, vec![values], &Device::Cpu).unwrap();
            let theirs: Vec<f32> = theirs.dequantize(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap();
            let mut ours = vec![0.0; values];
            kind.floats(&bytes, &mut ours);
            for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                // A difference in the last place: candle multiplies in another order here and there.
                let near = (ours - theirs).abs() <= 1e-6 * ours.abs().max(theirs.abs());
                prop_assert!(near || ours.is_nan() && theirs.is_nan() || ours == theirs, "{kind} at {at}: {ours} {theirs}");
            }
            prop_assert!(!kind.finite(&bytes) || ours.iter().all(|value| value.is_finite()));
            let mut blocks = vec![Block::default(); values / BLOCK];
            if kind.blocks(&bytes, &mut blocks) {
                let again = blocks.iter().flat_map(|block| block.values.map(|value| block.scale * f32::from(value) + block.least));
                prop_assert!(again.zip(&ours).all(|(again, ours)| again.to_bits() == ours.to_bits()));
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_noticed_wherever_it_stands() {
        for kind in Kind::ALL {
            let whole = vec![0; kind.bytes() * 3];
            assert!(kind.finite(&whole), "{kind}");
            let found = (0..whole.len() - 1).filter(|&at| {
                let mut broken = whole.clone();
                match kind {
                    Kind::F32 | Kind::Bf16 => (broken[at], broken[at + 1]) = (0x80, 0x7f),
                    _ => (broken[at], broken[at + 1]) = (0, 0x7c),
                }
                !kind.finite(&broken)
            });
            let floats = match kind {
                Kind::Q4_1 | Kind::Q5_1 | Kind::Q4_K | Kind::Q5_K | Kind::Q2_K => 6,
                _ => 3,
            };
            assert_eq!(found.count(), floats, "{kind}");
        }
    }

    #[test]
    fn a_row_of_half_a_block_is_none() {
        assert_eq!(Kind::Q8_0.bytes_of(64), Some(68));
        assert_eq!(Kind::Q8_0.bytes_of(48), None);
        assert_eq!(Kind::F16.bytes_of(usize::MAX), None);
    }
}
