//! The tables, and how a store of an older version gets to their present form.
//!
//! A step is never changed once it was released; a new one follows it. Column types are those that both databases understand:
//! SQLite takes BIGINT for an integer, and keeps bytes as they are in a BYTEA column.

use crate::{Error, connection::Connection};

/// What one version adds: SQL in which `{serial}` stands for a number that counts up, and then what is only one database's.
struct Step {
    both: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

const STEPS: [Step; 3] = [FIRST, BRANCHES, OPERATORS];

const FIRST: Step = Step {
    both: "
        CREATE TABLE keys (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            hash BYTEA NOT NULL UNIQUE,
            shown TEXT NOT NULL,
            former_hash BYTEA,
            former_until_ms BIGINT,
            models TEXT NOT NULL,
            requests_per_minute BIGINT,
            tokens_per_minute BIGINT,
            created_ms BIGINT NOT NULL,
            revoked_ms BIGINT
        );
        CREATE TABLE buckets (
            key_id TEXT PRIMARY KEY REFERENCES keys (id) ON DELETE CASCADE,
            requests BIGINT NOT NULL,
            tokens BIGINT NOT NULL,
            at_ms BIGINT NOT NULL
        );
        CREATE TABLE versions (name TEXT PRIMARY KEY, version BIGINT NOT NULL);
        INSERT INTO versions VALUES ('keys', 0);

        CREATE TABLE usage (
            day TEXT NOT NULL,
            key_id TEXT NOT NULL,
            model TEXT NOT NULL,
            node TEXT NOT NULL,
            requests BIGINT NOT NULL,
            failed BIGINT NOT NULL,
            prompt_tokens BIGINT NOT NULL,
            completion_tokens BIGINT NOT NULL,
            PRIMARY KEY (day, key_id, model, node)
        );
        CREATE TABLE request_log (
            number {serial},
            at_ms BIGINT NOT NULL,
            request_id TEXT NOT NULL,
            query_id TEXT NOT NULL,
            key_id TEXT NOT NULL,
            model TEXT NOT NULL,
            node TEXT NOT NULL,
            prompt_tokens BIGINT NOT NULL,
            completion_tokens BIGINT NOT NULL,
            first_token_ms BIGINT,
            total_ms BIGINT NOT NULL,
            status BIGINT NOT NULL,
            prompt TEXT,
            answer TEXT
        );
        CREATE INDEX request_log_by_time ON request_log (at_ms);

        CREATE TABLE conversations (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            client_id TEXT,
            title TEXT NOT NULL,
            created_ms BIGINT NOT NULL,
            updated_ms BIGINT NOT NULL,
            messages BIGINT NOT NULL,
            UNIQUE (owner, client_id)
        );
        CREATE INDEX conversations_by_owner ON conversations (owner, updated_ms);
        CREATE TABLE messages (
            number {serial},
            conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            position BIGINT NOT NULL,
            role TEXT NOT NULL,
            content TEXT NOT NULL,
            model TEXT NOT NULL,
            node TEXT NOT NULL,
            created_ms BIGINT NOT NULL,
            words TEXT NOT NULL,
            UNIQUE (conversation_id, position)
        );

        CREATE TABLE files (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            purpose TEXT NOT NULL,
            bytes BIGINT NOT NULL,
            created_ms BIGINT NOT NULL,
            complete BIGINT NOT NULL,
            batch_id TEXT
        );
        CREATE INDEX files_by_owner ON files (owner, id);
        CREATE TABLE pieces (
            file_id TEXT NOT NULL REFERENCES files (id) ON DELETE CASCADE,
            position BIGINT NOT NULL,
            content BYTEA NOT NULL,
            PRIMARY KEY (file_id, position)
        );
        CREATE TABLE batches (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            endpoint TEXT NOT NULL,
            completion_window TEXT NOT NULL,
            metadata TEXT,
            input_file_id TEXT NOT NULL,
            output_file_id TEXT,
            error_file_id TEXT,
            status TEXT NOT NULL,
            problems TEXT,
            total BIGINT NOT NULL,
            completed BIGINT NOT NULL,
            failed BIGINT NOT NULL,
            created_ms BIGINT NOT NULL,
            expires_ms BIGINT NOT NULL,
            in_progress_ms BIGINT,
            ended_ms BIGINT,
            cancelling_ms BIGINT,
            claimed_by TEXT,
            claimed_until_ms BIGINT NOT NULL
        );
        CREATE INDEX batches_by_owner ON batches (owner, id);
        CREATE INDEX batches_by_status ON batches (status);
        CREATE TABLE batch_lines (
            batch_id TEXT NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
            position BIGINT NOT NULL,
            custom_id TEXT NOT NULL,
            body TEXT NOT NULL,
            state BIGINT NOT NULL,
            answer TEXT,
            PRIMARY KEY (batch_id, position)
        );
        CREATE INDEX batch_lines_by_state ON batch_lines (batch_id, state, position);
        CREATE UNIQUE INDEX batch_lines_by_custom_id ON batch_lines (batch_id, custom_id);
    ",
    sqlite: "
        CREATE VIRTUAL TABLE message_words USING fts5 (
            words, content = 'messages', content_rowid = 'number', tokenize = 'unicode61 remove_diacritics 0'
        );
        CREATE TRIGGER messages_added AFTER INSERT ON messages BEGIN
            INSERT INTO message_words (rowid, words) VALUES (new.number, new.words);
        END;
        CREATE TRIGGER messages_removed AFTER DELETE ON messages BEGIN
            INSERT INTO message_words (message_words, rowid, words) VALUES ('delete', old.number, old.words);
        END;
    ",
    postgres: "CREATE INDEX message_words ON messages USING GIN (to_tsvector('simple', words));",
};

/// Messages have names and parents, so that a conversation branches; they and conversations can be changed, and be shared.
const BRANCHES: Step = Step {
    both: "
        ALTER TABLE conversations ADD COLUMN extra TEXT;
        ALTER TABLE conversations ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
        ALTER TABLE messages ADD COLUMN id TEXT;
        ALTER TABLE messages ADD COLUMN parent TEXT;
        ALTER TABLE messages ADD COLUMN extra TEXT;
        UPDATE messages SET id = 'm' || position;
        UPDATE messages SET parent = 'm' || (position - 1) WHERE position > 0;
        CREATE UNIQUE INDEX messages_by_id ON messages (conversation_id, id);
        CREATE TABLE shares (
            id TEXT PRIMARY KEY,
            conversation_id TEXT NOT NULL UNIQUE REFERENCES conversations (id) ON DELETE CASCADE,
            created_ms BIGINT NOT NULL,
            snapshot TEXT NOT NULL
        );
    ",
    sqlite: "
        CREATE TRIGGER messages_changed AFTER UPDATE OF words ON messages BEGIN
            INSERT INTO message_words (message_words, rowid, words) VALUES ('delete', old.number, old.words);
            INSERT INTO message_words (rowid, words) VALUES (new.number, new.words);
        END;
    ",
    postgres: "",
};

/// Some keys may change the tree.
const OPERATORS: Step =
    Step { both: "ALTER TABLE keys ADD COLUMN operator BIGINT NOT NULL DEFAULT 0;", sqlite: "", postgres: "" };

/// Replicas that start together migrate one after the other.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7236201441)";

/// Brings the tables to the present version, in one transaction.
pub(crate) async fn migrate(connection: &mut Connection) -> Result<(), Error> {
    let postgres = connection.is_postgres();
    if postgres {
        connection.batch(LOCK).await?;
    }
    connection.batch("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)").await?;
    let found = match connection.row("SELECT version FROM schema_version", &[]).await? {
        Some(row) => row.int(0)?,
        None => {
            connection.execute("INSERT INTO schema_version VALUES (0)", &[]).await?;
            0
        }
    };
    let known = STEPS.len() as i64;
    if found > known {
        return Err(Error::Newer { found, known });
    }
    let serial = if postgres { "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY" } else { "INTEGER PRIMARY KEY" };
    for step in &STEPS[found.max(0) as usize..] {
        connection.batch(&step.both.replace("{serial}", serial)).await?;
        connection.batch(if postgres { step.postgres } else { step.sqlite }).await?;
    }
    if found < known {
        connection.execute("UPDATE schema_version SET version = ?1", &[known.into()]).await?;
    }
    Ok(())
}
