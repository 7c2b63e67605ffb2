//! A join token: where the authority is, how to know it, and the secret that it takes once.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use rand::{TryRngCore as _, rngs::OsRng};
use sha2::{Digest as _, Sha256};

/// What tells a token from other secrets, for people and for programs that look for leaked ones.
const PREFIX: &str = "banyan-join-";
/// Of this form.
const VERSION: u8 = 1;
/// 256 bits: nobody guesses one, so a plain hash is enough to keep it by.
const SECRET_BYTES: usize = 32;
const PIN_BYTES: usize = 32;
/// The longest host name, and a port.
const ADDRESS_BYTES_MAX: usize = 253 + 6;
/// Longer texts are no token.
const TEXT_BYTES_MAX: usize = PREFIX.len() + (1 + PIN_BYTES + SECRET_BYTES + ADDRESS_BYTES_MAX) * 4 / 3 + 4;

/// What makes a token good. Never written to a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(crate) [u8; SECRET_BYTES]);

impl Secret {
    /// A new one.
    pub fn new() -> Secret {
        let mut bytes = [0; SECRET_BYTES];
        OsRng.try_fill_bytes(&mut bytes).expect("the system has random numbers");
        Secret(bytes)
    }

    /// What the registry keeps of it.
    pub fn hash(&self) -> String {
        hash(&self.0)
    }
}

impl Default for Secret {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

pub(crate) fn hash(secret: &[u8]) -> String {
    Sha256::digest(secret).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// What a new member is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Where the authority listens, `HOST:PORT`.
    pub authority: String,
    /// The SHA-256 of the authority's certificate.
    pub pin: [u8; PIN_BYTES],
    /// Good once.
    pub secret: Secret,
}

/// The text is no token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no join token: `banyan token create` makes one, which begins with {PREFIX}")]
pub struct TokenError;

impl Token {
    /// The text, for the one who may know it.
    pub fn reveal(&self) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.pin);
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(self.authority.as_bytes());
        format!("{PREFIX}{}", BASE64.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenError);
        }
        let bytes = BASE64.decode(text.strip_prefix(PREFIX).ok_or(TokenError)?).map_err(|_| TokenError)?;
        let (version, rest) = bytes.split_first().ok_or(TokenError)?;
        let (pin, rest) = rest.split_first_chunk().ok_or(TokenError)?;
        let (secret, address) = rest.split_first_chunk().ok_or(TokenError)?;
        let authority = std::str::from_utf8(address).map_err(|_| TokenError)?;
        let is_address = authority.len() <= ADDRESS_BYTES_MAX
            && authority.chars().all(|c| c.is_ascii_graphic() && !"/?#@\\".contains(c))
            && authority.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if *version != VERSION || !is_address {
            return Err(TokenError);
        }
        Ok(Token { authority: authority.to_owned(), pin: *pin, secret: Secret(*secret) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(authority: &str) -> Token {
        Token { authority: authority.to_owned(), pin: [7; 32], secret: Secret::new() }
    }

    #[test]
    fn a_token_reads_back_and_its_secret_is_not_shown() {
        for authority in ["ca.example.com:7599", "10.0.0.1:7599", "[::1]:7599"] {
            let made = token(authority);
            assert_eq!(made.reveal().parse::<Token>().unwrap(), made);
            assert_eq!(format!(" {}\n", made.reveal()).parse::<Token>().unwrap(), made);
            assert!(!format!("{made:?}").contains(&made.reveal()));
        }
        assert_ne!(token("a:1").secret.hash(), token("a:1").secret.hash());
    }

    #[test]
    fn what_leads_elsewhere_is_no_token() {
        for authority in ["", "a", ":1", "a:", "a:x", "http://a:1", "u@a:1", "a b:1", "a:1/x", &format!("{}:1", "a".repeat(300))]
        {
            assert_eq!(token(authority).reveal().parse::<Token>(), Err(TokenError), "{authority}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_says_the_same_when_written(bytes in proptest::collection::vec(any::<u8>(), 0..120), text in ".{0,60}") {
            let _ = text.parse::<Token>();
            if let Ok(token) = format!("{PREFIX}{}", BASE64.encode(&bytes)).parse::<Token>() {
                prop_assert_eq!(token.reveal().parse::<Token>().unwrap(), token);
            }
        }
    }
}
