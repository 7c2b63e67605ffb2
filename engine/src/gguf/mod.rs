//! GGUF: a model in one file, as llama.cpp and its relatives have it.
//!
//! Shows such a file as the folder that Hugging Face's tools would have: config.json, tokenizer.json and tokenizer_config.json
//! are made of its metadata, and tensors get the names and shapes that the model's family has there. So everything else of
//! this crate reads one kind of model.

mod config;
mod names;
mod read;
mod tokenizer;

use std::fs::File;
use std::path::Path;

use serde_json::Value;

use crate::bytes::Bytes;
use crate::error::LoadError;
use crate::stored::{Kind, Order};
use read::Header;

/// Whether a file is one, by its name.
pub(crate) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// A file's bytes.
pub(crate) fn map(path: &Path) -> Result<Bytes, LoadError> {
    let mapped = File::open(path).and_then(|file| Bytes::map(&file));
    mapped.map_err(|source| LoadError::Read { path: path.display().to_string(), source })
}

/// What stands in a file of the folder; `None` where there is no such file.
pub(crate) fn read_json(path: &Path, name: &str) -> Result<Option<Value>, LoadError> {
    if !matches!(name, "config.json" | "tokenizer.json" | "tokenizer_config.json") {
        return Ok(None);
    }
    let bytes = map(path)?;
    let made = Header::read(&bytes).and_then(|header| match name {
        "config.json" => config::config(&header, &bytes),
        "tokenizer.json" => tokenizer::tokenizer(&header),
        _ => tokenizer::settings(&header),
    });
    made.map(Some).map_err(|message| LoadError::Invalid { path: path.display().to_string(), message })
}

/// A tensor by the name that it has in the folder.
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) order: Order,
    pub(crate) dims: Vec<usize>,
    pub(crate) bytes: std::ops::Range<usize>,
}

/// All tensors.
pub(crate) fn tensors(path: &Path, bytes: &Bytes) -> Result<Vec<Tensor>, LoadError> {
    let tensors = Header::read(bytes).and_then(|header| names::tensors(&header));
    tensors.map_err(|message| LoadError::Invalid { path: path.display().to_string(), message })
}

/// ggml's numbers of types (`enum ggml_type` in ggml.h).
const KINDS: [(u32, Kind); 13] = [
    (0, Kind::F32),
    (1, Kind::F16),
    (2, Kind::Q4_0),
    (3, Kind::Q4_1),
    (6, Kind::Q5_0),
    (7, Kind::Q5_1),
    (8, Kind::Q8_0),
    (10, Kind::Q2_K),
    (11, Kind::Q3_K),
    (12, Kind::Q4_K),
    (13, Kind::Q5_K),
    (14, Kind::Q6_K),
    (30, Kind::Bf16),
];

/// The names of the others.
const UNKNOWN: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

fn kind_of(number: u32) -> Result<Kind, String> {
    if let Some((_, kind)) = KINDS.iter().find(|(of, _)| *of == number) {
        return Ok(*kind);
    }
    let name = UNKNOWN.iter().find(|(of, _)| *of == number).map_or_else(|| format!("type {number}"), |(_, name)| (*name).into());
    let known = KINDS.map(|(_, kind)| kind.to_string()).join(", ");
    Err(format!("{name}, and this version reads {known}: take another quantization of the model"))
}

/// The families that are read, by `general.architecture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Gpt2,
    Llama,
    Qwen2,
    Qwen3,
}

impl Family {
    fn of(header: &Header<'_>) -> Result<Family, String> {
        match header.text("general.architecture")? {
            Some("gpt2") => Ok(Family::Gpt2),
            Some("llama") => Ok(Family::Llama),
            Some("qwen2") => Ok(Family::Qwen2),
            Some("qwen3") => Ok(Family::Qwen3),
            Some(other) => {
                Err(format!("a model of architecture {other:?}, and this version runs gpt2, llama, qwen2 and qwen3 from GGUF"))
            }
            None => Err("has no general.architecture: is it the file of a language model?".into()),
        }
    }

    /// What Hugging Face calls it, and what keys of metadata begin with.
    fn name(self) -> &'static str {
        match self {
            Family::Gpt2 => "gpt2",
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }
}

#[cfg(test)]
mod tests;
