//! Tensors' names: llama.cpp's to the ones in Hugging Face's checkpoints, and what else differs on the way.

use super::config::head_dim;
use super::read::Header;
use super::{Family, Tensor};
use crate::stored::Order;

/// Parts of a layer: here, there.
const GPT2: [(&str, &str); 6] = [
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];
const LLAMA: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// All tensors by the names and in the shapes that the family has them in. One that the family does not have keeps its name.
pub(super) fn tensors(header: &Header<'_>) -> Result<Vec<Tensor>, String> {
    let family = Family::of(header)?;
    let head_dim = head_dim(header, family)?;
    let tensors = header.tensors.iter().map(|tensor| {
        let (name, order) = match family {
            Family::Gpt2 => gpt2(tensor.name, tensor.dims.len()),
            _ => llama(tensor.name, family, head_dim),
        };
        let mut dims = tensor.dims.clone();
        match order {
            Order::Transposed => dims.reverse(),
            // What is no whole number of heads will not have the shape that the model wants.
            Order::Rotary { head_dim } if !dims[0].is_multiple_of(head_dim) => {
                return Err(format!("tensor {} has {} rows, which are no whole heads of {head_dim}", tensor.name, dims[0]));
            }
            _ => {}
        }
        let name = name.unwrap_or_else(|| tensor.name.to_owned());
        Ok(Tensor { name, kind: tensor.kind, order, dims, bytes: tensor.bytes.clone() })
    });
    tensors.collect()
}

/// `blk.3.attn_q.weight`: layer 3, `attn_q`, `weight`.
fn layer(name: &str) -> Option<(&str, &str, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, what) = rest.split_once('.')?;
    Some((layer, part, what))
}

fn gpt2(name: &str, dims: usize) -> (Option<String>, Order) {
    if let Some((layer, part, what)) = layer(name) {
        let there = GPT2.iter().find(|(here, _)| *here == part);
        // Hugging Face has these the other way round, as `Conv1D`.
        let order = if dims == 2 { Order::Transposed } else { Order::AsIs };
        return match there {
            Some((_, there)) => (Some(format!("h.{layer}.{there}.{what}")), order),
            None => (None, Order::AsIs),
        };
    }
    let there = match name {
        "token_embd.weight" => "wte.weight",
        "position_embd.weight" => "wpe.weight",
        "output_norm.weight" => "ln_f.weight",
        "output_norm.bias" => "ln_f.bias",
        "output.weight" => "lm_head.weight",
        _ => return (None, Order::AsIs),
    };
    (Some(there.to_owned()), Order::AsIs)
}

fn llama(name: &str, family: Family, head_dim: usize) -> (Option<String>, Order) {
    if let Some((layer, part, what)) = layer(name) {
        let there = LLAMA.iter().find(|(here, _)| *here == part);
        // llama.cpp rotates neighbours in models of its own architecture, and halves in the others.
        let rotated = family == Family::Llama && matches!(part, "attn_q" | "attn_k");
        let order = if rotated { Order::Rotary { head_dim } } else { Order::AsIs };
        return match there {
            Some((_, there)) => (Some(format!("model.layers.{layer}.{there}.{what}")), order),
            None => (None, Order::AsIs),
        };
    }
    let there = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => return (None, Order::AsIs),
    };
    (Some(there.to_owned()), Order::AsIs)
}
