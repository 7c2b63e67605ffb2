//! What goes wrong while a model is found, fetched and loaded, in words for the person who started it.

use std::path::PathBuf;

use crate::KvMemory;

/// Why a model can't be loaded from its files.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file that a model needs is not there.
    #[error("{path} is missing: {hint}")]
    Missing {
        /// Where it was looked for.
        path: String,
        /// What to do.
        hint: &'static str,
    },
    /// A file is there and can't be read.
    #[error("failed to read {path}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{path} is not valid JSON: fetch it again, or restore it from where the model came from")]
    Json {
        /// Which.
        path: String,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// A file can be read, and what it says makes no sense.
    #[error("{path}: {message}")]
    Invalid {
        /// Which.
        path: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// A weights file is damaged.
    #[error("{path} is no whole safetensors file ({bytes} bytes): it is cut short or damaged, fetch it again")]
    Weights {
        /// Which.
        path: String,
        /// Its length.
        bytes: u64,
        /// What the parser says.
        source: safetensors::SafeTensorError,
    },
    /// A tensor that the architecture needs is not in the checkpoint.
    #[error("{path} has no tensor {name}{nearest}: is this checkpoint of the architecture that config.json names?")]
    TensorMissing {
        /// The weights file or its index.
        path: String,
        /// The tensor.
        name: String,
        /// A name that is there and looks alike, as `; it has …`, or nothing.
        nearest: String,
    },
    /// A tensor has other dimensions than config.json says.
    #[error("tensor {name} is {got:?}, and config.json makes it {want:?}: config.json and weights are not of one model")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its dimensions.
        got: Vec<usize>,
        /// What they should be.
        want: Vec<usize>,
    },
    /// A tensor holds what is no number, and nothing but noise would come of it.
    #[error(
        "tensor {name} in {folder} is {value} at element {element}: the checkpoint is damaged, or of a training that diverged; \
         fetch it again, or take an earlier one"
    )]
    NotFinite {
        /// The model's folder.
        folder: String,
        /// The tensor.
        name: String,
        /// The first that is no number, counted in the order in which they are stored.
        element: usize,
        /// NaN, or an infinity: as f32.
        value: f32,
    },
    /// The tokenizer's files make no tokenizer.
    #[error("{path} is no tokenizer that this version can use")]
    Tokenizer {
        /// Which.
        path: String,
        /// Why.
        source: tokenizers::Error,
    },
    /// The chat template does not compile.
    #[error("the chat template in {path} does not compile; correct it, or remove it to chat by plain transcript")]
    Template {
        /// Which.
        path: String,
        /// Where and why.
        source: minijinja::Error,
    },
    /// The model is of a kind that this version does not know, or a part of it is.
    #[error("{0}")]
    Unsupported(String),
    /// The device can't be used.
    #[error("{0}")]
    Device(String),
    /// The model needs more memory than there is.
    #[error("{0}")]
    TooLarge(String),
    /// The memory that was set aside for keys and values serves nobody.
    #[error(transparent)]
    KvMemory(#[from] KvMemory),
    /// A computation failed while the weights were brought into place.
    #[error("failed to prepare the weights")]
    Prepare(#[source] candle_core::Error),
}

/// Why no model could be found or fetched.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// What was asked for is neither a folder nor the name of a hub model.
    #[error(
        "{spec:?} names no model: give a folder with config.json and model.safetensors, a .gguf file, owner/name[@revision] of a hub model, or banyan-tiny"
    )]
    Spec {
        /// What was asked for.
        spec: String,
    },
    /// A folder is there, and no model in it.
    #[error("{folder} holds no model: it has neither a config.json nor a .gguf file", folder = .folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
    },
    /// A folder has several GGUF files, each of them a model.
    #[error("{folder} holds several .gguf files: name one, as in --model {first}", folder = .folder.display(), first = .first.display())]
    SeveralFiles {
        /// Which.
        folder: PathBuf,
        /// One of them.
        first: PathBuf,
    },
    /// The hub can't be reached.
    #[error("the model hub at {endpoint} can't be reached ({reason})")]
    Unreachable {
        /// The address, of `HF_ENDPOINT` or the default one.
        endpoint: String,
        /// In short.
        reason: String,
    },
    /// The hub can't be reached (or must not be), and the model is not in the cache.
    #[error("{repo} is not in the cache {cache} and {why}: connect, set HF_ENDPOINT to a mirror, or use --model banyan-tiny", cache = .cache.display())]
    NotCached {
        /// The model.
        repo: String,
        /// The folder of all cached models.
        cache: PathBuf,
        /// Why it is not fetched.
        why: String,
    },
    /// The hub wants to know who asks (401).
    #[error("{endpoint} refuses {repo} (401): {hint}")]
    Unauthorized {
        /// The address.
        endpoint: String,
        /// The model.
        repo: String,
        /// What to do.
        hint: &'static str,
    },
    /// The hub knows who asks, and refuses (403).
    #[error("{endpoint} refuses {repo} (403): {hint}")]
    Forbidden {
        /// The address.
        endpoint: String,
        /// The model.
        repo: String,
        /// What to do.
        hint: &'static str,
    },
    /// The hub has no such model, revision or file (404).
    #[error("{endpoint} has no {what} (404): {hint}")]
    NotFound {
        /// The address.
        endpoint: String,
        /// The model, its revision or its file.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// The hub answers what makes no sense.
    #[error("{url} answered {what}: check that HF_ENDPOINT is a model hub, or try again later")]
    Answer {
        /// What was asked.
        url: String,
        /// What came back.
        what: String,
    },
    /// The hub's model lacks files that are needed.
    #[error("{repo} has no {file}: {hint}")]
    Incomplete {
        /// The model.
        repo: String,
        /// What is missing.
        file: String,
        /// What to do.
        hint: &'static str,
    },
    /// The transfer was cut and could not be resumed now.
    #[error("the download of {file} stopped at {done} of {size} bytes ({reason}): run the same command again, it resumes there")]
    Cut {
        /// Which.
        file: String,
        /// Bytes that are kept.
        done: u64,
        /// Bytes of the file.
        size: u64,
        /// In short.
        reason: String,
    },
    /// What came has the wrong checksum, twice.
    #[error("{file} came with SHA-256 {got} in place of {want}, twice: the bad copy is kept as {aside}; check HF_ENDPOINT and any proxy", aside = .aside.display())]
    Corrupt {
        /// Which.
        file: String,
        /// What was announced or pinned.
        want: String,
        /// What came.
        got: String,
        /// Where the bad copy lies.
        aside: PathBuf,
    },
    /// A name that no model may have.
    #[error("{name:?} can't be a model's name: take letters, digits, -, _ and . with --name")]
    Name {
        /// Which.
        name: String,
    },
    /// A name of the cache that is taken.
    #[error("{name} is there already: remove it with `banyan model rm {name}`, or take another name with --name")]
    Taken {
        /// Which.
        name: String,
    },
    /// The cache can't be read or written.
    #[error("failed to {action} {path}: is the disk full, or is the folder another user's? HF_HOME moves the cache", path = .path.display())]
    Cache {
        /// What was tried.
        action: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
