//! What this machine can do at best, as a benchmark's other half: a kernel's time means little without its limit.

use serde::{Deserialize, Serialize};

use crate::kernels::{Isa, LimitsBuffer, Pool, bf16_rate, f32_rate, int8_rate};
use crate::profile::Arithmetic;

/// Measurements of each limit, of which the median counts.
const ROUNDS: usize = 5;

/// What so many threads can do at best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// How many.
    pub threads: usize,
    /// Reads of memory beyond the caches, in 10^9 bytes a second.
    pub memory_gb_per_s: f64,
    /// f32 multiplications and additions, 10^9 a second, each counted.
    pub f32_gop_per_s: f64,
    /// The same with factors in bf16; where the processor has instructions for them.
    pub bf16_gop_per_s: Option<f64>,
    /// The same with 8-bit factors and 32-bit sums.
    pub int8_gop_per_s: Option<f64>,
}

/// Measures the limits, again and again: beside every case, because machines are shared and change by the minute.
pub struct Meter {
    isa: Isa,
    pool: Pool,
}

impl Meter {
    /// For so many threads.
    pub fn new(threads: usize) -> std::io::Result<Meter> {
        Ok(Meter { isa: Isa::detect(), pool: Pool::shared(threads)? })
    }

    /// Takes about a third of a second, and 256 MiB meanwhile; `None` where the system has not so much.
    pub fn measure(&self) -> Option<Limits> {
        let buffer = LimitsBuffer::new(&self.pool)?;
        let (isa, pool) = (self.isa, &self.pool);
        // The first of each wakes the threads, and is not counted.
        let median = |measure: &dyn Fn() -> Option<f64>| {
            measure()?;
            let mut rates = (0..ROUNDS).map(|_| measure()).collect::<Option<Vec<f64>>>()?;
            rates.sort_by(f64::total_cmp);
            Some(rates[ROUNDS / 2] / 1e9)
        };
        Some(Limits {
            threads: pool.threads(),
            memory_gb_per_s: median(&|| Some(buffer.read(isa, pool)))?,
            f32_gop_per_s: median(&|| Some(f32_rate(isa, pool)))?,
            bf16_gop_per_s: median(&|| bf16_rate(pool)),
            int8_gop_per_s: median(&|| int8_rate(pool)),
        })
    }
}

impl Limits {
    /// The mean of two measurements: what was possible between them.
    pub fn mean(&self, other: &Limits) -> Limits {
        let mean = |a: f64, b: f64| (a + b) / 2.0;
        let both = |a: Option<f64>, b: Option<f64>| Some(mean(a?, b?));
        Limits {
            threads: self.threads,
            memory_gb_per_s: mean(self.memory_gb_per_s, other.memory_gb_per_s),
            f32_gop_per_s: mean(self.f32_gop_per_s, other.f32_gop_per_s),
            bf16_gop_per_s: both(self.bf16_gop_per_s, other.bf16_gop_per_s),
            int8_gop_per_s: both(self.int8_gop_per_s, other.int8_gop_per_s),
        }
    }

    /// Seconds that reading so many bytes takes at least.
    pub(crate) fn memory_s(&self, bytes: f64) -> f64 {
        bytes / (self.memory_gb_per_s * 1e9)
    }

    /// Seconds that so many operations take at least. Where the processor has no instructions for small factors, they are
    /// computed with as f32.
    pub(crate) fn arithmetic_s(&self, operations: f64, arithmetic: Arithmetic) -> f64 {
        let rate = match arithmetic {
            Arithmetic::F32 => None,
            Arithmetic::Bf16 => self.bf16_gop_per_s,
            Arithmetic::Int8 => self.int8_gop_per_s,
        };
        operations / (rate.unwrap_or(self.f32_gop_per_s) * 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_limits_and_work_takes_its_time_by_them() {
        let limits = Meter::new(1).unwrap().measure().expect("256 MiB are there");
        assert!(limits.memory_gb_per_s > 0.0 && limits.f32_gop_per_s > 0.0);
        let limits =
            Limits { threads: 1, memory_gb_per_s: 10.0, f32_gop_per_s: 100.0, bf16_gop_per_s: None, int8_gop_per_s: Some(400.0) };
        assert_eq!(limits.memory_s(1e9), 0.1);
        assert_eq!(limits.arithmetic_s(4e9, Arithmetic::Int8), 0.01);
        assert_eq!(limits.arithmetic_s(4e9, Arithmetic::Bf16), 0.04);
        assert_eq!(limits.mean(&limits), limits);
    }
}
