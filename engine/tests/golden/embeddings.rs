//! Embeddings agree with transformers: the mean of the last hidden states, behind the last norm.

use std::sync::Arc;

use banyan_engine::{
    DeviceChoice, Dtype, Engine, LoadOptions, Model, Options, Output, Progress, Prompt, Request, Sampling, SequenceId, Source,
    Tell, Told,
};
use serde_json::Value;

/// Allowed difference of a number, for numbers of that size; and below one, of itself.
const TOLERANCE: f64 = 2e-4;

/// Asserts that a model gives the embeddings of a golden file.
pub(crate) fn agrees(source: &Source, golden: &str) {
    let golden: Value = serde_json::from_str(golden).expect("a golden file");
    let options = LoadOptions { device: DeviceChoice::Cpu, dtype: Dtype::F32, ..LoadOptions::default() };
    let model = Arc::new(Model::load(source, &options, &Progress::silent()).expect("the model loads"));
    for run in golden["runs"].as_array().expect("a list") {
        let numbers = |name: &str| run[name].as_array().expect("a list").iter();
        let tokens: Vec<u32> = numbers("tokens").map(|token| token.as_u64().expect("a token") as u32).collect();
        let count = tokens.len();
        let embedding = embedding(&model, tokens);
        assert_eq!(embedding.len(), numbers("mean").count(), "{}", golden["model"]);
        for (at, (ours, theirs)) in embedding.iter().zip(numbers("mean")).enumerate() {
            let theirs = theirs.as_f64().expect("a number");
            let apart = (f64::from(*ours) - theirs).abs() / theirs.abs().max(1.0);
            assert!(apart <= TOLERANCE, "{} of {count} tokens: number {at} is {ours}, not {theirs}", golden["model"]);
        }
    }
}

/// Through the engine, as a query has it, in chunks.
fn embedding(model: &Arc<Model>, tokens: Vec<u32>) -> Vec<f32> {
    let options = Options { batch_max: 2, step_tokens: 48, threads: Some(2), ..Options::default() };
    let (engine, mut steps) = Engine::start(Arc::clone(model), options).expect("an engine");
    engine.submit(Request {
        id: SequenceId(1),
        model: String::new(),
        prompt: Prompt::Tokens(tokens),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        max_tokens: Some(0),
        min_tokens: 0,
        stop: Vec::new(),
        ignore_eos: false,
        resume: Vec::new(),
        tell: Tell::Embedding,
        traceparent: String::new(),
    });
    while let Some(step) = steps.blocking_recv() {
        for output in step.outputs {
            match output {
                Output::Finished { told: Some(Told::Embedding(numbers)), .. } => return numbers,
                Output::Started { .. } | Output::Progress { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    panic!("the engine ended before the embedding was told");
}
