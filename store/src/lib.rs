//! What Banyan's API remembers: keys and their limits, usage, the request log, conversations, files and batches.
//!
//! Every question is written once, in the SQL that SQLite and PostgreSQL share, and is one transaction. What is particular to one of
//! them is in `sqlite.rs` and `postgres.rs`; who may see what, and what HTTP says, is the API's.

mod batches;
mod connection;
mod conversations;
mod error;
mod files;
mod histories;
mod keys;
mod limits;
mod lines;
mod postgres;
mod records;
mod schema;
mod search;
mod secret;
mod shares;
mod sqlite;
mod store;
mod target;
mod time;
mod tls;

pub use batches::{Batch, BatchStatus, Counts, NewBatch, Outcome, Problem};
pub use conversations::{Conversation, ConversationPage, Message, NewMessage};
pub use error::Error;
pub use files::{File, FilePurpose, NewFile, PIECE_BYTES};
pub use histories::{Changed, Changes};
pub use keys::{Key, KeyTable, NewKey};
pub use limits::{Bucket, Refused, Room, Standing, Wanted};
pub use lines::{Claim, Line, LineState, NewLine};
pub use records::{LogEntry, Record, Settlement, UsageRow};
pub use search::Found;
pub use secret::Secret;
pub use shares::Share;
pub use store::Store;
pub use target::{ParseTargetError, Target};
pub use time::{day_of, unix_ms};
