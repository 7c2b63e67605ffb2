//! AVX2 with FMA and F16C, and AVX-512 (F, BW, DQ, VL), alone, with VNNI, or with VNNI and BF16.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::{Op, Simd};

/// Proof of AVX2, FMA and F16C: made by [`Avx2::detect`] only.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Proof of AVX-512 F, BW, DQ and VL, at level 1 also of VNNI, at level 2 of BF16 besides: made by [`Avx512::detect`] only.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const LEVEL: u8>(());

impl Avx2 {
    /// Whether the processor and the system have it.
    pub(crate) fn detect() -> Option<Avx2> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"))
            .then_some(Avx2(()))
    }

    #[inline]
    pub(super) fn run<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<O: Op>(simd: Avx2, op: O) -> O::Output {
            op.call(simd)
        }
        // SAFETY: `self` proves that the processor has these features.
        unsafe { inner(self, op) }
    }
}

impl<const LEVEL: u8> Avx512<LEVEL> {
    const VNNI: bool = LEVEL >= 1;
    const BF16: bool = LEVEL >= 2;

    /// Whether the processor and the system have it.
    pub(crate) fn detect() -> Option<Self> {
        let base = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && Avx2::detect().is_some();
        let vnni = !Self::VNNI || is_x86_feature_detected!("avx512vnni");
        let bf16 = !Self::BF16 || is_x86_feature_detected!("avx512bf16");
        (base && vnni && bf16).then_some(Avx512(()))
    }

    /// The level below all others.
    pub(super) fn base(self) -> Avx512<0> {
        Avx512(())
    }

    #[inline]
    pub(super) fn run<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn base<O: Op, S: Simd>(simd: S, op: O) -> O::Output {
            op.call(simd)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn vnni<O: Op, S: Simd>(simd: S, op: O) -> O::Output {
            op.call(simd)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
        fn bf16<O: Op, S: Simd>(simd: S, op: O) -> O::Output {
            op.call(simd)
        }
        // SAFETY: `self` proves that the processor has these features, VNNI and BF16 among them at their levels.
        unsafe {
            if Self::BF16 {
                bf16(self, op)
            } else if Self::VNNI {
                vnni(self, op)
            } else {
                base(self, op)
            }
        }
    }
}

/// The intrinsics are unsafe only where the processor may lack them.
macro_rules! proven {
    ($($call:tt)*) => {
        // SAFETY: `self` proves that the processor has the instruction set.
        unsafe { $($call)* }
    };
}

impl Simd for Avx2 {
    type F = __m256;
    type I = __m256i;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        proven!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: the caller promises eight readable numbers, and `self` the instruction set.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m256) {
        // SAFETY: the caller promises eight writable numbers, and `self` the instruction set.
        unsafe { _mm256_storeu_ps(to, x) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        proven!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn round(self, x: __m256) -> __m256 {
        proven!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x))
    }

    #[inline(always)]
    fn exp2(self, x: __m256) -> __m256 {
        proven!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127)))))
    }

    #[inline(always)]
    fn sum(self, x: __m256) -> f32 {
        proven!({
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        })
    }

    #[inline(always)]
    fn most(self, x: __m256) -> f32 {
        proven!({
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        })
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const half::f16) -> __m256 {
        // SAFETY: the caller promises eight readable numbers, and `self` F16C.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut half::f16, x: __m256) {
        // SAFETY: the caller promises eight writable numbers, and `self` F16C.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m256 {
        // SAFETY: the caller promises eight readable bytes, and `self` the instruction set.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }

    #[inline(always)]
    fn prefetch_far(self, at: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T1>(at.cast()))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> __m256i {
        proven!(_mm256_set1_epi32(x))
    }

    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> __m256i {
        // SAFETY: the caller promises 32 readable bytes, and `self` the instruction set.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    fn add_i(self, a: __m256i, b: __m256i) -> __m256i {
        proven!(_mm256_add_epi32(a, b))
    }

    #[inline(always)]
    fn sum_i(self, x: __m256i) -> i32 {
        proven!({
            let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
            _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32::<0b10_11_00_01>(x)))
        })
    }

    #[inline(always)]
    fn round_i(self, x: __m256) -> __m256i {
        proven!(_mm256_cvtps_epi32(x))
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, x: __m256i) {
        // SAFETY: the caller promises eight writable bytes, and `self` the instruction set.
        unsafe {
            let words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            _mm_storel_epi64(to.cast(), _mm_packs_epi16(words, words));
        }
    }

    #[inline(always)]
    fn nibbles(self, x: __m256i) -> [__m256i; 2] {
        proven!({
            let low = _mm256_set1_epi8(0xf);
            [_mm256_and_si256(x, low), _mm256_and_si256(_mm256_srli_epi16::<4>(x), low)]
        })
    }

    #[inline(always)]
    fn dot4(self, sum: __m256i, weights: __m256i, x: i32) -> __m256i {
        proven!({
            // Not maddubs, whose 16-bit sums saturate: even and odd bytes as 16-bit numbers, whose products are exact.
            let x = _mm256_set1_epi32(x);
            let even = _mm256_and_si256(weights, _mm256_set1_epi16(0xff));
            let odd = _mm256_srli_epi16::<8>(weights);
            let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            let x_odd = _mm256_srai_epi16::<8>(x);
            let products = _mm256_add_epi32(_mm256_madd_epi16(even, x_even), _mm256_madd_epi16(odd, x_odd));
            _mm256_add_epi32(sum, products)
        })
    }

    #[inline(always)]
    fn dot2(self, sum: __m256, weights: __m256i, x: i32) -> __m256 {
        proven!({
            // A bf16 is the upper half of an f32.
            let (x, upper) = (_mm256_set1_epi32(x), _mm256_set1_epi32(0xffff_0000_u32 as i32));
            let first = |pair| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair));
            let second = |pair| _mm256_castsi256_ps(_mm256_and_si256(pair, upper));
            let sum = _mm256_fmadd_ps(first(weights), first(x), sum);
            _mm256_fmadd_ps(second(weights), second(x), sum)
        })
    }

    #[inline(always)]
    fn to_f(self, x: __m256i) -> __m256 {
        proven!(_mm256_cvtepi32_ps(x))
    }
}

impl<const LEVEL: u8> Simd for Avx512<LEVEL> {
    type F = __m512;
    type I = __m512i;
    const LANES: usize = 16;
    const TILE_ROWS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: the caller promises sixteen readable numbers, and `self` the instruction set.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m512) {
        // SAFETY: the caller promises sixteen writable numbers, and `self` the instruction set.
        unsafe { _mm512_storeu_ps(to, x) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        proven!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x))
    }

    #[inline(always)]
    fn exp2(self, x: __m512) -> __m512 {
        proven!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(127)))))
    }

    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        proven!({
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        })
    }

    #[inline(always)]
    fn most(self, x: __m512) -> f32 {
        proven!(_mm512_reduce_max_ps(x))
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const half::f16) -> __m512 {
        // SAFETY: the caller promises sixteen readable numbers, and `self` the instruction set.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut half::f16, x: __m512) {
        // SAFETY: the caller promises sixteen writable numbers, and `self` the instruction set.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m512 {
        // SAFETY: the caller promises sixteen readable bytes, and `self` the instruction set.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }

    #[inline(always)]
    fn prefetch_far(self, at: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T1>(at.cast()))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        proven!(_mm512_set1_epi32(x))
    }

    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> __m512i {
        // SAFETY: the caller promises 64 readable bytes, and `self` the instruction set.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn sum_i(self, x: __m512i) -> i32 {
        proven!(_mm512_reduce_add_epi32(x))
    }

    #[inline(always)]
    fn round_i(self, x: __m512) -> __m512i {
        proven!(_mm512_cvtps_epi32(x))
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, x: __m512i) {
        // SAFETY: the caller promises sixteen writable bytes, and `self` the instruction set.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(x)) }
    }

    #[inline(always)]
    fn nibbles(self, x: __m512i) -> [__m512i; 2] {
        proven!({
            let low = _mm512_set1_epi8(0xf);
            [_mm512_and_si512(x, low), _mm512_and_si512(_mm512_srli_epi16::<4>(x), low)]
        })
    }

    #[inline(always)]
    fn dot4(self, sum: __m512i, weights: __m512i, x: i32) -> __m512i {
        // VNNI only where `LEVEL` is proof of it.
        proven!({
            let x = _mm512_set1_epi32(x);
            if Self::VNNI {
                return _mm512_dpbusd_epi32(sum, weights, x);
            }
            let even = _mm512_and_si512(weights, _mm512_set1_epi16(0xff));
            let odd = _mm512_srli_epi16::<8>(weights);
            let x_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x));
            let x_odd = _mm512_srai_epi16::<8>(x);
            let products = _mm512_add_epi32(_mm512_madd_epi16(even, x_even), _mm512_madd_epi16(odd, x_odd));
            _mm512_add_epi32(sum, products)
        })
    }

    #[inline(always)]
    fn dot2(self, sum: __m512, weights: __m512i, x: i32) -> __m512 {
        // BF16 only where `LEVEL` is proof of it.
        proven!({
            let x = _mm512_set1_epi32(x);
            if Self::BF16 {
                // `__m512bh` is what `__m512i` is: 64 bytes, any of which will do.
                return _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(weights), transmute::<__m512i, __m512bh>(x));
            }
            // A bf16 is the upper half of an f32.
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let first = |pair| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pair));
            let second = |pair| _mm512_castsi512_ps(_mm512_and_si512(pair, upper));
            let sum = _mm512_fmadd_ps(first(weights), first(x), sum);
            _mm512_fmadd_ps(second(weights), second(x), sum)
        })
    }

    #[inline(always)]
    fn to_f(self, x: __m512i) -> __m512 {
        proven!(_mm512_cvtepi32_ps(x))
    }
}
