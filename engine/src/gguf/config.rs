//! Metadata to config.json: the same words for the same things as in Hugging Face's checkpoints.

use serde_json::{Map, Value, json};

use super::Family;
use super::read::Header;
use crate::stored::Kind;

/// No known model is near these; beyond them a file is damaged or hostile.
const SIZE_MAX: u64 = 1 << 24;

/// config.json; `file` holds what a scaling of rotations is read from.
pub(super) fn config(header: &Header<'_>, file: &[u8]) -> Result<Value, String> {
    let family = Family::of(header)?;
    let mut config = match family {
        Family::Gpt2 => gpt2(header)?,
        _ => llama(header, family, file)?,
    };
    config.insert("model_type".into(), family.name().into());
    config.insert("vocab_size".into(), vocabulary(header)?.into());
    config.insert("tie_word_embeddings".into(), header.tensor("output.weight").is_none().into());
    if let Some(bos) = header.whole("tokenizer.ggml.bos_token_id")? {
        config.insert("bos_token_id".into(), bos.into());
    }
    config.insert("eos_token_id".into(), super::tokenizer::ends(header)?.into());
    Ok(Value::Object(config))
}

/// Numbers of a head.
pub(super) fn head_dim(header: &Header<'_>, family: Family) -> Result<usize, String> {
    let (width, heads) = (size(header, family, "embedding_length")?, size(header, family, "attention.head_count")?);
    let dim = match header.whole(&format!("{}.attention.key_length", family.name()))? {
        Some(dim) if (2..=SIZE_MAX).contains(&dim) && dim % 2 == 0 => dim,
        None if width % heads == 0 && width / heads % 2 == 0 => width / heads,
        _ => return Err("its heads have no even number of values each".into()),
    };
    Ok(dim as usize)
}

fn gpt2(header: &Header<'_>) -> Result<Map<String, Value>, String> {
    let size = |name: &str| size(header, Family::Gpt2, name);
    let config = json!({
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "n_positions": size("context_length")?,
        "n_embd": size("embedding_length")?,
        "n_layer": size("block_count")?,
        "n_head": size("attention.head_count")?,
        "n_inner": size("feed_forward_length")?,
        "layer_norm_epsilon": header.float("gpt2.attention.layer_norm_epsilon")?.unwrap_or(1e-5),
    });
    Ok(config.as_object().expect("an object").clone())
}

fn llama(header: &Header<'_>, family: Family, file: &[u8]) -> Result<Map<String, Value>, String> {
    let key = |name: &str| format!("{}.{name}", family.name());
    let size = |name: &str| size(header, family, name);
    if header.whole(&key("expert_count"))?.is_some_and(|experts| experts > 0) {
        return Err("a mixture of experts, which this version does not run: take a dense model".into());
    }
    let heads = size("attention.head_count")?;
    let kv_heads = header.whole(&key("attention.head_count_kv"))?.unwrap_or(heads);
    let head_dim = head_dim(header, family)? as u64;
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = header.whole(&key(name))?.filter(|other| *other != head_dim) {
            return Err(format!("{} is {other} in heads of {head_dim}, which this version does not run", key(name)));
        }
    }
    let context = size("context_length")?;
    let epsilon = header.float(&key("attention.layer_norm_rms_epsilon"))?;
    let architecture = match family {
        Family::Qwen2 => "Qwen2ForCausalLM",
        Family::Qwen3 => "Qwen3ForCausalLM",
        _ => "LlamaForCausalLM",
    };
    let mut config = json!({
        "architectures": [architecture],
        "hidden_act": "silu",
        "hidden_size": size("embedding_length")?,
        "intermediate_size": size("feed_forward_length")?,
        "num_hidden_layers": size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": epsilon.ok_or_else(|| format!("{} is missing", key("attention.layer_norm_rms_epsilon")))?,
        "rope_theta": header.float(&key("rope.freq_base"))?.unwrap_or(10_000.0),
        "rope_scaling": scaling(header, family, file, context)?,
        "attention_bias": header.tensor("blk.0.attn_q.bias").is_some(),
        "mlp_bias": header.tensor("blk.0.ffn_up.bias").is_some(),
    });
    match (family, header.whole(&key("attention.sliding_window"))?) {
        (Family::Qwen2 | Family::Qwen3, _) => config["use_sliding_window"] = false.into(),
        (_, Some(window)) if window > 0 => config["sliding_window"] = window.into(),
        _ => {}
    }
    Ok(config.as_object().expect("an object").clone())
}

/// `rope_scaling`: how rotations reach behind the context of the training.
fn scaling(header: &Header<'_>, family: Family, file: &[u8], context: u64) -> Result<Value, String> {
    let key = |name: &str| format!("{}.rope.{name}", family.name());
    if let Some(tensor) = header.tensor("rope_freqs.weight") {
        let mut factors = vec![0.0; tensor.dims.iter().product::<usize>().min(SIZE_MAX as usize)];
        if tensor.kind != Kind::F32 || factors.len() * 4 != tensor.bytes.len() {
            return Err(format!("rope_freqs.weight of {} in place of F32", tensor.kind));
        }
        Kind::F32.floats(&file[tensor.bytes.clone()], &mut factors);
        let theta = header.float(&key("freq_base"))?.unwrap_or(10_000.0);
        return llama3(&factors, theta).ok_or_else(|| {
            "its rope_freqs.weight is no scaling of Llama 3.1 or 3.2, the only one by tensor that this version knows".to_owned()
        });
    }
    let factor = match header.float(&key("scaling.factor"))? {
        Some(factor) => Some(factor),
        // What it was called before.
        None => header.float(&key("scale_linear"))?,
    };
    let original = header.whole(&key("scaling.original_context_length"))?;
    match (header.text(&key("scaling.type"))?, factor) {
        (Some("none"), _) | (None, None) => Ok(Value::Null),
        (Some("linear") | None, Some(1.0)) => Ok(Value::Null),
        (Some("linear") | None, Some(factor)) => Ok(json!({"rope_type": "linear", "factor": factor})),
        (Some("yarn"), Some(factor)) => {
            Ok(json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original.unwrap_or(context)}))
        }
        (Some(other), _) => Err(format!("scales rotations by {other:?}, which this version does not know from GGUF")),
    }
}

/// llama.cpp writes what Llama 3.1's scaling makes of each frequency and not what it is; so the published ones are tried.
fn llama3(factors: &[f32], theta: f64) -> Option<Value> {
    const ORIGINAL: f64 = 8192.0;
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    [8.0, 32.0].into_iter().find_map(|factor: f64| {
        let fits = factors.iter().enumerate().all(|(at, got)| {
            let wavelength = std::f64::consts::TAU * theta.powf(at as f64 / factors.len() as f64);
            let want = if wavelength < ORIGINAL / HIGH {
                1.0
            } else if wavelength > ORIGINAL / LOW {
                factor
            } else {
                let smooth = (ORIGINAL / wavelength - LOW) / (HIGH - LOW);
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            (f64::from(*got) / want - 1.0).abs() < 1e-3
        });
        fits.then(|| {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW,
                "high_freq_factor": HIGH,
                "original_max_position_embeddings": ORIGINAL as u64,
            })
        })
    })
}

/// Rows of the embedding, which may be more than there are tokens.
fn vocabulary(header: &Header<'_>) -> Result<u64, String> {
    let rows = header.tensor("token_embd.weight").and_then(|tensor| tensor.dims.first().copied());
    rows.map(|rows| rows as u64).ok_or_else(|| "has no tensor token_embd.weight: is it a whole model?".to_owned())
}

fn size(header: &Header<'_>, family: Family, name: &str) -> Result<u64, String> {
    let key = format!("{}.{name}", family.name());
    match header.whole(&key)? {
        Some(size) if (1..=SIZE_MAX).contains(&size) => Ok(size),
        Some(size) => Err(format!("{key} must be from 1 to {SIZE_MAX}, not {size}")),
        None => Err(format!("{key} is missing")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::File;
    use super::*;

    fn read(file: File) -> Result<Value, String> {
        let bytes = file.bytes();
        Header::read(&bytes).and_then(|header| config(&header, &bytes))
    }

    fn llama() -> File {
        File::new()
            .text("general.architecture", "llama")
            .number("llama.block_count", 30)
            .number("llama.context_length", 8192)
            .number("llama.embedding_length", 576)
            .number("llama.feed_forward_length", 1536)
            .number("llama.attention.head_count", 9)
            .number("llama.attention.head_count_kv", 3)
            .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
            .number("llama.rope.dimension_count", 64)
            .number("tokenizer.ggml.bos_token_id", 1)
            .number("tokenizer.ggml.eos_token_id", 2)
            .tensor("token_embd.weight", 0, &[5, 2], &[0; 40])
    }

    #[test]
    fn a_llama_has_the_configuration_that_its_folder_has() {
        assert_eq!(
            read(llama().float("llama.rope.freq_base", 100_000.0)).unwrap(),
            json!({
                "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
                "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
                "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "rope_scaling": null,
                "attention_bias": false, "mlp_bias": false, "model_type": "llama", "vocab_size": 5,
                "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": [2],
            })
        );
        let untied = llama().tensor("output.weight", 0, &[5, 2], &[0; 40]);
        assert_eq!(read(untied).unwrap()["tie_word_embeddings"], false);
    }

    #[test]
    fn scalings_of_rotations_are_the_ones_that_config_json_names() {
        let scaled = |file: File| read(file).map(|config| config["rope_scaling"].clone());
        let linear = llama().text("llama.rope.scaling.type", "linear").float("llama.rope.scaling.factor", 2.0);
        assert_eq!(scaled(linear), Ok(json!({"rope_type": "linear", "factor": 2.0})));
        let yarn = llama()
            .text("llama.rope.scaling.type", "yarn")
            .float("llama.rope.scaling.factor", 4.0)
            .number("llama.rope.scaling.original_context_length", 2048);
        assert_eq!(scaled(yarn), Ok(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048})));
        let freqs = |factors: Vec<f32>| {
            let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
            llama().float("llama.rope.freq_base", 500_000.0).tensor("rope_freqs.weight", 0, &[factors.len()], &bytes)
        };
        // Wavelengths of 6.3, 167 and 4443: the middle one is scaled by half.
        let smooth = (8192.0 / (std::f64::consts::TAU * 500_000f64.sqrt()) - 1.0) / 3.0;
        let factors = vec![1.0, 1.0, (1.0 / ((1.0 - smooth) / 32.0 + smooth)) as f32, 32.0];
        assert_eq!(scaled(freqs(factors)).unwrap()["factor"], 32.0);
        assert!(scaled(freqs(vec![1.0, 3.0])).unwrap_err().contains("rope_freqs"));
        let other = llama().text("llama.rope.scaling.type", "longrope");
        assert!(scaled(other).unwrap_err().contains("longrope"));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let refused = |file: File| read(file).unwrap_err();
        assert!(refused(File::new().text("general.architecture", "mamba")).contains("mamba"));
        assert!(refused(File::new()).contains("general.architecture"));
        assert!(refused(llama().number("llama.expert_count", 8)).contains("experts"));
        assert!(refused(llama().number("llama.attention.value_length", 32)).contains("value_length"));
        assert!(refused(File::new().text("general.architecture", "qwen2")).contains("qwen2.attention.head_count is missing"));
        assert!(refused(File::new().text("general.architecture", "gpt2").number("gpt2.context_length", 0)).contains("from 1"));
    }
}
