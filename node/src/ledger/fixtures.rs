//! What the tests of the ledger's parts have in common: queries and holders.

use banyan_proto::QueryId;

use super::{Asked, Holder};

pub(super) const SECOND: u64 = 1_000_000;

pub(super) fn id(number: u128) -> QueryId {
    QueryId::from_u128(number)
}

/// By the first letter of its name, a stream of its own.
pub(super) fn holder(name: &str) -> Holder {
    Holder { name: name.parse().unwrap(), stream: name.bytes().next().unwrap().into() }
}

pub(super) fn asked(number: u128) -> Asked {
    Asked {
        id: id(number),
        owner: "o".into(),
        model: "m".into(),
        priority: 0,
        prefer: None,
        tokens_max: 10,
        bytes: 10,
        time_us: 300 * SECOND,
        returning: false,
        impatient: false,
    }
}
