//! What can go wrong between the API and its store.

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers, or the connection broke in the middle: try again later.
    #[error("the store can't be reached")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nothing can be written: the disk is full, or the file may not be written.
    #[error("the store can't be written: is the disk full?")]
    ReadOnly(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// More is under way than the store takes.
    #[error("the store is busy")]
    Busy,
    /// The store holds something that this version can't read.
    #[error("the store holds what this version can't read: {0}")]
    Strange(&'static str),
    /// It was made by a later version.
    #[error("the store has version {found}, and this banyan knows {known} at most: run the newer banyan")]
    Newer {
        /// The store's.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// There is one of that name already, or as many as there may be.
    #[error("{0}")]
    Conflict(String),
    /// There is none.
    #[error("{0}")]
    Missing(String),
    /// A statement was refused: our own mistake, or a damaged store.
    #[error("the store refused a statement")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Whether it is the store that is in trouble, and not the question that is wrong.
    pub fn is_trouble(&self) -> bool {
        !matches!(self, Error::Conflict(_) | Error::Missing(_))
    }
}
