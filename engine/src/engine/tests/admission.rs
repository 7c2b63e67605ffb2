//! Requests that take long to read: nobody waits for them who need not, and each ends as any other.

use std::sync::mpsc::{Receiver as News, Sender, channel};
use std::sync::{Mutex, Weak};
use std::thread;

use tokio::sync::watch;

use super::*;
use crate::engine::spawn;
use crate::language::{Language, Reading};
use crate::runner::{Backend, Item, Outcome};
use crate::scheduler::Scheduler;

/// The fake's language, which says when it begins to read a text of `SLOW`, and reads it when it is told to.
struct Gated {
    words: fake::Words,
    /// The first word of what is read, and the word to go on.
    gate: Mutex<(Sender<String>, News<()>)>,
}

const SLOW: &str = "slow";

impl Language for Gated {
    type State = fake::State;

    fn context(&self) -> u32 {
        self.words.context()
    }

    fn vocabulary(&self) -> usize {
        self.words.vocabulary()
    }

    fn read<'a>(&self, request: &'a Request) -> Result<Reading<'a>, Refusal> {
        if matches!(&request.prompt, Prompt::Text(text) if text.starts_with(SLOW)) {
            let gate = self.gate.lock().unwrap();
            let _ = gate.0.send(thread::current().name().unwrap_or_default().to_owned());
            let _ = gate.1.recv();
        }
        self.words.read(request)
    }

    fn begin(&self, request: &Request, reading: &Reading<'_>) -> fake::State {
        self.words.begin(request, reading)
    }

    fn accept(&self, state: &mut fake::State, token: u32) {
        self.words.accept(state, token);
    }

    fn is_end(&self, token: u32) -> bool {
        self.words.is_end(token)
    }

    fn push(&self, state: &mut fake::State, token: u32, stops_count: bool) -> (String, bool) {
        self.words.push(state, token, stops_count)
    }

    fn tells(&self, state: &fake::State) -> bool {
        self.words.tells(state)
    }

    fn told(&self, state: &mut fake::State) -> Option<Told> {
        self.words.told(state)
    }

    fn finish(&self, state: fake::State) -> String {
        self.words.finish(state)
    }
}

struct Backed(fake::Fake);

impl Backend for Backed {
    type Language = Gated;

    fn compute(&mut self, items: &mut [Item<'_, fake::State>]) -> Result<Vec<Outcome>, String> {
        self.0.compute(items)
    }
}

/// An engine, and its gate from outside.
struct Bench {
    engine: Engine,
    steps: Receiver<Step>,
    heard: Heard,
    reads: News<String>,
    go: Sender<()>,
    language: Weak<Gated>,
}

impl Bench {
    fn new() -> Bench {
        let options = fake::Options::default();
        let ((said, reads), (go, told)) = (channel(), channel());
        let language = Arc::new(Gated { words: fake::Words::new(&options), gate: Mutex::new((said, told)) });
        let seen = Arc::downgrade(&language);
        let (stop, stopping) = watch::channel(false);
        let backend = Backed(fake::Fake::new(&options, stopping));
        let scheduler = Scheduler::new(options.limits(), None);
        let (engine, steps) = spawn(options.info(), backend, language, scheduler, stop).unwrap();
        Bench { engine, steps, heard: Heard::default(), reads, go, language: seen }
    }

    /// Longer than what the engine thread reads itself.
    fn slow(id: u64) -> Request {
        request(id, &format!("{SLOW} {}", "word ".repeat(300)))
    }

    /// Submits it, and waits until a thread has begun to read it.
    fn begin(&self, id: u64) {
        self.engine.submit(Bench::slow(id));
        assert_eq!(self.reads.recv().unwrap(), "admission", "the engine thread reads no long prompt");
    }

    fn until(&mut self, done: impl Fn(&Heard) -> bool) {
        self.heard.until(&mut self.steps, done);
    }

    fn end(&self, id: u64) -> &Option<Output> {
        &self.heard.0[&id].end
    }
}

#[test]
fn a_batch_decodes_on_while_a_long_prompt_is_read() {
    let mut bench = Bench::new();
    bench.engine.submit(Request { max_tokens: Some(1000), ignore_eos: true, ..request(1, "short") });
    bench.begin(2);
    bench.until(|heard| heard.ended(1));
    assert_eq!(bench.heard.0[&1].tokens.len(), 1000);
    assert!(!bench.heard.0.contains_key(&2), "it is still being read");
    bench.go.send(()).unwrap();
    bench.until(|heard| heard.ended(2));
    assert_eq!(bench.heard.0[&2].reason(), FinishReason::Stop);
}

#[test]
fn those_who_come_behind_a_long_prompt_keep_their_places() {
    let mut bench = Bench::new();
    bench.begin(1);
    for id in 2..=4 {
        bench.engine.submit(request(id, "short"));
    }
    bench.go.send(()).unwrap();
    let mut started = Vec::new();
    while started.len() < 4 {
        let step = bench.steps.blocking_recv().unwrap();
        started.extend(step.outputs.iter().filter(|output| matches!(output, Output::Started { .. })).map(Output::id));
    }
    assert_eq!(started, [1, 2, 3, 4].map(SequenceId));
}

#[test]
fn whoever_is_cancelled_while_it_is_read_or_waits_for_that_ends_at_once() {
    let mut bench = Bench::new();
    bench.begin(1);
    for id in [2, 3] {
        bench.engine.submit(Bench::slow(id));
    }
    for id in [1, 2, 99] {
        bench.engine.cancel(SequenceId(id));
    }
    bench.until(|heard| heard.ended(2));
    for id in [1, 2] {
        assert_eq!(bench.end(id), &Some(Output::Cancelled { id: SequenceId(id) }));
    }
    // The gate opens for the first, whose reading is for nobody, and for the third.
    bench.go.send(()).unwrap();
    bench.go.send(()).unwrap();
    bench.until(|heard| heard.ended(3));
    assert_eq!(bench.heard.0[&3].reason(), FinishReason::Stop);
    assert_eq!(bench.reads.try_iter().count(), 1, "nobody reads what was cancelled before");
    assert_eq!(bench.heard.0.len(), 3, "`Heard` sees to it that nothing follows an end");
}

#[test]
fn stopping_cancels_what_is_being_read_and_ends_both_threads() {
    let mut bench = Bench::new();
    bench.begin(1);
    bench.engine.submit(request(2, "short"));
    let engine = bench.engine.clone();
    let stopping = thread::spawn(move || stop(&engine));
    bench.until(|heard| heard.ended(2));
    for id in [1, 2] {
        assert_eq!(bench.end(id), &Some(Output::Cancelled { id: SequenceId(id) }));
    }
    bench.go.send(()).unwrap();
    stopping.join().unwrap();
    assert!(bench.language.upgrade().is_none(), "no thread holds the language any more");
    assert!(bench.steps.blocking_recv().is_none());
}

#[test]
fn an_engine_whose_last_handle_is_dropped_ends_both_threads() {
    let Bench { engine, mut steps, go, reads, language, .. } = Bench::new();
    engine.submit(Bench::slow(1));
    reads.recv().unwrap();
    drop(engine);
    go.send(()).unwrap();
    while steps.blocking_recv().is_some() {}
    // The steps' channel is closed a moment before the last thread is gone, and the gate's when the language is.
    while reads.recv().is_ok() {}
    assert!(language.upgrade().is_none());
}

#[test]
fn a_caller_that_bounds_nothing_is_refused_in_the_end() {
    let mut bench = Bench::new();
    bench.begin(0);
    for id in 1..=4096 {
        bench.engine.submit(request(id, "short"));
    }
    bench.until(|heard| heard.ended(1));
    assert!(matches!(bench.heard.0[&4096].refusal(), Refusal::Engine(text) if text.contains("too many")));
    bench.go.send(()).unwrap();
    bench.until(|heard| heard.ended(4097));
}

#[test]
fn a_request_of_any_length_means_the_same_on_either_thread() {
    let (engine, mut steps) = Engine::fake(fake::Options::default());
    let padding = " ".repeat(2000);
    for (prompt, text) in [("[[count 3]]", "1 2 3"), ("please [[panic]]", "")] {
        let long = format!("{prompt}{padding}");
        for (id, prompt) in [(1, prompt), (2, &long)] {
            let answer = ask_one(&engine, &mut steps, request(id, prompt));
            assert_eq!(answer.text(), text);
        }
    }
    let mut hot = request(3, &padding);
    hot.sampling.temperature = f32::NAN;
    assert!(matches!(ask_one(&engine, &mut steps, hot).refusal(), Refusal::Invalid { param: "temperature", .. }));
    let whole = ask_one(&engine, &mut steps, request(4, &padding));
    let resumed = Request { resume: whole.tokens.clone(), ..request(4, &padding) };
    assert_eq!(ask_one(&engine, &mut steps, resumed).finished(), whole.finished(), "finished as soon as it is read");
}
