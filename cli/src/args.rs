//! Flags that several commands share, and the small texts they are read from.

use std::{path::PathBuf, str::FromStr, time::Duration};

use banyan_api::Aliases;
use banyan_etcd::{Config, ConnectError, Registry};
use banyan_node::LaneLimits;
use banyan_proto::NodeName;

use crate::{config::Part, exit::Failure, output, tls::TlsArgs};

/// Between two tries, each of which lasts as long as the registry is given to answer.
const REGISTRY_PAUSE: Duration = Duration::from_millis(500);

/// Where the registry is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RegistryArgs {
    /// The registry's endpoints: any etcd, or `banyan registry serve`.
    #[arg(
        long = "etcd",
        env = "BANYAN_ETCD",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379"
    )]
    pub(crate) endpoints: Vec<String>,
    /// Registry keys are kept apart by this name, so that several clusters can share one etcd.
    #[arg(long, env = "BANYAN_CLUSTER", value_name = "NAME", default_value = "default")]
    pub(crate) cluster: NodeName,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
}

impl RegistryArgs {
    pub(crate) async fn connect(&self) -> Result<Registry, Failure> {
        Ok(Registry::connect(self.config()?).await?)
    }

    fn config(&self) -> Result<Config, Failure> {
        let tls = self.tls.of_registry(&self.endpoints)?;
        Ok(Config { tls, ..Config::new(self.endpoints.clone(), self.cluster.clone()) })
    }

    /// For whoever joins: while nobody answers it waits, and says so once. Its supervisor could do no better, and the registry may
    /// be away for a while only.
    pub(crate) async fn connect_patiently(&self) -> Result<Registry, Failure> {
        let mut told = false;
        loop {
            match Registry::connect(self.config()?).await {
                Err(error @ ConnectError::Unavailable { .. }) => {
                    if !std::mem::replace(&mut told, true) {
                        output::note(&format!("{error}; waiting for it"));
                    }
                    tokio::time::sleep(REGISTRY_PAUSE).await;
                }
                connected => return Ok(connected?),
            }
        }
    }
}

/// What may wait at a root, and what all that is under way may take.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct LaneArgs {
    /// Queries that may wait at the root; one owner alone gets nearly half of it.
    #[arg(long, env = "BANYAN_LANE_ENTRIES", value_name = "N", default_value = "4096", value_parser = clap::value_parser!(u32).range(1..))]
    lane_entries: u32,
    /// Their prompts, together.
    #[arg(long, env = "BANYAN_LANE_BYTES", value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    lane_bytes: u64,
    /// Tokens that they may come to, prompts and answers together.
    #[arg(long, env = "BANYAN_LANE_TOKENS", value_name = "N", default_value = "67108864")]
    lane_tokens: u64,
    /// Prompts and delivered tokens of all that is under way: the root keeps them for a next attempt.
    #[arg(long, env = "BANYAN_LIVE_BYTES", value_name = "SIZE", default_value = "1GiB", value_parser = size)]
    live_bytes: u64,
}

impl LaneArgs {
    pub(crate) fn limits(self) -> LaneLimits {
        let bytes = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        LaneLimits {
            entries: self.lane_entries as usize,
            bytes: bytes(self.lane_bytes),
            tokens: self.lane_tokens,
            live_bytes: bytes(self.live_bytes),
        }
    }
}

/// Names that stand for models.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AliasArgs {
    /// A file of names that stand for models, such as `fast = ["gpt2", "gpt2-large"]` under `[aliases]`: docs/models.md says how.
    #[arg(long, env = "BANYAN_ALIASES", value_name = "FILE")]
    aliases: Option<PathBuf>,
    /// Those of banyan.toml.
    #[arg(skip)]
    pub(crate) table: Option<Part>,
}

impl AliasArgs {
    /// Reads the file, or else the settings'.
    pub(crate) fn read(&self) -> Result<Aliases, Failure> {
        let Some(path) = &self.aliases else {
            let Some(part) = &self.table else { return Ok(Aliases::default()) };
            let aliases = Aliases::of(part.table.clone());
            return Ok(aliases.map_err(|error| anyhow::Error::new(error).context(format!("in {}", part.path.display())))?);
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| anyhow::Error::new(error).context(format!("failed to read the aliases in {}", path.display())))?;
        Ok(Aliases::parse(&text).map_err(|error| anyhow::Error::new(error).context(format!("in {}", path.display())))?)
    }
}

/// More sequences at once than any machine runs are a mistake.
const SEQUENCES_MAX: u32 = 4096;

/// How many sequences a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sequences {
    /// What a short measurement at start says.
    Auto,
    Given(u32),
}

impl Sequences {
    pub(crate) fn given(self) -> Option<u32> {
        match self {
            Sequences::Auto => None,
            Sequences::Given(sequences) => Some(sequences),
        }
    }
}

impl FromStr for Sequences {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Sequences::Auto),
            (_, Ok(sequences @ 1..=SEQUENCES_MAX)) => Ok(Sequences::Given(sequences)),
            _ => Err(format!("expected `auto`, or how many sequences, from 1 to {SEQUENCES_MAX}")),
        }
    }
}

/// Reads `250ms`, `60s`, `5m` or `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("expected a number and its unit, like 250ms, 60s or 5m".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "expected a number before the unit, like 60s".to_owned())?;
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(|| "that is too long".to_owned())
}

/// Reads `512MiB`, `2GB` or a number of bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        _ => return Err("expected a number and its unit, like 2GB or 512MiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "expected a number before the unit, like 2GB".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "that is too much".to_owned())
}

/// Checks `HOST:PORT` before anything is started, and keeps the text: names are resolved when they are used.
pub(crate) fn address(text: &str) -> Result<String, String> {
    let expected = || "expected HOST:PORT, like 127.0.0.1:8080".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.contains('/') || (host.contains(':') && !bracketed) || port.parse::<u16>().is_err() {
        return Err(expected());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "60", "s", "-1s", "1.5s", "1 s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes_have_units() {
        let sizes = [("2GB", 2_000_000_000), ("512MiB", 512 << 20), ("512mib", 512 << 20), ("4g", 4 << 30), ("100", 100)];
        for (text, bytes) in sizes {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "GB", "1.5GB", "-1GB", "2 GB", "2TB", "99999999999999999999", "18446744073709551615GB"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn lanes_are_as_large_as_the_library_says_unless_told_otherwise() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            lanes: LaneArgs,
        }
        let limits = |args: &[&str]| <Command as clap::Parser>::parse_from(args).lanes.limits();
        assert_eq!(limits(&["banyan"]), LaneLimits::default());
        let told =
            limits(&["banyan", "--lane-entries", "9", "--lane-bytes", "1MiB", "--lane-tokens", "7", "--live-bytes", "2MiB"]);
        assert_eq!(told, LaneLimits { entries: 9, bytes: 1 << 20, tokens: 7, live_bytes: 2 << 20 });
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["127.0.0.1:0", "localhost:8080", "[::1]:7600", "node-1.local:65535"] {
            assert!(address(good).is_ok(), "{good}");
        }
        for wrong in ["", "8080", ":8080", "localhost", "localhost:", "localhost:70000", "http://localhost:80", "::1:80"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sequences_are_a_number_or_measured() {
        assert_eq!("auto".parse::<Sequences>().unwrap().given(), None);
        assert_eq!("1".parse::<Sequences>().unwrap().given(), Some(1));
        for wrong in ["0", "-1", "4097", "many", ""] {
            assert!(wrong.parse::<Sequences>().is_err(), "{wrong:?}");
        }
    }
}
