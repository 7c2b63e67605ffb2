//! A process's memory over time: does it grow?

use std::{fmt, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use tokio::time::Instant;

const EVERY: Duration = Duration::from_secs(1);

/// A process to watch.
pub(crate) struct Memory {
    path: String,
}

/// A straight line through what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Slope {
    pub(crate) samples: usize,
    pub(crate) seconds: f64,
    pub(crate) first_mib: f64,
    pub(crate) last_mib: f64,
    pub(crate) max_mib: f64,
    pub(crate) mib_per_hour: f64,
    /// The slope's standard error, from means of ten parts of the time: neighbouring samples are not independent.
    pub(crate) noise_mib_per_hour: f64,
}

impl Memory {
    /// This process, or another of the same machine.
    pub(crate) fn of(pid: Option<u32>) -> anyhow::Result<Memory> {
        let memory = Memory { path: format!("/proc/{}/statm", pid.map_or("self".to_owned(), |pid| pid.to_string())) };
        memory.mib()?;
        Ok(memory)
    }

    /// Resident.
    fn mib(&self) -> anyhow::Result<f64> {
        let statm = std::fs::read_to_string(&self.path).with_context(|| format!("failed to read {}", self.path))?;
        let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).context("statm has no second number")?;
        // 4 KiB pages on every machine that we serve on.
        Ok(pages * 4096.0 / f64::from(1 << 20))
    }

    /// Watches from `settling` on until `time` has passed.
    pub(crate) async fn watch(self, settling: Duration, time: Duration) -> Option<Slope> {
        let begun = Instant::now();
        tokio::time::sleep(settling).await;
        let mut seen = Vec::new();
        while begun.elapsed() < time {
            // A process that has gone is seen by its clients.
            seen.push((begun.elapsed().as_secs_f64(), self.mib().ok()?));
            tokio::time::sleep(EVERY).await;
        }
        slope(&seen)
    }
}

/// Least squares.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / count, sum.1 + point.1 / count));
    let (xx, xy) =
        points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + (point.0 - x).powi(2), sum.1 + (point.0 - x) * (point.1 - y)));
    let slope = xy / xx;
    let residue: f64 = points.iter().map(|point| (point.1 - y - slope * (point.0 - x)).powi(2)).sum();
    (slope, (residue / (count - 2.0).max(1.0) / xx).sqrt())
}

fn slope(seen: &[(f64, f64)]) -> Option<Slope> {
    let (first, last) = (seen.first()?, seen.last()?);
    if seen.len() < 20 {
        return None;
    }
    let parts: Vec<(f64, f64)> = seen
        .chunks(seen.len().div_ceil(10))
        .map(|part| {
            let count = part.len() as f64;
            part.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / count, sum.1 + point.1 / count))
        })
        .collect();
    let (slope, noise) = line(&parts);
    Some(Slope {
        samples: seen.len(),
        seconds: last.0 - first.0,
        first_mib: first.1,
        last_mib: last.1,
        max_mib: seen.iter().fold(0.0, |most, point| most.max(point.1)),
        mib_per_hour: 3600.0 * slope,
        noise_mib_per_hour: 3600.0 * noise,
    })
}

impl fmt::Display for Slope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "memory from {:.1} to {:.1} MiB (at most {:.1}) in {:.0} s: {:+.2} ± {:.2} MiB an hour",
            self.first_mib, self.last_mib, self.max_mib, self.seconds, self.mib_per_hour, self.noise_mib_per_hour
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_shows_above_the_noise_and_noise_does_not() {
        let noise = |second: u32| f64::from(second.wrapping_mul(2_654_435_761) >> 16) / 65_536.0;
        let run = |leak: f64| {
            let seen: Vec<_> = (0..600).map(|at| (f64::from(at), 100.0 + leak * f64::from(at) + noise(at))).collect();
            slope(&seen).unwrap()
        };
        let (still, leaking) = (run(0.0), run(0.01));
        assert!(still.mib_per_hour.abs() < 3.0 * still.noise_mib_per_hour, "{still}");
        assert!((leaking.mib_per_hour - 36.0).abs() < 3.0 * leaking.noise_mib_per_hour, "{leaking}");
        assert!(leaking.mib_per_hour > 10.0 * leaking.noise_mib_per_hour, "{leaking}");
    }

    #[test]
    fn this_process_has_memory() {
        assert!(Memory::of(None).unwrap().mib().unwrap() > 1.0);
        assert!(Memory::of(Some(u32::MAX)).is_err());
    }
}
