//! The bundled model, and a broken one.

use super::*;
use crate::kv::PAGE_TOKENS;
use crate::{KvMemory, Progress};

/// All that weights can be.
pub(super) const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::Bf16, Dtype::Q8, Dtype::Q4];

/// The bundled model, loaded once for all tests.
pub(super) fn model(dtype: Dtype) -> Arc<Model> {
    static MODELS: [OnceLock<Arc<Model>>; DTYPES.len()] = [const { OnceLock::new() }; DTYPES.len()];
    let load = || {
        let options = LoadOptions { device: DeviceChoice::Cpu, dtype, ..LoadOptions::default() };
        Arc::new(Model::load(&Source::bundled(), &options, &Progress::silent()).expect("the bundled model loads"))
    };
    let place = DTYPES.iter().position(|one| *one == dtype).expect("a type that models have");
    Arc::clone(MODELS[place].get_or_init(load))
}

pub(super) fn engine(dtype: Dtype, options: Options) -> (Engine, Receiver<Step>) {
    Engine::start(model(dtype), Options { threads: Some(2), ..options }).expect("it starts")
}

pub(super) fn greedy(id: u64, prompt: &str, tokens: u32) -> Request {
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    Request { sampling, max_tokens: Some(tokens), ..request(id, prompt) }
}

/// As many bytes as the KV of so many tokens takes.
pub(super) fn kv_bytes(tokens: u64) -> u64 {
    tokens / u64::from(PAGE_TOKENS) * model(Dtype::F32).page_bytes()
}

pub(super) const STORY: &str = "Once upon a time there was a little girl named";

#[test]
fn it_tells_a_story_and_says_what_it_is() {
    let (engine, mut steps) = engine(Dtype::F32, Options::default());
    let info = engine.info();
    let served = info.first();
    assert_eq!((served.context, info.device.as_str(), served.dtype.as_str(), info.batch_max), (512, "cpu", "f32", 64));
    assert_eq!(served.parameters, 4096 * 256 + 512 * 256 + 6 * (12 * 256 * 256 + 13 * 256) + 512);
    let first = ask_one(&engine, &mut steps, greedy(1, STORY, 40));
    let again = ask_one(&engine, &mut steps, greedy(1, STORY, 40));
    assert_eq!(first, again);
    assert_eq!(first.usage().prompt_tokens as usize, model(Dtype::F32).tokenizer.encode(STORY).len());
    let text = first.text();
    assert!(text.split_whitespace().count() > 15 && text.contains("She"), "{text}");
}

#[test]
fn q8_has_a_fingerprint_of_its_own_and_makes_sense() {
    let (f32, q8) = (model(Dtype::F32), model(Dtype::Q8));
    assert_ne!(f32.info(1).fingerprint(), q8.info(1).fingerprint());
    let again = Model::load(
        &Source::bundled(),
        &LoadOptions { device: DeviceChoice::Cpu, dtype: Dtype::Q8, ..LoadOptions::default() },
        &Progress::silent(),
    )
    .unwrap();
    assert_eq!(again.info(1).fingerprint(), q8.info(1).fingerprint());
    let (engine, mut steps) = engine(Dtype::Q8, Options::default());
    assert!(ask_one(&engine, &mut steps, greedy(1, STORY, 40)).text().contains("She"));
}

#[test]
fn an_answer_does_not_depend_on_company_threads_or_chunks() {
    for dtype in DTYPES {
        let requests = |stop_at: u64| {
            (1..=stop_at).map(|id| {
                let prompt = format!("{} {STORY}", "One day, the sun was up. ".repeat(id as usize % 4));
                let sampling = Sampling { seed: id, logprobs: Some(2), top_p: 0.9, ..Sampling::default() };
                Request { sampling, max_tokens: Some(10 + id as u32), ..request(id, &prompt) }
            })
        };
        let (engine, mut steps) = engine(dtype, Options::default());
        let one_by_one: Vec<_> = requests(7).map(|request| ask_one(&engine, &mut steps, request)).collect();
        let one_by_one: Vec<_> = one_by_one.iter().map(Answer::content).collect();
        for (threads, batch_max, step_tokens) in [(1, 7, 256), (3, 7, 8), (2, 3, 17)] {
            let options = Options { threads: Some(threads), batch_max, step_tokens, ..Options::default() };
            let (engine, mut steps) = Engine::start(model(dtype), options).unwrap();
            let answers = ask(&engine, &mut steps, requests(7));
            let together: Vec<_> = answers.values().map(Answer::content).collect();
            assert_eq!(together, one_by_one, "{dtype}, {threads} threads, {batch_max} at once");
        }
    }
}

#[test]
fn two_engines_at_once_answer_as_each_would_alone() {
    for dtype in [Dtype::F32, Dtype::Q8] {
        let requests =
            |of: u64| (1..=5).map(move |id| greedy(id, &format!("{} {STORY}", "Up, up! ".repeat((of * id) as usize)), 24));
        let run = |of: u64| {
            let (engine, mut steps) = engine(dtype, Options::default());
            let answers = ask(&engine, &mut steps, requests(of));
            answers.into_values().map(|answer| (answer.text(), answer.tokens)).collect::<Vec<_>>()
        };
        let alone = [run(1), run(2)];
        let together =
            std::thread::scope(|scope| [1, 2].map(|of| scope.spawn(move || run(of))).map(|engine| engine.join().unwrap()));
        assert_eq!(together, alone, "{dtype}");
    }
}

#[test]
fn an_answer_resumes_at_every_token() {
    let (engine, mut steps) = engine(Dtype::Q8, Options { step_tokens: 24, speculate: false, ..Options::default() });
    let sampling = Sampling {
        seed: 11,
        temperature: 0.9,
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        logprobs: Some(3),
        ..Sampling::default()
    };
    let stops = vec!["\n\n\n".to_owned(), "and they".to_owned()];
    let request = Request { sampling, max_tokens: Some(40), stop: stops, ..request(1, STORY) };
    let whole = ask_one(&engine, &mut steps, request.clone());
    assert!(whole.tokens.len() > 5, "{whole:?}");
    for at in 0..=whole.tokens.len() {
        let resumed = ask_one(&engine, &mut steps, Request { resume: whole.tokens[..at].to_vec(), ..request.clone() });
        assert_eq!(resumed.content().3, whole.content().3);
        if at < whole.tokens.len() {
            assert_eq!(resumed.tokens[at..], whole.tokens[at..]);
            assert_eq!(resumed.texts[at..], whole.texts[at..]);
            assert_eq!(resumed.logprobs, whole.logprobs[at..]);
        } else {
            assert_eq!(resumed.text(), whole.texts[at]);
        }
    }
}

#[test]
fn a_recorded_live_run_replays_to_the_same_plans() {
    let recording = Recording::default();
    let options = Options { batch_max: 3, step_tokens: 16, recording: Some(recording.clone()), ..Options::default() };
    let (engine, mut steps) = engine(Dtype::Q8, options);
    for id in 1..=8 {
        engine.submit(greedy(id, STORY, 4 + id as u32));
    }
    let mut heard = Heard::default();
    heard.until(&mut steps, |heard| heard.0.contains_key(&2));
    engine.cancel(SequenceId(2));
    engine.cancel(SequenceId(7));
    heard.until(&mut steps, |heard| heard.ended(8));
    stop(&engine);
    let records = recording.records();
    assert!(records.len() > 20);
    assert_eq!(replay(recording.limits().unwrap(), &records), Ok(()));
}

#[test]
fn the_context_is_the_limit_to_the_token() {
    let (engine, mut steps) = engine(Dtype::Q8, Options::default());
    let tokens = |count: u32| Prompt::Tokens((0..count).map(|i| 20 + i % 50).collect());
    let full = Request { prompt: tokens(505), ignore_eos: true, ..request(1, "") };
    let full = ask_one(&engine, &mut steps, full);
    assert_eq!((full.reason(), full.usage().completion_tokens), (FinishReason::Length, 7));
    let over = Request { prompt: tokens(505), max_tokens: Some(8), ..request(2, "") };
    assert_eq!(ask_one(&engine, &mut steps, over).refusal(), &Refusal::TooLong { limit: 512, got: 513 });
    let over = Request { prompt: tokens(512), ..request(3, "") };
    assert_eq!(ask_one(&engine, &mut steps, over).refusal(), &Refusal::TooLong { limit: 512, got: 513 });
    let unknown = Request { prompt: Prompt::Tokens(vec![4096]), ..request(4, "") };
    assert!(matches!(ask_one(&engine, &mut steps, unknown).refusal(), Refusal::Invalid { param: "prompt", .. }));
    assert_eq!(ask_one(&engine, &mut steps, greedy(5, "", 3)).usage().prompt_tokens, 1, "an empty prompt is an end of text");
}

#[test]
fn it_chats() {
    let (engine, mut steps) = engine(Dtype::F32, Options::default());
    let chat = Prompt::Chat(vec![Message { role: "user".into(), content: "Tell me a story.".into() }]);
    let answer = ask_one(&engine, &mut steps, Request { prompt: chat, ..greedy(1, "", 30) });
    assert!(!answer.text().is_empty());
}

#[test]
fn engines_share_a_model_and_what_can_not_start_says_why() {
    let (a, mut a_steps) = engine(Dtype::F32, Options::default());
    let (b, mut b_steps) = engine(Dtype::F32, Options::default());
    a.submit(greedy(1, STORY, 20));
    b.submit(greedy(1, STORY, 20));
    let (mut of_a, mut of_b) = (Heard::default(), Heard::default());
    of_a.until(&mut a_steps, |heard| heard.ended(1));
    of_b.until(&mut b_steps, |heard| heard.ended(1));
    assert_eq!(of_a.0, of_b.0);
    let none = Engine::start(model(Dtype::F32), Options { batch_max: 0, ..Options::default() });
    assert!(matches!(none, Err(StartError::Option(_))));
    let tight = Engine::start(model(Dtype::F32), Options { kv_memory: Some(kv_bytes(496)), ..Options::default() });
    assert!(matches!(tight, Err(StartError::KvMemory(KvMemory { tokens: 496, wanted: 512, .. }))));
}

#[test]
fn a_kv_budget_of_one_context_serves_everybody_in_turn() {
    let (engine, mut steps) = engine(Dtype::Q8, Options { kv_memory: Some(kv_bytes(512)), ..Options::default() });
    let answers = ask(&engine, &mut steps, (1..=5).map(|id| Request { max_tokens: Some(400), ..greedy(id, STORY, 0) }));
    let texts: Vec<_> = answers.values().map(Answer::text).collect();
    assert!(texts.iter().all(|text| text == &texts[0]));
}

#[test]
fn what_can_not_fit_is_refused_by_its_length_alone() {
    let model = model(Dtype::F32);
    let longest = model.tokenizer.token_bytes_max().expect("the bundled tokenizer leaves nothing out");
    let (engine, mut steps) = engine(Dtype::F32, Options::default());
    let text = "Once upon a time there was a bird. ".repeat(120_000);
    let least = text.len().div_ceil(longest) as u32;
    // A count of the tokens would be four times that.
    let refused = ask_one(&engine, &mut steps, request(1, &text));
    assert_eq!(refused.refusal(), &Refusal::TooLong { limit: 512, got: least + 1 });
    let chat = |content: String| Prompt::Chat(vec![Message { role: "user".into(), content }]);
    let refused = ask_one(&engine, &mut steps, Request { prompt: chat(text.clone()), ..request(2, "") });
    assert!(matches!(refused.refusal(), Refusal::TooLong { limit: 512, got } if *got > least / 8), "{refused:?}");
    // Short enough to be rendered, and then too long.
    let rendered = Request { prompt: chat(text[..512 * longest].to_owned()), ..request(3, "") };
    assert_eq!(ask_one(&engine, &mut steps, rendered).refusal(), &Refusal::TooLong { limit: 512, got: 513 });
    // Short enough to be tokenized: the count is exact.
    let tokens = model.tokenizer.encode(&text[..4000]).len() as u32;
    assert!(tokens > 512);
    assert_eq!(
        ask_one(&engine, &mut steps, request(4, &text[..4000])).refusal(),
        &Refusal::TooLong { limit: 512, got: tokens + 1 }
    );
}

#[test]
fn a_temperature_too_small_to_divide_by_tells_the_greedy_story() {
    let (engine, mut steps) = engine(Dtype::Q8, Options::default());
    let whole = ask_one(&engine, &mut steps, greedy(1, STORY, 20));
    for temperature in [1e-6, 1e-38, 1e-39, 1e-40, f32::from_bits(1)] {
        let sampling = Sampling { temperature, ..Sampling::default() };
        let answer = ask_one(&engine, &mut steps, Request { sampling, ..greedy(1, STORY, 20) });
        assert_eq!(answer, whole, "{temperature:e}");
    }
}

#[test]
fn logits_that_are_no_numbers_end_their_sequence_and_give_no_token() {
    // Each weight is a number, and their products are none.
    let spoil = |name: &str, values: &mut [f32]| {
        if name == "ln_f.weight" {
            values.fill(f32::MAX);
        }
    };
    let folder = crate::model::tests::checkpoint_with("", true, |_| (), spoil);
    let options = LoadOptions { device: DeviceChoice::Cpu, dtype: Dtype::F32, ..LoadOptions::default() };
    let model = Model::load(&Source::from_folder(folder.path()).unwrap(), &options, &Progress::silent()).unwrap();
    let (engine, mut steps) = Engine::start(Arc::new(model), Options { threads: Some(2), ..Options::default() }).unwrap();
    for id in 1..=2 {
        let answer = ask_one(&engine, &mut steps, Request { sampling: Sampling::default(), ..greedy(id, STORY, 5) });
        assert!(answer.started && answer.tokens.is_empty());
        let refusal = answer.refusal();
        assert!(matches!(refusal, Refusal::Engine(cause) if cause.contains("logits are not finite")), "{refusal:?}");
    }
}
