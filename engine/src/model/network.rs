//! The network of a model, of whichever family: what a step needs of it.

use candle_core::{Result, Tensor};
use serde_json::Value;

use super::fields::Fields;
use super::gpt2::{self, Gpt2};
use super::llama::{self, Llama};
use super::weights::{Role, Weights};
use crate::LoadError;
use crate::kernels::Segment;
use crate::kv::{Shape, Storage};
use crate::ops::{Compute, Logits};

/// What config.json says, by family.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Config {
    Gpt2(gpt2::Config),
    Llama(llama::Config),
}

/// A family's network. The weights never change; a sequence's keys and values are in the cache that the caller passes in.
pub(crate) enum Network {
    Gpt2(Gpt2),
    Llama(Llama),
}

impl Config {
    /// Reads config.json; `path` is what messages call it.
    pub(crate) fn read(json: &Value, path: &str) -> std::result::Result<Config, LoadError> {
        let fields = Fields::new(json, path, "every model");
        if fields.has("quantization_config") {
            let what = "weights in a quantized form of safetensors, which this version does not read: take the model's f32, f16 \
                        or bf16 checkpoint with --dtype q8 or q4, or its GGUF file";
            return Err(fields.unsupported(what));
        }
        match fields.text("model_type")? {
            Some("gpt2") | None => gpt2::Config::read(json, path).map(Config::Gpt2),
            Some(kind @ ("llama" | "mistral" | "qwen2" | "qwen3")) => llama::Config::read(json, path, kind).map(Config::Llama),
            Some(other) => Err(LoadError::Unsupported(format!(
                "{path} is of a model of type {other:?}, and this version runs \"gpt2\" (gpt2, gpt2-medium, -large, -xl, \
                 distilgpt2 and their fine-tunes), \"llama\" (Llama 2 and 3, SmolLM2, TinyLlama), \"mistral\", \"qwen2\" \
                 (Qwen2, Qwen2.5) and \"qwen3\" models"
            ))),
        }
    }

    /// What the body's tensors may be called by in a checkpoint: a prefix, and a name by which it is known.
    pub(crate) fn body(&self) -> (&'static str, &'static str) {
        match self {
            Config::Gpt2(_) => ("transformer.", "wte.weight"),
            Config::Llama(_) => ("model.", "embed_tokens.weight"),
        }
    }

    /// Number of weights.
    pub(crate) fn parameters(&self) -> u64 {
        match self {
            Config::Gpt2(config) => config.parameters(),
            Config::Llama(config) => config.parameters(),
        }
    }

    /// Rows of the embedding.
    pub(crate) fn vocabulary(&self) -> usize {
        match self {
            Config::Gpt2(config) => config.vocab_size,
            Config::Llama(config) => config.vocab_size,
        }
    }

    /// What a checkpoint calls the matrix of such a size, where only one is as large; for profiles.
    pub(crate) fn product(&self, inputs: usize, columns: usize) -> Option<&'static str> {
        match self {
            Config::Gpt2(config) => config.product(inputs, columns),
            Config::Llama(config) => config.product(inputs, columns),
        }
    }

    /// What the matrix of that name (without the body's prefix) is to the network; `None`: it is kept in f32.
    pub(crate) fn role(&self, name: &str) -> Option<Role> {
        match self {
            Config::Gpt2(config) => config.role(name),
            Config::Llama(config) => Some(config.role(name)),
        }
    }

    /// What KV pages must hold.
    pub(crate) fn kv_shape(&self) -> Shape {
        match self {
            Config::Gpt2(config) => config.kv_shape(),
            Config::Llama(config) => config.kv_shape(),
        }
    }
}

impl Network {
    /// Takes the tensors that it needs, layer by layer on all cores.
    pub(crate) fn load(config: Config, weights: &Weights<'_>) -> std::result::Result<Network, LoadError> {
        match config {
            Config::Gpt2(config) => Gpt2::load(config, weights).map(Network::Gpt2),
            Config::Llama(config) => Llama::load(config, weights).map(Network::Llama),
        }
    }

    /// One pass of all segments' rows, in order; `tokens` has one for each row. The last hidden states of the rows `wanted`, behind
    /// the final norm: `[wanted, width]`. `None`: none are wanted.
    pub(crate) fn states(
        &self,
        on: Compute<'_>,
        cache: &mut Storage,
        tokens: &[u32],
        segments: &[Segment<'_>],
        wanted: &[u32],
    ) -> Result<Option<Tensor>> {
        match self {
            Network::Gpt2(gpt2) => gpt2.states(on, cache, tokens, segments, wanted),
            Network::Llama(llama) => llama.states(on, cache, tokens, segments, wanted),
        }
    }

    /// The logits of such states: `[states, vocabulary]`, row-major.
    pub(crate) fn head(&self, on: Compute<'_>, states: &Tensor) -> Result<Logits> {
        match self {
            Network::Gpt2(gpt2) => gpt2.head(on, states),
            Network::Llama(llama) => llama.head(on, states),
        }
    }

    /// The same pass, up to the logits of the rows `samples`.
    pub(crate) fn forward(
        &self,
        on: Compute<'_>,
        cache: &mut Storage,
        tokens: &[u32],
        segments: &[Segment<'_>],
        samples: &[u32],
    ) -> Result<Logits> {
        match self.states(on, cache, tokens, segments, samples)? {
            Some(states) => self.head(on, &states),
            None => Ok(Logits::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_model_of_another_kind_is_refused_with_the_kinds_that_run() {
        let error = Config::read(&json!({"model_type": "mamba"}), "config.json").unwrap_err().to_string();
        for word in ["mamba", "gpt2", "llama", "mistral", "qwen2", "qwen3"] {
            assert!(error.contains(word), "{error:?} names {word}");
        }
        let error = Config::read(&json!({"model_type": "llama", "quantization_config": {}}), "config.json").unwrap_err();
        assert!(error.to_string().contains("GGUF"), "{error}");
    }
}
