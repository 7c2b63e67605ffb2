//! A model's folder in Hugging Face layout: on disk, in the binary, or as a GGUF file shows itself.
//!
//! Reads whole small files; weights are mapped by [`crate::Checkpoint`]. Where the folder comes from is [`crate::Source`]'s.

use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::LoadError;
use crate::{bundled, gguf};

/// No tokenizer or configuration file of a known model is larger than a tenth of this; weights are not read this way.
const TEXT_BYTES_MAX: u64 = 256 << 20;

/// Where a model's files lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folder {
    /// A folder on disk.
    Disk(PathBuf),
    /// A GGUF file: a whole folder by itself.
    Gguf(PathBuf),
    /// The checkpoint that every binary carries.
    Bundled,
}

impl From<&Path> for Folder {
    fn from(path: &Path) -> Self {
        Folder::Disk(path.to_path_buf())
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Folder::Disk(path) | Folder::Gguf(path) => write!(f, "{}", path.display()),
            Folder::Bundled => write!(f, "{} (bundled)", bundled::NAME),
        }
    }
}

impl Folder {
    /// What to call a file in messages.
    pub(crate) fn show(&self, name: &str) -> String {
        match self {
            Folder::Disk(path) => path.join(name).display().to_string(),
            // Whatever it shows lies in the file itself.
            Folder::Gguf(path) => path.display().to_string(),
            Folder::Bundled => format!("{}/{name} (bundled)", bundled::NAME),
        }
    }

    /// A file's bytes; `None` where there is no such file.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, LoadError> {
        let folder = match self {
            Folder::Bundled => return Ok(bundled::file(name).map(Cow::Borrowed)),
            // What it has is no text: see `read_json`.
            Folder::Gguf(_) => return Ok(None),
            Folder::Disk(folder) => folder,
        };
        let read = || {
            let file = match std::fs::File::open(folder.join(name)) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let mut bytes = Vec::new();
            file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        };
        let bytes = read().map_err(|source| LoadError::Read { path: self.show(name), source })?;
        if bytes.as_ref().is_some_and(|bytes| bytes.len() as u64 > TEXT_BYTES_MAX) {
            let message = format!("larger than {} MiB, which no such file is", TEXT_BYTES_MAX >> 20);
            return Err(LoadError::Invalid { path: self.show(name), message });
        }
        Ok(bytes.map(Cow::Owned))
    }

    /// A file as JSON; `None` where there is no such file.
    pub(crate) fn read_json(&self, name: &str) -> Result<Option<Value>, LoadError> {
        if let Folder::Gguf(path) = self {
            return gguf::read_json(path, name);
        }
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|source| LoadError::Json { path: self.show(name), source })
    }

    /// A file as text; `None` where there is no such file.
    pub(crate) fn read_text(&self, name: &str) -> Result<Option<String>, LoadError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        match String::from_utf8(bytes.into_owned()) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(LoadError::Invalid { path: self.show(name), message: "not UTF-8 text; fetch it again".into() }),
        }
    }
}
