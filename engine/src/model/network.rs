//! The network of a model, of whichever family: what a step needs of it.

use candle_core::Result;
use serde_json::Value;

use super::gpt2::{self, Gpt2};
use super::weights::Weights;
use crate::LoadError;
use crate::kernels::Segment;
use crate::kv::{Shape, Storage};
use crate::ops::Compute;

/// What config.json says, by family.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Config {
    Gpt2(gpt2::Config),
}

/// A family's network. The weights never change; a sequence's keys and values are in the cache that the caller passes in.
pub(crate) enum Network {
    Gpt2(Gpt2),
}

impl Config {
    /// Reads config.json; `path` is what messages call it.
    pub(crate) fn read(json: &Value, path: &str) -> std::result::Result<Config, LoadError> {
        gpt2::Config::read(json, path).map(Config::Gpt2)
    }

    /// Number of weights.
    pub(crate) fn parameters(&self) -> u64 {
        match self {
            Config::Gpt2(config) => config.parameters(),
        }
    }

    /// Rows of the embedding.
    pub(crate) fn vocabulary(&self) -> usize {
        match self {
            Config::Gpt2(config) => config.vocab_size,
        }
    }

    /// What a checkpoint calls the matrix of such a size, where only one is as large; for profiles.
    pub(crate) fn product(&self, inputs: usize, columns: usize) -> Option<&'static str> {
        match self {
            Config::Gpt2(config) => config.product(inputs, columns),
        }
    }

    /// What KV pages must hold.
    pub(crate) fn kv_shape(&self) -> Shape {
        match self {
            Config::Gpt2(config) => config.kv_shape(),
        }
    }
}

impl Network {
    /// Takes the tensors that it needs, layer by layer on all cores.
    pub(crate) fn load(config: Config, weights: &Weights<'_>) -> std::result::Result<Network, LoadError> {
        match config {
            Config::Gpt2(config) => Gpt2::load(config, weights).map(Network::Gpt2),
        }
    }

    /// One pass of all segments' rows, in order; `tokens` has one for each row. The logits of the rows `samples`:
    /// `[samples, vocabulary]`, row-major.
    pub(crate) fn forward(
        &self,
        on: Compute<'_>,
        cache: &mut Storage,
        tokens: &[u32],
        segments: &[Segment<'_>],
        samples: &[u32],
    ) -> Result<Vec<f32>> {
        match self {
            Network::Gpt2(gpt2) => gpt2.forward(on, cache, tokens, segments, samples),
        }
    }
}
