//! Where to compute, and with what numbers, as a user says it.

use std::fmt;
use std::str::FromStr;

/// How to load a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Where to.
    pub device: DeviceChoice,
    /// As what.
    pub dtype: Dtype,
    /// And keys and values as what.
    pub kv_dtype: KvDtype,
    /// Bytes that an engine's KV is going to have, so that what does not fit beside the weights is refused before they are
    /// loaded; `None`: see [`crate::Options::kv_memory`].
    pub kv_memory: Option<u64>,
    /// How many engines of this process are going to share the weights, each with KV of its own; 0 is 1.
    pub engines: usize,
}

/// Where weights go and steps are computed: `auto`, `cpu`, `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU where this build can use one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

/// What matrices are stored as: `auto`, `f32`, `bf16`, `q8`, `q4`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// As the checkpoint has them where that is a quantized form, else f32: the model's own text.
    #[default]
    Auto,
    /// 32-bit floating point.
    F32,
    /// bfloat16.
    Bf16,
    /// Blocks of 8-bit numbers with one scale.
    Q8,
    /// Blocks of 4-bit numbers with a scale and a least value; embeddings and head in [`Dtype::Q8`].
    Q4,
}

/// In which model's shape random weights come, for benchmarks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RandomShape {
    /// GPT-2 of 124 million parameters.
    #[default]
    Gpt2,
    /// GPT-2 of 774 million parameters.
    Gpt2Large,
    /// Llama 3.2 of 1.24 billion parameters.
    Llama1b,
}

impl FromStr for RandomShape {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "gpt2" => Ok(RandomShape::Gpt2),
            "gpt2-large" => Ok(RandomShape::Gpt2Large),
            "llama-1b" => Ok(RandomShape::Llama1b),
            _ => Err(UnknownChoice { what: "shape", given: text.to_owned(), choices: "gpt2, gpt2-large or llama-1b" }),
        }
    }
}

impl fmt::Display for RandomShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RandomShape::Gpt2 => "gpt2",
            RandomShape::Gpt2Large => "gpt2-large",
            RandomShape::Llama1b => "llama-1b",
        })
    }
}

/// What keys and values are stored as: `auto`, `f32`, `f16`, `q8`. A query sees what is stored, its own key and value included,
/// so it decides a text's bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// As exact as the weights: f32 where they are, else f16.
    #[default]
    Auto,
    /// 32-bit floating point.
    F32,
    /// Half precision: half the memory, and an error far below that of weights of 16 bits or less.
    F16,
    /// 8-bit numbers with a scale for each position, head, and key or value.
    Q8,
}

impl KvDtype {
    /// `auto` settled, for weights of a type that is.
    pub(crate) fn settled(self, weights: Dtype) -> KvDtype {
        match (self, weights) {
            (KvDtype::Auto, Dtype::Auto | Dtype::F32) => KvDtype::F32,
            (KvDtype::Auto, Dtype::Bf16 | Dtype::Q8 | Dtype::Q4) => KvDtype::F16,
            (settled, _) => settled,
        }
    }
}

/// A name that is none of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no {what}: take {choices}")]
pub struct UnknownChoice {
    what: &'static str,
    given: String,
    choices: &'static str,
}

impl FromStr for DeviceChoice {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| UnknownChoice { what: "device", given: text.to_owned(), choices: "auto, cpu or cuda:N" }),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(gpu) => write!(f, "cuda:{gpu}"),
        }
    }
}

impl FromStr for Dtype {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "auto" => Ok(Dtype::Auto),
            "f32" => Ok(Dtype::F32),
            "bf16" => Ok(Dtype::Bf16),
            "q8" => Ok(Dtype::Q8),
            "q4" => Ok(Dtype::Q4),
            _ => Err(UnknownChoice { what: "dtype", given: text.to_owned(), choices: "auto, f32, bf16, q8 or q4" }),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::Auto => "auto",
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::Q8 => "q8",
            Dtype::Q4 => "q4",
        })
    }
}

impl FromStr for KvDtype {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "auto" => Ok(KvDtype::Auto),
            "f32" => Ok(KvDtype::F32),
            "f16" => Ok(KvDtype::F16),
            "q8" => Ok(KvDtype::Q8),
            _ => Err(UnknownChoice { what: "KV dtype", given: text.to_owned(), choices: "auto, f32, f16 or q8" }),
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KvDtype::Auto => "auto",
            KvDtype::F32 => "f32",
            KvDtype::F16 => "f16",
            KvDtype::Q8 => "q8",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_as_exact_as_the_weights_unless_somebody_asks() {
        assert_eq!(KvDtype::Auto.settled(Dtype::F32), KvDtype::F32);
        for weights in [Dtype::Bf16, Dtype::Q8, Dtype::Q4] {
            assert_eq!(KvDtype::Auto.settled(weights), KvDtype::F16);
            assert_eq!(KvDtype::Q8.settled(weights), KvDtype::Q8);
        }
    }

    #[test]
    fn names_are_parsed_and_printed() {
        for name in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        for name in ["auto", "f32", "q8"] {
            assert_eq!(name.parse::<Dtype>().unwrap().to_string(), name);
        }
        for name in ["auto", "f32", "f16", "q8"] {
            assert_eq!(name.parse::<KvDtype>().unwrap().to_string(), name);
        }
        assert_eq!("bf16".parse::<KvDtype>().unwrap_err().to_string(), "\"bf16\" is no KV dtype: take auto, f32, f16 or q8");
        assert_eq!("gpu".parse::<DeviceChoice>().unwrap_err().to_string(), "\"gpu\" is no device: take auto, cpu or cuda:N");
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
        assert!("int3".parse::<Dtype>().is_err());
    }
}
