//! The vocabulary in the metadata to tokenizer.json and tokenizer_config.json.
//!
//! `gpt2` is byte-level BPE with merges, `llama` is SentencePiece's BPE with scores; how texts are split before that has a
//! name in `tokenizer.ggml.pre`, and means what llama-vocab.cpp of llama.cpp and the models' own tokenizers make of it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::read::{self, Header};

/// Types of tokens (`llama_token_type`) that matter here.
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const BYTE: i128 = 6;
/// Neither a byte, nor unknown, nor unused.
const NORMAL: i128 = 1;

/// No known tokenizer has a tenth of it.
const TOKENS_MAX: usize = 1 << 22;

/// Longer pieces are no result of SentencePiece's training, and looking for their parts would take its square.
const PIECE_CHARS_MAX: usize = 256;

/// Control tokens that end a turn, where metadata name only what ends a text.
const TURN_ENDS: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>"];

/// GPT-2's way of splitting is the byte-level pre-tokenizer's own; these are others'.
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A vocabulary as it lies there.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i128>,
}

/// tokenizer.json.
pub(super) fn tokenizer(header: &Header<'_>) -> Result<Value, String> {
    let vocabulary = Vocabulary::read(header)?;
    let (model, split) = match header.text("tokenizer.ggml.model")? {
        Some("gpt2") => {
            let split = Split::of(header)?;
            (byte_level(header, &vocabulary, &split)?, split)
        }
        Some("llama") => {
            let split = Split { by: sentence_piece_parts(header)?, begins: true, ignores_merges: false };
            (sentence_piece(header, &vocabulary)?, split)
        }
        Some(other) => {
            return Err(format!(
                "has a tokenizer of the kind {other:?}, and this version reads \"gpt2\" (byte-level BPE) and \"llama\" \
                 (SentencePiece) from GGUF: use the model's folder in Hugging Face layout"
            ));
        }
        None => return Err("has no tokenizer (tokenizer.ggml.model): convert the model again".into()),
    };
    let begins = header.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(split.begins);
    let bos = header.whole("tokenizer.ggml.bos_token_id")?;
    let mut json = Map::new();
    json.insert("version".into(), "1.0".into());
    json.insert("added_tokens".into(), vocabulary.added());
    json.extend(split.by);
    json.insert(
        "post_processor".into(),
        match bos.filter(|_| begins) {
            Some(bos) => begin_with(vocabulary.token(bos)?, bos),
            None => Value::Null,
        },
    );
    json.insert("model".into(), model);
    Ok(Value::Object(json))
}

/// tokenizer_config.json: the chat template and what it may name.
pub(super) fn settings(header: &Header<'_>) -> Result<Value, String> {
    let vocabulary = Vocabulary::read(header)?;
    let mut settings = Map::new();
    for (name, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")] {
        if let Some(id) = header.whole(&format!("tokenizer.ggml.{key}_token_id"))? {
            settings.insert(name.into(), vocabulary.token(id)?.into());
        }
    }
    if let Some(template) = header.text("tokenizer.chat_template")? {
        settings.insert("chat_template".into(), template.into());
    }
    Ok(Value::Object(settings))
}

/// The tokens that end a text or a turn.
pub(super) fn ends(header: &Header<'_>) -> Result<Vec<u64>, String> {
    let mut ends = Vec::new();
    for key in ["eos", "eot", "eom"] {
        ends.extend(header.whole(&format!("tokenizer.ggml.{key}_token_id"))?);
    }
    if header.get("tokenizer.ggml.tokens").is_some() {
        let vocabulary = Vocabulary::read(header)?;
        let turns = vocabulary.of_type(CONTROL).filter(|(_, token)| TURN_ENDS.contains(token));
        ends.extend(turns.map(|(id, _)| id as u64));
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

impl<'a> Vocabulary<'a> {
    fn read(header: &Header<'a>) -> Result<Vocabulary<'a>, String> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        let tokens = header.list(TOKENS)?.ok_or_else(|| format!("has no tokenizer ({TOKENS}): convert the model again"))?;
        if tokens.len() > TOKENS_MAX {
            return Err(format!("has {} tokens, and {TOKENS_MAX} are the most", tokens.len()));
        }
        let tokens = tokens.texts().map_err(|error| format!("{TOKENS} {error}"))?;
        let types = match header.list("tokenizer.ggml.token_type")? {
            Some(types) => types.values().map(|value| if let read::Value::Whole(kind) = value { kind } else { NORMAL }).collect(),
            None => vec![NORMAL; tokens.len()],
        };
        if types.len() != tokens.len() {
            return Err(format!("has {} tokens and {} types of tokens: convert the model again", tokens.len(), types.len()));
        }
        Ok(Vocabulary { tokens, types })
    }

    fn token(&self, id: u64) -> Result<&'a str, String> {
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        token.copied().ok_or_else(|| format!("names token {id} and has {} tokens", self.tokens.len()))
    }

    fn of_type(&self, kind: i128) -> impl Iterator<Item = (usize, &'a str)> {
        self.tokens
            .iter()
            .zip(&self.types)
            .enumerate()
            .filter(move |(_, (_, is))| **is == kind)
            .map(|(id, (token, _))| (id, *token))
    }

    fn ids(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect()
    }

    /// What is found in a text before anything else.
    fn added(&self) -> Value {
        let added = |special: bool| {
            move |(id, token): (usize, &str)| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                    "special": special,
                })
            }
        };
        let mut all: Vec<Value> =
            self.of_type(CONTROL).map(added(true)).chain(self.of_type(USER_DEFINED).map(added(false))).collect();
        all.retain(|token| token["content"] != "");
        Value::Array(all)
    }
}

/// What happens to a text before and after the model.
struct Split {
    /// `normalizer`, `pre_tokenizer` and `decoder`.
    by: Map<String, Value>,
    /// Whether texts begin with a token of their own, unless metadata say otherwise.
    begins: bool,
    /// Whether a whole word that is a token is taken as it is.
    ignores_merges: bool,
}

impl Split {
    /// By the name in the metadata. A file from before there were names is of GPT-2's kind.
    fn of(header: &Header<'_>) -> Result<Split, String> {
        let bytes =
            |by_words: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": by_words});
        let first = |pattern: &str| {
            let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
        };
        let (normalizer, pre_tokenizer, llama3) = match header.text("tokenizer.ggml.pre")?.unwrap_or("default") {
            "default" | "gpt-2" => (Value::Null, bytes(true), false),
            "smollm" => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                (Value::Null, json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}), false)
            }
            "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, first(LLAMA3), true),
            "qwen2" | "deepseek-r1-qwen" => (json!({"type": "NFC"}), first(QWEN2), false),
            other => {
                return Err(format!(
                    "splits texts in the way {other:?}, and this version knows gpt-2, smollm, llama-bpe and qwen2 from GGUF: \
                     use the model's folder in Hugging Face layout"
                ));
            }
        };
        let by = json!({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": bytes(true)});
        Ok(Split { by: by.as_object().expect("an object").clone(), begins: llama3, ignores_merges: llama3 })
    }
}

fn byte_level(header: &Header<'_>, vocabulary: &Vocabulary<'_>, split: &Split) -> Result<Value, String> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let merges = header.list(MERGES)?.ok_or_else(|| format!("has no {MERGES}: convert the model again"))?;
    let merges = merges.texts().map_err(|error| format!("{MERGES} {error}"))?;
    let pairs: Option<Vec<Value>> = merges.iter().map(|merge| merge.split_once(' ').map(|(a, b)| json!([a, b]))).collect();
    let pairs = pairs.ok_or_else(|| format!("{MERGES} should be pairs with a space between: convert the model again"))?;
    Ok(bpe(json!({"ignore_merges": split.ignores_merges, "vocab": vocabulary.ids(), "merges": pairs})))
}

/// Scores say what is joined first. A pair has a rank of its own in tokenizer.json, so every way to make a piece of two others
/// becomes one, in the order of the pieces' scores (as transformers' converter has it).
fn sentence_piece(header: &Header<'_>, vocabulary: &Vocabulary<'_>) -> Result<Value, String> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = header.list(SCORES)?.ok_or_else(|| format!("has no {SCORES}: convert the model again"))?;
    let scores = scores.values().map(|value| match value {
        read::Value::Float(score) if score.is_finite() => Ok(score),
        _ => Err(format!("{SCORES} should be a list of numbers")),
    });
    let scores = scores.collect::<Result<Vec<f64>, String>>()?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(format!("has {} tokens and {} scores: convert the model again", vocabulary.tokens.len(), scores.len()));
    }
    let pieces: HashMap<&str, usize> = vocabulary.of_type(NORMAL).map(|(id, token)| (token, id)).collect();
    let mut merges = Vec::new();
    for (id, piece) in vocabulary.of_type(NORMAL) {
        for (at, _) in piece.char_indices().skip(1).take(PIECE_CHARS_MAX) {
            let (left, right) = piece.split_at(at);
            if let (Some(a), Some(b)) = (pieces.get(left), pieces.get(right)) {
                merges.push((scores[id], id, *a, *b, left, right));
            }
        }
    }
    let key = |merge: &(f64, usize, usize, usize, &str, &str)| (merge.1, merge.2, merge.3);
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| key(a).cmp(&key(b))));
    let pairs: Vec<Value> = merges.iter().map(|(.., left, right)| json!([left, right])).collect();
    let unknown = match header.whole("tokenizer.ggml.unknown_token_id")? {
        Some(id) => Some(vocabulary.token(id)?),
        None => None,
    };
    let bytes = vocabulary.of_type(BYTE).next().is_some();
    Ok(bpe(json!({
        "unk_token": unknown, "fuse_unk": true, "byte_fallback": bytes, "vocab": vocabulary.ids(), "merges": pairs,
    })))
}

/// SentencePiece writes a space as U+2581, and one more before the first word.
fn sentence_piece_parts(header: &Header<'_>) -> Result<Map<String, Value>, String> {
    let first = header.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if first {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let parts = json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
    });
    Ok(parts.as_object().expect("an object").clone())
}

/// A BPE model in which nothing is out of the ordinary but `with`.
fn bpe(with: Value) -> Value {
    let mut model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
    });
    if let (Value::Object(model), Value::Object(with)) = (&mut model, with) {
        model.extend(with);
    }
    model
}

/// Every text begins with a token.
fn begin_with(token: &str, id: u64) -> Value {
    let special = |of: u32| json!({"SpecialToken": {"id": token, "type_id": of}});
    let sequence = |name: &str, of: u32| json!({"Sequence": {"id": name, "type_id": of}});
    let mut tokens = Map::new();
    tokens.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
    json!({
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": tokens,
    })
}
