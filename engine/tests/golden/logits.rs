//! Logits and greedy texts agree with those of transformers' GPT2LMHeadModel.

use std::path::Path;
use std::sync::Arc;

use banyan_engine::{
    DeviceChoice, Dtype, Engine, LoadOptions, Model, Options, Output, Progress, Prompt, Request, Sampling, SequenceId, Source,
    Tell,
};
use serde_json::Value;

/// Allowed difference of a logit.
const TOLERANCE: f32 = 2e-4;

/// Where the second choice is nearer than that, either may be taken.
const MARGIN: f64 = 1e-3;

/// Asserts that a model gives the logits and the greedy texts of a golden file.
pub(crate) fn agrees(source: &Source, golden: &str) {
    let golden: Value = serde_json::from_str(golden).expect("a golden file");
    let options = LoadOptions { device: DeviceChoice::Cpu, dtype: Dtype::F32, ..LoadOptions::default() };
    let model = Model::load(source, &options, &Progress::silent()).expect("the model loads");
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
        model: String::new(),
        prompt: Prompt::Tokens(prompt.to_vec()),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        max_tokens: Some(count as u32),
        min_tokens: 0,
        stop: Vec::new(),
        ignore_eos: true,
        resume: Vec::new(),
        tell: Tell::Nothing,
        traceparent: String::new(),
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

/// For models whose goldens are of tokens: any tokenizer will do.
pub(crate) fn with_bundled_tokenizer(folder: &Path) {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("banyan-tiny/tokenizer.json");
    std::fs::copy(bundled, folder.join("tokenizer.json")).expect("a file that can be copied");
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
