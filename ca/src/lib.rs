//! The cluster's certificates: the [`Authority`] that signs them, the [`Token`]s with which new members come, the [`service`] they
//! come to, and the [`member`]'s side: join, and renew for as long as it runs.
//!
//! What a certificate says and what that allows is `banyan-proto`'s ([`banyan_proto::Identity`], [`banyan_proto::Role`]).

mod authority;
mod files;
mod grant;
pub mod member;
pub mod service;
mod token;

pub use authority::{Authority, AuthorityError, KeyPair, REGISTRY_NAME, VALID};
pub use grant::{Grant, TOKEN_TIME, create};
pub use token::{Secret, Token, TokenError};
