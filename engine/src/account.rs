//! A key that an engine spends from, where others compute for it: how it stands.

/// How one key stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Whose key it is.
    pub upstream: String,
    /// The key, masked.
    pub key: String,
    /// Calls under way.
    pub running: u32,
    /// Requests of the last minute, and how many a minute may have; 0: as many as there are.
    pub requests: u64,
    /// See `requests`.
    pub requests_max: u64,
    /// Tokens of the last minute, those that are reserved for calls under way included, and how many a minute may have; 0: as
    /// many as there are.
    pub tokens: u64,
    /// See `tokens`.
    pub tokens_max: u64,
    /// Until the oldest of these no longer count, in milliseconds.
    pub reset_ms: u64,
    /// Tokens of the present budget period, and how many that may have; 0: as many as there are.
    pub spent: u64,
    /// See `spent`.
    pub budget: u64,
    /// Until the budget begins anew, in milliseconds.
    pub budget_reset_ms: u64,
    /// Failures in a row.
    pub failures: u32,
    /// Until it is tried again after a failure, in milliseconds.
    pub cooling_ms: u64,
    /// The last failure; empty: none.
    pub error: String,
}
