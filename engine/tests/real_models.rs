//! Agreement with Hugging Face's libraries on checkpoints and tokenizers of others, which are not in the repository.

#[path = "golden/embeddings.rs"]
mod embeddings;
#[path = "golden/logits.rs"]
mod logits;
#[path = "golden/splitmix.rs"]
mod splitmix;
#[path = "golden/strings.rs"]
mod strings;
#[path = "golden/tokenizer.rs"]
mod tokenizer;

use std::path::PathBuf;

use banyan_engine::{Folder, Source};

#[test]
fn a_trained_models_logits_agree_with_transformers() {
    let mgm = folder("mgm");
    // It has no tokenizer that is one; the logits are of tokens.
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(mgm.join(file), folder.path().join(file)).expect("a file that can be copied");
    }
    logits::with_bundled_tokenizer(folder.path());
    let source = Source::from_folder(folder.path()).expect("a model's folder");
    logits::agrees(&source, include_str!("golden/logits-mgm.json"));
    embeddings::agrees(&source, include_str!("golden/embeddings-mgm.json"));
}

#[test]
fn a_small_llamas_logits_and_stories_agree_with_transformers() {
    let source = Source::from_folder(&folder("stories15M")).expect("a model's folder");
    logits::agrees(&source, include_str!("golden/logits-stories15M.json"));
}

#[test]
fn a_llama_cpp_files_logits_and_chat_agree_with_transformers() {
    let file = folder("smollm2").join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let source = Source::from_file(&file);
    logits::agrees(&source, include_str!("golden/logits-smollm2.json"));
    embeddings::agrees(&source, include_str!("golden/embeddings-smollm2.json"));
}

#[test]
fn gpt2s_tokenizer_agrees_with_hugging_faces() {
    tokenizer::agrees(&Folder::Disk(folder("gpt2-tokenizer")), include_str!("golden/tokenizer-gpt2.json"));
}

#[test]
fn gpt2s_vocabulary_and_merges_give_the_same_tokenizer() {
    let files = tempfile::tempdir().expect("a folder for temporary files");
    for name in ["vocab.json", "merges.txt"] {
        std::fs::copy(folder("gpt2-tokenizer").join(name), files.path().join(name)).expect("a file that can be copied");
    }
    tokenizer::agrees(&Folder::from(files.path()), include_str!("golden/tokenizer-gpt2.json"));
}

#[test]
fn the_tokenizer_in_a_gguf_file_agrees_with_hugging_faces() {
    let file = folder("smollm2").join("SmolLM2-135M-Instruct.Q4_1.gguf");
    tokenizer::agrees(Source::from_file(&file).folder(), include_str!("golden/tokenizer-smollm2.json"));
}

#[test]
fn a_sentence_piece_tokenizer_agrees_with_hugging_faces() {
    tokenizer::agrees(&Folder::Disk(folder("stories15M")), include_str!("golden/tokenizer-stories15M.json"));
}

/// A model's folder in the one that BANYAN_TEST_MODELS names.
fn folder(name: &str) -> PathBuf {
    let models = std::env::var_os("BANYAN_TEST_MODELS").map(PathBuf::from);
    let models = models.expect("run engine/golden/fetch.sh DIR, and set BANYAN_TEST_MODELS=DIR");
    let folder = models.join(name);
    assert!(folder.is_dir(), "{} is missing: run engine/golden/fetch.sh {}", folder.display(), models.display());
    folder
}
