//! The secret that a key is: made here, shown once, and kept only as a hash.

use std::fmt;

use rand::{TryRngCore as _, rngs::OsRng};
use sha2::{Digest as _, Sha256};

/// What tells ours from others' keys, for people and for programs that look for leaked ones.
const PREFIX: &str = "sk-banyan-";

/// 256 bits: nobody guesses one, so a plain hash is enough to keep it by.
const BYTES: usize = 32;

/// Longer texts are nobody's key.
pub(crate) const TEXT_BYTES_MAX: usize = 256;

/// A key's secret. It is never written to a log: only [`Secret::reveal`] shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub(crate) fn new() -> Secret {
        let mut bytes = [0; BYTES];
        OsRng.try_fill_bytes(&mut bytes).expect("the system has random numbers");
        Secret(bytes.iter().fold(PREFIX.to_owned(), |text, byte| text + &format!("{byte:02x}")))
    }

    /// The text, for the one who may know it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What may be shown of it: enough to tell keys apart, and none of what makes it secret but 16 of 256 bits.
    pub(crate) fn shown(&self) -> String {
        format!("{PREFIX}{}…", &self.0[PREFIX.len()..PREFIX.len() + 4])
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

/// What is kept of a secret.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_its_own_and_shows_little() {
        let (one, other) = (Secret::new(), Secret::new());
        assert_ne!(hash(one.reveal()), hash(other.reveal()));
        assert_eq!(one.reveal().len(), PREFIX.len() + 64);
        assert!(one.reveal().len() < TEXT_BYTES_MAX);
        assert_eq!(format!("{one:?}").chars().count(), PREFIX.len() + 5);
    }
}
