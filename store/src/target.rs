//! Where a store is: a file, the memory, or a PostgreSQL server.

use std::{fmt, path::PathBuf, str::FromStr};

/// Where a store is.
#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    /// An SQLite file, made when it is not there.
    File(PathBuf),
    /// SQLite, gone with the process.
    Memory,
    /// A PostgreSQL server, with what stands in its URL.
    Postgres(String),
}

/// The text names no store.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a file, `memory`, or postgres://USER:PASSWORD@HOST/DATABASE")]
pub struct ParseTargetError;

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, ParseTargetError> {
        match text.split_once("://") {
            _ if text.is_empty() => Err(ParseTargetError),
            _ if text == "memory" => Ok(Target::Memory),
            Some(("postgres" | "postgresql", rest)) if !rest.is_empty() => Ok(Target::Postgres(text.to_owned())),
            Some(("sqlite" | "file", path)) if !path.is_empty() => Ok(Target::File(path.into())),
            Some(_) => Err(ParseTargetError),
            None => Ok(Target::File(text.into())),
        }
    }
}

impl Target {
    /// Whether a URL carries a password.
    pub fn has_password(&self) -> bool {
        let Target::Postgres(url) = self else { return false };
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        let parameters = rest.split_once('?').map_or("", |(_, parameters)| parameters);
        // A password may have signs in it that should have been escaped.
        rest.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
            || parameters.split('&').any(|parameter| parameter.starts_with("password="))
    }
}

/// Without what is nobody's business: a URL's user and password, and its parameters.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::File(path) => write!(f, "{}", path.display()),
            Target::Memory => f.write_str("memory"),
            Target::Postgres(url) => {
                let rest = url.split_once("://").map_or("", |(_, rest)| rest);
                let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
                write!(f, "postgres://{}", rest.split('?').next().unwrap_or_default())
            }
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_a_file_the_memory_or_a_server() {
        assert_eq!("memory".parse(), Ok(Target::Memory));
        assert_eq!("/var/lib/banyan.db".parse(), Ok(Target::File("/var/lib/banyan.db".into())));
        assert_eq!("sqlite://b.db".parse(), Ok(Target::File("b.db".into())));
        assert!(matches!("postgresql://h/d".parse(), Ok(Target::Postgres(_))));
        for wrong in ["", "mysql://h/d", "postgres://", "sqlite://"] {
            assert_eq!(wrong.parse::<Target>(), Err(ParseTargetError), "{wrong}");
        }
    }

    #[test]
    fn a_password_is_seen_wherever_it_stands() {
        let has = |text: &str| text.parse::<Target>().unwrap().has_password();
        assert!(has("postgres://banyan:p@db/banyan") && has("postgres://db/banyan?user=b&password=p"));
        assert!(!has("postgres://banyan@db:5432/banyan") && !has("postgres://db:5432/banyan") && !has("memory") && !has("a:b@c"));
    }

    #[test]
    fn no_password_is_shown() {
        let target: Target = "postgres://banyan:p@ss@db.local:5432/banyan?password=again".parse().unwrap();
        assert_eq!(format!("{target} {target:?}"), "postgres://db.local:5432/banyan postgres://db.local:5432/banyan");
    }
}
