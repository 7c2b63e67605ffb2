//! What a process takes of its machine, as Linux tells it: open file descriptors and resident memory.

use std::fs;

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Open file descriptors.
    pub descriptors: usize,
    /// Resident memory.
    pub resident_bytes: u64,
}

impl Footprint {
    /// Of the process `pid`; `None` when there is none.
    pub fn of(pid: u32) -> Option<Footprint> {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(Footprint { descriptors, resident_bytes: kibibytes << 10 })
    }

    /// Whether a process that had `before` has given back what it took: a few descriptors are connections that are kept for
    /// the next call, and an allocator keeps some memory.
    pub fn is_back_at(&self, before: &Footprint) -> bool {
        self.descriptors <= before.descriptors + SPARE_DESCRIPTORS && self.resident_bytes <= before.resident_bytes + SPARE_BYTES
    }
}

/// Connections to the registry's members, and one between each two parts, that may be made anew while the old one ends.
const SPARE_DESCRIPTORS: usize = 4;
/// What the allocator keeps of a scenario's load: of 500 streams at once some 26 MiB in an API, and not more after eight such bursts
/// than after three.
const SPARE_BYTES: u64 = 40 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_some() {
        let own = Footprint::of(std::process::id()).expect("Linux tells");
        assert!(own.descriptors >= 3 && own.resident_bytes > 1 << 20, "{own:?}");
        assert!(Footprint::of(u32::MAX).is_none());
    }
}
