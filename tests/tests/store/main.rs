//! What the API remembers, and what it does with it: the store over SQLite, keys and their limits, batches, conversations.
//!
//! The store's suite over PostgreSQL is in `real_parts`.

mod batches;
mod chat;
mod keys;
mod sqlite;
