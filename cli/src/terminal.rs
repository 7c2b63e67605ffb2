//! What a terminal is given: characters that show, and none that steer it.
//!
//! Models, addresses, decisions and errors come from other machines, and whoever can register a node can write anything
//! there. Printed as they are, escape sequences would rewrite what was printed before, and line breaks would add rows that no
//! node has. So every line goes through here on its way out, from [`output`](crate::output) and from failures.

use std::borrow::Cow;

/// Stands where something stood that does not show.
const REPLACED: char = '\u{fffd}';

/// A text of others as a part of one line.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    replaced(text, steers)
}

/// Whole lines: their line breaks are ours.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    replaced(text, |c| steers(c) && c != '\n')
}

/// JSON, with its data as it is: what stands only within strings is escaped there.
pub(crate) fn json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        // Line breaks within strings were escaped before; these are the layout's.
        if steers(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

fn replaced(text: &str, unwanted: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.chars().any(&unwanted) {
        Cow::Owned(text.chars().map(|c| if unwanted(c) { REPLACED } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// Controls (escape sequences begin with one), what turns the direction of the text around it, and what shows nothing.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        let hostile = "a\x1b[2J\x07b\u{9b}31mc\r\n\u{202e}d\u{e0041}e";
        assert_eq!(line(hostile), "a\u{fffd}[2J\u{fffd}b\u{fffd}31mc\u{fffd}\u{fffd}\u{fffd}d\u{fffd}e");
        assert_eq!(lines("one\ntwo\x1b\n"), "one\ntwo\u{fffd}\n");
        assert!(matches!(line("gpt2 (né), 植物, └── 🌳"), Cow::Borrowed(_)), "what shows is left alone");
    }

    #[test]
    fn json_keeps_the_data_and_shows_none_of_it_raw() {
        let hostile = "a\x1b[2J\u{9b}\r\n\u{202e}\u{e0041}\x7fé";
        let shown = json(&serde_json::to_string_pretty(&[hostile]).unwrap());
        assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap(), [hostile]);
        assert_eq!(lines(&shown), shown);
    }
}
