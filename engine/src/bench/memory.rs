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
    fn a_peak_is_kept_when_the_systems_mark_is_set_back() {
        // Other tests come and go beside this one, so only what is kept here says anything.
        let mut peak = Peak { bytes: Some(u64::MAX) };
        peak.without(|| ());
        assert_eq!(peak.bytes(), Some(u64::MAX));
        assert_eq!(status("NoSuchLine:"), None);
    }
}
