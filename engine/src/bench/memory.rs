//! What the process holds in memory, where the system says so.

use std::fs;

/// Resident now, in bytes.
pub(super) fn resident() -> Option<u64> {
    status("VmRSS:")
}

/// The most that was resident, but for the times when a measurement held memory of its own.
pub(super) struct Peak {
    bytes: Option<u64>,
}

impl Peak {
    /// Counts from the start of the process, or from where somebody began anew.
    pub(super) fn new() -> Peak {
        Peak { bytes: status("VmHWM:") }
    }

    /// Up to now.
    pub(super) fn bytes(&mut self) -> Option<u64> {
        self.bytes = self.bytes.max(status("VmHWM:"));
        self.bytes
    }

    /// Lets `f` hold memory that does not count.
    pub(super) fn without<T>(&mut self, f: impl FnOnce() -> T) -> T {
        self.bytes();
        let done = f();
        // proc(5): 5 sets the high-water mark back to what is resident. Where that is not allowed, the peak includes `f`'s.
        let _ = fs::write("/proc/self/clear_refs", "5");
        done
    }
}

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_what_was_resident_at_least() {
        let mut peak = Peak::new();
        peak.without(|| ());
        assert!(peak.bytes() >= resident().min(peak.bytes()));
        assert_eq!(status("NoSuchLine:"), None);
    }
}
