//! Whole engines, fake and real, through their handle and channel.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::mpsc::Receiver;

use crate::scheduler::{Record, Recording, replay};
use crate::{
    DeviceChoice, Dtype, Engine, FinishReason, LoadOptions, Message, Model, Options, Output, Prompt, Refusal, Request, Sampling,
    SequenceId, Source, StartError, Step, TokenLogprob, Usage, fake,
};

fn request(id: u64, prompt: &str) -> Request {
    Request {
        id: SequenceId(id),
        prompt: Prompt::Text(prompt.into()),
        sampling: Sampling { seed: id, ..Sampling::default() },
        max_tokens: None,
        min_tokens: 0,
        stop: Vec::new(),
        ignore_eos: false,
        resume: Vec::new(),
        alone: false,
    }
}

/// What came of one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    started: bool,
    tokens: Vec<u32>,
    /// With each token; the last is what came with the end.
    texts: Vec<String>,
    logprobs: Vec<TokenLogprob>,
    end: Option<Output>,
}

impl Answer {
    fn text(&self) -> String {
        self.texts.concat()
    }

    fn reason(&self) -> FinishReason {
        self.finished().0
    }

    fn usage(&self) -> Usage {
        self.finished().1
    }

    fn finished(&self) -> (FinishReason, Usage) {
        match &self.end {
            Some(Output::Finished { reason, usage, .. }) => (*reason, *usage),
            other => panic!("expected an answer that finished, got {other:?}"),
        }
    }

    fn refusal(&self) -> &Refusal {
        match &self.end {
            Some(Output::Refused { refusal, .. }) => refusal,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
}

/// All news so far, checked as it comes.
#[derive(Default)]
struct Heard(BTreeMap<u64, Answer>);

impl Heard {
    fn hear(&mut self, step: Step) {
        assert!(!step.outputs.is_empty(), "a step says something");
        for output in step.outputs {
            let answer = self.0.entry(output.id().0).or_default();
            assert!(answer.end.is_none(), "nothing follows the end: {output:?}");
            match output {
                Output::Started { .. } => {
                    assert!(!answer.started, "a sequence starts once");
                    answer.started = true;
                }
                Output::Progress { .. } => assert!(answer.started),
                Output::Tokens { position, tokens, text, logprobs, .. } => {
                    assert!(answer.started);
                    if answer.tokens.is_empty() {
                        answer.tokens.resize(position as usize, u32::MAX);
                        answer.texts.resize(position as usize, String::new());
                    }
                    assert_eq!(position as usize, answer.tokens.len(), "positions come one after the other");
                    answer.tokens.extend(tokens);
                    answer.texts.push(text);
                    answer.logprobs.extend(logprobs);
                }
                Output::Finished { ref text, .. } => {
                    answer.texts.push(text.clone());
                    answer.end = Some(output);
                }
                Output::Cancelled { .. } | Output::Refused { .. } => answer.end = Some(output),
            }
        }
    }

    fn until(&mut self, steps: &mut Receiver<Step>, done: impl Fn(&Heard) -> bool) {
        while !done(self) {
            self.hear(steps.blocking_recv().expect("the engine still runs"));
        }
    }

    fn ended(&self, count: usize) -> bool {
        self.0.values().filter(|answer| answer.end.is_some()).count() >= count
    }
}

/// Submits all at once and waits for their ends.
fn ask(engine: &Engine, steps: &mut Receiver<Step>, requests: impl IntoIterator<Item = Request>) -> BTreeMap<u64, Answer> {
    let mut count = 0;
    for request in requests {
        engine.submit(request);
        count += 1;
    }
    let mut heard = Heard::default();
    heard.until(steps, |heard| heard.ended(count));
    heard.0
}

fn ask_one(engine: &Engine, steps: &mut Receiver<Step>, request: Request) -> Answer {
    let id = request.id.0;
    ask(engine, steps, [request]).remove(&id).expect("the answer was waited for")
}

fn stop(engine: &Engine) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(engine.stop());
}

mod fakes {
    use super::*;

    fn quick() -> (Engine, Receiver<Step>) {
        Engine::fake(fake::Options::default())
    }

    #[test]
    fn the_text_is_a_function_of_prompt_and_seed() {
        let (engine, mut steps) = quick();
        let texts = [(1, "Hello", 7), (2, "Hello", 7), (3, "Hello", 8), (4, "Hallo", 7)].map(|(id, prompt, seed)| {
            let mut request = request(id, prompt);
            request.sampling.seed = seed;
            ask_one(&engine, &mut steps, request).text()
        });
        assert_eq!(texts[0], texts[1]);
        assert_ne!(texts[0], texts[2]);
        assert_ne!(texts[0], texts[3]);
        assert!(texts[0].split(' ').count() > 20, "words: {}", texts[0]);
    }

    #[test]
    fn an_answer_ends_by_itself_or_by_max_tokens_and_all_tokens_count() {
        let (engine, mut steps) = quick();
        let whole = ask_one(&engine, &mut steps, request(1, "one two three"));
        assert_eq!(whole.reason(), FinishReason::Stop);
        assert_eq!(whole.usage(), Usage { prompt_tokens: 3, completion_tokens: 33, cached_tokens: 0 });
        assert_eq!((whole.tokens.len(), whole.texts[32].as_str()), (33, ""), "the end of text is a token without a text");
        let cut = ask_one(&engine, &mut steps, Request { max_tokens: Some(5), ..request(1, "one two three") });
        assert_eq!((cut.reason(), cut.usage().completion_tokens), (FinishReason::Length, 5));
        assert_eq!(cut.tokens, whole.tokens[..5]);
        let none = ask_one(&engine, &mut steps, Request { max_tokens: Some(0), ..request(2, "one") });
        assert_eq!((none.reason(), none.usage().completion_tokens, none.started), (FinishReason::Length, 0, false));
        let on = Request { max_tokens: Some(50), ignore_eos: true, ..request(1, "one two three") };
        assert_eq!(ask_one(&engine, &mut steps, on).usage().completion_tokens, 50);
        let on = Request { max_tokens: Some(50), min_tokens: 40, ..request(1, "one two three") };
        assert_eq!(ask_one(&engine, &mut steps, on).reason(), FinishReason::Length, "its one end came before the 40th");
    }

    #[test]
    fn a_stop_string_ends_the_text_before_it() {
        let (engine, mut steps) = quick();
        let stop = vec![" 4 5".to_owned()];
        let answer = ask_one(&engine, &mut steps, Request { stop: stop.clone(), ..request(1, "[[count 9]]") });
        assert_eq!((answer.text().as_str(), answer.reason()), ("1 2 3", FinishReason::Stop));
        assert_eq!(answer.usage().completion_tokens, 5);
        assert_eq!(answer.texts[3], "", "what may become a stop string is held back");
        let late = Request { stop, min_tokens: 6, ..request(2, "[[count 9]]") };
        assert_eq!(ask_one(&engine, &mut steps, late).text(), "1 2 3 4 5 6 7 8 9");
        let held = Request { stop: vec![" 3 X".into()], max_tokens: Some(3), ..request(3, "[[count 9]]") };
        assert_eq!(ask_one(&engine, &mut steps, held).text(), "1 2 3", "what was held back is not lost");
    }

    #[test]
    fn a_resumed_answer_goes_on_exactly() {
        let (engine, mut steps) = quick();
        let stop = vec!["river the".to_owned(), ".".to_owned()];
        for stop in [Vec::new(), stop] {
            let request = Request { stop, ..request(5, "Tell me more") };
            let whole = ask_one(&engine, &mut steps, request.clone());
            for at in 0..=whole.tokens.len() {
                let resumed = Request { resume: whole.tokens[..at].to_vec(), ..request.clone() };
                let resumed = ask_one(&engine, &mut steps, resumed);
                assert_eq!(resumed.finished(), whole.finished());
                if at < whole.tokens.len() {
                    assert_eq!((&resumed.tokens[at..], &resumed.texts[at..]), (&whole.tokens[at..], &whole.texts[at..]));
                } else {
                    assert_eq!(resumed.text(), whole.texts[at], "nothing is left but the end");
                }
            }
        }
    }

    #[test]
    fn a_cancelled_one_ends_and_its_neighbour_goes_on() {
        let (engine, mut steps) =
            Engine::fake(fake::Options { token_time: Duration::from_millis(1), ..fake::Options::default() });
        engine.submit(Request { max_tokens: Some(4000), ignore_eos: true, ..request(1, "a") });
        engine.submit(Request { max_tokens: Some(20), ..request(2, "b") });
        let mut heard = Heard::default();
        heard.until(&mut steps, |heard| heard.0.get(&1).is_some_and(|answer| answer.tokens.len() > 2));
        engine.cancel(SequenceId(1));
        engine.cancel(SequenceId(99));
        heard.until(&mut steps, |heard| heard.ended(2));
        assert_eq!(heard.0[&1].end, Some(Output::Cancelled { id: SequenceId(1) }));
        assert_eq!(heard.0[&2].usage().completion_tokens, 20);
        assert_eq!(heard.0.len(), 2, "an unknown id is ignored");
    }

    #[test]
    fn a_step_advances_all_and_one_that_must_be_alone_has_no_neighbour() {
        let recording = Recording::default();
        let options = fake::Options { batch_max: 4, recording: Some(recording.clone()), ..fake::Options::default() };
        let (engine, mut steps) = Engine::fake(options);
        let mut requests: Vec<_> = (1..=9).map(|id| request(id, "[[count 12]]")).collect();
        requests[4].alone = true;
        let answers = ask(&engine, &mut steps, requests);
        assert!(answers.values().all(|answer| answer.text() == "1 2 3 4 5 6 7 8 9 10 11 12"));
        let records = recording.records();
        assert_eq!(replay(recording.limits().unwrap(), &records), Ok(()), "a live run, replayed, plans the same");
        let plans = records.iter().filter_map(|record| match record {
            Record::Plan(plan) => Some(plan),
            Record::Event(_) => None,
        });
        let mut sizes = Vec::new();
        for plan in plans {
            assert!(plan.work.len() <= 4);
            assert!(plan.work.len() == 1 || plan.work.iter().all(|work| work.id != SequenceId(5)));
            sizes.push(plan.work.len());
        }
        assert!(sizes.contains(&4), "{sizes:?}");
    }

    #[test]
    fn a_failing_step_fails_its_sequences_and_not_the_engine() {
        let (engine, mut steps) = quick();
        for (marker, word) in [("[[fail]]", "failure"), ("[[panic]]", "panic")] {
            let refusal = ask_one(&engine, &mut steps, request(1, &format!("please {marker}"))).refusal().clone();
            assert!(matches!(&refusal, Refusal::Engine(text) if text.contains(word)), "{refusal:?}");
        }
        assert_eq!(ask_one(&engine, &mut steps, request(2, "[[count 2]]")).text(), "1 2");
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_says_why() {
        let (engine, mut steps) = Engine::fake(fake::Options { context: 16, ..fake::Options::default() });
        let long = ask_one(&engine, &mut steps, request(1, &"word ".repeat(16)));
        assert_eq!(long.refusal(), &Refusal::TooLong { limit: 16, got: 17 });
        let long = ask_one(&engine, &mut steps, Request { max_tokens: Some(15), ..request(2, "two words") });
        assert_eq!(long.refusal(), &Refusal::TooLong { limit: 16, got: 17 });
        let mut hot = request(3, "a");
        hot.sampling.temperature = f32::NAN;
        assert!(matches!(ask_one(&engine, &mut steps, hot).refusal(), Refusal::Invalid { param: "temperature", .. }));
        let tokens = Request { prompt: Prompt::Tokens(vec![u32::MAX]), ..request(4, "") };
        assert!(matches!(ask_one(&engine, &mut steps, tokens).refusal(), Refusal::Invalid { param: "prompt", .. }));
        assert_eq!(ask_one(&engine, &mut steps, request(5, "")).reason(), FinishReason::Length, "an empty prompt is one");
    }

    #[test]
    fn long_prompts_are_computed_in_chunks_while_others_go_on() {
        let (engine, mut steps) = Engine::fake(fake::Options { step_tokens: 16, ..fake::Options::default() });
        engine.submit(Request { max_tokens: Some(200), ignore_eos: true, ..request(1, "a") });
        engine.submit(Request { max_tokens: Some(1), ..request(2, &"word ".repeat(100)) });
        let (mut progress, mut tokens_of_first) = (0, 0);
        loop {
            let step = steps.blocking_recv().unwrap();
            let chunk = step.outputs.iter().any(|output| matches!(output, Output::Progress { id: SequenceId(2) }));
            let token = step.outputs.iter().any(|output| matches!(output, Output::Tokens { id: SequenceId(1), .. }));
            progress += usize::from(chunk);
            tokens_of_first += usize::from(token && chunk);
            if step.outputs.iter().any(|output| output.id() == SequenceId(2) && output.is_last()) {
                break;
            }
        }
        assert!(progress >= 6, "{progress} chunks");
        assert_eq!(tokens_of_first, progress, "each chunk's step also gave the other its token");
        stop(&engine);
    }

    #[test]
    fn stopping_ends_everybody_even_when_nobody_reads() {
        let (engine, mut steps) = quick();
        for id in 0..8 {
            engine.submit(Request { max_tokens: Some(4000), ignore_eos: true, ..request(id, "a") });
        }
        // The channel is full long before the answers are.
        let first = steps.blocking_recv().expect("it runs");
        stop(&engine);
        let mut heard = Heard::default();
        heard.hear(first);
        while let Some(step) = steps.blocking_recv() {
            heard.hear(step);
        }
        engine.submit(request(9, "too late"));
        stop(&engine);
        let (engine, mut steps) = quick();
        engine.submit(Request { max_tokens: Some(4000), ignore_eos: true, ..request(1, "a") });
        drop(engine);
        while steps.blocking_recv().is_some() {}
    }

    #[test]
    fn stopping_tells_a_reader_that_its_sequences_are_cancelled() {
        let (engine, mut steps) =
            Engine::fake(fake::Options { token_time: Duration::from_secs(3600), ..fake::Options::default() });
        engine.submit(request(1, "a"));
        stop(&engine);
        let mut heard = Heard::default();
        while let Some(step) = steps.blocking_recv() {
            heard.hear(step);
        }
        // The submission and the stop may be taken up together; then the sequence never started.
        let end = heard.0.remove(&1).and_then(|answer| answer.end);
        assert_eq!(end, Some(Output::Cancelled { id: SequenceId(1) }));
    }
}

mod real {
    use super::*;

    /// The bundled model, loaded once for all tests.
    fn model(dtype: Dtype) -> Arc<Model> {
        static MODELS: [OnceLock<Arc<Model>>; 2] = [OnceLock::new(), OnceLock::new()];
        let load = || {
            let options = LoadOptions { device: DeviceChoice::Cpu, dtype };
            Arc::new(Model::load(&Source::bundled(), &options).expect("the bundled model loads"))
        };
        Arc::clone(MODELS[usize::from(dtype == Dtype::Q8)].get_or_init(load))
    }

    fn engine(dtype: Dtype, options: Options) -> (Engine, Receiver<Step>) {
        Engine::start(model(dtype), Options { threads: Some(2), ..options }).expect("it starts")
    }

    fn greedy(id: u64, prompt: &str, tokens: u32) -> Request {
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        Request { sampling, max_tokens: Some(tokens), ..request(id, prompt) }
    }

    const STORY: &str = "Once upon a time there was a little girl named";

    #[test]
    fn it_tells_a_story_and_says_what_it_is() {
        let (engine, mut steps) = engine(Dtype::F32, Options::default());
        let info = engine.info();
        assert_eq!((info.context, info.device.as_str(), info.dtype.as_str(), info.batch_max), (512, "cpu", "f32", 64));
        assert_eq!(info.parameters, 4096 * 256 + 512 * 256 + 6 * (12 * 256 * 256 + 13 * 256) + 512);
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
        assert_ne!(f32.info(1).fingerprint, q8.info(1).fingerprint);
        let again = Model::load(&Source::bundled(), &LoadOptions { device: DeviceChoice::Cpu, dtype: Dtype::Q8 }).unwrap();
        assert_eq!(again.info(1).fingerprint, q8.info(1).fingerprint);
        let (engine, mut steps) = engine(Dtype::Q8, Options::default());
        assert!(ask_one(&engine, &mut steps, greedy(1, STORY, 40)).text().contains("She"));
    }

    #[test]
    fn an_answer_does_not_depend_on_company_threads_or_chunks() {
        for dtype in [Dtype::F32, Dtype::Q8] {
            let requests = |stop_at: u64| {
                (1..=stop_at).map(|id| {
                    let prompt = format!("{} {STORY}", "One day, the sun was up. ".repeat(id as usize % 4));
                    let sampling = Sampling { seed: id, logprobs: Some(2), top_p: 0.9, ..Sampling::default() };
                    Request { sampling, max_tokens: Some(10 + id as u32), ..request(id, &prompt) }
                })
            };
            let (engine, mut steps) = engine(dtype, Options::default());
            let one_by_one: BTreeMap<_, _> =
                requests(7).map(|request| (request.id.0, ask_one(&engine, &mut steps, request))).collect();
            for (threads, batch_max, step_tokens) in [(1, 7, 256), (3, 7, 8), (2, 3, 17)] {
                let options = Options { threads: Some(threads), batch_max, step_tokens, ..Options::default() };
                let (engine, mut steps) = Engine::start(model(dtype), options).unwrap();
                assert_eq!(ask(&engine, &mut steps, requests(7)), one_by_one, "{threads} threads, {batch_max} at once");
            }
        }
    }

    #[test]
    fn an_answer_resumes_at_every_token() {
        let (engine, mut steps) = engine(Dtype::Q8, Options { step_tokens: 24, ..Options::default() });
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
            assert_eq!(resumed.finished(), whole.finished());
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
            engine.submit(Request { alone: id == 4, ..greedy(id, STORY, 4 + id as u32) });
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
        let tight = Engine::start(model(Dtype::F32), Options { kv_tokens: Some(100), ..Options::default() });
        assert!(matches!(tight, Err(StartError::KvMemory { tokens: 96, context: 512, .. })));
    }

    #[test]
    fn a_kv_budget_of_one_context_serves_everybody_in_turn() {
        let (engine, mut steps) = engine(Dtype::Q8, Options { kv_tokens: Some(512), ..Options::default() });
        let answers = ask(&engine, &mut steps, (1..=5).map(|id| Request { max_tokens: Some(400), ..greedy(id, STORY, 0) }));
        let texts: Vec<_> = answers.values().map(Answer::text).collect();
        assert!(texts.iter().all(|text| text == &texts[0]));
    }
}
