//! Who a peer is: the cluster, the role and the name that its certificate carries, and what each role may ask.
//!
//! The name stands in a URI of the certificate's subject alternative names, `banyan://CLUSTER/ROLE/NAME`, as SPIFFE has it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{NameError, NodeName};

/// What every identity begins with.
const SCHEME: &str = "banyan://";

/// What a certificate lets its owner be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A tree's root, or one in waiting.
    Root,
    /// A node that infers.
    Node,
    /// An API: it asks roots.
    Api,
    /// The embedded registry.
    Registry,
    /// The cluster's certificate authority.
    Authority,
    /// A person: looks, moves and drains.
    Operator,
}

impl Role {
    /// All of them, in the order in which help names them.
    pub const ALL: [Role; 6] = [Role::Root, Role::Node, Role::Api, Role::Registry, Role::Authority, Role::Operator];

    /// As certificates and commands write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Root => "root",
            Role::Node => "node",
            Role::Api => "api",
            Role::Registry => "registry",
            Role::Authority => "authority",
            Role::Operator => "operator",
        }
    }

    /// Whether who has this role may call a method, such as `/banyan.v1.Root/Ask`. What is not named here nobody may.
    pub fn may_call(self, path: &str) -> bool {
        let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else { return false };
        match (service, method) {
            ("banyan.v1.Tree", "Attach") | ("banyan.v1.Root", "Deliver") => self == Role::Node,
            ("banyan.v1.Root", "Ask" | "Attach" | "Cancel") => self == Role::Api,
            ("banyan.v1.Inspect", "Status") | ("grpc.health.v1.Health", _) => true,
            ("banyan.v1.Inspect", "Log" | "View" | "Why") => matches!(self, Role::Root | Role::Node | Role::Api | Role::Operator),
            ("banyan.v1.Inspect", "Watch") => matches!(self, Role::Api | Role::Operator),
            // An API asks for who shows it an operator's key.
            ("banyan.v1.Inspect", "Move" | "Drain") => matches!(self, Role::Root | Role::Api | Role::Operator),
            // Who asks for a certificate without having one never comes here.
            ("banyan.v1.Authority", "Join" | "Renew") => true,
            ("grpc.reflection.v1.ServerReflection", _) => self == Role::Operator,
            _ => false,
        }
    }
}

/// Who somebody is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cluster that it belongs to.
    pub cluster: NodeName,
    /// What it is there.
    pub role: Role,
    /// Its name, which no other of this role has.
    pub name: NodeName,
}

/// Who is expected to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    roles: &'static [Role],
    name: Option<NodeName>,
}

impl Expected {
    /// One of these roles, of this name.
    pub fn named(roles: &'static [Role], name: NodeName) -> Self {
        Expected { roles, name: Some(name) }
    }

    /// A node or a root of this name.
    pub fn member(name: &NodeName) -> Self {
        Expected::named(&[Role::Node, Role::Root], name.clone())
    }

    /// A root of this name.
    pub fn root(name: &NodeName) -> Self {
        Expected::named(&[Role::Root], name.clone())
    }

    /// Anybody of this role.
    pub fn any(roles: &'static [Role]) -> Self {
        Expected { roles, name: None }
    }

    /// Whether that is who answers.
    pub fn is(&self, identity: &Identity) -> bool {
        self.roles.contains(&identity.role) && self.name.as_ref().is_none_or(|name| *name == identity.name)
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles: Vec<&str> = self.roles.iter().map(|role| role.as_str()).collect();
        write!(f, "the {}", roles.join(" or "))?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " {name}"))
    }
}

/// Why a text names nobody.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No such form.
    #[error("expected banyan://CLUSTER/ROLE/NAME, got {0:?}")]
    Form(String),
    /// No such role.
    #[error("no role is called {0:?}: there are root, node, api, registry, authority and operator")]
    Role(String),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A certificate names nobody of Banyan's, or several.
    #[error("the certificate carries no single banyan:// name")]
    Nameless,
    /// Its bytes are no certificate.
    #[error("this is no X.509 certificate")]
    Malformed,
}

impl Identity {
    /// Who a certificate names. Says nothing about who signed it.
    ///
    /// # Errors
    /// When it names nobody, or more than one.
    pub fn of_certificate(der: &[u8]) -> Result<Identity, IdentityError> {
        let der = rustls::pki_types::CertificateDer::from(der);
        let parsed = webpki::EndEntityCert::try_from(&der).map_err(|_| IdentityError::Malformed)?;
        let mut names = parsed.valid_uri_names().filter(|name| name.starts_with(SCHEME));
        match (names.next(), names.next()) {
            (Some(name), None) => name.parse(),
            _ => Err(IdentityError::Nameless),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.role.as_str(), self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let form = || IdentityError::Form(text.chars().take(200).collect());
        let mut parts = text.strip_prefix(SCHEME).ok_or_else(form)?.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(cluster), Some(role), Some(name), None) => {
                Ok(Identity { cluster: cluster.parse()?, role: role.parse()?, name: name.parse()? })
            }
            _ => Err(form()),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let role = Role::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| IdentityError::Role(text.chars().take(63).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_identity_reads_back_and_nothing_else_is_one() {
        for role in Role::ALL {
            let identity = Identity { cluster: "prod".parse().unwrap(), role, name: "gpu.rack_2".parse().unwrap() };
            assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
        }
        for wrong in [
            "",
            "banyan://",
            "banyan://prod/node",
            "banyan://prod/node/a/b",
            "banyan://prod/node/a/",
            "banyan://prod/king/a",
            "banyan://prod/Node/a",
            "banyan://Prod/node/a",
            "banyan:///node/a",
            "spiffe://prod/node/a",
        ] {
            assert!(wrong.parse::<Identity>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_role_may_call_what_its_part_in_the_tree_needs_and_no_more() {
        let allowed = |path| Role::ALL.into_iter().filter(|role| role.may_call(path)).collect::<Vec<_>>();
        assert_eq!(allowed("/banyan.v1.Tree/Attach"), [Role::Node]);
        assert_eq!(allowed("/banyan.v1.Root/Deliver"), [Role::Node]);
        for asking in ["/banyan.v1.Root/Ask", "/banyan.v1.Root/Attach", "/banyan.v1.Root/Cancel"] {
            assert_eq!(allowed(asking), [Role::Api], "{asking}");
        }
        for steering in ["/banyan.v1.Inspect/Move", "/banyan.v1.Inspect/Drain"] {
            assert_eq!(allowed(steering), [Role::Root, Role::Api, Role::Operator], "{steering}");
        }
        assert_eq!(allowed("/banyan.v1.Inspect/Watch"), [Role::Api, Role::Operator]);
        assert_eq!(allowed("/banyan.v1.Inspect/Status").len(), Role::ALL.len());
        for unknown in ["", "/", "/banyan.v1.Tree/Fell", "banyan.v1.Root/Ask", "/banyan.v1.Root/Ask/", "/banyan.v2.Root/Ask"] {
            assert!(allowed(unknown).is_empty(), "{unknown}");
        }
    }

    #[test]
    fn who_is_expected_has_one_of_the_roles_and_the_name() {
        let identity: Identity = "banyan://prod/node/a".parse().unwrap();
        assert!(Expected::member(&identity.name).is(&identity));
        assert!(Expected::any(&[Role::Node]).is(&identity));
        assert!(!Expected::root(&identity.name).is(&identity));
        assert!(!Expected::member(&"b".parse().unwrap()).is(&identity));
        assert_eq!(Expected::member(&identity.name).to_string(), "the node or root a");
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_keeps_the_text(text in "(banyan://)?.{0,40}") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }

        #[test]
        fn bytes_that_are_no_certificate_name_nobody(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Identity::of_certificate(&bytes).is_err());
        }
    }
}
