//! The file of upstreams: read, checked, and its keys fetched from where they are kept.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::Uri;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Deserializer, de};

/// What is asked for where a query does not say how much: some upstreams must be told, and the reservation goes by it.
const MAX_TOKENS: u32 = 1024;
/// Of models whose context the file does not say. The upstream refuses what is too long for it.
const CONTEXT: u32 = 131_072;
/// Calls at once.
const CONCURRENT: u32 = 64;
/// More of anything is a mistake, and all of it is shown by `banyan node log`.
const UPSTREAMS_MAX: usize = 64;
const KEYS_MAX: usize = 256;
const MODELS_MAX: usize = 64;
/// A file of upstreams, or of one key, is not longer.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Upstreams, and when they are taken.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// When the provider's models stand in for those of the tree's own nodes.
    #[serde(default)]
    pub policy: Policy,
    /// Calls at once, over all upstreams.
    #[serde(default = "concurrent")]
    pub(crate) concurrent: u32,
    #[serde(rename = "upstream")]
    pub(crate) upstreams: Vec<Upstream>,
}

/// When a provider is taken by those who ask for a model and not for a provider.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// When no node of the tree's own has a place for the query.
    #[default]
    Spill,
    /// Before any node of the tree's own.
    Always,
    /// Not at all.
    Never,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Upstream {
    /// For people.
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) dialect: Dialect,
    /// What endpoints hang below, such as `https://api.openai.com/v1`.
    #[serde(deserialize_with = "url")]
    pub(crate) url: Uri,
    pub(crate) models: Vec<Model>,
    /// A file of certificates in PEM: whoever one of them vouches for is believed to be the upstream, and nobody else. Without it, whom
    /// the authorities vouch for that browsers believe.
    ca: Option<PathBuf>,
    /// Those.
    #[serde(skip)]
    pub(crate) authorities: Option<Vec<CertificateDer<'static>>>,
    /// What a query gets that does not say.
    #[serde(default = "max_tokens")]
    pub(crate) max_tokens: u32,
    /// How the limit on an answer's tokens is called there.
    #[serde(default)]
    pub(crate) tokens_field: TokensField,
    /// Whether it takes Banyan's (and vLLM's) parameters beyond the standard.
    #[serde(default)]
    pub(crate) extensions: bool,
    /// How long it may take for the first token.
    #[serde(default = "first_token", deserialize_with = "seconds")]
    pub(crate) first_token: Duration,
    /// How long it may be silent after that.
    #[serde(default = "idle", deserialize_with = "seconds")]
    pub(crate) idle: Duration,
    /// Without any it is asked without a key, as often as one likes.
    #[serde(default, rename = "key")]
    pub(crate) keys: Vec<Key>,
}

/// How an upstream speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dialect {
    /// `POST /chat/completions` and `/completions`: OpenAI, Banyan, vLLM, llama-server, Ollama and most others.
    #[default]
    OpenAi,
    /// `POST /messages`.
    Anthropic,
}

/// OpenAI renamed the field; newer models there know only the new name, and older services only the old one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TokensField {
    #[default]
    MaxTokens,
    MaxCompletionTokens,
}

/// One model of an upstream.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Model {
    /// By one name here and there.
    Name(String),
    /// By two.
    Table(ModelTable),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelTable {
    /// As it is asked for here.
    name: String,
    /// As it is called there.
    model: Option<String>,
    /// Tokens of a prompt and its answer together.
    context: Option<u32>,
}

impl Model {
    pub(crate) fn name(&self) -> &str {
        match self {
            Model::Name(name) => name,
            Model::Table(table) => &table.name,
        }
    }

    /// As the upstream calls it.
    pub(crate) fn there(&self) -> &str {
        match self {
            Model::Name(name) => name,
            Model::Table(table) => table.model.as_ref().unwrap_or(&table.name),
        }
    }

    pub(crate) fn context(&self) -> u32 {
        match self {
            Model::Name(_) => CONTEXT,
            Model::Table(table) => table.context.unwrap_or(CONTEXT),
        }
    }
}

/// One key, where it is kept, and what it may be used for.
#[derive(Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    /// The environment variable that has it.
    env: Option<String>,
    /// The file that has it.
    file: Option<PathBuf>,
    pub(crate) requests_per_minute: Option<u64>,
    pub(crate) tokens_per_minute: Option<u64>,
    /// Tokens of prompts and answers …
    pub(crate) budget_tokens: Option<u64>,
    /// … in so long; a period begins with the first call after the last one. In memory: a restart begins anew.
    #[serde(default = "budget_every", deserialize_with = "seconds")]
    pub(crate) budget_every: Duration,
    /// The key itself; empty where the upstream wants none.
    #[serde(skip)]
    pub(crate) secret: String,
}

/// Without the secret.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("env", &self.env).field("file", &self.file).finish_non_exhaustive()
    }
}

/// Why a file of upstreams is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("failed to read the providers' file {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not the TOML that it should be.
    #[error("the providers' file {} is not as it should be: docs/providers.md says how", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where, and why.
        source: toml::de::Error,
    },
    /// What it says makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A key is not where it should be.
    #[error("upstream {upstream} has no key: {why}")]
    Key {
        /// Whose.
        upstream: String,
        /// Where it was looked for, and what to do.
        why: String,
    },
}

impl Config {
    /// Reads a file, and the keys that it refers to: in the environment, or in files of their own (whose paths may be relative
    /// to it).
    ///
    /// # Errors
    /// When something is missing or makes no sense.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = read_short(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Config = toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        config.checked(path.parent().unwrap_or(Path::new(".")), |name| std::env::var(name).ok())
    }

    /// Reads what such a file says out of a larger one, at `path`.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn of(table: toml::Table, path: &Path) -> Result<Config, ConfigError> {
        let config: Config = table.try_into().map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        config.checked(path.parent().unwrap_or(Path::new(".")), |name| std::env::var(name).ok())
    }

    fn checked(mut self, folder: &Path, environment: impl Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        let invalid = |message: String| Err(ConfigError::Invalid(message));
        if self.upstreams.is_empty() || self.upstreams.len() > UPSTREAMS_MAX {
            return invalid(format!("a providers' file names from 1 to {UPSTREAMS_MAX} upstreams, each in a table [[upstream]]"));
        }
        if self.concurrent == 0 {
            return invalid("concurrent is at least 1".to_owned());
        }
        let mut names = BTreeSet::new();
        for upstream in &mut self.upstreams {
            let name = &upstream.name;
            if name.trim().is_empty() || !names.insert(name.clone()) {
                return invalid(format!("every upstream has a name of its own, unlike {name:?}"));
            }
            let models: BTreeSet<&str> = upstream.models.iter().map(Model::name).collect();
            let usable = |model: &Model| !model.name().is_empty() && !model.there().is_empty() && model.context() > 0;
            if models.is_empty() || models.len() < upstream.models.len() || !upstream.models.iter().all(usable) {
                return invalid(format!("upstream {name} needs models = [\"…\"], each once"));
            }
            if upstream.max_tokens == 0 || upstream.first_token.is_zero() || upstream.idle.is_zero() {
                return invalid(format!("max_tokens, first_token and idle of upstream {name} are more than 0"));
            }
            if let Some(file) = &upstream.ca {
                let path = folder.join(file);
                let certificates = certificates(&path)
                    .map_err(|why| ConfigError::Invalid(format!("upstream {name} has no good ca: {} {why}", path.display())))?;
                upstream.authorities = Some(certificates);
            }
            if upstream.keys.len() > KEYS_MAX {
                return invalid(format!("upstream {name} has more than {KEYS_MAX} keys"));
            }
            if upstream.keys.is_empty() {
                upstream.keys.push(Key { budget_every: budget_every(), ..Key::default() });
            }
            for key in &mut upstream.keys {
                let limits = [key.requests_per_minute, key.tokens_per_minute, key.budget_tokens];
                if limits.contains(&Some(0)) || key.budget_every.is_zero() {
                    return invalid(format!(
                        "the limits of upstream {name}'s keys are more than 0; leave out those that it has not"
                    ));
                }
                key.secret = key.fetch(folder, &environment).map_err(|why| ConfigError::Key { upstream: name.clone(), why })?;
            }
        }
        let models: BTreeSet<&str> = self.upstreams.iter().flat_map(|upstream| upstream.models.iter().map(Model::name)).collect();
        if models.len() > MODELS_MAX {
            return invalid(format!("a provider serves at most {MODELS_MAX} models: let another node serve the others"));
        }
        Ok(self)
    }
}

impl Key {
    fn fetch(&self, folder: &Path, environment: impl Fn(&str) -> Option<String>) -> Result<String, String> {
        let secret = match (&self.env, &self.file) {
            (None, None) => return Ok(String::new()),
            (Some(_), Some(_)) => return Err("give one of env and file".to_owned()),
            (Some(name), None) => environment(name).ok_or_else(|| format!("the variable {name} is not set"))?,
            (None, Some(file)) => {
                let path = folder.join(file);
                read_short(&path).map_err(|error| format!("{} can't be read ({error})", path.display()))?
            }
        };
        let secret = secret.trim().to_owned();
        if secret.is_empty() || secret.chars().any(|character| !character.is_ascii_graphic()) {
            return Err("it is empty, or has characters that no key has: store the key alone, in one line".to_owned());
        }
        Ok(secret)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read_short(path).map_err(|error| format!("can't be read ({error})"))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => Err("has no certificate in PEM".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("is no PEM ({error})")),
    }
}

fn read_short(path: &Path) -> io::Result<String> {
    let length = fs::metadata(path)?.len();
    if length > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    fs::read_to_string(path)
}

fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uri, D::Error> {
    let text = String::deserialize(deserializer)?;
    let expected = || de::Error::custom(format!("{text:?} is no address: expected one like \"https://api.openai.com/v1\""));
    let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| expected())?;
    let plain = uri.host().is_some() && uri.query().is_none();
    if plain && matches!(uri.scheme_str(), Some("http" | "https")) { Ok(uri) } else { Err(expected()) }
}

/// Reads `30s`, `5m`, `24h` or `30d`.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 0,
    };
    let seconds = number.parse::<u64>().ok().filter(|_| unit > 0).and_then(|number| number.checked_mul(unit));
    // A century; beyond, sums of times might overflow.
    let seconds = seconds.filter(|seconds| *seconds <= 36_525 * 86_400);
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| de::Error::custom(format!("{text:?} is no time: expected one like \"30s\" or \"24h\"")))
}

fn concurrent() -> u32 {
    CONCURRENT
}

fn max_tokens() -> u32 {
    MAX_TOKENS
}

fn first_token() -> Duration {
    Duration::from_secs(60)
}

fn idle() -> Duration {
    Duration::from_secs(60)
}

fn budget_every() -> Duration {
    Duration::from_secs(86_400)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        let environment = |name: &str| (name == "KEY").then(|| "sk-0123456789\n".to_owned());
        config.checked(Path::new("/nowhere"), environment).map_err(|error| error.to_string())
    }

    #[test]
    fn a_short_file_is_enough() {
        let config = read("[[upstream]]\nname = 'ollama'\nurl = 'http://10.0.0.7:11434/v1/'\nmodels = ['qwen3']").unwrap();
        let upstream = &config.upstreams[0];
        assert_eq!((config.policy, upstream.dialect, upstream.url.path()), (Policy::Spill, Dialect::OpenAi, "/v1"));
        assert_eq!((upstream.keys.len(), upstream.keys[0].secret.as_str()), (1, ""));
    }

    #[test]
    fn a_long_one_says_everything() {
        let config = read(
            "policy = 'always'\nconcurrent = 8\n[[upstream]]\nname = 'claude'\ndialect = 'anthropic'\n\
             url = 'https://api.anthropic.com/v1'\nmodels = [{ name = 'fast', model = 'claude-x', context = 200000 }]\n\
             first_token = '2m'\n[[upstream.key]]\nenv = 'KEY'\nrequests_per_minute = 50\nbudget_tokens = 1000\n\
             budget_every = '30d'\n",
        )
        .unwrap();
        let upstream = &config.upstreams[0];
        let model = &upstream.models[0];
        assert_eq!((model.name(), model.there(), model.context()), ("fast", "claude-x", 200_000));
        assert_eq!(upstream.first_token, Duration::from_secs(120));
        assert_eq!((upstream.keys[0].secret.as_str(), upstream.keys[0].requests_per_minute), ("sk-0123456789", Some(50)));
        assert!(!format!("{config:?}").contains("sk-0123"), "secrets are not for logs");
    }

    #[test]
    fn what_makes_no_sense_says_what_would() {
        let upstream = |rest: &str| format!("[[upstream]]\nname = 'a'\nurl = 'http://a'\nmodels = ['m']\n{rest}");
        for (told, text) in [
            ("missing field `upstream`", String::new()),
            ("from 1 to 64 upstreams", "upstream = []".to_owned()),
            ("unknown field `colour`", upstream("colour = 1")),
            ("unknown variant `sometimes`", format!("policy = 'sometimes'\n{}", upstream(""))),
            ("expected one like \"https://", "[[upstream]]\nname = 'a'\nurl = 'api.openai.com'\nmodels = ['m']".to_owned()),
            ("needs models", "[[upstream]]\nname = 'a'\nurl = 'http://a'\nmodels = []".to_owned()),
            ("needs models", "[[upstream]]\nname = 'a'\nurl = 'http://a'\nmodels = ['m', 'm']".to_owned()),
            ("a name of its own", format!("{}\n{}", upstream(""), upstream(""))),
            ("expected one like \"30s\"", upstream("idle = '30'")),
            ("more than 0", upstream("idle = '0s'")),
            ("more than 0", upstream("[[upstream.key]]\ntokens_per_minute = 0")),
            ("the variable OTHER is not set", upstream("[[upstream.key]]\nenv = 'OTHER'")),
            ("/nowhere/key can't be read", upstream("[[upstream.key]]\nfile = 'key'")),
            ("has no good ca", upstream("ca = 'nowhere.pem'")),
            ("one of env and file", upstream("[[upstream.key]]\nenv = 'KEY'\nfile = 'key'")),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(told), "{told}: {error}");
        }
    }
}
