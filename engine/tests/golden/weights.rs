//! Weights that are a function of their names, the same bits as golden/weights.py makes, and a checkpoint of them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::splitmix::{STEP, mix};

/// FNV-1a, 64 bits.
pub(crate) fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |value, byte| (value ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// Factor and offset of a tensor's elements.
fn scale(name: &str) -> (f32, f32) {
    match name {
        _ if name.ends_with(".weight") && name.contains("ln_") => (0.125, 1.0),
        _ if name.ends_with("wte.weight") || name.ends_with("attn.c_attn.weight") => (0.0625, 0.0),
        _ if name.contains("c_proj") => (0.03125, 0.0),
        _ if name.ends_with("norm.weight") => (0.125, 1.0),
        _ if name.contains("_proj.") || name == "lm_head.weight" => (0.25, 0.0),
        _ if name == "embed_tokens.weight" => (0.5, 0.0),
        _ => (0.03125, 0.0),
    }
}

/// A tensor's elements in the order in which they are stored.
pub(crate) fn elements(name: &str, count: usize) -> impl Iterator<Item = f32> {
    let (factor, offset) = scale(name);
    let key = fnv1a64(name);
    (1..=count as u64).map(move |i| {
        let hash = mix(i.wrapping_mul(STEP).wrapping_add(key));
        ((hash >> 40) as i32 - (1 << 23)) as f32 / (1u32 << 23) as f32 * factor + offset
    })
}

/// openai-community/gpt2's files by name and shape: no prefix, the head tied to the embeddings, and the constant masks that
/// the real file carries (one of them, which must be passed over).
pub(crate) fn write_random_gpt2(folder: &Path) -> std::io::Result<()> {
    let config = json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new", "vocab_size": 50257,
        "n_positions": 1024, "n_ctx": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "layer_norm_epsilon": 1e-5,
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let mut tensors = vec![("wte.weight".to_string(), vec![50257, 768]), ("wpe.weight".into(), vec![1024, 768])];
    for layer in 0..12 {
        for (name, shape) in [
            ("ln_1.weight", vec![768]),
            ("ln_1.bias", vec![768]),
            ("attn.c_attn.weight", vec![768, 2304]),
            ("attn.c_attn.bias", vec![2304]),
            ("attn.c_proj.weight", vec![768, 768]),
            ("attn.c_proj.bias", vec![768]),
            ("ln_2.weight", vec![768]),
            ("ln_2.bias", vec![768]),
            ("mlp.c_fc.weight", vec![768, 3072]),
            ("mlp.c_fc.bias", vec![3072]),
            ("mlp.c_proj.weight", vec![3072, 768]),
            ("mlp.c_proj.bias", vec![768]),
        ] {
            tensors.push((format!("h.{layer}.{name}"), shape));
        }
    }
    tensors.push(("h.0.attn.bias".into(), vec![1, 1, 1024, 1024]));
    tensors.push(("ln_f.weight".into(), vec![768]));
    tensors.push(("ln_f.bias".into(), vec![768]));

    write_tensors(folder, "", &tensors)
}

/// A small checkpoint of a model of the llama family, by its config.json.
pub(crate) fn write_random_llama(folder: &Path, config: &Value) -> std::io::Result<()> {
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let size = |name: &str| config[name].as_u64().map(|size| size as usize);
    let flag = |name: &str| config[name].as_bool().unwrap_or(false);
    let needed = |name: &str| size(name).expect("a size that every model has");
    let (n, inner, vocabulary) = (needed("hidden_size"), needed("intermediate_size"), needed("vocab_size"));
    let heads = needed("num_attention_heads");
    let head_dim = size("head_dim").unwrap_or(n / heads);
    let (q, kv) = (heads * head_dim, size("num_key_value_heads").unwrap_or(heads) * head_dim);
    let qkv_bias = flag("attention_bias") || config["model_type"] == "qwen2";

    let mut tensors = vec![("embed_tokens.weight".to_string(), vec![vocabulary, n]), ("norm.weight".into(), vec![n])];
    for layer in 0..needed("num_hidden_layers") {
        for (name, inputs, columns, bias) in [
            ("self_attn.q_proj", n, q, qkv_bias),
            ("self_attn.k_proj", n, kv, qkv_bias),
            ("self_attn.v_proj", n, kv, qkv_bias),
            ("self_attn.o_proj", q, n, flag("attention_bias")),
            ("mlp.gate_proj", n, inner, flag("mlp_bias")),
            ("mlp.up_proj", n, inner, flag("mlp_bias")),
            ("mlp.down_proj", inner, n, flag("mlp_bias")),
        ] {
            tensors.push((format!("layers.{layer}.{name}.weight"), vec![columns, inputs]));
            if bias {
                tensors.push((format!("layers.{layer}.{name}.bias"), vec![columns]));
            }
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("layers.{layer}.{name}.weight"), vec![n]));
        }
        if config["model_type"] == "qwen3" {
            for name in ["q_norm", "k_norm"] {
                tensors.push((format!("layers.{layer}.self_attn.{name}.weight"), vec![head_dim]));
            }
        }
    }
    if !flag("tie_word_embeddings") {
        tensors.push(("lm_head.weight".into(), vec![vocabulary, n]));
    }
    write_tensors(folder, "model.", &tensors)
}

/// model.safetensors: length of the header, header, tensors without a gap. The names of the body begin with `prefix`.
fn write_tensors(folder: &Path, prefix: &str, tensors: &[(String, Vec<usize>)]) -> std::io::Result<()> {
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * 4;
        let name = if name == "lm_head.weight" { name.clone() } else { format!("{prefix}{name}") };
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::with_capacity(1 << 20, File::create(folder.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for (name, shape) in tensors {
        for element in elements(name, shape.iter().product()) {
            file.write_all(&element.to_le_bytes())?;
        }
    }
    file.flush()
}
