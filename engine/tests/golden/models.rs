//! Models that are not in the repository.

use std::path::PathBuf;

/// A model's folder in the one that BANYAN_TEST_MODELS names; `None`, said aloud, where it names none. A folder that lacks
/// the model fails the test with the command that brings it.
pub(crate) fn folder(name: &str) -> Option<PathBuf> {
    let Some(models) = std::env::var_os("BANYAN_TEST_MODELS").map(PathBuf::from) else {
        eprintln!("left out: {name} is not in the repository; run engine/golden/fetch.sh DIR and set BANYAN_TEST_MODELS=DIR");
        return None;
    };
    let folder = models.join(name);
    assert!(folder.is_dir(), "{} is missing: run engine/golden/fetch.sh {}", folder.display(), models.display());
    Some(folder)
}
