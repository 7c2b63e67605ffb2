//! Vectors of several widths under one set of names, and the choice among them at run time.
//!
//! A kernel is an [`Op`]: written once over [`Simd`], compiled once for each instruction set. Instruction sets may differ in
//! a result's last bits (the portable one does not fuse multiply and add), so the choice is part of a model's fingerprint;
//! within one, a result depends only on the operation's own operands.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;

pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Proof that the processor has an instruction set, and that set's vectors of [`Simd::LANES`] numbers.
///
/// Every method is to be inlined into an [`Op`] that [`Isa::run`] compiled for the set.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// `LANES` × f32.
    type F: Copy;
    /// `LANES` × i32.
    type I: Copy;
    /// 8 or 16.
    const LANES: usize;
    /// Rows of a register tile of products: its accumulators, two vectors a row, and the operands fit the registers.
    const TILE_ROWS: usize;

    fn splat(self, x: f32) -> Self::F;
    /// # Safety
    /// `from` is valid for reading `LANES` numbers.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// # Safety
    /// `to` is valid for writing `LANES` numbers.
    unsafe fn store(self, to: *mut f32, x: Self::F);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, x: Self::F) -> Self::F;
    /// 2 to the power of `x`, which is an integer from -126 to 127.
    fn exp2(self, x: Self::F) -> Self::F;
    /// Σ over the lanes, in an order that is fixed for the set.
    fn sum(self, x: Self::F) -> f32;
    /// The greatest lane.
    fn most(self, x: Self::F) -> f32;
    /// Widens `LANES` half-precision numbers.
    /// # Safety
    /// `from` is valid for reading `LANES` numbers.
    unsafe fn load_f16(self, from: *const half::f16) -> Self::F;

    /// Rounds to half precision, ties to even.
    /// # Safety
    /// `to` is valid for writing `LANES` numbers.
    unsafe fn store_f16(self, to: *mut half::f16, x: Self::F);
    /// Widens `LANES` signed bytes.
    /// # Safety
    /// `from` is valid for reading `LANES` bytes.
    unsafe fn load_i8(self, from: *const i8) -> Self::F;

    /// Has a cache line on its way; any address will do.
    fn prefetch(self, at: *const f32);
    /// The same, into the second cache: it is not needed before the first has forgotten it.
    fn prefetch_far(self, at: *const u8);

    fn splat_i(self, x: i32) -> Self::I;
    /// # Safety
    /// `from` is valid for reading `4 * LANES` bytes.
    unsafe fn load_i(self, from: *const u8) -> Self::I;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Σ over the lanes.
    fn sum_i(self, x: Self::I) -> i32;
    /// To the nearest integers, ties to even, of numbers from -127 to 127; what a NaN becomes is not said.
    fn round_i(self, x: Self::F) -> Self::I;
    /// Stores each lane, which is from -127 to 127 (or was a NaN), as a signed byte.
    /// # Safety
    /// `to` is valid for writing `LANES` bytes.
    unsafe fn store_bytes(self, to: *mut i8, x: Self::I);
    /// Low and high halves of each byte.
    fn nibbles(self, x: Self::I) -> [Self::I; 2];
    /// For each lane the products of the four unsigned bytes of `weights` with the four signed bytes of `x` (first byte lowest),
    /// added to `sum`. Exact.
    fn dot4(self, sum: Self::I, weights: Self::I, x: i32) -> Self::I;
    /// For each lane the products of the two bf16 of `weights` with the two of `x` (the first lowest), added to `sum`, in an
    /// order and with a rounding that are fixed for the set.
    fn dot2(self, sum: Self::F, weights: Self::I, x: i32) -> Self::F;
    /// To f32; exact up to 2^24.
    fn to_f(self, x: Self::I) -> Self::F;
}

/// A kernel with its operands.
pub(crate) trait Op {
    type Output;

    /// Must be `#[inline(always)]`, so that it is compiled for the instruction set of its caller.
    fn call<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set that this processor has.
#[derive(Clone, Copy)]
pub(crate) enum Isa {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<0>),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512<1>),
    #[cfg(target_arch = "x86_64")]
    Avx512VnniBf16(Avx512<2>),
}

impl Isa {
    /// The best one here.
    pub(crate) fn detect() -> Isa {
        *Isa::all().last().expect("the portable one is always there")
    }

    /// All that this processor has, the best one last.
    pub(crate) fn all() -> Vec<Isa> {
        let mut all = vec![Isa::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::detect().map(Isa::Avx2));
            all.extend(Avx512::<0>::detect().map(Isa::Avx512));
            all.extend(Avx512::<1>::detect().map(Isa::Avx512Vnni));
            all.extend(Avx512::<2>::detect().map(Isa::Avx512VnniBf16));
        }
        all
    }

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(_) => "AVX-512 with VNNI",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512VnniBf16(_) => "AVX-512 with VNNI and bf16",
        }
    }

    /// The least that gives the same bits where no products of integers or bf16 are wanted: fewer compilations of a kernel.
    pub(super) fn for_floats(self) -> Isa {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(simd) => Isa::Avx512(simd.base()),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512VnniBf16(simd) => Isa::Avx512(simd.base()),
            other => other,
        }
    }

    /// Rows of a register tile.
    pub(super) fn tile_rows(self) -> usize {
        struct TileRows;

        impl Op for TileRows {
            type Output = usize;

            #[inline(always)]
            fn call<S: Simd>(self, _: S) -> usize {
                S::TILE_ROWS
            }
        }

        self.run(TileRows)
    }

    /// Runs a kernel with it.
    #[inline]
    pub(crate) fn run<O: Op>(self, op: O) -> O::Output {
        match self {
            Isa::Portable(simd) => op.call(simd),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(simd) => simd.run(op),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(simd) => simd.run(op),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(simd) => simd.run(op),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512VnniBf16(simd) => simd.run(op),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(_) => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512VnniBf16(_) => "avx512-vnni-bf16",
        })
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
