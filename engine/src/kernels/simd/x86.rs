//! AVX2 with FMA and F16C, and AVX-512 (F, BW, DQ, VL), with or without VNNI.

use std::arch::x86_64::*;

use super::{Op, Simd};

/// Proof of AVX2, FMA and F16C: made by [`Avx2::detect`] only.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Proof of AVX-512 F, BW, DQ and VL, and of VNNI where it says so: made by [`Avx512::detect`] only.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VNNI: bool>(());

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

impl<const VNNI: bool> Avx512<VNNI> {
    /// Whether the processor and the system have it.
    pub(crate) fn detect() -> Option<Self> {
        let base = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && Avx2::detect().is_some();
        (base && (!VNNI || is_x86_feature_detected!("avx512vnni"))).then_some(Avx512(()))
    }

    #[inline]
    pub(super) fn run<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn base<O: Op, const VNNI: bool>(simd: Avx512<VNNI>, op: O) -> O::Output {
            op.call(simd)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn vnni<O: Op, const VNNI: bool>(simd: Avx512<VNNI>, op: O) -> O::Output {
            op.call(simd)
        }
        // SAFETY: `self` proves that the processor has these features, VNNI among them where `VNNI` is true.
        unsafe { if VNNI { vnni(self, op) } else { base(self, op) } }
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
    const TILE_ROWS_Q8: usize = 2;

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
    fn prefetch(self, at: *const f32) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> __m256i {
        proven!(_mm256_set1_epi32(x))
    }

    #[inline(always)]
    unsafe fn dot4(self, sum: __m256i, weights: *const u8, x: i32) -> __m256i {
        // SAFETY: the caller promises 32 readable bytes, and `self` the instruction set.
        unsafe {
            // Not maddubs, whose 16-bit sums saturate: even and odd bytes as 16-bit numbers, whose products are exact.
            let weights = _mm256_loadu_si256(weights.cast());
            let x = _mm256_set1_epi32(x);
            let even = _mm256_and_si256(weights, _mm256_set1_epi16(0xff));
            let odd = _mm256_srli_epi16::<8>(weights);
            let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            let x_odd = _mm256_srai_epi16::<8>(x);
            let products = _mm256_add_epi32(_mm256_madd_epi16(even, x_even), _mm256_madd_epi16(odd, x_odd));
            _mm256_add_epi32(sum, products)
        }
    }

    #[inline(always)]
    fn to_f(self, x: __m256i) -> __m256 {
        proven!(_mm256_cvtepi32_ps(x))
    }
}

impl<const VNNI: bool> Simd for Avx512<VNNI> {
    type F = __m512;
    type I = __m512i;
    const LANES: usize = 16;
    const TILE_ROWS: usize = 8;
    const TILE_ROWS_Q8: usize = 4;

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
    fn prefetch(self, at: *const f32) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        proven!(_mm512_set1_epi32(x))
    }

    #[inline(always)]
    unsafe fn dot4(self, sum: __m512i, weights: *const u8, x: i32) -> __m512i {
        // SAFETY: the caller promises 64 readable bytes, and `self` the instruction set, VNNI only where `VNNI` is true.
        unsafe {
            let weights = _mm512_loadu_si512(weights.cast());
            let x = _mm512_set1_epi32(x);
            if VNNI {
                return _mm512_dpbusd_epi32(sum, weights, x);
            }
            let even = _mm512_and_si512(weights, _mm512_set1_epi16(0xff));
            let odd = _mm512_srli_epi16::<8>(weights);
            let x_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x));
            let x_odd = _mm512_srai_epi16::<8>(x);
            let products = _mm512_add_epi32(_mm512_madd_epi16(even, x_even), _mm512_madd_epi16(odd, x_odd));
            _mm512_add_epi32(sum, products)
        }
    }

    #[inline(always)]
    fn to_f(self, x: __m512i) -> __m512 {
        proven!(_mm512_cvtepi32_ps(x))
    }
}
