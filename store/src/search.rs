//! Finding what was said: by whole words and by how they begin, in any language that has spaces.
//!
//! What a word is, is decided here, so that both databases find the same.

use futures::FutureExt as _;

use crate::{Error, Store};

/// A message is found by what stands in its beginning; PostgreSQL indexes no more than a MiB.
const INDEXED_BYTES_MAX: usize = 256 << 10;
/// A longer word is none; PostgreSQL's have 2 KiB at most.
const WORD_BYTES_MAX: usize = 200;
/// People type fewer.
const WORDS_MAX: usize = 16;
/// Shown around the place.
const AROUND_CHARS: usize = 80;

/// A message in which all words were found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Found {
    /// The conversation's.
    pub id: String,
    /// The conversation's.
    pub title: String,
    /// Of the conversation's last message, in Unix milliseconds.
    pub updated_ms: i64,
    /// The message's.
    pub position: i64,
    /// Who said it.
    pub role: String,
    /// The place, and what stands around it.
    pub excerpt: String,
}

impl Store {
    /// Messages of an owner that have all words of a text, the newest first.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn search(&self, owner: &str, text: &str, limit: u32) -> Result<Vec<Found>, Error> {
        let wanted: Vec<String> = words(text).take(WORDS_MAX).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let (owner, asked) = (owner.to_owned(), wanted.clone());
        let rows = self.write(move |connection| {
            async move {
                let (sql, pattern) = if connection.is_postgres() {
                    let pattern: Vec<String> = asked.iter().map(|word| format!("{word}:*")).collect();
                    (
                        "SELECT c.id, c.title, c.updated_ms, m.position, m.role, m.content
                         FROM messages m JOIN conversations c ON c.id = m.conversation_id
                         WHERE c.owner = ?1 AND to_tsvector('simple', m.words) @@ to_tsquery('simple', ?2)
                         ORDER BY m.number DESC LIMIT ?3",
                        pattern.join(" & "),
                    )
                } else {
                    let pattern: Vec<String> = asked.iter().map(|word| format!("\"{word}\"*")).collect();
                    (
                        "SELECT c.id, c.title, c.updated_ms, m.position, m.role, m.content
                         FROM message_words JOIN messages m ON m.number = message_words.rowid
                              JOIN conversations c ON c.id = m.conversation_id
                         WHERE c.owner = ?1 AND message_words MATCH ?2
                         ORDER BY m.number DESC LIMIT ?3",
                        pattern.join(" "),
                    )
                };
                connection.rows(sql, &[(&owner).into(), (&pattern).into(), limit.into()]).await
            }
            .boxed()
        });
        let read = |row: &crate::connection::Row| {
            Ok(Found {
                id: row.text(0)?,
                title: row.text(1)?,
                updated_ms: row.int(2)?,
                position: row.int(3)?,
                role: row.text(4)?,
                excerpt: excerpt(&row.text(5)?, &wanted[0]),
            })
        };
        rows.await?.iter().map(read).collect()
    }
}

/// What a text is found by.
pub(crate) fn indexed(text: &str) -> String {
    let mut end = text.len().min(INDEXED_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    words(&text[..end]).collect::<Vec<_>>().join(" ")
}

fn words(text: &str) -> impl Iterator<Item = String> {
    let parts = text.split(|char: char| !char.is_alphanumeric());
    // Lower case may bring marks that are no letters, as of İ.
    let plain = |part: &str| part.to_lowercase().chars().filter(|char| char.is_alphanumeric()).collect::<String>();
    parts.map(plain).filter(|word| !word.is_empty() && word.len() <= WORD_BYTES_MAX)
}

fn excerpt(content: &str, word: &str) -> String {
    let begins = |at: usize| words(&content[at..]).next().is_some_and(|found| found.starts_with(word));
    let mut at = 0;
    for (place, char) in content.char_indices().take(INDEXED_BYTES_MAX) {
        let after_a_word = content[..place].chars().next_back().is_some_and(char::is_alphanumeric);
        if char.is_alphanumeric() && !after_a_word && begins_here(&content[place..], word) && begins(place) {
            at = place;
            break;
        }
    }
    let from = content[..at].char_indices().rev().nth(AROUND_CHARS - 1).map_or(0, |(place, _)| place);
    let to = content[at..].char_indices().nth(2 * AROUND_CHARS).map_or(content.len(), |(place, _)| at + place);
    let dots = |cut| if cut { "…" } else { "" };
    let plain: String = content[from..to].chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    format!("{}{plain}{}", dots(from > 0), dots(to < content.len()))
}

/// Cheap, to look closer only where it may be.
fn begins_here(text: &str, word: &str) -> bool {
    let first = |text: &str| text.chars().next().and_then(|char| char.to_lowercase().next());
    first(text) == first(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_letters_and_digits_in_lower_case() {
        assert_eq!(indexed("Héllo, wörld_2: O'Neil! ÜBER"), "héllo wörld 2 o neil über");
        assert_eq!(indexed(" ,;- "), "");
    }

    #[test]
    fn an_excerpt_shows_the_place() {
        let text = format!("{} the needle is here {}", "hay ".repeat(100), "hay ".repeat(100));
        let shown = excerpt(&text, "need");
        assert!(shown.contains("the needle is here") && shown.starts_with('…') && shown.ends_with('…'), "{shown}");
        assert_eq!(excerpt("short", "none"), "short");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,300}", word in "[a-zäß]{1,5}") {
            let _ = (indexed(&text), excerpt(&text, &word));
        }
    }
}
