//! What the system says of the process, under the names that Prometheus's conventions have for it. On Linux; elsewhere nothing.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// Linux counts time for processes in hundredths of a second, whatever its own clock does (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
const KIB: f64 = 1024.0;

#[derive(Debug, Default)]
pub(crate) struct Process {}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(seen) = Seen::now() else { return Ok(()) };
        let cpu = encoder.encode_descriptor("process_cpu_seconds", "CPU time that was spent", None, MetricType::Counter)?;
        ConstCounter::new(seen.cpu_seconds).encode(cpu)?;
        for (name, help, value) in [
            ("process_start_time_seconds", "When it started, as Unix time", seen.started),
            ("process_resident_memory_bytes", "Memory that it has", seen.resident_bytes),
            ("process_open_fds", "File descriptors that it has open", seen.open_fds),
            ("process_max_fds", "File descriptors that it may have open", seen.max_fds),
        ] {
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

struct Seen {
    cpu_seconds: f64,
    started: f64,
    resident_bytes: f64,
    open_fds: f64,
    max_fds: f64,
}

impl Seen {
    fn now() -> Option<Seen> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // proc(5): the second field is a name in parentheses and may hold anything; the third one is the state.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let booted = number_after(&fs::read_to_string("/proc/stat").ok()?, "btime")?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        Some(Seen {
            cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
            started: booted + field(22)? / TICKS_PER_SECOND,
            resident_bytes: number_after(&status, "VmRSS:")? * KIB,
            open_fds: fs::read_dir("/proc/self/fd").ok()?.count() as f64,
            // Some systems have no limit.
            max_fds: number_after(&limits, "Max open files").unwrap_or(f64::INFINITY),
        })
    }
}

/// The number behind a label at the start of a line.
fn number_after(text: &str, label: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(label))?.split_whitespace().next()?.parse().ok()
}
