//! How a command ends: the exit code, what failed and why, and what to try next.

use std::{fmt, io, process::ExitCode};

use banyan_proto::nearest;

use crate::{output, terminal};

/// What scripts may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Anything that has no code of its own.
    Error = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// No such node, query or model.
    NotFound = 3,
    /// A name, a port or a place that is taken.
    Conflict = 4,
    /// The registry or the tree can't be reached.
    Unavailable = 5,
    /// It took too long.
    TimedOut = 6,
    /// Ctrl-C or SIGTERM.
    Interrupted = 130,
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    /// `None`: nothing to tell (interrupted, or nobody reads).
    error: Option<anyhow::Error>,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, error: impl Into<anyhow::Error>) -> Failure {
        Failure { code, error: Some(error.into()), hint: None }
    }

    /// A failure that has no cause but itself.
    pub(crate) fn told(code: Code, message: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Failure {
        Failure { code, error: Some(anyhow::Error::msg(message)), hint: None }
    }

    /// The user asked to stop before it was done.
    pub(crate) fn interrupted() -> Failure {
        Failure { code: Code::Interrupted, error: None, hint: None }
    }

    /// `name` is not among `known`: says so, and which ones look like it.
    pub(crate) fn unknown<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Failure {
        let near = nearest(name, known.clone());
        let hint = if !near.is_empty() {
            format!("did you mean {}?", or(&near))
        } else if known.into_iter().next().is_none() {
            "nothing is registered there: start a tree with `banyan up`, or name another registry with `--etcd URL`".to_owned()
        } else {
            "`banyan node list` shows the nodes that are registered".to_owned()
        };
        Failure::told(Code::NotFound, format!("no {what} is named `{name}`")).hint(hint)
    }

    /// What to try next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn context(mut self, doing: impl fmt::Display + Send + Sync + 'static) -> Failure {
        self.error = self.error.map(|error| error.context(doing));
        self
    }

    /// Whether nobody listens where it was dialed.
    pub(crate) fn is_refused_connection(&self) -> bool {
        let mut causes = self.error.iter().flat_map(|error| error.chain());
        causes
            .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
    }

    /// With that exit code instead.
    pub(crate) fn coded(mut self, code: Code) -> Failure {
        self.code = code;
        self
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

/// One line with the chain of causes, and one with what to try next.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told: Vec<String> = Vec::new();
        for cause in self.error.iter().flat_map(|error| error.chain()) {
            // Wrappers tend to repeat what they wrap, whole or in part.
            // What others sent is told as well.
            for part in terminal::line(&plain(cause)).split(": ") {
                if !part.is_empty() && !told.iter().any(|earlier| earlier == part) {
                    told.push(part.to_owned());
                }
            }
        }
        let told = told.join(": ");
        write!(f, "{told}")?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  try: {hint}")?;
        }
        Ok(())
    }
}

/// A gRPC status says its code and details too, which help nobody who reads the line.
fn plain(cause: &(dyn std::error::Error + 'static)) -> String {
    match cause.downcast_ref::<tonic::Status>() {
        Some(status) if !status.message().is_empty() => status.message().to_owned(),
        Some(status) => status.code().to_string(),
        None => cause.to_string().replace('\n', " "),
    }
}

/// Writes the failure to standard error, and gives the process its exit code.
pub(crate) fn report(failure: Failure) -> ExitCode {
    if failure.error.is_some() {
        output::note(&format!("error: {failure}"));
    } else if failure.code == Code::Interrupted {
        output::note("interrupted");
    }
    match failure.code {
        // Whoever read the output has read enough, as `head` does.
        Code::Error if failure.error.is_none() => ExitCode::SUCCESS,
        code => ExitCode::from(code as u8),
    }
}

/// `a`, `a or b`, `a, b or c`, each as code.
pub(crate) fn or(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("`{one}`"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(|name| format!("`{name}`")).collect();
            format!("{} or `{last}`", first.join(", "))
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::new(Code::Error, error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure { code: Code::Error, error: None, hint: None };
        }
        Failure::new(Code::Error, error)
    }
}

impl From<banyan_etcd::ConnectError> for Failure {
    fn from(error: banyan_etcd::ConnectError) -> Failure {
        Failure::new(Code::Unavailable, error)
    }
}

impl From<banyan_etcd::ReadError> for Failure {
    fn from(error: banyan_etcd::ReadError) -> Failure {
        Failure::new(Code::Unavailable, error)
    }
}

impl From<banyan_etcd::RegisterError> for Failure {
    fn from(error: banyan_etcd::RegisterError) -> Failure {
        let hint = until_free(&error);
        Failure { hint, ..Failure::new(registering(&error), error) }
    }
}

impl From<banyan_node::StartError> for Failure {
    fn from(error: banyan_node::StartError) -> Failure {
        use banyan_node::StartError;
        let (code, hint) = match &error {
            StartError::Register { source, .. } => (registering(source), until_free(source)),
            StartError::ParentMissing { .. } => (Code::TimedOut, None),
            StartError::Listen { .. } | StartError::Silent { .. } | StartError::Engine(_) | StartError::Reflection { .. } => {
                (Code::Error, None)
            }
        };
        Failure { hint, ..Failure::new(code, error) }
    }
}

/// What to do about a name that somebody has, who may be dead.
fn until_free(error: &banyan_etcd::RegisterError) -> Option<String> {
    use banyan_etcd::RegisterError;
    let holder = match error {
        RegisterError::Taken { holder } => &holder.name,
        RegisterError::TreeTaken { holder, .. } => &holder.name,
        _ => return None,
    };
    // Every node takes its lease for as long as this one would.
    let lease = banyan_etcd::Config::new(Vec::new(), holder.clone()).lease_ttl;
    Some(format!(
        "`banyan node log {holder}` shows whether it lives; if it is dead, its lease ends within {} s, and the same command works",
        lease.as_secs()
    ))
}

fn registering(error: &banyan_etcd::RegisterError) -> Code {
    use banyan_etcd::RegisterError;
    match error {
        RegisterError::Taken { .. }
        | RegisterError::TreeTaken { .. }
        | RegisterError::OtherTree { .. }
        | RegisterError::Cycle { .. }
        | RegisterError::TooDeep { .. }
        | RegisterError::Contended { .. } => Code::Conflict,
        RegisterError::ParentMissing { .. } => Code::NotFound,
        RegisterError::Read(_) | RegisterError::Unavailable { .. } => Code::Unavailable,
        _ => Code::Error,
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Failure {
        let code = match status.code() {
            tonic::Code::NotFound => Code::NotFound,
            tonic::Code::AlreadyExists | tonic::Code::FailedPrecondition | tonic::Code::Aborted => Code::Conflict,
            tonic::Code::Unavailable => Code::Unavailable,
            tonic::Code::DeadlineExceeded => Code::TimedOut,
            _ => Code::Error,
        };
        Failure::new(code, status)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_failure_is_one_line_with_its_causes_and_what_to_try() {
        let error = anyhow!("connection refused").context("failed to reach 127.0.0.1:2379").context("no registry");
        let failure = Failure::new(Code::Unavailable, error).hint("start one");
        assert_eq!(failure.to_string(), "no registry: failed to reach 127.0.0.1:2379: connection refused\n  try: start one");
    }

    #[test]
    fn a_cause_that_was_told_already_is_not_told_twice() {
        let failure =
            Failure::from(anyhow!("refused").context("tcp: transport: tcp: refused").context("failed to dial: refused"));
        assert_eq!(failure.to_string(), "failed to dial: refused: tcp: transport");
    }

    #[test]
    fn a_status_is_told_by_its_message() {
        let failure = Failure::from(tonic::Status::not_found("no query has that id"));
        assert_eq!((failure.code(), failure.to_string().as_str()), (Code::NotFound, "no query has that id"));
    }

    #[test]
    fn an_unknown_name_brings_those_that_look_like_it() {
        let failure = Failure::unknown("node", "roto", ["root", "leaf-1"]);
        assert_eq!(failure.to_string(), "no node is named `roto`\n  try: did you mean `root`?");
        assert!(Failure::unknown("node", "roto", []).to_string().contains("banyan up"));
    }

    #[test]
    fn what_others_sent_cannot_steer_the_terminal() {
        let failure = Failure::from(tonic::Status::not_found("no\n  try: `rm -rf`\x1b[2K"));
        assert_eq!(failure.to_string(), "no\u{fffd}  try: `rm -rf`\u{fffd}[2K");
    }

    #[test]
    fn a_taken_name_says_when_it_is_free_at_the_latest() {
        let holder = banyan_etcd::Root { name: "root".parse().unwrap(), address: "127.0.0.1:1".into(), epoch: 1, former: vec![] };
        let taken = banyan_etcd::RegisterError::TreeTaken { tree: "main".parse().unwrap(), holder };
        let failure = Failure::from(taken);
        assert_eq!(failure.code(), Code::Conflict);
        assert!(failure.to_string().contains("within 10 s"), "{failure}");
    }

    #[test]
    fn alternatives_read_like_a_sentence() {
        assert_eq!(or(&["a", "b", "c"]), "`a`, `b` or `c`");
    }
}
