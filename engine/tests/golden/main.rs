//! Agreement with Hugging Face's libraries, by what golden/make.py wrote of them: whatever needs no other checkpoint than
//! the bundled one. `real_models.rs` has the rest.

mod embeddings;
mod logits;
mod splitmix;
mod strings;
mod template;
mod tokenizer;
mod weights;

use banyan_engine::{Folder, Source};
use serde_json::Value;

#[test]
fn the_bundled_models_logits_agree_with_transformers() {
    logits::agrees(&Source::bundled(), include_str!("logits-banyan-tiny.json"));
}

#[test]
fn embeddings_are_the_means_of_transformers_last_hidden_states() {
    embeddings::agrees(&Source::bundled(), include_str!("embeddings-banyan-tiny.json"));
    let variants: Value = serde_json::from_str(include_str!("llama-variants.json")).expect("configurations");
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    weights::write_random_llama(folder.path(), &variants["qwen3"]).expect("room for a few megabytes");
    logits::with_bundled_tokenizer(folder.path());
    embeddings::agrees(&Source::from_folder(folder.path()).expect("a model's folder"), include_str!("embeddings-qwen3.json"));
}

#[test]
fn random_weights_of_gpt2s_exact_shape_give_the_logits_of_transformers() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    weights::write_random_gpt2(folder.path()).expect("room for 500 MB of weights");
    logits::with_bundled_tokenizer(folder.path());
    logits::agrees(&Source::from_folder(folder.path()).expect("a model's folder"), include_str!("logits-random-gpt2.json"));
}

#[test]
fn every_kind_of_the_llama_family_gives_the_logits_of_transformers() {
    let variants: Value = serde_json::from_str(include_str!("llama-variants.json")).expect("configurations");
    for (name, golden) in [
        ("llama3", include_str!("logits-llama3.json")),
        ("linear", include_str!("logits-linear.json")),
        ("qwen2", include_str!("logits-qwen2.json")),
        ("qwen3", include_str!("logits-qwen3.json")),
        ("yarn", include_str!("logits-yarn.json")),
    ] {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        weights::write_random_llama(folder.path(), &variants[name]).expect("room for a few megabytes");
        logits::with_bundled_tokenizer(folder.path());
        logits::agrees(&Source::from_folder(folder.path()).expect("a model's folder"), golden);
    }
}

#[test]
fn the_bundled_tokenizer_agrees_with_hugging_faces() {
    tokenizer::agrees(&Folder::Bundled, include_str!("tokenizer-banyan-tiny.json"));
}
