//! Agreement with Hugging Face's libraries, by what golden/make.py wrote of them: whatever needs no other checkpoint than
//! the bundled one. `real_models.rs` has the rest.

mod logits;
mod splitmix;
mod strings;
mod template;
mod tokenizer;
mod weights;

use banyan_engine::{Folder, Source};

#[test]
fn the_bundled_models_logits_agree_with_transformers() {
    logits::agrees(&Source::bundled(), include_str!("logits-banyan-tiny.json"));
}

#[test]
fn random_weights_of_gpt2s_exact_shape_give_the_logits_of_transformers() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    weights::write_random_gpt2(folder.path()).expect("room for 500 MB of weights");
    logits::with_bundled_tokenizer(folder.path());
    logits::agrees(&Source::from_folder(folder.path()).expect("a model's folder"), include_str!("logits-random-gpt2.json"));
}

#[test]
fn the_bundled_tokenizer_agrees_with_hugging_faces() {
    tokenizer::agrees(&Folder::Bundled, include_str!("tokenizer-banyan-tiny.json"));
}
