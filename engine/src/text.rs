//! Tokens to text, as they come: complete characters only, and nothing that may still become a stop string.
//!
//! What comes out is a function of the tokens alone: pushed again (a resumed answer), they give the same texts, and the
//! concatenation does not depend on how the text was cut into tokens.

use std::sync::Arc;

use crate::tokenizer::Tokenizer;

/// One answer's text in the making.
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    stop: Vec<String>,
    /// Bytes of a character whose end has not come.
    partial: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

/// What a token adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// To the text. May be empty.
    pub text: String,
    /// Whether a stop string ended the text; it is not part of it, and nothing follows.
    pub stopped: bool,
}

impl TextStream {
    /// A stream that ends before the first of `stop` to be complete. Empty stop strings are no stop strings.
    pub fn new(tokenizer: Arc<Tokenizer>, mut stop: Vec<String>) -> Self {
        stop.retain(|stop| !stop.is_empty());
        TextStream { tokenizer, stop, partial: Vec::new(), held: String::new(), stopped: false }
    }

    /// Adds a token. Where stop strings don't count (`min_tokens`), its text goes out at once, and no later stop string
    /// begins in it.
    pub fn push(&mut self, token: u32, stops_count: bool) -> Pushed {
        if self.stopped {
            return Pushed { text: String::new(), stopped: true };
        }
        self.partial.extend_from_slice(self.tokenizer.token_bytes(token));
        complete_characters(&mut self.partial, &mut self.held);
        if !stops_count {
            return Pushed { text: std::mem::take(&mut self.held), stopped: false };
        }
        if let Some(start) = first_stop(&self.held, &self.stop) {
            return self.end_at(start);
        }
        let keep = self.held.len() - may_become_stop(&self.held, &self.stop);
        let text = self.held[..keep].to_string();
        self.held.drain(..keep);
        Pushed { text, stopped: false }
    }

    /// The text that was held back and is part of the answer after all.
    pub fn finish(mut self) -> String {
        if !self.partial.is_empty() {
            self.held.push(char::REPLACEMENT_CHARACTER);
            // The mark itself may complete a stop string that holds one.
            if let Some(start) = first_stop(&self.held, &self.stop) {
                return self.end_at(start).text;
            }
        }
        self.held
    }

    fn end_at(&mut self, start: usize) -> Pushed {
        self.stopped = true;
        self.partial.clear();
        let mut text = std::mem::take(&mut self.held);
        text.truncate(start);
        Pushed { text, stopped: true }
    }
}

/// Moves whole characters from `bytes` to `text`, with U+FFFD for what can't be one, as Unicode and Hugging Face's decoder
/// substitute: one for each maximal part of a character.
fn complete_characters(bytes: &mut Vec<u8>, text: &mut String) {
    let mut done = 0;
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(rest) => {
                text.push_str(rest);
                bytes.clear();
                return;
            }
            Err(error) => {
                let end = done + error.valid_up_to();
                text.push_str(std::str::from_utf8(&bytes[done..end]).expect("valid up to there"));
                let Some(invalid) = error.error_len() else {
                    bytes.drain(..end);
                    return;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                done = end + invalid;
            }
        }
    }
}

/// Where the stop string begins that is complete first (of several that end together, the longest): the one rule that
/// gives the same answer however the text was cut into tokens.
pub(crate) fn first_stop(text: &str, stops: &[String]) -> Option<usize> {
    stops.iter().filter_map(|stop| text.find(stop).map(|at| (at + stop.len(), at))).min().map(|(_, at)| at)
}

/// Bytes at the end of `text` that are the beginning of some stop string.
pub(crate) fn may_become_stop(text: &str, stops: &[String]) -> usize {
    let beginnings = stops.iter().flat_map(|stop| stop.char_indices().skip(1).map(|(end, _)| &stop[..end]));
    beginnings.filter(|beginning| text.ends_with(beginning)).map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::folder::Folder;

    static TOKENIZER: LazyLock<Arc<Tokenizer>> =
        LazyLock::new(|| Arc::new(Tokenizer::open(&Folder::Bundled).expect("the bundled tokenizer")));

    fn stream(stop: &[&str]) -> TextStream {
        TextStream::new(TOKENIZER.clone(), stop.iter().map(|stop| stop.to_string()).collect())
    }

    /// A token for each byte: the finest way to cut a text.
    fn by_bytes(text: &[u8]) -> Vec<u32> {
        text.iter().map(|&byte| TOKENIZER.byte_token(byte).expect("every byte has a token")).collect()
    }

    /// All texts that come out, the last one from `finish`, and whether a stop string ended them.
    fn run(stop: &[String], tokens: &[u32], min_tokens: usize) -> (Vec<String>, bool) {
        let mut stream = TextStream::new(TOKENIZER.clone(), stop.to_vec());
        let (mut texts, mut stopped) = (Vec::new(), false);
        for (position, &token) in tokens.iter().enumerate() {
            let pushed = stream.push(token, position >= min_tokens);
            texts.push(pushed.text);
            stopped = pushed.stopped;
            if stopped {
                break;
            }
        }
        texts.push(stream.finish());
        (texts, stopped)
    }

    /// What should come out, from the whole text at once.
    fn expected(text: &str, stop: &[String], from: usize) -> String {
        let ends = stop.iter().filter(|stop| !stop.is_empty());
        let first = ends.filter_map(|stop| text[from..].find(stop.as_str()).map(|at| (from + at + stop.len(), from + at))).min();
        first.map_or(text, |(_, at)| &text[..at]).to_string()
    }

    #[test]
    fn a_character_comes_when_its_last_byte_has_come() {
        let mut stream = stream(&[]);
        let texts: Vec<String> = by_bytes("é😀".as_bytes()).into_iter().map(|token| stream.push(token, true).text).collect();
        assert_eq!(texts, ["", "é", "", "", "", "😀"]);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn half_a_character_at_the_end_becomes_one_replacement_character() {
        let mut stream = stream(&[]);
        let texts: String = by_bytes(b"ok \xf0\x9f\x98").into_iter().map(|token| stream.push(token, true).text).collect();
        assert_eq!(texts + &stream.finish(), "ok \u{fffd}");
    }

    #[test]
    fn what_may_become_a_stop_string_is_held_until_it_can_not() {
        let mut stream = stream(&["\nUser:"]);
        let mut push =
            |text: &str| -> String { TOKENIZER.encode(text).into_iter().map(|token| stream.push(token, true).text).collect() };
        assert_eq!(push("Yes.\n"), "Yes.");
        assert_eq!(push("Us"), "");
        assert_eq!(push("ual"), "\nUsual");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn a_stop_string_ends_the_text_and_is_no_part_of_it() {
        let (texts, stopped) = run(&["STOP".into()], &by_bytes(b"go on STOP and more"), 0);
        assert_eq!((texts.concat().as_str(), stopped), ("go on ", true));
    }

    #[test]
    fn held_text_is_part_of_the_answer_when_nothing_more_comes() {
        let (texts, stopped) = run(&["STOP".into()], &by_bytes(b"go on STO"), 0);
        assert_eq!((texts.concat().as_str(), stopped), ("go on STO", false));
    }

    #[test]
    fn no_stop_string_counts_before_the_least_number_of_tokens() {
        let (texts, stopped) = run(&["ab".into()], &by_bytes(b"ab ab ab"), 4);
        // The second one begins in the fourth token: it does not count either.
        assert_eq!((texts.concat().as_str(), stopped), ("ab ab ", true));
    }

    #[test]
    fn special_tokens_are_no_text() {
        let eos = TOKENIZER.eos()[0];
        let mut stream = stream(&[]);
        let tokens = [by_bytes(b"\xc3"), vec![eos], by_bytes(b"\xa9")].concat();
        let text: String = tokens.into_iter().map(|token| stream.push(token, true).text).collect();
        assert_eq!(text, "é");
    }

    proptest! {
        #[test]
        fn any_tokens_give_the_text_of_all_their_bytes(tokens in prop::collection::vec(0u32..4200, 0..40)) {
            let bytes: Vec<u8> = tokens.iter().flat_map(|&token| TOKENIZER.token_bytes(token)).copied().collect();
            let (texts, _) = run(&[], &tokens, 0);
            prop_assert_eq!(texts.concat(), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn any_bytes_are_replaced_as_all_at_once(bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x80u8..=0xff], 0..40)) {
            let (texts, _) = run(&[], &by_bytes(&bytes), 0);
            prop_assert_eq!(texts.concat(), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn the_cut_into_tokens_changes_nothing(
            text in "[ab\u{e9}\u{1f600} \n]{0,40}",
            stop in prop::collection::vec("[ab\u{e9}\u{1f600} \n]{0,4}", 0..4),
            cuts in prop::collection::vec(any::<bool>(), 0..200),
        ) {
            // Runs of bytes and of whole encoded pieces, mixed by `cuts`.
            let mut tokens = Vec::new();
            let mut cuts = cuts.into_iter().cycle();
            for piece in text.split_inclusive(' ') {
                tokens.extend(if cuts.next().unwrap_or(true) { by_bytes(piece.as_bytes()) } else { TOKENIZER.encode(piece) });
            }
            let want = expected(&text, &stop, 0);
            let (texts, stopped) = run(&stop, &tokens, 0);
            prop_assert_eq!(&texts.concat(), &want);
            prop_assert_eq!(stopped, want.len() < text.len());
            // Nothing that came out before the end was more than the answer.
            let mut sofar = String::new();
            for text in texts {
                sofar.push_str(&text);
                prop_assert!(want.starts_with(&sofar));
            }
        }

        #[test]
        fn stop_strings_count_from_the_least_number_of_tokens_on(
            text in "[ab\u{e9}]{0,40}", stop in prop::collection::vec("[ab\u{e9}]{1,3}", 0..3), min in 0usize..50,
        ) {
            let tokens = by_bytes(text.as_bytes());
            let from = String::from_utf8_lossy(&text.as_bytes()[..min.min(text.len())]).trim_end_matches('\u{fffd}').len();
            let (texts, _) = run(&stop, &tokens, min);
            prop_assert_eq!(texts.concat(), expected(&text, &stop, from));
        }

        #[test]
        fn pushed_again_the_same_tokens_give_the_same_texts(
            tokens in prop::collection::vec(0u32..4200, 0..30), stop in prop::collection::vec("[a-e ]{1,2}", 0..3),
        ) {
            prop_assert_eq!(run(&stop, &tokens, 0), run(&stop, &tokens, 0));
        }
    }
}
