//! The llama family (Touvron et al. 2023): the network, named as its checkpoints name it.
//!
//! Llama 2 and 3, SmolLM2, TinyLlama; Mistral, Qwen2, Qwen2.5 and Qwen3, which differ in biases, norms and sizes. Weights
//! never change; a sequence's keys and values are in the cache that the caller passes in.

use candle_core::{Result, Tensor};
use serde_json::Value;

use super::fields::Fields;
use super::rope::{Angles, Rope, Scaling};
use super::weights::{Role, Weights};
use crate::LoadError;
use crate::kernels::Segment;
use crate::kv::{Shape, Storage};
use crate::ops::{Compute, Heads, Linear, Logits, RmsNorm, Rotation, Then, Turns, attention};

/// The parts of config.json that shape the network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) rms_norm_eps: f64,
    pub(crate) tie_word_embeddings: bool,
    pub(crate) rope: Rope,
    /// Of q_proj, k_proj and v_proj.
    pub(crate) qkv_bias: bool,
    pub(crate) o_proj_bias: bool,
    pub(crate) mlp_bias: bool,
    /// q_norm and k_norm.
    pub(crate) qk_norm: bool,
    /// Positions that a sequence may have: fewer than `max_position_embeddings` where attention would begin to slide.
    pub(crate) context: usize,
}

impl Config {
    /// Llama 3.2, 1.24B.
    pub(crate) fn llama_1b() -> Config {
        Config {
            vocab_size: 128_256,
            hidden_size: 2048,
            intermediate_size: 8192,
            num_hidden_layers: 16,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            head_dim: 64,
            max_position_embeddings: 131_072,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            rope: Rope {
                theta: 500_000.0,
                scaling: Scaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192.0 },
            },
            qkv_bias: false,
            o_proj_bias: false,
            mlp_bias: false,
            qk_norm: false,
            context: 131_072,
        }
    }

    /// Reads config.json of a model of one of this family's types; `path` is what messages call it.
    pub(crate) fn read(json: &Value, path: &str, model_type: &str) -> std::result::Result<Config, LoadError> {
        let fields = Fields::new(json, path, "a model of the llama family");
        match fields.text("hidden_act")?.unwrap_or("silu") {
            // Two names of one function.
            "silu" | "swish" => {}
            other => {
                let what = format!("the activation {other:?}, and this version has \"silu\" only for the llama family");
                return Err(fields.unsupported(&what));
            }
        }
        let hidden_size = fields.size("hidden_size", None)?;
        let num_attention_heads = fields.size("num_attention_heads", None)?;
        let num_key_value_heads = fields.size("num_key_value_heads", Some(num_attention_heads))?;
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(fields.invalid(format!(
                "num_attention_heads ({num_attention_heads}) must be a multiple of num_key_value_heads ({num_key_value_heads})"
            )));
        }
        let head_dim = match (fields.has("head_dim"), model_type) {
            (true, _) => fields.size("head_dim", None)?,
            // transformers' default.
            (false, "qwen3") => 128,
            (false, _) if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            (false, _) => {
                return Err(fields.invalid(format!(
                    "hidden_size ({hidden_size}) must be a multiple of num_attention_heads ({num_attention_heads}) where \
                     head_dim is missing"
                )));
            }
        };
        if !head_dim.is_multiple_of(2) || head_dim > HEAD_DIM_MAX {
            return Err(fields.invalid(format!("head_dim must be even and at most {HEAD_DIM_MAX}, not {head_dim}")));
        }
        let max_position_embeddings = fields.size("max_position_embeddings", None)?;
        let attention_bias = fields.flag("attention_bias", false)?;
        let (qkv_bias, o_proj_bias) = match model_type {
            "qwen2" => (true, false),
            "mistral" => (false, false),
            _ => (attention_bias, attention_bias),
        };
        Ok(Config {
            vocab_size: fields.size("vocab_size", None)?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", None)?,
            num_hidden_layers: fields.size("num_hidden_layers", None)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: fields.epsilon("rms_norm_eps", 1e-6)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
            rope: Rope::read(&fields, max_position_embeddings)?,
            qkv_bias,
            o_proj_bias,
            mlp_bias: model_type == "llama" && fields.flag("mlp_bias", false)?,
            qk_norm: model_type == "qwen3",
            // Within its window, sliding attention is plain attention.
            context: window(&fields, model_type)?.map_or(max_position_embeddings, |window| window.min(max_position_embeddings)),
        })
    }

    fn heads(&self) -> Heads {
        Heads { queries: self.num_attention_heads, kv: self.num_key_value_heads, dim: self.head_dim }
    }

    /// Columns of q_proj, and of k_proj and v_proj.
    fn widths(&self) -> (usize, usize) {
        (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim)
    }

    /// Number of weights.
    pub(crate) fn parameters(&self) -> u64 {
        let (n, inner) = (self.hidden_size as u64, self.intermediate_size as u64);
        let (q, kv) = (self.widths().0 as u64, self.widths().1 as u64);
        let biases = u64::from(self.qkv_bias) * (q + 2 * kv)
            + u64::from(self.o_proj_bias) * n
            + u64::from(self.mlp_bias) * (2 * inner + n);
        let norms = 2 * n + u64::from(self.qk_norm) * 2 * self.head_dim as u64;
        let layer = n * (q + 2 * kv) + q * n + 3 * n * inner + biases + norms;
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        heads * self.vocab_size as u64 * n + self.num_hidden_layers as u64 * layer + n
    }

    /// What a checkpoint calls the matrix of such a size.
    pub(crate) fn product(&self, inputs: usize, columns: usize) -> Option<&'static str> {
        let (n, inner, (q, kv)) = (self.hidden_size, self.intermediate_size, self.widths());
        let sizes = [
            ("self_attn.qkv_proj", n, q + 2 * kv),
            ("self_attn.o_proj", q, n),
            ("mlp.gate_up_proj", n, 2 * inner),
            ("mlp.down_proj", inner, n),
            ("lm_head", n, self.vocab_size),
        ];
        sizes.into_iter().find(|(_, i, c)| (*i, *c) == (inputs, columns)).map(|(name, ..)| name)
    }

    /// What the matrix of that name is to the network.
    pub(crate) fn role(&self, name: &str) -> Role {
        let layer = name.strip_prefix("layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        layer.map_or(Role::Vocabulary, layer_role)
    }

    /// What KV pages must hold.
    pub(crate) fn kv_shape(&self) -> Shape {
        Shape {
            layers: self.num_hidden_layers,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            // A `Config` has no size beyond 2^24.
            context: self.context as u32,
        }
    }
}

/// Layers from the first on that four bits hurt most: with these two in eight bits, stories15M loses 4 % of perplexity instead
/// of 8 % (docs/quality.md).
const EARLY: usize = 2;

/// What a layer's matrices are to the network.
fn layer_role(number: usize) -> Role {
    if number < EARLY { Role::Early } else { Role::Projection }
}

/// Four times the widest of known models.
const HEAD_DIM_MAX: usize = 1024;

/// How far back a position sees in layers whose attention slides, if any does.
fn window(fields: &Fields<'_>, model_type: &str) -> std::result::Result<Option<usize>, LoadError> {
    let kinds = fields.texts("layer_types")?;
    if let Some(other) = kinds.iter().find(|kind| !matches!(**kind, "full_attention" | "sliding_attention")) {
        return Err(fields.unsupported(&format!("layers of type {other:?}, which this version does not have")));
    }
    let slides = match model_type {
        _ if !kinds.is_empty() => kinds.contains(&"sliding_attention"),
        "mistral" => true,
        "qwen2" | "qwen3" => fields.flag("use_sliding_window", false)?,
        _ => false,
    };
    Ok(if slides && fields.has("sliding_window") { Some(fields.size("sliding_window", None)?) } else { None })
}

/// The network.
pub(crate) struct Llama {
    config: Config,
    angles: Angles,
    embed_tokens: Linear,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// `None`: the embedding is the head as well.
    lm_head: Option<Linear>,
}

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

struct Attention {
    /// q_proj, k_proj and v_proj side by side: their input is read once.
    qkv_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    o_proj: Linear,
}

struct Mlp {
    /// gate_proj and up_proj side by side.
    gate_up_proj: Linear,
    down_proj: Linear,
}

impl Llama {
    /// Takes the tensors that it needs, layer by layer on all cores.
    pub(crate) fn load(config: Config, weights: &Weights<'_>) -> std::result::Result<Llama, LoadError> {
        let (n, vocabulary) = (config.hidden_size, config.vocab_size);
        // Before the head: of two layers the whole matrices are in memory beside what was made of them, of the head a window.
        let layers = weights.layers(config.num_hidden_layers, |layer| Layer::load(&config, weights, layer))?;
        let embed_tokens = weights.head("embed_tokens.weight", n, vocabulary)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(weights.head("lm_head.weight", n, vocabulary)?),
        };
        Ok(Llama {
            angles: Angles::new(&config.rope, config.head_dim, config.context),
            embed_tokens,
            layers,
            norm: weights.rms_norm("norm", n, config.rms_norm_eps)?,
            lm_head,
            config,
        })
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
        let mut x = self.embed_tokens.embed(tokens)?;
        let positions = segments.iter().flat_map(|segment| segment.position..segment.position + segment.rows);
        let turns = Turns::new(on, positions.map(|position| self.angles.at(position)).collect(), x.device())?;
        for (number, layer) in self.layers.iter().enumerate() {
            x = layer.forward(on, &x, segments, cache, number, self.config.heads(), &turns)?;
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        let x = x.index_select(&Tensor::new(wanted, x.device())?, 0)?;
        self.norm.forward(on, &x).map(Some)
    }

    /// The logits of such states: `[states, vocab_size]`, row-major. The head is a large part of a small model's weights: only for
    /// rows whose logits are wanted.
    pub(crate) fn head(&self, on: Compute<'_>, states: &Tensor) -> Result<Logits> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens).logits(on, states)
    }
}

impl Layer {
    fn load(config: &Config, weights: &Weights<'_>, number: usize) -> std::result::Result<Layer, LoadError> {
        let (n, inner, epsilon) = (config.hidden_size, config.intermediate_size, config.rms_norm_eps);
        let (q, kv) = config.widths();
        let role = layer_role(number);
        let name = |part: &str| format!("layers.{number}.{part}");
        let (q_proj, k_proj, v_proj) = (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
        let (gate_proj, up_proj) = (name("mlp.gate_proj"), name("mlp.up_proj"));
        let head_norm = |part: &str| config.qk_norm.then(|| weights.rms_norm(&name(part), config.head_dim, epsilon)).transpose();
        Ok(Layer {
            input_layernorm: weights.rms_norm(&name("input_layernorm"), n, epsilon)?,
            self_attn: Attention {
                qkv_proj: weights.fused(role, &[(&q_proj, q), (&k_proj, kv), (&v_proj, kv)], n, config.qkv_bias)?,
                q_norm: head_norm("self_attn.q_norm")?,
                k_norm: head_norm("self_attn.k_norm")?,
                o_proj: weights.linear(role, &name("self_attn.o_proj"), q, n, config.o_proj_bias)?,
            },
            post_attention_layernorm: weights.rms_norm(&name("post_attention_layernorm"), n, epsilon)?,
            mlp: Mlp {
                gate_up_proj: weights.fused(role, &[(&gate_proj, inner), (&up_proj, inner)], n, config.mlp_bias)?,
                down_proj: weights.linear(role, &name("mlp.down_proj"), inner, n, config.mlp_bias)?,
            },
        })
    }

    #[allow(clippy::too_many_arguments, reason = "what a step has, and where in it we are")]
    fn forward(
        &self,
        on: Compute<'_>,
        x: &Tensor,
        segments: &[Segment<'_>],
        cache: &mut Storage,
        number: usize,
        heads: Heads,
        turns: &Turns<'_>,
    ) -> Result<Tensor> {
        let Attention { qkv_proj, q_norm, k_norm, o_proj } = &self.self_attn;
        let rotation = Rotation { heads, norms: q_norm.as_ref().zip(k_norm.as_ref()), turns };
        let qkv = qkv_proj.forward(on, &self.input_layernorm.forward(on, x)?, Then::Turn(&rotation))?;
        let scale = 1.0 / (heads.dim as f32).sqrt();
        let attended = attention(on, &qkv, heads, scale, segments, cache, number)?;
        let x = o_proj.forward(on, &attended, Then::AddTo(x))?;
        let normal = self.post_attention_layernorm.forward(on, &x)?;
        let inner = self.mlp.gate_up_proj.forward(on, &normal, Then::SwiGlu)?;
        self.mlp.down_proj.forward(on, &inner, Then::AddTo(&x))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(model_type: &str, change: Value) -> std::result::Result<Config, String> {
        let mut config = json!({
            "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
            "hidden_act": "silu", "rope_theta": 500000.0, "tie_word_embeddings": true,
            "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        });
        for (name, value) in change.as_object().unwrap() {
            config[name] = value.clone();
        }
        Config::read(&config, "config.json", model_type).map_err(|error| error.to_string())
    }

    #[test]
    fn the_published_configurations_are_read() {
        assert_eq!(read("llama", json!({})), Ok(Config::llama_1b()));
        assert_eq!(Config::llama_1b().parameters(), 1_235_814_400);
        let qwen2 = json!({
            "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rope_scaling": null,
            "sliding_window": 32768, "use_sliding_window": false, "max_window_layers": 21,
        });
        assert_eq!(read("qwen2", qwen2).unwrap().parameters(), 494_032_768);
        let qwen3 = json!({
            "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "head_dim": 128,
            "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 40960, "rope_scaling": null,
        });
        assert_eq!(read("qwen3", qwen3).unwrap().parameters(), 596_049_920);
    }

    #[test]
    fn a_context_ends_where_attention_would_begin_to_slide() {
        let context = |model_type, change| read(model_type, change).unwrap().context;
        assert_eq!(context("mistral", json!({"sliding_window": 4096})), 4096);
        assert_eq!(context("mistral", json!({"sliding_window": null})), 131_072);
        assert_eq!(context("qwen2", json!({"sliding_window": 4096})), 131_072);
        assert_eq!(context("qwen2", json!({"sliding_window": 4096, "use_sliding_window": true})), 4096);
        let layers = json!({"sliding_window": 4096, "layer_types": ["full_attention", "sliding_attention"]});
        assert_eq!(context("qwen3", layers), 4096);
    }

    #[test]
    fn what_is_not_supported_or_makes_no_sense_is_refused_by_name() {
        for (change, word) in [
            (json!({"hidden_act": "gelu"}), "gelu"),
            (json!({"num_key_value_heads": 7}), "multiple"),
            (json!({"num_attention_heads": 48, "num_key_value_heads": 8}), "head_dim"),
            (json!({"head_dim": 63}), "even"),
            (json!({"head_dim": 1 << 20}), "head_dim"),
            (json!({"hidden_size": null}), "hidden_size"),
            (json!({"num_hidden_layers": 0}), "num_hidden_layers"),
            (json!({"vocab_size": 1u64 << 60}), "vocab_size"),
            (json!({"rms_norm_eps": -1.0}), "rms_norm_eps"),
            (json!({"rope_scaling": {"rope_type": "longrope"}}), "longrope"),
            (json!({"layer_types": ["linear_attention"]}), "linear_attention"),
            (json!({"attention_bias": "yes"}), "attention_bias"),
        ] {
            let error = read("llama", change).unwrap_err();
            assert!(error.contains(word), "{error:?} names {word}");
        }
    }
}
