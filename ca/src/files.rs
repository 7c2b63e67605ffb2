//! Writing files that others must not read, whole or not at all.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// A file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to write {}", path.display())]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// A folder that only its owner opens; one that is there stays as it is.
pub(crate) fn folder(path: &Path) -> Result<(), WriteError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| WriteError { path: path.to_owned(), source })
}

/// Replaces a file in one step; `secret` ones are their owner's only.
pub(crate) fn write(path: &Path, text: &str, secret: bool) -> Result<(), WriteError> {
    let failed = |source| WriteError { path: path.to_owned(), source };
    let next = path.with_extension("next");
    // What an earlier try left may have other rights.
    let _ = fs::remove_file(&next);
    let mode = if secret { 0o600 } else { 0o644 };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&next).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&next, path).map_err(failed)
}
