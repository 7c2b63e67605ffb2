//! Logits and greedy texts agree with those of transformers' GPT2LMHeadModel.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use banyan_engine::{
    DeviceChoice, Dtype, Engine, LoadOptions, Model, Options, Output, Prompt, Request, Sampling, SequenceId, Source,
};
use serde_json::{Map, Value, json};

use crate::models;
use crate::weights::elements;

/// Allowed difference of a logit.
const TOLERANCE: f32 = 1e-4;

/// Where the second choice is nearer than that, either may be taken.
const MARGIN: f64 = 1e-3;

#[test]
fn the_bundled_models_logits_agree_with_transformers() {
    agrees(&Source::bundled(), include_str!("logits-banyan-tiny.json"));
}

#[test]
fn a_trained_models_logits_agree_with_transformers() {
    let Some(models) = models::folder("mgm") else { return };
    // It has no tokenizer that is one; the logits are of tokens.
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(models.join(file), folder.path().join(file)).expect("a file that can be copied");
    }
    with_bundled_tokenizer(folder.path());
    agrees(&Source::from_folder(folder.path()).expect("a model's folder"), include_str!("logits-mgm.json"));
}

#[test]
fn random_weights_of_gpt2s_exact_shape_give_the_logits_of_transformers() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    write_random_gpt2(folder.path()).expect("room for 500 MB of weights");
    with_bundled_tokenizer(folder.path());
    agrees(&Source::from_folder(folder.path()).expect("a model's folder"), include_str!("logits-random-gpt2.json"));
}

fn agrees(source: &Source, golden: &str) {
    let golden: Value = serde_json::from_str(golden).expect("a golden file");
    let options = LoadOptions { device: DeviceChoice::Cpu, dtype: Dtype::F32 };
    let model = Model::load(source, &options).expect("the model loads");
    let mut worst = 0f32;
    for run in array(&golden["runs"]) {
        let logits = model.logits(&tokens(&run["tokens"]), 16, 2).expect("logits");
        for position in array(&run["positions"]) {
            let row = &logits[number(&position["position"])];
            let sample = array(&position["sample"]);
            let stride = row.len() / sample.len();
            for (index, want) in sample.iter().enumerate() {
                worst = worst.max((row[index * stride] - float(want)).abs());
            }
            for entry in array(&position["top"]) {
                worst = worst.max((row[number(&entry[0])] - float(&entry[1])).abs());
            }
        }
    }
    eprintln!("{}: logits differ by at most {worst:e}", golden["model"]);
    assert!(worst <= TOLERANCE, "{}: logits differ by {worst:e}", golden["model"]);
    let model = Arc::new(model);
    for greedy in array(&golden["greedy"]) {
        let (prompt, wanted) = (tokens(&greedy["prompt"]), tokens(&greedy["tokens"]));
        let margins = array(&greedy["margins"]);
        // All positions at once: each sees the tokens that transformers chose.
        let text = [&prompt[..], &wanted[..wanted.len() - 1]].concat();
        let logits = model.logits(&text, 16, 2).expect("logits");
        for (index, (&want, margin)) in wanted.iter().zip(margins).enumerate() {
            let row = &logits[prompt.len() + index - 1];
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).expect("logits");
            assert!(best as u32 == want || is_close(margin), "{}: token {index} is {best}, not {want}", golden["model"]);
        }
        // And one after the other, as they are generated, as far as there is only one right answer.
        let sure = margins.iter().position(is_close).unwrap_or(wanted.len());
        assert_eq!(generate(&model, &prompt, wanted.len())[..sure], wanted[..sure], "{}", golden["model"]);
    }
}

fn is_close(margin: &Value) -> bool {
    margin.as_f64().expect("a margin") <= MARGIN
}

/// What the engine generates, greedily.
fn generate(model: &Arc<Model>, prompt: &[u32], count: usize) -> Vec<u32> {
    let options = Options { batch_max: 2, threads: Some(2), ..Options::default() };
    let (engine, mut steps) = Engine::start(model.clone(), options).expect("an engine");
    engine.submit(Request {
        id: SequenceId(1),
        prompt: Prompt::Tokens(prompt.to_vec()),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        max_tokens: Some(count as u32),
        min_tokens: 0,
        stop: Vec::new(),
        ignore_eos: true,
        resume: Vec::new(),
        alone: false,
    });
    let mut generated = Vec::new();
    while let Some(step) = steps.blocking_recv() {
        for output in step.outputs {
            match output {
                Output::Tokens { tokens, .. } => generated.extend(tokens),
                Output::Finished { .. } => return generated,
                Output::Started { .. } | Output::Progress { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    panic!("the engine ended before the answer did");
}

fn with_bundled_tokenizer(folder: &Path) {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("banyan-tiny/tokenizer.json");
    std::fs::copy(bundled, folder.join("tokenizer.json")).expect("a file that can be copied");
}

/// openai-community/gpt2's files by name and shape: no prefix, the head tied to the embeddings, and the constant masks that
/// the real file carries (one of them, which must be passed over).
fn write_random_gpt2(folder: &Path) -> std::io::Result<()> {
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

    // The safetensors format: length of the header, header, tensors without a gap.
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in &tensors {
        let start = end;
        end += shape.iter().product::<usize>() * 4;
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::with_capacity(1 << 20, File::create(folder.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for (name, shape) in &tensors {
        for element in elements(name, shape.iter().product()) {
            file.write_all(&element.to_le_bytes())?;
        }
    }
    file.flush()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn number(value: &Value) -> usize {
    value.as_u64().expect("a number") as usize
}

fn float(value: &Value) -> f32 {
    value.as_f64().expect("a number") as f32
}

fn tokens(value: &Value) -> Vec<u32> {
    array(value).iter().map(|token| number(token) as u32).collect()
}
