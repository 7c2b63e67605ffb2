//! On what was measured: figures of different machines don't compare.

use std::fs;

use serde::{Deserialize, Serialize};

/// This machine, as the system describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The processor's name.
    pub(crate) processor: String,
    /// Cores that this process may use.
    pub(crate) cores: usize,
    /// Memory of the machine, in bytes; where the system says so.
    pub(crate) memory: Option<u64>,
    /// The program's version.
    pub(crate) version: String,
}

impl Machine {
    pub(crate) fn here() -> Machine {
        let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| value(&text, "model name"));
        let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| value(&text, "MemTotal"));
        Machine {
            processor: processor.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: banyan_engine::threads::available(),
            memory: memory.and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok()).map(|kilobytes| kilobytes * 1024),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What stands behind the first `name:`.
fn value(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_behind_colons() {
        let text = "processor\t: 0\nmodel name\t: A CPU: fast\n";
        assert_eq!(value(text, "model name").as_deref(), Some("A CPU: fast"));
        assert_eq!(value(text, "MemTotal"), None);
        assert!(Machine::here().cores > 0);
    }
}
