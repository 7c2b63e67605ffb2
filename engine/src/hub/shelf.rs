//! What lies in the cache: listing it, checking it, removing it, and bringing in what lies elsewhere on this machine.
//!
//! What is imported lies there as what is fetched does, under the owner `local`, which no hub is ever asked for.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use super::Hub;
use super::cache::{INDEX, SINGLE, create_parent, failed, hex, is_commit, is_sha256, link};
use crate::error::ResolveError;
use crate::progress::Progress;
use crate::source::{PINNED_COMMIT, PINNED_WEIGHTS, is_name};
use crate::{Source, gguf};

/// The owner of what was imported.
const LOCAL: &str = "local/";

/// What belongs to a model in a folder; anything else stays there.
const SUFFIXES: [&str; 6] = ["json", "jinja", "safetensors", "gguf", "txt", "model"];

/// Bytes between two looks at a bar.
const CHUNK: usize = 1 << 20;

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// What `--model` takes: `owner/name`, `owner/name@revision` or `owner/name/file.gguf`.
    pub name: String,
    /// The commit that it is; for what was imported, a digest of its files.
    pub commit: String,
    /// What its files take together.
    pub bytes: u64,
    /// Whether configuration, tokenizer and weights are there.
    pub whole: bool,
    /// The folder of all its revisions.
    folder: PathBuf,
    /// Its files.
    files: Vec<PathBuf>,
}

/// A file of a model, looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its name.
    pub file: String,
    /// What became of it.
    pub verdict: Verdict,
}

/// Whether a file is what it was when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has the checksum under which it was put there.
    Good,
    /// It has not.
    Damaged,
    /// Another tool put it there, under a name that tells no checksum.
    Unknown,
}

pub(super) fn is_local(id: &str) -> bool {
    id.starts_with(LOCAL)
}

impl Hub {
    /// The models in the cache, by name.
    pub fn cached(&self) -> Result<Vec<Cached>, ResolveError> {
        let mut found = Vec::new();
        for (folder_name, folder) in entries(&self.cache)? {
            let Some(id) = folder_name.strip_prefix("models--").map(|id| id.replacen("--", "/", 1)) else { continue };
            // Revisions that have names, by their commits.
            let mut revisions: BTreeMap<String, String> = BTreeMap::new();
            for (revision, file) in walk(&folder.join("refs"))? {
                let commit = fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
                // The branch that is taken where none is named gives the shortest name.
                if revisions.get(&commit).is_none_or(|known| known != "main") {
                    revisions.insert(commit, revision);
                }
            }
            for (commit, snapshot) in entries(&folder.join("snapshots"))? {
                if !is_commit(&commit) {
                    continue;
                }
                let name = match revisions.get(&commit).map(String::as_str) {
                    Some("main") => id.clone(),
                    _ if commit == PINNED_COMMIT => id.clone(),
                    Some(revision) => format!("{id}@{revision}"),
                    None => format!("{id}@{commit}"),
                };
                describe(&name, &commit, &folder, &snapshot, &mut found)?;
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Reads every file of a model, and compares it with the checksum that it came with.
    pub fn verify(&self, model: &Cached, progress: &Progress) -> Result<Vec<Checked>, ResolveError> {
        let mut checked = Vec::new();
        for file in &model.files {
            let shown = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let blob = file.canonicalize().map_err(failed("read", file))?;
            let named = blob.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let pinned = (model.commit == PINNED_COMMIT && shown == SINGLE).then(|| PINNED_WEIGHTS.to_owned());
            let verdict = match pinned.unwrap_or(named) {
                want if is_sha256(&want) => verdict(digest(&blob, Sha256::new(), &shown, progress)? == want),
                want if is_commit(&want) => {
                    // As git names what it keeps.
                    let size = fs::metadata(&blob).map_err(failed("read", &blob))?.len();
                    let begun = Sha1::new().chain_update(format!("blob {size}\0"));
                    verdict(digest(&blob, begun, &shown, progress)? == want)
                }
                _ => Verdict::Unknown,
            };
            checked.push(Checked { file: shown, verdict });
        }
        Ok(checked)
    }

    /// Removes a model with all its revisions, and says how many bytes that gave back.
    pub fn remove(&self, model: &Cached) -> Result<u64, ResolveError> {
        let bytes = walk(&model.folder.join("blobs"))?.iter().filter_map(|(_, file)| Some(fs::metadata(file).ok()?.len())).sum();
        fs::remove_dir_all(&model.folder).map_err(failed("remove", &model.folder))?;
        if let Some(name) = model.folder.file_name() {
            // Nobody holds one of a model that is gone.
            let _ = fs::remove_dir_all(self.cache.join(".locks").join(name));
        }
        Ok(bytes)
    }

    /// Copies a folder in Hugging Face layout or a GGUF file into the cache, with checksums, as `local/NAME`.
    pub fn import(&self, path: &Path, name: Option<&str>, progress: &Progress) -> Result<Cached, ResolveError> {
        let (source, files) = match path.is_file() && gguf::is_gguf(path) {
            true => (Source::from_file(path), vec![path.to_path_buf()]),
            false => (Source::from_folder(path)?, parts(path)?),
        };
        let name = name.unwrap_or(source.name());
        if !is_name(name) {
            return Err(ResolveError::Name { name: name.to_owned() });
        }
        let id = format!("{LOCAL}{name}");
        let folder = self.cache.join(format!("models--{}", id.replacen('/', "--", 1)));
        if folder.exists() {
            return Err(ResolveError::Taken { name: id });
        }
        // Under another name until it is whole, so that nobody finds half of it, and a next try finds nothing.
        let fresh = self.cache.join(format!(".import-{}", std::process::id()));
        let _ = fs::remove_dir_all(&fresh);
        let written = write(&fresh, &files, progress);
        let renamed = written.and_then(|()| fs::rename(&fresh, &folder).map_err(failed("rename", &fresh)));
        if renamed.is_err() {
            let _ = fs::remove_dir_all(&fresh);
        }
        renamed?;
        let all = self.cached()?;
        let imported = all.into_iter().find(|model| model.folder == folder);
        imported.ok_or(ResolveError::Folder { folder: path.to_path_buf() })
    }
}

/// A model's part of the cache, made of files from elsewhere.
fn write(folder: &Path, files: &[PathBuf], progress: &Progress) -> Result<(), ResolveError> {
    let mut all = Sha256::new();
    let mut blobs = Vec::new();
    for file in files {
        let name = file.file_name().expect("a file that was found has a name");
        let shown = name.to_string_lossy();
        let incoming = folder.join("blobs").join("incoming");
        create_parent(&incoming)?;
        fs::copy(file, &incoming).map_err(failed("copy", file))?;
        let sum = digest(&incoming, Sha256::new(), &shown, progress)?;
        let blob = folder.join("blobs").join(&sum);
        fs::rename(&incoming, &blob).map_err(failed("rename", &incoming))?;
        all.update(format!("{shown}\0{sum}\n"));
        blobs.push((blob, name.to_owned()));
    }
    let commit = hex(&all.finalize())[..40].to_owned();
    for (blob, name) in blobs {
        link(&blob, &folder.join("snapshots").join(&commit).join(name))?;
    }
    let main = folder.join("refs").join("main");
    create_parent(&main)?;
    fs::write(&main, &commit).map_err(failed("write", &main))
}

/// What is a model's in a folder.
fn parts(folder: &Path) -> Result<Vec<PathBuf>, ResolveError> {
    let is_part = |path: &PathBuf| {
        let suffix = path.extension().map(|suffix| suffix.to_string_lossy().to_lowercase());
        path.is_file() && suffix.is_some_and(|suffix| SUFFIXES.contains(&suffix.as_str()))
    };
    Ok(entries(folder)?.into_iter().map(|(_, path)| path).filter(is_part).collect())
}

/// A snapshot's models: the folder itself, or each of its GGUF files.
fn describe(name: &str, commit: &str, folder: &Path, snapshot: &Path, found: &mut Vec<Cached>) -> Result<(), ResolveError> {
    let files: Vec<PathBuf> = entries(snapshot)?.into_iter().map(|(_, file)| file).filter(|file| file.is_file()).collect();
    let size = |file: &PathBuf| fs::metadata(file).map_or(0, |metadata| metadata.len());
    let has = |wanted: &str| files.iter().any(|file| file.file_name().is_some_and(|name| name == wanted));
    let cached = |name: String, whole, files: Vec<PathBuf>| {
        let (commit, bytes, folder) = (commit.to_owned(), files.iter().map(size).sum(), folder.to_path_buf());
        Cached { name, commit, bytes, whole, folder, files }
    };
    let ggufs: Vec<&PathBuf> = files.iter().filter(|file| gguf::is_gguf(file)).collect();
    if has("config.json") || ggufs.is_empty() {
        let tokenizer = has("tokenizer.json") || has("vocab.json") && has("merges.txt");
        let weights = has(SINGLE) || has(INDEX) && shards(&snapshot.join(INDEX)).iter().all(|shard| has(shard));
        let whole = has("config.json") && tokenizer && weights;
        found.push(cached(name.to_owned(), whole, files.clone()));
        return Ok(());
    }
    for file in ggufs {
        let shown = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let name = match name.split_once('@') {
            Some((id, revision)) => format!("{id}/{shown}@{revision}"),
            None => format!("{name}/{shown}"),
        };
        found.push(cached(name, true, vec![file.clone()]));
    }
    Ok(())
}

/// The weights files that an index names.
fn shards(index: &Path) -> Vec<String> {
    let index: serde_json::Value = fs::read(index).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let files = index.get("weight_map").and_then(|map| map.as_object()).into_iter().flat_map(|map| map.values());
    files.filter_map(|file| file.as_str().map(str::to_owned)).collect()
}

fn verdict(good: bool) -> Verdict {
    if good { Verdict::Good } else { Verdict::Damaged }
}

/// Lower-case hexadecimal.
fn digest<D: sha2::Digest>(path: &Path, mut hash: D, shown: &str, progress: &Progress) -> Result<String, ResolveError> {
    let mut file = File::open(path).map_err(failed("open", path))?;
    let size = file.metadata().map_err(failed("read", path))?.len();
    let mut bar = progress.transfer(&format!("checking {shown}"), size);
    let (mut buffer, mut done) = (vec![0; CHUNK], 0);
    loop {
        match file.read(&mut buffer).map_err(failed("read", path))? {
            0 => return Ok(hex(&hash.finalize())),
            read => {
                hash.update(&buffer[..read]);
                done += read as u64;
                bar.at(done);
            }
        }
    }
}

/// What is in a folder, by name; a folder that is not there has nothing.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, ResolveError> {
    let listing = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(failed("read", folder))?,
    };
    let mut found: Vec<(String, PathBuf)> =
        listing.flatten().map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
    found.sort();
    Ok(found)
}

/// The files in a folder and those below it, by their paths from there.
fn walk(folder: &Path) -> Result<Vec<(String, PathBuf)>, ResolveError> {
    let mut found = Vec::new();
    for (name, path) in entries(folder)? {
        match path.is_dir() && !path.is_symlink() {
            true => found.extend(walk(&path)?.into_iter().map(|(below, path)| (format!("{name}/{below}"), path))),
            false => found.push((name, path)),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(cache: &Path) -> Hub {
        Hub { endpoint: "http://127.0.0.1:1".into(), cache: cache.into(), token: None, offline: false }
    }

    fn model() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("config.json", "{}"), ("tokenizer.json", "{}"), (SINGLE, "weights"), ("notes.md", "no part")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn what_is_imported_is_listed_found_checked_and_removed() {
        let (cache, source) = (tempfile::tempdir().unwrap(), model());
        let hub = hub(cache.path());
        assert!(hub.cached().unwrap().is_empty());
        let imported = hub.import(source.path(), Some("mine"), &Progress::silent()).unwrap();
        assert_eq!((imported.name.as_str(), imported.bytes, imported.whole), ("local/mine", 11, true));
        assert_eq!(hub.cached().unwrap(), std::slice::from_ref(&imported));
        let again = hub.import(source.path(), Some("mine"), &Progress::silent());
        assert!(matches!(again, Err(ResolveError::Taken { name }) if name == "local/mine"));

        let found = Source::resolve_with(Some("local/mine"), &hub, &Progress::silent()).unwrap();
        assert_eq!(found.name(), "mine");
        let verdicts = |hub: &Hub| {
            let checked = hub.verify(&imported, &Progress::silent()).unwrap();
            checked.into_iter().map(|checked| (checked.file, checked.verdict)).collect::<Vec<_>>()
        };
        let all = ["config.json", SINGLE, "tokenizer.json"];
        assert_eq!(verdicts(&hub), all.map(|file| (file.to_owned(), Verdict::Good)));
        let weights = imported.files.iter().find(|file| file.ends_with(SINGLE)).unwrap();
        fs::write(weights, "w3ights").unwrap();
        assert_eq!(verdicts(&hub)[1].1, Verdict::Damaged);

        assert_eq!(hub.remove(&imported).unwrap(), 9, "two of its files were the same");
        assert!(hub.cached().unwrap().is_empty());
        let gone = Source::resolve_with(Some("local/mine"), &hub, &Progress::silent()).unwrap_err().to_string();
        assert!(gone.contains("banyan model list"), "no hub is asked: {gone}");
    }

    #[test]
    fn what_another_tool_fetched_is_listed_by_what_its_user_types() {
        let cache = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = cache.path().join(path);
            create_parent(&path).unwrap();
            fs::write(path, text).unwrap();
        };
        let commits = ["a", "b", "c"].map(|digit| digit.repeat(40));
        put("models--owner--name/refs/main", &commits[0]);
        put("models--owner--name/refs/pr/1", &commits[1]);
        for commit in &commits {
            put(&format!("models--owner--name/snapshots/{commit}/config.json"), "{}");
        }
        put("models--other--quantized/refs/main", &commits[0]);
        put(&format!("models--other--quantized/snapshots/{}/small.gguf", commits[0]), "GGUF");
        put("datasets--owner--name/refs/main", &commits[0]);
        let found = hub(cache.path()).cached().unwrap();
        let names: Vec<(&str, bool)> = found.iter().map(|model| (model.name.as_str(), model.whole)).collect();
        let by_commit = format!("owner/name@{}", commits[2]);
        let expected = [
            ("other/quantized/small.gguf", true),
            ("owner/name", false),
            (by_commit.as_str(), false),
            ("owner/name@pr/1", false),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn files_under_gits_names_are_checked_as_git_does() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--owner--name");
        let snapshot = folder.join("snapshots").join("a".repeat(40));
        // `printf hello | git hash-object --stdin`
        let blob = folder.join("blobs/b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0");
        create_parent(&blob).unwrap();
        fs::write(&blob, "hello").unwrap();
        link(&blob, &snapshot.join("config.json")).unwrap();
        let hub = hub(cache.path());
        let [model] = &hub.cached().unwrap()[..] else { panic!("one model") };
        let checked = hub.verify(model, &Progress::silent()).unwrap();
        assert_eq!(checked, [Checked { file: "config.json".into(), verdict: Verdict::Good }]);
    }
}
