//! What is computed once, guessed, or computed again: it changes no bit of an answer.

use super::real::{DTYPES, STORY, engine, greedy, kv_bytes};
use super::*;
use crate::Progress;

const REFRAIN: &str = "The bird sang a song. The bird sang a song. The bird sang a song. The bird";

/// Requests of all kinds that go on for a while: `prompt` greedily, and drawn with everything that looks at earlier tokens.
fn kinds(id: u64, prompt: &str, tokens: u32) -> [Request; 3] {
    let drawn = Sampling {
        seed: id,
        temperature: 0.8,
        top_p: 0.9,
        repetition_penalty: 1.05,
        presence_penalty: 0.1,
        frequency_penalty: 0.05,
        logprobs: Some(2),
        ..Sampling::default()
    };
    let told = Sampling { logprobs: Some(3), temperature: 0.0, ..Sampling::default() };
    let stop = vec!["and they".to_owned(), "\n\n".to_owned()];
    [
        Request { ignore_eos: true, ..greedy(id, prompt, tokens) },
        Request { sampling: told, stop, min_tokens: tokens / 2, ..greedy(id + 1, prompt, tokens) },
        Request { sampling: drawn, ..greedy(id + 2, prompt, tokens) },
    ]
}

#[test]
fn guessing_changes_no_text() {
    for dtype in DTYPES {
        let requests = || (0..4).flat_map(|i| kinds(1 + 3 * i, if i % 2 == 0 { REFRAIN } else { STORY }, 60 + 7 * i as u32));
        let (plain, mut plain_steps) = engine(dtype, Options { speculate: false, ..Options::default() });
        let plainly = ask(&plain, &mut plain_steps, requests());
        assert_eq!(plain.stats().tokens_drafted, 0);
        let (engine, mut steps) = engine(dtype, Options::default());
        for request in requests() {
            let want = &plainly[&request.id.0];
            assert_eq!(ask_one(&engine, &mut steps, request.clone()).content(), want.content(), "{dtype}: {request:?}");
            // Resumed in the midst, it goes on the same way.
            let at = want.tokens.len() / 2;
            let resumed = ask_one(&engine, &mut steps, Request { resume: want.tokens[..at].to_vec(), ..request });
            assert_eq!(resumed.tokens[at..], want.tokens[at..]);
        }
        let stats = engine.stats();
        assert!(stats.tokens_accepted > 0 && stats.tokens_accepted < stats.tokens_drafted, "{dtype}: {stats:?}");
        let together = ask(&engine, &mut steps, requests());
        assert!(together.values().map(Answer::content).eq(plainly.values().map(Answer::content)), "{dtype}");
    }
}

#[test]
fn a_prefix_that_stands_there_changes_no_bit_and_is_told() {
    for dtype in DTYPES {
        let (warm, mut warm_steps) = engine(dtype, Options::default());
        let first = ask_one(&warm, &mut warm_steps, greedy(1, &STORY.repeat(3), 40));
        assert_eq!(first.usage().cached_tokens, 0);
        let turn = format!("{}{} What happened then? {STORY}", STORY.repeat(3), first.text());
        for request in kinds(2, &turn, 30) {
            let (cold, mut cold_steps) = engine(dtype, Options::default());
            let want = ask_one(&cold, &mut cold_steps, request.clone());
            let got = ask_one(&warm, &mut warm_steps, request);
            assert_eq!(got.content(), want.content(), "{dtype}");
            assert_eq!(want.usage().cached_tokens, 0);
            let usage = got.usage();
            assert!(usage.cached_tokens >= 16 && usage.cached_tokens < usage.prompt_tokens, "{dtype}: {usage:?}");
        }
        let stats = warm.stats();
        assert!(stats.tokens_reused > 0 && stats.pages_held == 0 && stats.pages_cached > 0, "{stats:?}");
    }
}

#[test]
fn who_is_preempted_goes_on_as_if_nothing_had_been() {
    let requests = || (0..4).flat_map(|i| kinds(1 + 3 * i, &format!("{} {STORY}", "So. ".repeat(i as usize)), 200));
    let (roomy, mut steps) = engine(Dtype::Q8, Options::default());
    let want = ask(&roomy, &mut steps, requests());
    assert_eq!(roomy.stats().preemptions, 0);
    let recording = Recording::default();
    let options = Options { kv_memory: Some(kv_bytes(512)), recording: Some(recording.clone()), ..Options::default() };
    let (tight, mut steps) = engine(Dtype::Q8, options);
    let got = ask(&tight, &mut steps, requests());
    assert!(got.values().map(Answer::content).eq(want.values().map(Answer::content)));
    stop(&tight);
    let stats = tight.stats();
    assert!(stats.preemptions > 0 && stats.pages_evicted > 0, "{stats:?}");
    assert_eq!(replay(recording.limits().unwrap(), &recording.records()), Ok(()));
}

#[test]
fn a_context_that_does_not_fit_is_served_as_far_as_it_fits() {
    let folder = crate::model::tests::checkpoint_with("", true, |_| (), |_, _| ());
    let options = LoadOptions { device: DeviceChoice::Cpu, dtype: Dtype::F32, ..LoadOptions::default() };
    let model = Arc::new(Model::load(&Source::from_folder(folder.path()).unwrap(), &options, &Progress::silent()).unwrap());
    // Its context is 96 tokens, and less than that is too little for anybody.
    let page = model.page_bytes();
    assert!(Engine::start(Arc::clone(&model), Options { kv_memory: Some(5 * page), ..Options::default() }).is_err());
    let (engine, _steps) = Engine::start(model, Options { kv_memory: Some(6 * page), ..Options::default() }).unwrap();
    assert_eq!(engine.info().first().context, 96);
}
