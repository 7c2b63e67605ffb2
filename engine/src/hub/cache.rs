//! The folder that Hugging Face tools share: `models--owner--name/{blobs,refs,snapshots}`, and locks beside them.
//!
//! A snapshot's file is a link to a blob, and a blob of weights is named by its SHA-256, so what lies there can be checked
//! at any time. A file is written as `<blob>.incomplete` and renamed when it is whole and right.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hf_hub::{CacheRepo, RepoType};
use sha2::{Digest, Sha256};

use super::Repo;
use super::client::{Client, Remote};
use crate::error::ResolveError;
use crate::progress::Progress;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// One model's part of the cache.
pub(super) struct Cache {
    root: PathBuf,
    /// `models--owner--name`.
    folder_name: String,
    layout: CacheRepo,
    repo: Repo,
}

impl Cache {
    pub(super) fn new(root: &Path, repo: &Repo) -> Self {
        let hub_repo = hf_hub::Repo::with_revision(repo.id.clone(), RepoType::Model, repo.revision.clone());
        let folder_name = hub_repo.folder_name();
        let layout = hf_hub::Cache::new(root.to_path_buf()).repo(hub_repo);
        Cache { root: root.to_path_buf(), folder_name, layout, repo: repo.clone() }
    }

    /// The commit that the revision meant when it was last asked for.
    pub(super) fn commit(&self) -> Option<String> {
        let revision = &self.repo.revision;
        if is_commit(revision) {
            return Some(revision.clone());
        }
        let name = self.root.join(&self.folder_name).join("refs").join(revision);
        fs::read_to_string(name).ok().map(|commit| commit.trim().to_string()).filter(|commit| is_commit(commit))
    }

    pub(super) fn write_ref(&self, commit: &str) -> Result<(), ResolveError> {
        let path = self.root.join(&self.folder_name).join("refs").join(&self.repo.revision);
        self.layout.create_ref(commit).map_err(failed("write", &path))
    }

    /// A snapshot's folder.
    pub(super) fn folder(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// A snapshot's folder, if every file that a model needs is there and right.
    pub(super) fn whole(&self, commit: &str, progress: &Progress) -> Result<Option<PathBuf>, ResolveError> {
        let folder = self.folder(commit);
        if let Some(file) = &self.repo.file {
            return Ok(self.verified(commit, file, progress)?.map(|_| folder));
        }
        let has = |name: &str| folder.join(name).is_file();
        let tokenizer = has("tokenizer.json") || has("vocab.json") && has("merges.txt");
        if !has("config.json") || !tokenizer {
            return Ok(None);
        }
        let weights = match (has(SINGLE), has(INDEX)) {
            (true, _) => vec![SINGLE.to_string()],
            (false, true) => self.shards(commit)?,
            (false, false) => return Ok(None),
        };
        let mut whole = true;
        for file in weights {
            whole &= self.verified(commit, &file, progress)?.is_some();
        }
        Ok(whole.then_some(folder))
    }

    /// The weights files that a snapshot's index names.
    pub(super) fn shards(&self, commit: &str) -> Result<Vec<String>, ResolveError> {
        let path = self.folder(commit).join(INDEX);
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let index: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let files = index.get("weight_map").and_then(|map| map.as_object()).into_iter().flat_map(|map| map.values());
        let mut files: Vec<String> = files.filter_map(|file| file.as_str()).map(str::to_string).collect();
        files.sort();
        files.dedup();
        // A shard lies beside its index; anything else could name files outside the cache.
        if files.is_empty() || files.iter().any(|file| Path::new(file).file_name().is_none_or(|name| name != file.as_str())) {
            let what = "an index of weights that names no files beside it".to_string();
            return Err(ResolveError::Answer { url: path.display().to_string(), what });
        }
        Ok(files)
    }

    /// A snapshot's file, if it is there and its blob has the checksum that it should have. A damaged one is set aside.
    pub(super) fn verified(&self, commit: &str, file: &str, progress: &Progress) -> Result<Option<PathBuf>, ResolveError> {
        let pointer = self.folder(commit).join(file);
        let Ok(blob) = pointer.canonicalize() else { return Ok(None) };
        let pinned = self.pin(file).map(str::to_string);
        let Some(want) = pinned.or_else(|| Some(blob.file_name()?.to_str()?.to_string()).filter(|name| is_sha256(name))) else {
            return Ok(Some(pointer));
        };
        if sha256(&blob)? == want {
            return Ok(Some(pointer));
        }
        // Under the lock, and looked at again: another process may have put a good copy there meanwhile.
        let _lock = self.lock(&want, file, progress)?;
        if blob.exists() && sha256(&blob)? != want {
            let aside = set_aside(&blob)?;
            tracing::warn!(file, aside = %aside.display(), "cached file has a wrong checksum");
            progress.note(&format!("{file} in the cache is damaged: kept as {}, and fetched again", aside.display()));
            return Ok(None);
        }
        Ok(blob.exists().then_some(pointer))
    }

    /// Brings a file into the snapshot: one process fetches it, the others wait for it.
    pub(super) fn store(
        &self,
        commit: &str,
        file: &str,
        remote: &Remote,
        client: &Client,
        progress: &Progress,
    ) -> Result<(), ResolveError> {
        let blob = self.layout.blob_path(&remote.etag);
        let want = self.pin(file).or_else(|| Some(remote.etag.as_str()).filter(|etag| is_sha256(etag)));
        let _lock = self.lock(&remote.etag, file, progress)?;
        if !is_right(&blob, remote.size, want)? {
            create_parent(&blob)?;
            self.download(file, remote, &blob, want, client, progress)?;
        }
        link(&blob, &self.folder(commit).join(file))
    }

    fn download(
        &self,
        file: &str,
        remote: &Remote,
        blob: &Path,
        want: Option<&str>,
        client: &Client,
        progress: &Progress,
    ) -> Result<(), ResolveError> {
        let incomplete = with_suffix(blob, "incomplete");
        if blob.exists() {
            set_aside(blob)?;
        }
        for last in [false, true] {
            client.download(file, remote, &incomplete, progress)?;
            let got = match want {
                Some(_) => sha256(&incomplete)?,
                None => String::new(),
            };
            let Some(want) = want.filter(|want| got != **want) else {
                fs::rename(&incomplete, blob).map_err(failed("rename", &incomplete))?;
                tracing::info!(file, bytes = remote.size, "fetched");
                return Ok(());
            };
            let aside = with_suffix(blob, "corrupt");
            fs::rename(&incomplete, &aside).map_err(failed("rename", &incomplete))?;
            if last {
                return Err(ResolveError::Corrupt { file: file.into(), want: want.into(), got, aside });
            }
            progress.note(&format!("{file} came damaged: kept as {}, and fetched again", aside.display()));
        }
        unreachable!("the second round returns")
    }

    fn pin(&self, file: &str) -> Option<&'static str> {
        self.repo.weights_sha256.filter(|_| file == SINGLE)
    }

    /// The lock that Hugging Face's own tools take for a blob. Waits as long as somebody holds it: whoever does is fetching
    /// what we want, and the system takes the lock from the dead.
    fn lock(&self, etag: &str, file: &str, progress: &Progress) -> Result<File, ResolveError> {
        let path = self.root.join(".locks").join(&self.folder_name).join(format!("{etag}.lock"));
        create_parent(&path)?;
        let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))?;
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => {}
            // A file system without locks: better two downloads than none.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => return Ok(lock),
            Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
        }
        progress.note(&format!("waiting for another process that fetches {file}"));
        lock.lock().map_err(failed("lock", &path))?;
        Ok(lock)
    }
}

/// 40 hexadecimal digits: a commit, which means the same for ever.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

pub(super) fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(path: &Path) -> Result<String, ResolveError> {
    let mut file = File::open(path).map_err(failed("open", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(failed("read", path))? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn is_right(blob: &Path, size: u64, want: Option<&str>) -> Result<bool, ResolveError> {
    match fs::metadata(blob) {
        Err(_) => Ok(false),
        Ok(metadata) if metadata.len() != size => Ok(false),
        Ok(_) => want.map_or(Ok(true), |want| Ok(sha256(blob)? == want)),
    }
}

/// Out of the way and not lost: the next bad copy replaces this one, so there is never more than one.
fn set_aside(blob: &Path) -> Result<PathBuf, ResolveError> {
    let aside = with_suffix(blob, "corrupt");
    fs::rename(blob, &aside).map_err(failed("rename", blob))?;
    Ok(aside)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

pub(super) fn create_parent(path: &Path) -> Result<(), ResolveError> {
    let parent = path.parent().expect("a path in the cache has a parent");
    fs::create_dir_all(parent).map_err(failed("create", parent))
}

/// `snapshots/<commit>/<file>` → `../../blobs/<etag>`, as every tool writes it; a copy where links are forbidden.
pub(super) fn link(blob: &Path, pointer: &Path) -> Result<(), ResolveError> {
    create_parent(pointer)?;
    let name = blob.file_name().expect("a blob has a name");
    let target = Path::new("../../blobs").join(name);
    if fs::read_link(pointer).is_ok_and(|found| found == target) {
        return Ok(());
    }
    // Over whatever lies there, by renaming, so that a reader sees the old file or the new one.
    let fresh = with_suffix(pointer, &format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&fresh);
    #[cfg(unix)]
    std::os::unix::fs::symlink(&target, &fresh).map_err(failed("link", &fresh))?;
    #[cfg(not(unix))]
    fs::copy(blob, &fresh).map_err(failed("copy", &fresh))?;
    fs::rename(&fresh, pointer).map_err(failed("rename", pointer))
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ResolveError {
    let path = path.to_path_buf();
    move |source| ResolveError::Cache { action, path, source }
}
