//! The holder is lost at every single token of an answer of a real model, in every type of weights: the client has the bits of
//! an undisturbed run.

use std::sync::Arc;

use banyan_engine::{DeviceChoice, Dtype, LoadOptions, Model, Options, Progress, Source};
use banyan_proto::{QueryId, v1};
use banyan_tests::{
    Cluster,
    query::{self, Asked, Ended},
};
use futures::future::join_all;

/// As much KV as a few short answers need: many engines share the machine.
const KV_BYTES: u64 = 16 << 20;

/// All that a client is told, but for what was computed where.
#[derive(Debug, PartialEq)]
struct Told {
    tokens: Vec<u32>,
    text: String,
    logprobs: Vec<v1::TokenLogprob>,
    reason: i32,
    prompt_tokens: u32,
    completion_tokens: u32,
}

async fn told(mut asked: Asked) -> Told {
    // Reading checks that no position repeats or is missing.
    let end = asked.end().await;
    let Ended::Finished(finish) = end else { panic!("it ended with {end:?} behind {:?}", asked.text) };
    Told {
        tokens: asked.tokens,
        text: asked.text,
        logprobs: asked.logprobs,
        reason: finish.reason,
        prompt_tokens: finish.prompt_tokens,
        completion_tokens: finish.completion_tokens,
    }
}

fn generation(prompt: &str, max_tokens: u32, sampling: v1::Sampling) -> v1::Generation {
    v1::Generation {
        prompt: Some(v1::generation::Prompt::Text(prompt.to_owned())),
        max_tokens,
        sampling: Some(v1::Sampling { top_p: 1.0, repetition_penalty: 1.0, ..sampling }),
        ..v1::Generation::default()
    }
}

/// Seeded sampling with everything that has a memory, alternatives to each token, and a stop string that cuts it short.
fn sampled() -> v1::Generation {
    let sampling = v1::Sampling {
        temperature: 0.9,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        seed: 11,
        logprobs: true,
        top_logprobs: 3,
        ..v1::Sampling::default()
    };
    let stop = vec!["\n\n\n".to_owned(), "and they".to_owned()];
    v1::Generation { stop, ..generation(STORY, 24, sampling) }
}

/// It begins with characters of two tokens each, so that some breaks are within one.
fn split_characters() -> v1::Generation {
    // The two bytes of é, of which a model of English stories writes neither: each is liked less whenever it was written.
    let bias = |token, bias| v1::LogitBias { token, bias };
    let logit_bias = vec![bias(E_ACUTE.0, 100.0), bias(E_ACUTE.1, 70.0)];
    let sampling = v1::Sampling { frequency_penalty: 50.0, logit_bias, ..v1::Sampling::default() };
    generation(STORY, 12, sampling)
}

const STORY: &str = "Once upon a time there was a little girl named";
/// The bundled model's tokens of the bytes 0xC3 and 0xA9.
const E_ACUTE: (u32, u32) = (128, 103);

async fn lose_the_holder_at_every_token(dtype: Dtype) {
    let options = LoadOptions { device: DeviceChoice::Cpu, dtype, ..LoadOptions::default() };
    let model = Arc::new(Model::load(&Source::bundled(), &options, &Progress::silent()).expect("the bundled model loads"));
    // Guesses would bring several tokens at once; that they change no text is tested elsewhere.
    let options = Options { batch_max: 8, threads: Some(1), kv_memory: Some(KV_BYTES), speculate: false, ..Options::default() };
    let tree = Cluster::builder().model(model, options).gated();
    let mut cluster = tree.node("node-1", "root").node("node-2", "root").start().await;
    let root = cluster.root().to_owned();
    let mut born = 2;
    for (what, wanted) in [("sampled", sampled()), ("split characters", split_characters())] {
        let undisturbed = told(query::put(&root, QueryId::new(), &wanted).await).await;
        let length = undisturbed.tokens.len();
        assert!(length >= 8, "{what}: {undisturbed:?}");
        if what == "split characters" {
            assert!(undisturbed.text.starts_with("éé"), "{undisturbed:?}");
        }
        for at in 0..=length {
            let id = QueryId::new();
            let lost = cluster.gate().shut_after(id, at as u32);
            // The same again beside it, which share its batch and its prompt's pages.
            let neighbours = join_all((0..3).map(|_| query::put(&root, QueryId::new(), &wanted))).await;
            let asked = query::put(&root, id, &wanted).await;
            let holder = lost.await.expect("somebody answers");
            cluster.kill(&holder);
            assert_eq!(told(asked).await, undisturbed, "{dtype}, {what}, lost behind {at} tokens");
            for neighbour in neighbours {
                assert_eq!(told(neighbour).await, undisturbed, "{dtype}, {what}, a neighbour lost behind {at} tokens");
            }
            born += 1;
            cluster.add(&format!("node-{born}"), "root").await;
        }
    }
    cluster.until("root", "nothing is left over", |root| root.live == 0 && root.waiting == 0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_f32() {
    lose_the_holder_at_every_token(Dtype::F32).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_bf16() {
    lose_the_holder_at_every_token(Dtype::Bf16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_8_bits() {
    lose_the_holder_at_every_token(Dtype::Q8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_4_bits() {
    lose_the_holder_at_every_token(Dtype::Q4).await;
}
