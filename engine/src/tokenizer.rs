//! Text to tokens, and tokens to bytes.
//!
//! Encoding is Hugging Face's own (the tokenizers crate); decoding is by bytes, because a token need not be whole
//! characters: [`crate::TextStream`] makes text of them.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::thread;

use serde_json::Value;
use serde_json::error::Category;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::error::LoadError;
use crate::folder::Folder;

/// A BPE tokenizer over bytes (GPT-2 and its descendants) or over SentencePiece's pieces (Llama 2 and its).
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Token id to the bytes that it stands for: `bytes[starts[id]..starts[id + 1]]`.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    /// The token of each single byte.
    by_byte: [Option<u32>; 256],
    eos: Vec<u32>,
    token_bytes_max: Option<usize>,
}

impl Tokenizer {
    /// Reads tokenizer.json, or else vocab.json and merges.txt.
    pub fn open(folder: &Folder) -> Result<Self, LoadError> {
        let inner = match folder.read_json("tokenizer.json")? {
            // Read as JSON first, because the crate panics on a file that ends within its decoder.
            Some(json) => {
                let refused = |source: serde_json::Error| LoadError::Tokenizer {
                    path: folder.show("tokenizer.json"),
                    source: source.into(),
                };
                serde_json::from_value(json).map_err(refused)?
            }
            None => from_vocabulary(folder)?,
        };
        Self::build(folder, compact(inner))
    }

    fn build(folder: &Folder, mut inner: tokenizers::Tokenizer) -> Result<Self, LoadError> {
        let Some(spelling) = inner.get_decoder().and_then(Spelling::of) else {
            return Err(LoadError::Unsupported(format!(
                "the tokenizer in {folder} is neither byte-level BPE nor SentencePiece's BPE with bytes to fall back on, and \
                 this version knows no other: use a model of the GPT-2 or llama family"
            )));
        };
        // A prompt is never cut or padded behind its author's back; what is too long is refused with figures.
        inner.with_truncation(None).map_err(|source| LoadError::Tokenizer { path: folder.show("tokenizer.json"), source })?;
        inner.with_padding(None);

        let vocabulary = inner.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        // Ids are dense in every real tokenizer; one that is not must not make us reserve gigabytes.
        if size > vocabulary.len().saturating_mul(4).max(1 << 20) {
            let message = format!("{} tokens have ids up to {size}; ids should be dense", vocabulary.len());
            return Err(LoadError::Invalid { path: folder.show("tokenizer.json"), message });
        }
        let added = inner.get_added_tokens_decoder();
        let mut by_id: Vec<&str> = vec![""; size];
        for (token, &id) in &vocabulary {
            by_id[id as usize] = token;
        }
        let (mut bytes, mut starts) = (Vec::new(), Vec::with_capacity(size + 1));
        for (id, token) in by_id.iter().enumerate() {
            starts.push(bytes.len() as u32);
            match added.get(&(id as u32)) {
                Some(added) if added.special => {}
                // As the byte-level decoder has it: a token with a character outside the alphabet stands for itself.
                _ => bytes.extend(spelling.bytes(token)),
            }
        }
        starts.push(bytes.len() as u32);
        let eos = read_eos(folder, &inner)?;
        let mut by_byte = [None; 256];
        for byte in 0..=255 {
            by_byte[usize::from(byte)] = inner.token_to_id(&spelling.token(byte));
        }
        let whole = by_byte.iter().all(Option::is_some) && keeps_all(&inner, spelling);
        let spelled = added.values().map(|added| added.content.len());
        // A piece takes U+2581 for what it is, too.
        let pieces = vocabulary.keys().filter(|_| spelling == Spelling::Pieces).map(String::len);
        let spelled = spelled.chain(pieces);
        let longest = starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize).chain(spelled).max();
        let token_bytes_max = longest.filter(|_| whole);
        Ok(Tokenizer { inner, bytes, starts, by_byte, eos, token_bytes_max })
    }

    /// No token stands for more bytes of a text: so a text has at least its length by this many. `None` where the tokenizer
    /// may leave something of a text out.
    pub fn token_bytes_max(&self) -> Option<usize> {
        self.token_bytes_max
    }

    /// The tokens of a text, as Hugging Face's tokenizer gives them: special tokens are recognised where the text spells
    /// them.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_with(text, true)
    }

    /// The tokens of a prompt that a chat template wrote: it begins with what the template begins with, and with nothing else.
    pub(crate) fn encode_rendered(&self, text: &str) -> Vec<u32> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, begins: bool) -> Vec<u32> {
        match self.inner.encode_fast(text, begins) {
            Ok(encoding) => encoding.get_ids().to_vec(),
            // Only a splitting pattern that gives up on a pathological text fails; byte by byte is the same text.
            Err(_) => text.bytes().filter_map(|byte| self.byte_token(byte)).collect(),
        }
    }

    /// The bytes that a token stands for, which need not be whole characters; empty for special and unknown tokens.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        let id = token as usize;
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    /// One more than the highest id. A model's head may have more rows, never fewer.
    pub fn vocabulary(&self) -> usize {
        self.starts.len() - 1
    }

    /// The tokens that end a text.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The token of a single byte.
    pub fn byte_token(&self, byte: u8) -> Option<u32> {
        self.by_byte[usize::from(byte)]
    }

    /// The id of a token by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

/// The character by which a byte-level vocabulary writes each byte (`bytes_to_unicode` in OpenAI's gpt-2/src/encoder.py):
/// printable Latin-1 stands for itself, the other bytes for U+0100 and up in order.
static BYTE_CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut shifted = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte as u8),
        _ => shifted.next().expect("one for each unprintable byte"),
    })
});

/// The same, inverted.
static CHAR_BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| BYTE_CHARS.iter().copied().zip(0..=255).collect());

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// A character for each.
    ByteLevel,
    /// As text, with U+2581 for a space; what is in no piece as `<0x0A>`.
    Pieces,
}

/// SentencePiece's space.
const SPACE: char = '\u{2581}';

impl Spelling {
    /// What a decoder undoes.
    fn of(decoder: &DecoderWrapper) -> Option<Spelling> {
        match decoder {
            DecoderWrapper::ByteLevel(_) => Some(Spelling::ByteLevel),
            DecoderWrapper::ByteFallback(_) => Some(Spelling::Pieces),
            DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().find_map(Spelling::of),
            _ => None,
        }
    }

    /// The bytes that a token stands for.
    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            // As the byte-level decoder has it: a token with a character outside the alphabet stands for itself.
            Spelling::ByteLevel => {
                let own = token.chars().map(|c| CHAR_BYTES.get(&c).copied()).collect::<Option<Vec<u8>>>();
                own.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Spelling::Pieces => {
                let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|rest| rest.len() == 2);
                match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => token.replace(SPACE, " ").into_bytes(),
                }
            }
        }
    }

    /// The token of a byte.
    fn token(self, byte: u8) -> String {
        match self {
            Spelling::ByteLevel => BYTE_CHARS[usize::from(byte)].to_string(),
            Spelling::Pieces => format!("<0x{byte:02X}>"),
        }
    }
}

/// Whether every byte of a text comes to stand in one of its tokens, where each byte has a token of its own: nothing is
/// normalized, and no splitting and no special token swallows what is around it.
fn keeps_all(inner: &tokenizers::Tokenizer, spelling: Spelling) -> bool {
    fn keeps(pre_tokenizer: &PreTokenizerWrapper) -> bool {
        match pre_tokenizer {
            PreTokenizerWrapper::ByteLevel(_) | PreTokenizerWrapper::Digits(_) => true,
            PreTokenizerWrapper::Split(split) => split.behavior != SplitDelimiterBehavior::Removed,
            PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref().iter().all(keeps),
            _ => false,
        }
    }
    let bare = |bpe: &BPE| bpe.continuing_subword_prefix.is_none() && bpe.end_of_word_suffix.is_none();
    /// Whether it only writes spaces in another way.
    fn respells(normalizer: &NormalizerWrapper) -> bool {
        match normalizer {
            NormalizerWrapper::Prepend(_) => true,
            NormalizerWrapper::Replace(_) => serde_json::to_value(normalizer)
                .is_ok_and(|replace| replace["pattern"]["String"] == " " && replace["content"] == SPACE.to_string()),
            NormalizerWrapper::Sequence(sequence) => sequence.as_ref().iter().all(respells),
            _ => false,
        }
    }
    let (normalizer, splits) = (inner.get_normalizer(), inner.get_pre_tokenizer());
    let kept = match spelling {
        Spelling::ByteLevel => normalizer.is_none() && splits.is_some_and(keeps),
        Spelling::Pieces => normalizer.is_none_or(respells) && splits.is_none(),
    };
    kept && matches!(inner.get_model(), ModelWrapper::BPE(bpe) if bare(bpe) && bpe.byte_fallback == (spelling == Spelling::Pieces))
        && inner.get_added_tokens_decoder().values().all(|added| !added.lstrip && !added.rstrip)
}

/// The same, with its tokens side by side in memory. Reading leaves megabytes of holes between them, and an allocator gives
/// back only whole pages; another thread has memory of its own for the copy.
fn compact(inner: tokenizers::Tokenizer) -> tokenizers::Tokenizer {
    let copy = thread::scope(|scope| {
        let copy = thread::Builder::new().name("tokenizer".into()).spawn_scoped(scope, || inner.clone());
        copy.ok().and_then(|copy| copy.join().ok())
    });
    copy.unwrap_or(inner)
}

/// GPT-2's tokenizer from the files that OpenAI published: `{"token": id}`, and a pair per line in order of rank.
fn from_vocabulary(folder: &Folder) -> Result<tokenizers::Tokenizer, LoadError> {
    let hint = "copy tokenizer.json beside config.json, or vocab.json and merges.txt";
    let missing = |name: &str| LoadError::Missing { path: folder.show(name), hint };
    let (vocab, merges) = match (folder.read("vocab.json")?, folder.read_text("merges.txt")?) {
        (None, None) => return Err(missing("tokenizer.json")),
        (None, _) => return Err(missing("vocab.json")),
        (_, None) => return Err(missing("merges.txt")),
        (Some(vocab), Some(merges)) => (vocab, merges),
    };
    let invalid = |name: &str, message: String| LoadError::Invalid { path: folder.show(name), message };
    // Not by way of a JSON value: what that leaves behind in the heap lies between the tokens, and is never given back.
    let vocab: HashMap<String, u32> = serde_json::from_slice(&vocab).map_err(|source| match source.classify() {
        Category::Data => invalid("vocab.json", format!("should map tokens to ids ({source}); fetch it again")),
        _ => LoadError::Json { path: folder.show("vocab.json"), source },
    })?;
    let mut pairs: Merges = Vec::new();
    for (number, line) in merges.lines().enumerate() {
        // The first line may be a version comment; no rank is a single word, and none is empty.
        if line.is_empty() || number == 0 && line.starts_with("#version") {
            continue;
        }
        let pair = line.split_once(' ').filter(|(_, right)| !right.contains(' '));
        let Some((left, right)) = pair else {
            let message = format!("line {} should be two tokens with a space between; fetch it again", number + 1);
            return Err(invalid("merges.txt", message));
        };
        pairs.push((left.into(), right.into()));
    }
    let refused = |source| LoadError::Tokenizer { path: folder.show("vocab.json"), source };
    let specials: Vec<&str> = ["<|endoftext|>"].into_iter().filter(|token| vocab.contains_key(*token)).collect();
    let model = BPE::builder().vocab_and_merges(vocab.into_iter().collect::<Vocab>(), pairs).build().map_err(refused)?;
    let mut inner = tokenizers::Tokenizer::new(ModelWrapper::BPE(model));
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    inner.add_special_tokens(specials.into_iter().map(|token| AddedToken::from(token, true))).map_err(refused)?;
    Ok(inner)
}

/// The union of what generation_config.json, config.json and tokenizer_config.json call the end: fine-tunes often correct
/// only one of them.
fn read_eos(folder: &Folder, inner: &tokenizers::Tokenizer) -> Result<Vec<u32>, LoadError> {
    let mut eos = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        let Some(config) = folder.read_json(name)? else { continue };
        match config.get("eos_token_id") {
            Some(Value::Array(ids)) => eos.extend(ids.iter().filter_map(as_id)),
            Some(id) => eos.extend(as_id(id)),
            None => {}
        }
    }
    if let Some(config) = folder.read_json("tokenizer_config.json")? {
        let text = config.get("eos_token").and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
        eos.extend(text.and_then(|text| inner.token_to_id(text)));
    }
    if eos.is_empty() {
        eos.extend(inner.token_to_id("<|endoftext|>"));
    }
    eos.sort_unstable();
    eos.dedup();
    Ok(eos)
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(files: &[(&str, &str)]) -> Result<Tokenizer, LoadError> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Tokenizer::open(&Folder::from(folder.path()))
    }

    fn refused(files: &[(&str, &str)]) -> String {
        match open(files) {
            Ok(_) => panic!("should be refused"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn tokens_give_back_the_bytes_of_their_text() {
        let tokenizer = Tokenizer::open(&Folder::Bundled).unwrap();
        for text in ["Once upon a time", " é😀\u{0}\n\t", "", "مرحبا 日本"] {
            let bytes: Vec<u8> = tokenizer.encode(text).iter().flat_map(|&token| tokenizer.token_bytes(token)).copied().collect();
            assert_eq!(bytes, text.as_bytes());
        }
        assert_eq!(tokenizer.vocabulary(), 4096);
        assert_eq!(tokenizer.eos(), [0]);
        assert_eq!(tokenizer.token_bytes(0), b"");
        assert_eq!(tokenizer.token_bytes(u32::MAX), b"");
        assert_eq!(tokenizer.encode("<|endoftext|>"), [0]);
    }

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let mut bytes: Vec<u8> = CHAR_BYTES.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!((CHAR_BYTES[&'Ġ'], CHAR_BYTES[&'Ċ'], CHAR_BYTES[&'!']), (b' ', b'\n', b'!'));
    }

    #[test]
    fn absurdly_long_runs_are_encoded_whole() {
        let tokenizer = Tokenizer::open(&Folder::Bundled).unwrap();
        for text in [" ".repeat(200_000) + "x", "a".repeat(200_000), "\n".repeat(100_000), "é ".repeat(100_000)] {
            let bytes: Vec<u8> =
                tokenizer.encode(&text).iter().flat_map(|&token| tokenizer.token_bytes(token)).copied().collect();
            assert!(bytes == text.as_bytes(), "{} bytes of {}", bytes.len(), text.len());
        }
    }

    #[test]
    fn a_text_has_as_many_tokens_as_its_length_by_the_longest() {
        let tokenizer = Tokenizer::open(&Folder::Bundled).unwrap();
        let longest = tokenizer.token_bytes_max().expect("GPT-2's way of splitting leaves nothing out");
        assert!(longest >= "<|endoftext|>".len(), "special tokens count as they are spelled");
        let texts = ["<|endoftext|>".repeat(50), "Once upon a time, there was a little girl. ".repeat(20), " \n".repeat(99)];
        for text in texts {
            assert!(tokenizer.encode(&text).len() >= text.len().div_ceil(longest), "{text}");
        }
        let small = |change: [&str; 2]| {
            let json = SMALL.replace(change[0], change[1]);
            open(&[("tokenizer.json", json.as_str())]).unwrap().token_bytes_max()
        };
        assert_eq!(small(["", ""]), None, "most bytes have no token, and are left out");
    }

    #[test]
    fn a_tokenizer_that_may_leave_something_out_gives_no_bound() {
        let bundled = Folder::Bundled.read("tokenizer.json").unwrap().unwrap();
        let with = |change: fn(&mut Value)| {
            let mut json: Value = serde_json::from_slice(&bundled).unwrap();
            change(&mut json);
            open(&[("tokenizer.json", json.to_string().as_str())]).unwrap().token_bytes_max()
        };
        assert!(with(|_| ()).is_some());
        assert_eq!(with(|json| json["normalizer"] = serde_json::json!({"type": "NFC"})), None);
        assert_eq!(with(|json| json["added_tokens"][0]["rstrip"] = true.into()), None);
        assert_eq!(with(|json| json["pre_tokenizer"] = serde_json::json!({"type": "WhitespaceSplit"})), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(refused(&[]).contains("tokenizer.json is missing"));
        assert!(refused(&[("vocab.json", "{}")]).contains("merges.txt is missing"));
        assert!(refused(&[("merges.txt", "")]).contains("vocab.json is missing"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert!(refused(&[("tokenizer.json", "{")]).contains("tokenizer.json is not valid JSON"));
        assert!(refused(&[("tokenizer.json", "{}")]).contains("tokenizer.json is no tokenizer"));
        assert!(refused(&[("vocab.json", "[1]"), ("merges.txt", "")]).contains("vocab.json: should map tokens to ids"));
        assert!(refused(&[("vocab.json", r#"{"a": 0}"#), ("merges.txt", "a\n")]).contains("merges.txt: line 1"));
        assert!(refused(&[("vocab.json", r#"{"a": 0}"#), ("merges.txt", "a b\n")]).contains("is no tokenizer"));
        assert!(refused(&[("vocab.json", r#"{"a": 4000000000}"#), ("merges.txt", "")]).contains("dense"));
        let words = r#"{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;
        assert!(refused(&[("tokenizer.json", words)]).contains("byte-level BPE"));
    }

    #[test]
    fn the_end_of_text_is_the_union_of_what_the_files_say() {
        let files = [
            ("vocab.json", r#"{"a": 0, "<|endoftext|>": 1, "<|im_end|>": 2}"#),
            ("merges.txt", "#version: 0.2\n"),
            ("config.json", r#"{"eos_token_id": 1}"#),
            ("generation_config.json", r#"{"eos_token_id": [1, 2]}"#),
            ("tokenizer_config.json", r#"{"eos_token": {"content": "a"}}"#),
        ];
        assert_eq!(open(&files).unwrap().eos(), [0, 1, 2]);
        assert_eq!(open(&files[..2]).unwrap().eos(), [1]);
    }

    proptest::proptest! {
        #[test]
        fn mutilated_files_never_panic(cut in 0usize..20_000, at in 0usize..20_000, byte in proptest::prelude::any::<u8>()) {
            // A small tokenizer: the first hundred tokens of GPT-2's alphabet.
            let mut bytes = SMALL.as_bytes().to_vec();
            let place = at % bytes.len();
            bytes[place] = byte;
            bytes.truncate(bytes.len().min(cut.max(1)));
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("tokenizer.json"), &bytes).unwrap();
            if let Ok(tokenizer) = Tokenizer::open(&Folder::from(folder.path())) {
                for token in tokenizer.encode("ab ba <|e|> \u{e9}") {
                    tokenizer.token_bytes(token);
                }
            }
        }
    }

    const SMALL: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":4,"content":"<|e|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":false,"use_regex":true},"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"a":0,"b":1,"ab":2,"Ġ":3,"<|e|>":4},"merges":[["a","b"]]}}"#;
}
