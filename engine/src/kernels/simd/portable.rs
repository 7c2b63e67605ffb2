//! Vectors for any processor: arrays that the compiler may vectorise as it can.

use super::Simd;

/// Needs nothing.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 8;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    const LANES: usize = LANES;
    const TILE_ROWS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller promises `LANES` readable numbers; the read needs no alignment.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::F) {
        // SAFETY: the caller promises `LANES` writable numbers; the write needs no alignment.
        unsafe { to.cast::<Self::F>().write_unaligned(x) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // As x86 does: the second where one is NaN.
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Not `mul_add`: without the instruction that is a slow library call.
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }

    #[inline(always)]
    fn round(self, x: Self::F) -> Self::F {
        x.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn exp2(self, x: Self::F) -> Self::F {
        x.map(|x| f32::from_bits((((x as i32) + 127) as u32) << 23))
    }

    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
    }

    #[inline(always)]
    fn most(self, x: Self::F) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const half::f16) -> Self::F {
        // SAFETY: the caller promises `LANES` readable numbers; the read needs no alignment.
        unsafe { from.cast::<[half::f16; LANES]>().read_unaligned() }.map(half::f16::to_f32)
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut half::f16, x: Self::F) {
        // SAFETY: the caller promises `LANES` writable numbers; the write needs no alignment.
        unsafe { to.cast::<[half::f16; LANES]>().write_unaligned(x.map(half::f16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> Self::F {
        // SAFETY: the caller promises `LANES` readable bytes.
        unsafe { from.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from)
    }

    #[inline(always)]
    fn prefetch(self, _: *const f32) {}

    #[inline(always)]
    fn prefetch_far(self, _: *const u8) {}

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> Self::I {
        // SAFETY: the caller promises `4 * LANES` readable bytes; the read needs no alignment.
        unsafe { from.cast::<[[u8; 4]; LANES]>().read_unaligned() }.map(i32::from_le_bytes)
    }

    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn sum_i(self, x: Self::I) -> i32 {
        x.into_iter().sum()
    }

    #[inline(always)]
    fn round_i(self, x: Self::F) -> Self::I {
        // Adding and taking away 1.5 · 2^23 rounds; `round_ties_even` is a library call without SSE4.1.
        const ROUND: f32 = 12_582_912.0;
        x.map(|x| ((x + ROUND) - ROUND) as i32)
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, x: Self::I) {
        // SAFETY: the caller promises `LANES` writable bytes; the write needs no alignment.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(x.map(|x| x as i8)) }
    }

    #[inline(always)]
    fn nibbles(self, x: Self::I) -> [Self::I; 2] {
        [x.map(|x| x & 0x0f0f_0f0f), x.map(|x| x >> 4 & 0x0f0f_0f0f)]
    }

    #[inline(always)]
    fn dot4(self, sum: Self::I, weights: Self::I, x: i32) -> Self::I {
        let x = x.to_le_bytes().map(|byte| i32::from(byte as i8));
        std::array::from_fn(|lane| {
            let w = weights[lane].to_le_bytes().map(i32::from);
            sum[lane] + (w[0] * x[0] + w[1] * x[1]) + (w[2] * x[2] + w[3] * x[3])
        })
    }

    #[inline(always)]
    fn dot2(self, sum: Self::F, weights: Self::I, x: i32) -> Self::F {
        // A bf16 is the upper half of an f32.
        let [first, second] = [|pair: i32| f32::from_bits((pair as u32) << 16), |pair| f32::from_bits(pair as u32 & 0xffff_0000)];
        let sum = self.fma(weights.map(first), [first(x); LANES], sum);
        self.fma(weights.map(second), [second(x); LANES], sum)
    }

    #[inline(always)]
    fn to_f(self, x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
}
