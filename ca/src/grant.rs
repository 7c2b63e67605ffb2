//! What a token is good for: kept in the registry under the secret's hash, and signed, so that who can write there can't grant.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use banyan_etcd::{ReadError, Registry};
use banyan_proto::{NodeName, Role};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde::{Deserialize, Serialize};

use crate::{Authority, Secret, Token};

/// How long a token waits to be used.
pub const TOKEN_TIME: Duration = Duration::from_secs(600);

/// What somebody with a token may become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The role.
    pub role: Role,
    /// The name; none lets who comes choose one that nobody was given.
    pub name: Option<NodeName>,
    /// Unix seconds.
    pub until: u64,
}

#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    grant: Grant,
    mac: String,
}

impl Grant {
    /// One that begins now.
    pub fn new(role: Role, name: Option<NodeName>, time: Duration) -> Grant {
        Grant { role, name, until: now() + time.as_secs() }
    }

    /// Whether its time is over.
    pub fn is_over(&self) -> bool {
        now() >= self.until
    }

    /// What the registry keeps.
    pub(crate) fn record(&self, authority: &Authority, hash: &str) -> Vec<u8> {
        let mac = BASE64.encode(ring::hmac::sign(authority.mac(), &self.said(authority, hash)));
        serde_json::to_vec(&Record { grant: self.clone(), mac }).expect("texts and numbers are JSON")
    }

    /// What the authority granted to who knows the secret of that hash; none when somebody else wrote it.
    pub(crate) fn read(authority: &Authority, hash: &str, record: &[u8]) -> Option<Grant> {
        let Record { grant, mac } = serde_json::from_slice(record).ok()?;
        let mac = BASE64.decode(mac).ok()?;
        ring::hmac::verify(authority.mac(), &grant.said(authority, hash), &mac).ok()?;
        Some(grant)
    }

    /// No part has a space or a line's end in it.
    fn said(&self, authority: &Authority, hash: &str) -> Vec<u8> {
        let name = self.name.as_ref().map_or("", NodeName::as_str);
        format!("banyan join token 1\n{}\n{hash}\n{}\n{name}\n{}", authority.cluster(), self.role, self.until).into_bytes()
    }
}

/// Makes a token for one new member.
///
/// # Errors
/// When the registry can't be written.
pub async fn create(authority: &Authority, registry: &Registry, address: String, grant: &Grant) -> Result<Token, ReadError> {
    let secret = Secret::new();
    let hash = secret.hash();
    let time = Duration::from_secs(grant.until.saturating_sub(now()));
    registry.keep_token(&hash, grant.record(authority, &hash), time).await?;
    Ok(Token { authority: address, pin: authority.pin(), secret })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_wrote_grants_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| Authority::init(&folder.path().join(name), "prod".parse().unwrap()).unwrap();
        let (ours, theirs) = (open("ours"), open("theirs"));
        let grant = Grant::new(Role::Node, None, TOKEN_TIME);
        let record = grant.record(&ours, "h");
        assert_eq!(Grant::read(&ours, "h", &record), Some(grant.clone()));
        assert_eq!(Grant::read(&ours, "another", &record), None);
        assert_eq!(Grant::read(&theirs, "h", &record), None);
        let better = String::from_utf8(record).unwrap().replace("\"node\"", "\"root\"");
        assert_eq!(Grant::read(&ours, "h", better.as_bytes()), None);
        assert_eq!(Grant::read(&ours, "h", b"{}"), None);
        assert!(!grant.is_over() && Grant::new(Role::Node, None, Duration::ZERO).is_over());
    }
}
