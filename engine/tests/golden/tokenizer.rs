//! Tokenizers agree with Hugging Face's on a few thousand strings, to tokens and back.

use std::sync::Arc;

use banyan_engine::{Folder, TextStream, Tokenizer};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::splitmix::SplitMix;
use crate::strings::strings;

/// Asserts that a tokenizer gives the ids and the texts of a golden file.
pub(crate) fn agrees(folder: &Folder, golden: &str) {
    let golden: Value = serde_json::from_str(golden).expect("a golden file");
    let tokenizer = Arc::new(Tokenizer::open(folder).expect("a tokenizer"));
    let number = |value: &Value| value.as_u64().expect("a number");

    for sample in golden["samples"].as_array().expect("samples") {
        let text = sample[0].as_str().expect("a text");
        let want: Vec<u32> = sample[1].as_array().expect("ids").iter().map(|id| number(id) as u32).collect();
        assert_eq!(tokenizer.encode(text), want, "{text:?}");
    }

    let asked = &golden["strings"];
    let texts = strings(number(&asked["seed"]), number(&asked["count"]) as usize);
    let per_hash = number(&asked["per_hash"]) as usize;
    let encoded: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text)).collect();
    let bytes: Vec<Vec<u8>> = encoded.iter().map(|ids| packed(ids)).collect();
    same_hashes("encoded", &bytes, per_hash, &golden["encoded"], &texts);
    assert_eq!(encoded.iter().map(Vec::len).sum::<usize>() as u64, number(&golden["tokens"]));
    let back: Vec<Vec<u8>> = encoded.iter().map(|ids| with_length(&decode(&tokenizer, ids))).collect();
    same_hashes("decoded back", &back, per_hash, &golden["decoded_back"], &texts);

    // Tokens in any order, so mostly no whole characters.
    let asked = &golden["decoded"];
    let mut rng = SplitMix(number(&asked["seed"]));
    let size = tokenizer.vocabulary() as u64;
    let ids: Vec<Vec<u32>> =
        (0..number(&asked["count"])).map(|_| (0..rng.below(24)).map(|_| rng.below(size) as u32).collect()).collect();
    let texts: Vec<String> = ids.iter().map(|ids| format!("{ids:?}")).collect();
    let decoded: Vec<Vec<u8>> = ids.iter().map(|ids| with_length(&decode(&tokenizer, ids))).collect();
    same_hashes("decoded", &decoded, per_hash, &asked["hashes"], &texts);
}

fn decode(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> String {
    let mut stream = TextStream::new(tokenizer.clone(), Vec::new());
    let text: String = ids.iter().map(|&id| stream.push(id, true).text).collect();
    text + &stream.finish()
}

fn packed(ids: &[u32]) -> Vec<u8> {
    std::iter::once(ids.len() as u32).chain(ids.iter().copied()).flat_map(u32::to_le_bytes).collect()
}

fn with_length(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn same_hashes(what: &str, items: &[Vec<u8>], per_hash: usize, want: &Value, texts: &[String]) {
    let got: Vec<String> =
        items.chunks(per_hash).map(|group| format!("{:x}", Sha256::digest(group.concat()))[..16].to_string()).collect();
    let want: Vec<&str> = want.as_array().expect("hashes").iter().map(|hash| hash.as_str().expect("a hash")).collect();
    assert_eq!(got.len(), want.len());
    for (number, (got, want)) in got.iter().zip(want).enumerate() {
        let texts = &texts[number * per_hash..(number * per_hash + per_hash).min(texts.len())];
        assert_eq!(got, want, "{what}: group {number} differs, one of {texts:#?}");
    }
}
