//! The store: where it is, and opening it.

use std::{env, path::PathBuf};

use banyan_store::{Store, Target};

use crate::exit::{Code, Failure};

/// Where keys, usage, conversations, files and batches are.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StoreArgs {
    /// Keys, usage, conversations, files and batches: a file, `memory`, or postgres://USER@HOST/DATABASE for several APIs; by default
    /// banyan/store.db among this user's data. A password goes into the environment variable, never into the flag.
    #[arg(long, env = "BANYAN_STORE", hide_env_values = true, value_name = "FILE|URL")]
    store: Option<Target>,
}

/// What may hold a password, as a flag may not: everybody on a machine can read the flags of everybody's processes.
const VARIABLE: &str = "BANYAN_STORE";

impl StoreArgs {
    pub(crate) async fn open(&self) -> Result<Store, Failure> {
        let given = |target: &Target| env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).as_ref() == Some(target);
        if self.store.as_ref().is_some_and(|target| target.has_password() && !given(target)) {
            return Err(Failure::told(Code::Usage, "a password in a flag can be read by everybody on this machine")
                .hint(format!("put the whole URL into the environment variable {VARIABLE}, and leave `--store` out")));
        }
        let target = match &self.store {
            Some(target) => target.clone(),
            None => Target::File(default()?),
        };
        let what = format!("failed to open the store {target}");
        Store::open(target).await.map_err(|error| Failure::from(error).context(what))
    }
}

/// By the XDG Base Directory Specification.
fn default() -> Result<PathBuf, Failure> {
    let given = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = given("XDG_DATA_HOME").or_else(|| given("HOME").map(|home| home.join(".local/share")));
    let data = data.ok_or_else(|| {
        Failure::told(Code::Usage, "there is no home folder to keep the store in").hint("name its file with `--store FILE`")
    })?;
    Ok(data.join("banyan").join("store.db"))
}

impl From<banyan_store::Error> for Failure {
    fn from(error: banyan_store::Error) -> Failure {
        use banyan_store::Error;
        let (code, hint) = match &error {
            Error::Missing(_) => (Code::NotFound, Some("`banyan key list` shows all keys")),
            Error::Conflict(_) => (Code::Conflict, None),
            Error::Unavailable(_) => (
                Code::Unavailable,
                Some("see that the file can be written or the server answers, or name another with `--store`"),
            ),
            Error::Busy => (Code::Unavailable, Some("another program holds it; try again in a moment")),
            Error::ReadOnly(_) => (Code::Error, Some("make room on its disk, or name another with `--store`")),
            Error::Newer { .. } | Error::Strange(_) | Error::Refused(_) => (Code::Error, None),
        };
        let failure = Failure::new(code, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<banyan_api::StartError> for Failure {
    fn from(error: banyan_api::StartError) -> Failure {
        match error {
            banyan_api::StartError::Store(error) => Failure::from(error).context("failed to read the keys"),
            error @ banyan_api::StartError::Open { .. } => Failure::new(Code::Usage, error).hint(
                "make a key with `banyan key create --name NAME` (and the same `--store`), listen on 127.0.0.1, or say `--open`",
            ),
            error @ banyan_api::StartError::Address(_) => Failure::new(Code::Error, error),
        }
    }
}
