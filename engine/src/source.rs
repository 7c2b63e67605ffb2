//! Where a model comes from: a folder, the hub (by way of the cache), or the checkpoint in the binary.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::error::ResolveError;
use crate::folder::Folder;
use crate::hub::{Hub, Repo};
use crate::progress::Progress;
use crate::{bundled, gguf};

/// What `up` serves when nothing else is asked for: OpenAI's GPT-2, 124M.
const DEFAULT: &str = "openai-community/gpt2";
pub(crate) const PINNED_COMMIT: &str = "607a30d783dfa663caf39e06633721c8d4cfcd7e";
pub(crate) const PINNED_WEIGHTS: &str = "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707";

/// Names that models had before hubs had owners, and that people still type.
const SHORT_NAMES: [(&str, &str); 5] = [
    ("gpt2", DEFAULT),
    ("gpt2-medium", "openai-community/gpt2-medium"),
    ("gpt2-large", "openai-community/gpt2-large"),
    ("gpt2-xl", "openai-community/gpt2-xl"),
    ("distilgpt2", "distilbert/distilgpt2"),
];

/// Longest owner or name on the hub.
const NAME_MAX: usize = 96;

/// 2026-11-20, when the bundled checkpoint was trained.
const BUNDLED_CREATED: u64 = 1_795_132_800;

/// A model whose files are there, and its public name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    folder: Folder,
    name: String,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Spec {
    Bundled,
    Folder(PathBuf),
    File(PathBuf),
    Hub(Repo),
}

impl Source {
    /// Finds the model that `spec` names and fetches it where it has to; with the settings of the environment. Blocks until
    /// it is there.
    ///
    /// A spec is a folder in Hugging Face layout, a GGUF file or a folder with one, `owner/name` or `owner/name@revision` of a
    /// hub model, `owner/name/file.gguf` of one that comes as GGUF files, `gpt2` and its sizes, or `banyan-tiny`, the bundled
    /// model. Without one it is `gpt2`, or the bundled model where no hub can be reached, which is then said in a line.
    pub fn resolve(spec: Option<&str>, progress: &Progress) -> Result<Source, ResolveError> {
        Source::resolve_with(spec, &Hub::from_env(), progress)
    }

    /// The same with other settings.
    pub fn resolve_with(spec: Option<&str>, hub: &Hub, progress: &Progress) -> Result<Source, ResolveError> {
        let Some(spec) = spec else { return default(hub, progress) };
        match parse(spec)? {
            Spec::Bundled => Ok(Source::bundled()),
            Spec::Folder(folder) => Source::from_folder(&folder),
            Spec::File(file) => Ok(Source::from_file(&file)),
            Spec::Hub(repo) => fetch(&repo, hub, progress).map_err(|error| match error {
                // What the user asked for by name is never silently another model.
                ResolveError::Unreachable { endpoint, reason } => ResolveError::NotCached {
                    repo: repo.id,
                    cache: hub.cache.clone(),
                    why: format!("the model hub at {endpoint} can't be reached ({reason})"),
                },
                other => other,
            }),
        }
    }

    /// `openai-community/gpt2` for `gpt2`; any other name is whole as it is.
    pub fn full_name(name: &str) -> &str {
        SHORT_NAMES.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| long)
    }

    /// The checkpoint in the binary.
    pub fn bundled() -> Source {
        Source { folder: Folder::Bundled, name: bundled::NAME.into() }
    }

    /// A folder in Hugging Face layout, or one with a GGUF file.
    pub fn from_folder(folder: &Path) -> Result<Source, ResolveError> {
        if !folder.join("config.json").is_file() {
            return match &gguf_files(folder)[..] {
                [] => Err(ResolveError::Folder { folder: folder.to_path_buf() }),
                [file] => Ok(Source::from_file(file)),
                [first, ..] => Err(ResolveError::SeveralFiles { folder: folder.to_path_buf(), first: first.clone() }),
            };
        }
        // `.` and `models/..` have names too, once they are whole.
        let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
        let name = whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        Ok(Source { folder: Folder::Disk(folder.to_path_buf()), name })
    }

    /// A GGUF file, called by its name without the ending.
    pub fn from_file(file: &Path) -> Source {
        let name = file.file_stem().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        Source { folder: Folder::Gguf(file.to_path_buf()), name }
    }

    /// Where the files lie.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// What the model is called in the API: the last part of its folder's or repository's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When its configuration came to this machine, in Unix seconds.
    pub fn created(&self) -> u64 {
        let file = match &self.folder {
            Folder::Bundled => return BUNDLED_CREATED,
            Folder::Disk(folder) => folder.join("config.json"),
            Folder::Gguf(file) => file.clone(),
        };
        let modified = std::fs::metadata(file).and_then(|metadata| metadata.modified());
        modified.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
    }
}

/// The GGUF files in a folder, by name.
fn gguf_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| gguf::is_gguf(path) && path.is_file()).collect();
    files.sort();
    files
}

fn default(hub: &Hub, progress: &Progress) -> Result<Source, ResolveError> {
    let repo = pinned();
    match fetch(&repo, hub, progress) {
        Err(error @ (ResolveError::Unreachable { .. } | ResolveError::NotCached { .. } | ResolveError::Cut { .. })) => {
            let why = match error {
                ResolveError::Unreachable { endpoint, reason } => {
                    format!("the model hub at {endpoint} can't be reached ({reason})")
                }
                ResolveError::NotCached { why, .. } => format!("{} is not in the cache, and {why}", repo.id),
                other => other.to_string(),
            };
            progress.note(&format!("{why}: using the bundled model {} in place of {}", bundled::NAME, repo.id));
            Ok(Source::bundled())
        }
        other => other,
    }
}

fn fetch(repo: &Repo, hub: &Hub, progress: &Progress) -> Result<Source, ResolveError> {
    let folder = hub.fetch(repo, progress)?;
    if let Some(file) = &repo.file {
        return Ok(Source::from_file(&folder.join(file)));
    }
    let name = repo.id.rsplit('/').next().unwrap_or(&repo.id).to_string();
    Ok(Source { folder: Folder::Disk(folder), name })
}

fn pinned() -> Repo {
    let weights_sha256 = Some(PINNED_WEIGHTS);
    Repo { id: DEFAULT.into(), revision: PINNED_COMMIT.into(), file: None, weights_sha256 }
}

/// The bundled model's name, an existing folder or file, what is written like a path, and else a hub model.
fn parse(spec: &str) -> Result<Spec, ResolveError> {
    if spec == bundled::NAME {
        return Ok(Spec::Bundled);
    }
    let path = Path::new(spec);
    if path.is_dir() {
        return Ok(Spec::Folder(path.to_path_buf()));
    }
    if gguf::is_gguf(path) && path.is_file() {
        return Ok(Spec::File(path.to_path_buf()));
    }
    let unknown = || ResolveError::Spec { spec: spec.into() };
    let (id, revision) = match spec.split_once('@') {
        Some((id, revision)) => (id, Some(revision)),
        None => (spec, None),
    };
    let id = Source::full_name(id);
    if id == DEFAULT && matches!(revision, None | Some(PINNED_COMMIT)) {
        return Ok(Spec::Hub(pinned()));
    }
    let is_revision = |revision: &str| revision.split('/').all(is_name);
    // The file of a GGUF model stands behind the model's name.
    let (id, file) = match id.rsplit_once('/') {
        Some((model, file)) if model.contains('/') && gguf::is_gguf(file.as_ref()) && is_name(file) => (model, Some(file)),
        _ => (id, None),
    };
    let is_hub = id.split_once('/').is_some_and(|(owner, name)| is_name(owner) && is_name(name));
    let revision = revision.unwrap_or("main");
    if !is_hub || !is_revision(revision) {
        return Err(unknown());
    }
    Ok(Spec::Hub(Repo { id: id.into(), revision: revision.into(), file: file.map(Into::into), weights_sha256: None }))
}

/// Whether a hub may call an owner or a model so.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(plain) && !name.starts_with('.') && !name.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(id: &str, revision: &str) -> Spec {
        Spec::Hub(Repo { id: id.into(), revision: revision.into(), file: None, weights_sha256: None })
    }

    #[test]
    fn a_spec_is_a_folder_a_hub_model_or_the_bundled_one() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(parse(folder.path().to_str().unwrap()).unwrap(), Spec::Folder(folder.path().into()));
        assert_eq!(parse("banyan-tiny").unwrap(), Spec::Bundled);
        assert_eq!(parse("owner/name").unwrap(), hub("owner/name", "main"));
        assert_eq!(parse("owner/name@refs/pr/1").unwrap(), hub("owner/name", "refs/pr/1"));
        assert_eq!(parse("distilgpt2").unwrap(), hub("distilbert/distilgpt2", "main"));
        assert_eq!(parse("gpt2").unwrap(), Spec::Hub(pinned()));
        assert_eq!(parse("openai-community/gpt2").unwrap(), Spec::Hub(pinned()));
        assert_eq!(parse("gpt2@main").unwrap(), hub("openai-community/gpt2", "main"));
        let Spec::Hub(repo) = parse("owner/name-GGUF/name.Q4_K_M.gguf@v1").unwrap() else { panic!("of the hub") };
        assert_eq!((&*repo.id, &*repo.revision), ("owner/name-GGUF", "v1"));
        assert_eq!(repo.file.as_deref(), Some("name.Q4_K_M.gguf"));
    }

    #[test]
    fn what_names_no_model_is_refused() {
        for spec in [
            "",
            "nothing",
            "a/b/c",
            "/no/such/folder",
            "./x",
            "../x/y",
            "a/..",
            "a b/c",
            "a/b@",
            "a/b@../x",
            "a/b@c@d",
            "é/b",
            "a/b/c/d.gguf",
            "x.gguf",
            "a/b/..gguf",
            "a/b?x",
        ] {
            assert!(matches!(parse(spec), Err(ResolveError::Spec { .. })), "{spec:?}");
        }
    }

    #[test]
    fn a_models_public_name_is_the_last_part_of_its_folders() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("my-model");
        std::fs::create_dir(&model).unwrap();
        assert!(matches!(Source::from_folder(&model), Err(ResolveError::Folder { .. })));
        std::fs::write(model.join("config.json"), "{}").unwrap();
        let source = Source::from_folder(&model.join("../my-model/.")).unwrap();
        assert_eq!(source.name(), "my-model");
        assert!(source.created() > 1_700_000_000);
        assert_eq!(Source::bundled().name(), "banyan-tiny");
    }

    #[test]
    fn a_gguf_file_is_a_model_by_itself_or_alone_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("Small-Q4_K_M.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(parse(file.to_str().unwrap()).unwrap(), Spec::File(file.clone()));
        for source in [Source::from_file(&file), Source::from_folder(folder.path()).unwrap()] {
            assert_eq!((source.name(), source.folder()), ("Small-Q4_K_M", &Folder::Gguf(file.clone())));
        }
        std::fs::write(folder.path().join("other.GGUF"), "").unwrap();
        let error = Source::from_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("several") && error.contains("--model"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_spec_panics_or_leaves_the_cache(spec in "\\PC{0,40}|[a-z./@]{0,20}") {
            if let Ok(Spec::Hub(repo)) = parse(&spec) {
                proptest::prop_assert!(!repo.id.contains("..") && !repo.revision.contains("..") && !repo.revision.starts_with('/'));
            }
        }
    }
}
