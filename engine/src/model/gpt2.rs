//! GPT-2 (Radford et al. 2019): the network, named as its checkpoints name it.
//!
//! gpt2, gpt2-medium, -large, -xl, distilgpt2 and fine-tunes. Weights never change; a sequence's keys and values are in the
//! cache that the caller passes in.

use candle_core::{Result, Tensor};
use serde_json::Value;

use super::fields::Fields;
use super::weights::{Role, Weights};
use crate::LoadError;
use crate::kernels::Segment;
use crate::kv::{Shape, Storage};
use crate::ops::{Compute, Heads, LayerNorm, Linear, Logits, Then, attention};

/// The parts of config.json that shape the network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) vocab_size: usize,
    pub(crate) n_positions: usize,
    pub(crate) n_embd: usize,
    pub(crate) n_layer: usize,
    pub(crate) n_head: usize,
    pub(crate) n_inner: usize,
    pub(crate) layer_norm_epsilon: f64,
    pub(crate) scale_attn_weights: bool,
    pub(crate) scale_attn_by_inverse_layer_idx: bool,
    pub(crate) tie_word_embeddings: bool,
}

impl Config {
    /// gpt2, 124M.
    pub(crate) fn gpt2() -> Config {
        Config {
            vocab_size: 50_257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: 3072,
            layer_norm_epsilon: 1e-5,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: true,
        }
    }

    /// gpt2-large, 774M.
    pub(crate) fn gpt2_large() -> Config {
        Config { n_embd: 1280, n_layer: 36, n_head: 20, n_inner: 5120, ..Config::gpt2() }
    }

    /// Reads config.json; `path` is what messages call it.
    pub(crate) fn read(json: &Value, path: &str) -> std::result::Result<Config, LoadError> {
        let fields = Fields::new(json, path, "GPT-2");
        match fields.text("activation_function")?.unwrap_or("gelu_new") {
            // Two names of one function.
            "gelu_new" | "gelu_pytorch_tanh" => {}
            other => {
                let what = format!("the activation {other:?}, and this version has \"gelu_new\" only for GPT-2");
                return Err(fields.unsupported(&what));
            }
        }
        if fields.flag("add_cross_attention", false)? {
            return Err(fields.unsupported("cross-attention (a decoder's part), which this version does not have"));
        }
        // `reorder_and_upcast_attn` changes the order of operations in half precision; in f32 it is the same attention.
        fields.flag("reorder_and_upcast_attn", false)?;

        let n_embd = fields.size("n_embd", None)?;
        let n_head = fields.size("n_head", None)?;
        if !n_embd.is_multiple_of(n_head) {
            return Err(fields.invalid(format!("n_embd ({n_embd}) must be a multiple of n_head ({n_head})")));
        }
        let n_ctx = if fields.has("n_ctx") { Some(fields.size("n_ctx", None)?) } else { None };
        Ok(Config {
            vocab_size: fields.size("vocab_size", None)?,
            n_positions: fields.size("n_positions", n_ctx)?,
            n_embd,
            n_layer: fields.size("n_layer", None)?,
            n_head,
            n_inner: fields.size("n_inner", Some(4 * n_embd))?,
            layer_norm_epsilon: fields.epsilon("layer_norm_epsilon", 1e-5)?,
            scale_attn_weights: fields.flag("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: fields.flag("scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", true)?,
        })
    }

    fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    fn heads(&self) -> Heads {
        Heads { queries: self.n_head, kv: self.n_head, dim: self.head_dim() }
    }

    /// Number of weights.
    pub(crate) fn parameters(&self) -> u64 {
        let (n, inner) = (self.n_embd as u64, self.n_inner as u64);
        let block = 4 * n + (3 * n * n + 3 * n) + (n * n + n) + (n * inner + inner) + (inner * n + n);
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        (heads * self.vocab_size as u64 + self.n_positions as u64) * n + self.n_layer as u64 * block + 2 * n
    }

    /// What a checkpoint calls the matrix of such a size.
    pub(crate) fn product(&self, inputs: usize, columns: usize) -> Option<&'static str> {
        let (n, inner) = (self.n_embd, self.n_inner);
        let sizes = [
            ("attn.c_attn", n, 3 * n),
            ("attn.c_proj", n, n),
            ("mlp.c_fc", n, inner),
            ("mlp.c_proj", inner, n),
            ("lm_head", n, self.vocab_size),
        ];
        sizes.into_iter().find(|(_, i, c)| (*i, *c) == (inputs, columns)).map(|(name, ..)| name)
    }

    /// What the matrix of that name is to the network; `None`: it is kept in f32.
    pub(crate) fn role(&self, name: &str) -> Option<Role> {
        match name {
            "wte.weight" if self.tie_word_embeddings => Some(Role::Vocabulary),
            "lm_head.weight" => Some(Role::Vocabulary),
            "wte.weight" | "wpe.weight" => None,
            _ => Some(Role::Projection),
        }
    }

    /// What KV pages must hold.
    pub(crate) fn kv_shape(&self) -> Shape {
        // A `Config` has no size beyond 2^24.
        Shape { layers: self.n_layer, kv_heads: self.n_head, head_dim: self.head_dim(), context: self.n_positions as u32 }
    }
}

/// The network.
pub(crate) struct Gpt2 {
    pub(crate) config: Config,
    wpe: Tensor,
    h: Vec<Block>,
    ln_f: LayerNorm,
    head: Head,
}

/// wte and lm_head.
enum Head {
    /// One matrix is both.
    Tied(Linear),
    Separate {
        wte: Tensor,
        lm_head: Linear,
    },
}

struct Block {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

struct Attention {
    c_attn: Linear,
    c_proj: Linear,
    scale: f32,
}

struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
}

impl Gpt2 {
    /// Takes the tensors it needs, layer by layer on all cores; `attn.bias` and `attn.masked_bias`, which some checkpoints carry,
    /// are constants of causal attention and stay where they are.
    pub(crate) fn load(config: Config, weights: &Weights<'_>) -> std::result::Result<Gpt2, LoadError> {
        let n = config.n_embd;
        // Before the head: of two layers the whole matrices are in memory beside what was made of them, of the head a window.
        let h = weights.layers(config.n_layer, |layer| Block::load(&config, weights, layer))?;
        let head = if config.tie_word_embeddings {
            Head::Tied(weights.head("wte.weight", n, config.vocab_size)?)
        } else {
            Head::Separate {
                wte: weights.tensor("wte.weight", &[config.vocab_size, n])?,
                lm_head: weights.head("lm_head.weight", n, config.vocab_size)?,
            }
        };
        Ok(Gpt2 {
            wpe: weights.tensor("wpe.weight", &[config.n_positions, n])?,
            h,
            ln_f: weights.layer_norm("ln_f", n, config.layer_norm_epsilon)?,
            head,
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
        let positions = segments.iter().flat_map(|segment| segment.position..segment.position + segment.rows);
        let positions = positions.map(|position| position as u32).collect::<Vec<_>>();
        let positions = Tensor::new(positions, self.wpe.device())?;
        let mut x = (self.embed(tokens)? + self.wpe.index_select(&positions, 0)?)?;
        for (layer, block) in self.h.iter().enumerate() {
            x = block.forward(on, &x, segments, cache, layer, self.config.heads())?;
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        let x = x.index_select(&Tensor::new(wanted, x.device())?, 0)?;
        self.ln_f.forward(on, &x).map(Some)
    }

    /// The logits of such states: `[states, vocab_size]`, row-major. The head is a large part of a small model's weights: only for
    /// rows whose logits are wanted.
    pub(crate) fn head(&self, on: Compute<'_>, states: &Tensor) -> Result<Logits> {
        match &self.head {
            Head::Tied(head) | Head::Separate { lm_head: head, .. } => head.logits(on, states),
        }
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        match &self.head {
            Head::Tied(wte) => wte.embed(tokens),
            Head::Separate { wte, .. } => wte.index_select(&Tensor::new(tokens, wte.device())?, 0),
        }
    }
}

impl Block {
    fn load(config: &Config, weights: &Weights<'_>, layer: usize) -> std::result::Result<Block, LoadError> {
        let (n, inner, epsilon) = (config.n_embd, config.n_inner, config.layer_norm_epsilon);
        let mut scale = if config.scale_attn_weights { 1.0 / (config.head_dim() as f32).sqrt() } else { 1.0 };
        if config.scale_attn_by_inverse_layer_idx {
            scale /= (layer + 1) as f32;
        }
        Ok(Block {
            ln_1: weights.layer_norm(&format!("h.{layer}.ln_1"), n, epsilon)?,
            attn: Attention {
                c_attn: weights.conv1d(&format!("h.{layer}.attn.c_attn"), n, 3 * n)?,
                c_proj: weights.conv1d(&format!("h.{layer}.attn.c_proj"), n, n)?,
                scale,
            },
            ln_2: weights.layer_norm(&format!("h.{layer}.ln_2"), n, epsilon)?,
            mlp: Mlp {
                c_fc: weights.conv1d(&format!("h.{layer}.mlp.c_fc"), n, inner)?,
                c_proj: weights.conv1d(&format!("h.{layer}.mlp.c_proj"), inner, n)?,
            },
        })
    }

    fn forward(
        &self,
        on: Compute<'_>,
        x: &Tensor,
        segments: &[Segment<'_>],
        cache: &mut Storage,
        layer: usize,
        shape: Heads,
    ) -> Result<Tensor> {
        let qkv = self.attn.c_attn.forward(on, &self.ln_1.forward(on, x)?, Then::Nothing)?;
        let attended = attention(on, &qkv, shape, self.attn.scale, segments, cache, layer)?;
        let x = self.attn.c_proj.forward(on, &attended, Then::AddTo(x))?;
        let wide = self.mlp.c_fc.forward(on, &self.ln_2.forward(on, &x)?, Then::Gelu)?;
        self.mlp.c_proj.forward(on, &wide, Then::AddTo(&x))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(change: Value) -> std::result::Result<Config, String> {
        let mut config = json!({
            "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
            "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        });
        for (name, value) in change.as_object().unwrap() {
            config[name] = value.clone();
        }
        Config::read(&config, "config.json").map_err(|error| error.to_string())
    }

    #[test]
    fn the_published_configurations_are_read() {
        assert_eq!(read(json!({})), Ok(Config::gpt2()));
        assert_eq!(Config::gpt2().parameters(), 124_439_808);
        assert_eq!(Config::gpt2_large().parameters(), 774_030_080);
        let xl = read(json!({"n_embd": 1600, "n_layer": 48, "n_head": 25, "n_inner": null})).unwrap();
        assert_eq!((xl.n_inner, xl.parameters()), (6400, 1_557_611_200));
        assert_eq!(read(json!({"n_positions": null, "n_ctx": 512})).unwrap().n_positions, 512);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (change, word) in [
            (json!({"activation_function": "relu"}), "relu"),
            (json!({"add_cross_attention": true}), "cross-attention"),
            (json!({"n_head": 7}), "multiple"),
            (json!({"n_layer": 0}), "n_layer"),
            (json!({"n_layer": -1}), "n_layer"),
            (json!({"vocab_size": null}), "vocab_size"),
            (json!({"n_embd": "768"}), "n_embd"),
            (json!({"n_embd": 1u64 << 60}), "n_embd"),
            (json!({"layer_norm_epsilon": "no"}), "layer_norm_epsilon"),
            (json!({"tie_word_embeddings": 3}), "tie_word_embeddings"),
        ] {
            let error = read(change).unwrap_err();
            assert!(error.contains(word), "{error:?} names {word}");
        }
    }
}
