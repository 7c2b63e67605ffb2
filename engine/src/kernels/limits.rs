//! What the processor and its memory can do at best: the measure of every kernel's time.
//!
//! Reads of memory, and multiplications and additions in registers, on all threads of a pool. What is measured is the machine,
//! not our kernels: where it has instructions for 8 bits or bf16, these limits are theirs even if a kernel does without.

use std::hint::black_box;
use std::time::Instant;

use super::simd::{Op, Simd};
use super::{Isa, Pool, part, zeroed};

/// Independent chains: more than the latency of a multiplication times what begins in a cycle, and still in registers.
const CHAINS: usize = 12;
/// Multiplications of each chain in a measurement: some milliseconds.
const ROUNDS: usize = 400_000;
/// Floats that are read: 256 MiB, more than caches hold.
const FLOATS: usize = 64 << 20;

/// Numbers to read again and again.
pub(crate) struct Buffer(Vec<f32>);

impl Buffer {
    /// Its memory is touched by the threads that will read it; `None` where the system has not so much.
    pub(crate) fn new(pool: &Pool) -> Option<Buffer> {
        let mut floats = zeroed(FLOATS)?;
        let shared = super::Shared(floats.as_mut_ptr());
        let tasks = pool.threads();
        pool.run(tasks, &|task| {
            for at in part(FLOATS, task, tasks).step_by(1024) {
                // SAFETY: `at` lies within the vector, and no other task has it.
                unsafe { *shared.get().add(at) = 1.0 };
            }
        });
        Some(Buffer(floats))
    }

    /// Bytes a second of reading it all once.
    pub(crate) fn read(&self, isa: Isa, pool: &Pool) -> f64 {
        let tasks = pool.threads();
        let begun = Instant::now();
        pool.run(tasks, &|task| {
            black_box(isa.run(Read(&self.0[part(FLOATS, task, tasks)])));
        });
        size_of_val(&self.0[..]) as f64 / begun.elapsed().as_secs_f64()
    }
}

struct Read<'a>(&'a [f32]);

impl Op for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) -> f32 {
        const AT_ONCE: usize = 8;
        let mut sums = [simd.splat(0.0); AT_ONCE];
        for block in self.0.chunks_exact(AT_ONCE * S::LANES) {
            for (at, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the block holds `AT_ONCE` whole vectors.
                *sum = simd.add(*sum, unsafe { simd.load(block.as_ptr().add(at * S::LANES)) });
            }
        }
        sums.into_iter().map(|sum| simd.sum(sum)).sum()
    }
}

/// Operations a second of one round on all threads; each task says how many it did.
fn rate(pool: &Pool, task: &(dyn Fn() -> usize + Sync)) -> f64 {
    let tasks = pool.threads();
    let done = std::sync::atomic::AtomicUsize::new(0);
    let begun = Instant::now();
    pool.run(tasks, &|_| {
        done.fetch_add(task(), std::sync::atomic::Ordering::Relaxed);
    });
    done.into_inner() as f64 / begun.elapsed().as_secs_f64()
}

/// f32 multiplications and additions a second.
pub(crate) fn f32_rate(isa: Isa, pool: &Pool) -> f64 {
    rate(pool, &|| isa.run(Multiply))
}

struct Multiply;

impl Op for Multiply {
    /// Operations.
    type Output = usize;

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) -> usize {
        let mut sums = [simd.splat(black_box(1.0)); CHAINS];
        let (x, y) = (simd.splat(black_box(0.999_999)), simd.splat(black_box(1e-6)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = simd.fma(*sum, x, y);
            }
        }
        black_box(sums.map(|sum| simd.sum(sum)));
        ROUNDS * CHAINS * S::LANES * 2
    }
}

/// bf16 multiplications and f32 additions a second, where the processor has instructions for them.
pub(crate) fn bf16_rate(pool: &Pool) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the processor has the instructions.
        return Some(rate(pool, &|| unsafe { x86::bf16_avx512() }));
    }
    let _ = pool;
    None
}

/// 8-bit multiplications and 32-bit additions a second, where the processor has instructions for them.
pub(crate) fn int8_rate(pool: &Pool) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the processor has the instructions.
            return Some(rate(pool, &|| unsafe { x86::int8_avx512() }));
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the instructions.
            return Some(rate(pool, &|| unsafe { x86::int8_avx2() }));
        }
    }
    let _ = pool;
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{CHAINS, ROUNDS};

    /// A pair of bf16 to a lane.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16_avx512() -> usize {
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        let y = _mm512_set1_epi32(black_box(0x3000_3000));
        // SAFETY: any bits are numbers.
        let y: __m512bh = unsafe { std::mem::transmute(y) };
        for _ in 0..ROUNDS {
            let x = _mm512_set1_epi32(black_box(0x3f80_3f80));
            // SAFETY: any bits are numbers.
            let x: __m512bh = unsafe { std::mem::transmute(x) };
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, y);
            }
        }
        black_box(sums.map(|sum| _mm512_reduce_add_ps(sum)));
        ROUNDS * CHAINS * 64
    }

    /// Four bytes to a lane.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn int8_avx512() -> usize {
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        let y = _mm512_set1_epi8(black_box(1));
        for _ in 0..ROUNDS {
            let x = _mm512_set1_epi32(black_box(0x0101_0101));
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, y);
            }
        }
        black_box(sums.map(|sum| _mm512_reduce_add_epi32(sum)));
        ROUNDS * CHAINS * 128
    }

    /// Without instructions of their own, bytes go through 16 bits.
    #[target_feature(enable = "avx2")]
    pub(super) fn int8_avx2() -> usize {
        // Chains with factors of their own, or the compiler would multiply once for all; six of each are in registers.
        const CHAINS: usize = 6;
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        let ys: [__m256i; CHAINS] = std::array::from_fn(|_| _mm256_set1_epi8(black_box(1)));
        let ones = _mm256_set1_epi16(black_box(1));
        for _ in 0..ROUNDS {
            let x = _mm256_set1_epi32(black_box(0x0101_0101));
            for (sum, y) in sums.iter_mut().zip(ys) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones));
            }
        }
        black_box(sums);
        ROUNDS * CHAINS * 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_measured_with_every_instruction_set() {
        let pool = Pool::new(2).unwrap();
        for isa in Isa::all() {
            assert!(f32_rate(isa, &pool) > 0.0);
        }
        for rate in [bf16_rate(&pool), int8_rate(&pool)].into_iter().flatten() {
            assert!(rate > 0.0);
        }
    }

    #[test]
    fn a_read_sums_what_is_there() {
        let numbers: Vec<f32> = (0..1024).map(|at| at as f32).collect();
        for isa in Isa::all() {
            assert_eq!(isa.run(Read(&numbers)), 1023.0 * 512.0);
        }
    }
}
