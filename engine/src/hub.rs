//! Models from a hub, by way of the cache that all Hugging Face tools share.
//!
//! A model is whole or it is not there: files come by name and revision, are resumed where a transfer was cut, checked
//! against their SHA-256 when they come and whenever they are used, and fetched once, however many ask at the same time.
//! Paths and layout are the hf-hub crate's; its transfers neither verify nor go on over a broken connection, and its
//! lock gives up after five seconds, so those are ours.

mod cache;
mod client;
mod shelf;

use std::path::PathBuf;

use self::cache::{Cache, is_commit};
use self::client::Client;
pub use self::shelf::{Cached, Checked, Verdict};
use crate::error::ResolveError;
use crate::progress::Progress;

/// The hub and the cache, as the environment sets them for every Hugging Face tool.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Address without a slash at the end: `HF_ENDPOINT`.
    pub endpoint: String,
    /// Folder of all cached models: `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// Who asks: `HF_TOKEN`, or what the hub's login command stored.
    pub token: Option<Token>,
    /// Whether the network must not be used: `HF_HUB_OFFLINE`.
    pub offline: bool,
}

/// A secret: sent to the hub and to nobody else, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl From<String> for Token {
    fn from(token: String) -> Self {
        Token(token)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A model of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repo {
    /// `owner/name`.
    pub(crate) id: String,
    /// A branch, a tag or a commit.
    pub(crate) revision: String,
    /// The one file that is wanted of it, a GGUF; `None`: a folder in Hugging Face layout.
    pub(crate) file: Option<String>,
    /// SHA-256 of model.safetensors, where this program knows it by itself.
    pub(crate) weights_sha256: Option<&'static str>,
}

impl Hub {
    /// As the environment says.
    pub fn from_env() -> Self {
        Hub::from_vars(|name| std::env::var(name).ok())
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| var(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty());
        let home = var("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let user = var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from);
            let cache = var("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(user?.join(".cache")));
            // Without any home (a bare container), a folder that always exists.
            cache.unwrap_or_else(std::env::temp_dir).join("huggingface")
        });
        let cache = var("HF_HUB_CACHE").map(PathBuf::from).unwrap_or_else(|| home.join("hub"));
        let token = var("HF_TOKEN").or_else(|| {
            let file = var("HF_TOKEN_PATH").map(PathBuf::from).unwrap_or_else(|| home.join("token"));
            Some(std::fs::read_to_string(file).ok()?.trim().to_string()).filter(|token| !token.is_empty())
        });
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let is_on =
            |name: &str| var(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()));
        Hub {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache,
            token: token.map(Token),
            offline: is_on("HF_HUB_OFFLINE"),
        }
    }

    /// The folder of a model, from the cache where it is whole, else from the hub. A branch that is cached is taken as it
    /// is: a restart never changes a model by itself.
    pub(crate) fn fetch(&self, repo: &Repo, progress: &Progress) -> Result<PathBuf, ResolveError> {
        let cache = Cache::new(&self.cache, repo);
        if let Some(commit) = cache.commit()
            && let Some(folder) = cache.whole(&commit, progress)?
        {
            tracing::debug!(repo = %repo.id, %commit, "model found in the cache");
            return Ok(folder);
        }
        let not_cached = |why: String| ResolveError::NotCached { repo: repo.id.clone(), cache: self.cache.clone(), why };
        if shelf::is_local(&repo.id) {
            return Err(not_cached("nothing was imported under that name: `banyan model list` shows what was".into()));
        }
        if self.offline {
            return Err(not_cached("HF_HUB_OFFLINE forbids to fetch it".into()));
        }
        let client = Client::new(self, repo);
        let listing = client.listing()?;
        let commit = &listing.commit;
        let fetch = |file: &str| -> Result<(), ResolveError> {
            if cache.verified(commit, file, progress)?.is_none() {
                let remote = client.file(commit, file)?;
                cache.store(commit, file, &remote, &client, progress)?;
            }
            Ok(())
        };
        let missing = |file: &str, hint| ResolveError::Incomplete { repo: repo.id.clone(), file: file.into(), hint };
        if let Some(file) = &repo.file {
            if !listing.has(file) {
                return Err(missing(file, "look on its page for what it has"));
            }
            fetch(file)?;
            if !is_commit(&repo.revision) {
                cache.write_ref(commit)?;
            }
            return Ok(cache.folder(commit));
        }
        if !listing.has("config.json") {
            let hint = match listing.has_gguf() {
                true => "it has .gguf files: name one, as in owner/name/file.gguf",
                false => "is it a transformers model?",
            };
            return Err(missing("config.json", hint));
        }
        // Small files first: a model of an unknown kind is noticed before its weights are fetched.
        let tokenizer: &[&str] = match (listing.has("tokenizer.json"), listing.has("vocab.json") && listing.has("merges.txt")) {
            (true, _) => &["tokenizer.json"],
            (false, true) => &["vocab.json", "merges.txt"],
            (false, false) => return Err(missing("tokenizer.json", "nor vocab.json with merges.txt; choose another model")),
        };
        let optional = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];
        let optional = optional.into_iter().filter(|file| listing.has(file));
        for file in ["config.json"].into_iter().chain(tokenizer.iter().copied()).chain(optional) {
            fetch(file)?;
        }
        if listing.has(cache::SINGLE) {
            fetch(cache::SINGLE)?;
        } else if listing.has(cache::INDEX) {
            fetch(cache::INDEX)?;
            for shard in cache.shards(commit)? {
                fetch(&shard)?;
            }
        } else {
            let hint = "only safetensors weights are read; choose another revision, or convert a copy with transformers";
            return Err(missing(cache::SINGLE, hint));
        }
        if !is_commit(&repo.revision) {
            cache.write_ref(commit)?;
        }
        Ok(cache.folder(commit))
    }
}

#[cfg(test)]
mod tests;
