//! Files made for tests, and a whole model from one.

use std::path::Path;

use crate::{Checkpoint, DeviceChoice, Dtype, Folder, LoadOptions, Model, Progress, Source, Tokenizer};

/// A GGUF file in the making.
pub(super) struct File {
    pairs: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<(String, u32, Vec<usize>, Vec<u8>)>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl File {
    pub(super) fn new() -> File {
        File { pairs: Vec::new(), tensors: Vec::new() }
    }

    /// One of each kind of thing.
    pub(super) fn small() -> File {
        File::new()
            .text("general.architecture", "llama")
            .number("llama.block_count", 1)
            .float("llama.rope.freq_base", 1e4)
            .flag("flag", true)
            .texts("tokenizer.ggml.tokens", &["a", "b", "ab"])
            .numbers("tokenizer.ggml.token_type", &[1, 1, 3])
            .tensor("token_embd.weight", 0, &[3, 2], &[0; 24])
            .tensor("blk.0.attn_q.weight", 8, &[2, 32], &[0; 68])
    }

    pub(super) fn pair(mut self, key: &str, kind: u32, value: Vec<u8>) -> File {
        self.pairs.push((key.into(), kind, value));
        self
    }

    pub(super) fn text(self, key: &str, value: &str) -> File {
        self.pair(key, 8, text(value))
    }

    pub(super) fn number(self, key: &str, value: u32) -> File {
        self.pair(key, 4, value.to_le_bytes().to_vec())
    }

    pub(super) fn float(self, key: &str, value: f32) -> File {
        self.pair(key, 6, value.to_le_bytes().to_vec())
    }

    pub(super) fn flag(self, key: &str, value: bool) -> File {
        self.pair(key, 7, vec![value.into()])
    }

    fn list(self, key: &str, kind: u32, count: usize, values: Vec<u8>) -> File {
        let head = [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
        self.pair(key, 9, [head, values].concat())
    }

    pub(super) fn texts(self, key: &str, values: &[&str]) -> File {
        self.list(key, 8, values.len(), values.iter().flat_map(|value| text(value)).collect())
    }

    pub(super) fn numbers(self, key: &str, values: &[i32]) -> File {
        self.list(key, 5, values.len(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub(super) fn floats(self, key: &str, values: &[f32]) -> File {
        self.list(key, 6, values.len(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// `dims` as Hugging Face has them: the last one the nearest.
    pub(super) fn tensor(mut self, name: &str, kind: u32, dims: &[usize], bytes: &[u8]) -> File {
        self.tensors.push((name.into(), kind, dims.to_vec(), bytes.to_vec()));
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.pairs {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut data: Vec<u8> = Vec::new();
        for (name, kind, dims, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().rev().for_each(|dim| out.extend((*dim as u64).to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        let end = self.tensors.last().map_or(0, |(.., bytes)| bytes.len().next_multiple_of(32) - bytes.len());
        data.truncate(data.len() - end);
        out.resize(out.len().next_multiple_of(32), 0);
        [out, data].concat()
    }

    pub(super) fn write(&self, folder: &Path) -> Folder {
        let path = folder.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        Folder::Gguf(path)
    }
}

fn tokenizer(file: File) -> Result<Tokenizer, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = file
        .text("general.architecture", "gpt2")
        .number("gpt2.block_count", 1)
        .number("gpt2.context_length", 4)
        .number("gpt2.embedding_length", 2)
        .number("gpt2.feed_forward_length", 3)
        .number("gpt2.attention.head_count", 1)
        .tensor("token_embd.weight", 0, &[1, 1], &[0; 4]);
    Tokenizer::open(&file.write(folder.path())).map_err(|error| error.to_string())
}

/// The bundled model as llama.cpp's converter would write it.
fn bundled() -> File {
    let checkpoint = Checkpoint::open(&Folder::Bundled).unwrap();
    let size = |name: &str| checkpoint.config()[name].as_u64().unwrap() as u32;
    let tokenizer = Folder::Bundled.read_json("tokenizer.json").unwrap().unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<&str> = vec![""; vocabulary.len()];
    vocabulary.iter().for_each(|(token, id)| tokens[id.as_u64().unwrap() as usize] = token);
    let merge = |merge: &serde_json::Value| match merge.as_str() {
        Some(merge) => merge.to_owned(),
        None => format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()),
    };
    let merges: Vec<String> = tokenizer["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    let types: Vec<i32> = (0..tokens.len()).map(|id| if id == 0 { 3 } else { 1 }).collect();
    let mut file = File::new()
        .text("general.architecture", "gpt2")
        .number("gpt2.block_count", size("n_layer"))
        .number("gpt2.context_length", size("n_positions"))
        .number("gpt2.embedding_length", size("n_embd"))
        .number("gpt2.feed_forward_length", 4 * size("n_embd"))
        .number("gpt2.attention.head_count", size("n_head"))
        .float("gpt2.attention.layer_norm_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts("tokenizer.ggml.tokens", &tokens)
        .numbers("tokenizer.ggml.token_type", &types)
        .texts("tokenizer.ggml.merges", &merges.iter().map(String::as_str).collect::<Vec<_>>())
        .number("tokenizer.ggml.eos_token_id", 0);
    let parts = [
        ("wte", "token_embd"),
        ("wpe", "position_embd"),
        ("ln_f", "output_norm"),
        ("h.", "blk."),
        ("ln_1", "attn_norm"),
        ("attn.c_attn", "attn_qkv"),
        ("attn.c_proj", "attn_output"),
        ("ln_2", "ffn_norm"),
        ("mlp.c_fc", "ffn_up"),
        ("mlp.c_proj", "ffn_down"),
    ];
    for name in checkpoint.names() {
        let (mut dims, mut floats) = (checkpoint.shape(name).unwrap(), checkpoint.stored(name).unwrap().floats());
        if name.contains(".c_") && name.ends_with("weight") {
            let (rows, columns) = (dims[0], dims[1]);
            floats = (0..rows * columns).map(|at| floats[at % rows * columns + at / rows]).collect();
            dims.reverse();
        }
        let there = parts.iter().fold(name.to_owned(), |name, (here, there)| name.replace(here, there));
        let bytes: Vec<u8> = floats.iter().flat_map(|value| value.to_le_bytes()).collect();
        file = file.tensor(&there, 0, &dims, &bytes);
    }
    file
}

#[test]
fn a_model_computes_the_same_bits_from_a_gguf_file_as_from_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, bundled().bytes()).unwrap();
    for dtype in [Dtype::F32, Dtype::Q8] {
        let options = LoadOptions { device: DeviceChoice::Cpu, dtype, ..LoadOptions::default() };
        let [folders, files] = [Source::bundled(), Source::from_file(&path)].map(|source| {
            let model = Model::load(&source, &options, &Progress::silent()).unwrap();
            let tokens = model.tokenizer.encode("Once upon a time, there was a 3 year old girl.");
            (model.logits(&tokens, 8, 2).unwrap(), tokens)
        });
        assert!(folders == files, "{dtype}");
    }
}

#[test]
fn tensors_have_the_names_and_shapes_of_their_family() {
    let folder = tempfile::tempdir().unwrap();
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let file = File::new()
        .text("general.architecture", "gpt2")
        .number("gpt2.block_count", 1)
        .number("gpt2.context_length", 4)
        .number("gpt2.embedding_length", 2)
        .number("gpt2.feed_forward_length", 3)
        .number("gpt2.attention.head_count", 1)
        .tensor("token_embd.weight", 0, &[3, 2], &floats(&[0.0; 6]))
        .tensor("blk.0.ffn_up.weight", 0, &[3, 2], &floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
        .tensor("blk.0.ffn_up.bias", 0, &[3], &floats(&[7.0, 8.0, 9.0]))
        .write(folder.path());
    let checkpoint = Checkpoint::open(&file).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["h.0.mlp.c_fc.bias", "h.0.mlp.c_fc.weight", "wte.weight"]);
    assert_eq!(checkpoint.shape("h.0.mlp.c_fc.weight").unwrap(), [2, 3]);
    assert_eq!(checkpoint.stored("h.0.mlp.c_fc.weight").unwrap().floats(), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
    assert_eq!(checkpoint.stored("h.0.mlp.c_fc.bias").unwrap().floats(), [7.0, 8.0, 9.0]);
    assert_eq!(checkpoint.config()["n_inner"], 3);
}

#[test]
fn queries_and_keys_of_a_llama_come_apart_again() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<u8> = (0..4u8).flat_map(|row| f32::from(row).to_le_bytes()).collect();
    let file = File::new()
        .text("general.architecture", "llama")
        .number("llama.block_count", 1)
        .number("llama.context_length", 4)
        .number("llama.embedding_length", 4)
        .number("llama.feed_forward_length", 3)
        .number("llama.attention.head_count", 1)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .tensor("token_embd.weight", 0, &[1, 1], &[0; 4])
        .tensor("blk.0.attn_q.weight", 0, &[4, 1], &rows)
        .tensor("blk.0.attn_v.weight", 0, &[4, 1], &rows)
        .write(folder.path());
    let checkpoint = Checkpoint::open(&file).unwrap();
    let floats = |name: &str| checkpoint.stored(name).unwrap().floats();
    assert_eq!(floats("model.layers.0.self_attn.q_proj.weight"), [0.0, 2.0, 1.0, 3.0]);
    assert_eq!(floats("model.layers.0.self_attn.v_proj.weight"), [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn a_byte_level_vocabulary_becomes_a_tokenizer() {
    let file = || {
        File::new()
            .text("tokenizer.ggml.model", "gpt2")
            .texts("tokenizer.ggml.tokens", &["1", "a", "b", "ab", "11", "<s>", "<tool>"])
            .numbers("tokenizer.ggml.token_type", &[1, 1, 1, 1, 1, 3, 4])
            .texts("tokenizer.ggml.merges", &["a b", "1 1"])
            .number("tokenizer.ggml.bos_token_id", 5)
    };
    let plain = tokenizer(file()).unwrap();
    assert_eq!(plain.encode("ab11<s><tool>"), [3, 4, 5, 6]);
    assert_eq!((plain.token_bytes(5), plain.token_bytes(6)), (&b""[..], &b"<tool>"[..]));
    let smollm = tokenizer(file().text("tokenizer.ggml.pre", "smollm").flag("tokenizer.ggml.add_bos_token", true)).unwrap();
    assert_eq!(smollm.encode("ab11"), [5, 3, 0, 0]);
    for pre in ["gpt-2", "llama-bpe", "qwen2"] {
        assert_eq!(tokenizer(file().text("tokenizer.ggml.pre", pre)).unwrap().encode("ab").last(), Some(&3), "{pre}");
    }
    assert!(tokenizer(file().text("tokenizer.ggml.pre", "tekken")).err().unwrap().contains("tekken"));
}

#[test]
fn a_sentence_piece_vocabulary_becomes_a_tokenizer() {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut tokens = vec!["<unk>", "<s>", "</s>"];
    tokens.extend(bytes.iter().map(String::as_str));
    tokens.extend(["\u{2581}", "a", "b", "\u{2581}a", "ab", "\u{2581}ab"]);
    let types: Vec<i32> = [2, 3, 3].into_iter().chain([6; 256]).chain([1; 6]).collect();
    // `ab` before `▁a`, and both before the whole.
    let scores: Vec<f32> = [0.0; 262].into_iter().chain([-2.0, -1.0, -3.0]).collect();
    let file = || {
        File::new()
            .text("tokenizer.ggml.model", "llama")
            .texts("tokenizer.ggml.tokens", &tokens)
            .numbers("tokenizer.ggml.token_type", &types)
            .floats("tokenizer.ggml.scores", &scores)
            .number("tokenizer.ggml.bos_token_id", 1)
            .number("tokenizer.ggml.eos_token_id", 2)
            .number("tokenizer.ggml.unknown_token_id", 0)
    };
    let [space, a, whole] = [259, 260, 264];
    let tokenizer_of = |file: File| tokenizer(file).unwrap();
    let it = tokenizer_of(file());
    assert_eq!(it.encode("ab a"), [1, whole, 262]);
    assert_eq!(it.encode("é\n"), [1, space, 3 + 0xC3, 3 + 0xA9, 3 + 0x0A]);
    assert_eq!((it.token_bytes(262), it.token_bytes(3 + 0xC3), it.token_bytes(2)), (&b" a"[..], &[0xC3][..], &b""[..]));
    assert_eq!((it.byte_token(b'\n'), it.eos()), (Some(13), &[2][..]));
    assert_eq!(it.token_bytes_max(), Some(6));
    let bare = file().flag("tokenizer.ggml.add_bos_token", false).flag("tokenizer.ggml.add_space_prefix", false);
    assert_eq!(tokenizer_of(bare).encode("a"), [a]);
}

#[test]
fn what_is_no_vocabulary_is_named() {
    let refused = |file: File| tokenizer(file).err().unwrap();
    assert!(refused(File::new()).contains("tokenizer.ggml.tokens"));
    let file = || File::new().texts("tokenizer.ggml.tokens", &["a"]);
    assert!(refused(file()).contains("tokenizer.ggml.model"));
    assert!(refused(file().text("tokenizer.ggml.model", "t5")).contains("t5"));
    assert!(refused(file().text("tokenizer.ggml.model", "gpt2")).contains("merges"));
    assert!(refused(file().text("tokenizer.ggml.model", "llama")).contains("scores"));
    let gpt2 = || file().text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.merges", &[]);
    assert!(refused(gpt2().numbers("tokenizer.ggml.token_type", &[1, 1])).contains("2 types"));
    assert!(refused(gpt2().number("tokenizer.ggml.bos_token_id", 7)).contains("token 7"));
}

proptest::proptest! {
    #[test]
    fn mutilated_files_never_panic(
        cut in proptest::option::of(0usize..600),
        changes in proptest::collection::vec((0usize..600, proptest::prelude::any::<u8>()), 0..4),
    ) {
        let mut bytes = File::small()
            .text("tokenizer.ggml.model", "llama")
            .floats("tokenizer.ggml.scores", &[0.0, 1.0, 2.0])
            .bytes();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(cut.unwrap_or(usize::MAX).min(bytes.len()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, &bytes).unwrap();
        let folder = Folder::Gguf(path);
        if let Ok(checkpoint) = Checkpoint::open(&folder) {
            for name in checkpoint.names() {
                let _ = checkpoint.stored(name).map(|stored| stored.floats());
            }
        }
        let _ = Tokenizer::open(&folder);
    }
}
