//! Finding what was said: by whole words and by how they begin. Where a script writes no spaces (Chinese, Japanese) each character is
//! a word, and those that are typed together are found together.
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
    /// The conversation's, where its client named it.
    pub client_id: Option<String>,
    /// The conversation's.
    pub title: String,
    /// Of the conversation's last message, in Unix milliseconds.
    pub updated_ms: i64,
    /// The message's.
    pub position: i64,
    /// The message's.
    pub message_id: String,
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
        let wanted = together(text);
        let Some(first) = wanted.first().cloned() else { return Ok(Vec::new()) };
        let (owner, asked) = (owner.to_owned(), wanted);
        let rows = self.write(move |connection| {
            async move {
                let (sql, pattern) = if connection.is_postgres() {
                    let pattern: Vec<String> = asked.iter().map(|words| words.join(" <-> ") + ":*").collect();
                    (
                        "SELECT c.id, c.title, c.updated_ms, m.position, m.role, m.content, m.id, c.client_id
                         FROM messages m JOIN conversations c ON c.id = m.conversation_id
                         WHERE c.owner = ?1 AND to_tsvector('simple', m.words) @@ to_tsquery('simple', ?2)
                         ORDER BY m.number DESC LIMIT ?3",
                        pattern.join(" & "),
                    )
                } else {
                    let pattern: Vec<String> = asked.iter().map(|words| format!("\"{}\"*", words.join(" "))).collect();
                    (
                        "SELECT c.id, c.title, c.updated_ms, m.position, m.role, m.content, m.id, c.client_id
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
                excerpt: excerpt(&row.text(5)?, &first),
                message_id: row.text(6)?,
                client_id: row.maybe_text(7)?,
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
    tokens(text).map(|(_, word)| word)
}

/// What is looked for: words, and those that stand together without a space in one list.
fn together(text: &str) -> Vec<Vec<String>> {
    let mut found: Vec<Vec<String>> = Vec::new();
    for (joined, word) in tokens(text).take(WORDS_MAX) {
        match found.last_mut() {
            Some(last) if joined => last.push(word),
            _ => found.push(vec![word]),
        }
    }
    found
}

/// Words, and whether each follows the one before without anything between them.
fn tokens(text: &str) -> impl Iterator<Item = (bool, String)> {
    let (mut rest, mut begun) = (text, false);
    std::iter::from_fn(move || {
        loop {
            let start = rest.find(char::is_alphanumeric)?;
            let joined = std::mem::replace(&mut begun, true) && start == 0;
            rest = &rest[start..];
            let first = rest.chars().next()?;
            let ends = |char: char| !char.is_alphanumeric() || stands_alone(char);
            let end = if stands_alone(first) { first.len_utf8() } else { rest.find(ends).unwrap_or(rest.len()) };
            let (word, behind) = rest.split_at(end);
            rest = behind;
            // Lower case may bring marks that are no letters, as of İ.
            let plain: String = word.to_lowercase().chars().filter(|char| char.is_alphanumeric()).collect();
            if !plain.is_empty() && plain.len() <= WORD_BYTES_MAX {
                return Some((joined, plain));
            }
        }
    })
}

/// Ideographs and kana: no space tells where a word ends.
fn stands_alone(char: char) -> bool {
    matches!(char, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}')
}

fn excerpt(content: &str, wanted: &[String]) -> String {
    let Some((last, before)) = wanted.split_last() else { return String::new() };
    let begins = |at: usize| {
        let mut found = words(&content[at..]);
        before.iter().all(|word| found.next().as_ref() == Some(word)) && found.next().is_some_and(|found| found.starts_with(last))
    };
    let mut at = 0;
    for (place, char) in content.char_indices().take(INDEXED_BYTES_MAX) {
        let is_inside = !stands_alone(char)
            && content[..place].chars().next_back().is_some_and(|char| char.is_alphanumeric() && !stands_alone(char));
        if char.is_alphanumeric() && !is_inside && begins_here(&content[place..], &wanted[0]) && begins(place) {
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
        let shown = excerpt(&text, &["need".to_owned()]);
        assert!(shown.contains("the needle is here") && shown.starts_with('…') && shown.ends_with('…'), "{shown}");
        assert_eq!(excerpt("short", &["none".to_owned()]), "short");
    }

    #[test]
    fn characters_that_need_no_spaces_are_words_that_stand_together() {
        assert_eq!(indexed("今天天气好, ok吗"), "今 天 天 气 好 ok 吗");
        assert_eq!(together("天气 ok吗"), [vec!["天", "气"], vec!["ok", "吗"]]);
        let shown = excerpt(&format!("{}天天气好", "很".repeat(200)), &together("天气")[0]);
        assert!(shown.contains("天天气好") && shown.starts_with('…'), "{shown}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(.|[天气好]){0,300}", wanted in "[a-zäß天气]{1,5}") {
            for wanted in together(&wanted) {
                let _ = (indexed(&text), excerpt(&text, &wanted));
            }
        }
    }
}
