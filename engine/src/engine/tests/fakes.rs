//! The engine without weights.

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
            assert_eq!(resumed.content().3, whole.content().3);
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
    let (engine, mut steps) = Engine::fake(fake::Options { token_time: Duration::from_millis(1), ..fake::Options::default() });
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
fn a_step_advances_all_and_a_full_batch_is_full() {
    let recording = Recording::default();
    let options = fake::Options { batch_max: 4, recording: Some(recording.clone()), ..fake::Options::default() };
    let (engine, mut steps) = Engine::fake(options);
    let answers = ask(&engine, &mut steps, (1..=9).map(|id| request(id, "[[count 12]]")));
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
fn who_makes_a_step_fail_pays_for_it_alone() {
    // A step takes long enough for all of them to be in one.
    let (engine, mut steps) = Engine::fake(fake::Options { token_time: Duration::from_millis(2), ..fake::Options::default() });
    let answers = ask(
        &engine,
        &mut steps,
        ["[[count 40]]", "[[fail]]", "[[panic]]", "[[count 50]]"].iter().zip(1..).map(|(prompt, id)| request(id, prompt)),
    );
    assert_eq!((answers[&1].tokens.len(), answers[&4].tokens.len()), (41, 51));
    assert!(matches!(answers[&2].refusal(), Refusal::Engine(text) if text.contains("failure")));
    assert!(matches!(answers[&3].refusal(), Refusal::Engine(text) if text.contains("panic")));
}

#[test]
fn a_loop_is_guessed_and_several_tokens_come_at_once() {
    let (engine, mut steps) = quick();
    let whole = ask_one(&engine, &mut steps, request(1, "[[loop 50]]"));
    let expected: Vec<_> = (0..50).map(|i| (1 + i % 4).to_string()).collect();
    assert_eq!((whole.text(), whole.tokens.len()), (expected.join(" "), 51));
    assert!(whole.texts.len() < 30, "{} steps", whole.texts.len());
    // What was guessed beyond an end is no part of the answer, whichever way it ends.
    let stopped = ask_one(
        &engine,
        &mut steps,
        Request { stop: vec!["4 1 2 3 4 1 2 3".into()], min_tokens: 30, ..request(2, "[[loop 50]]") },
    );
    assert_eq!(stopped.text(), expected[..31].join(" ") + " ");
    assert_eq!(stopped.usage().completion_tokens, 39);
    for tokens in 15..25 {
        let cut = ask_one(&engine, &mut steps, Request { max_tokens: Some(tokens), ..request(3, "[[loop 50]]") });
        assert_eq!((cut.tokens.len(), cut.reason()), (tokens as usize, FinishReason::Length));
    }
    let (plain, mut steps) = Engine::fake(fake::Options { speculate: false, ..fake::Options::default() });
    let plainly = ask_one(&plain, &mut steps, request(1, "[[loop 50]]"));
    assert_eq!((plainly.content(), plainly.texts.len()), (whole.content(), 52));
}

#[test]
fn memory_for_few_serves_many_and_their_answers_are_the_same() {
    let texts = |pages| {
        let (engine, mut steps) = Engine::fake(fake::Options { pages, context: 256, ..fake::Options::default() });
        let requests = (1..=12).map(|id| Request { max_tokens: Some(120), ignore_eos: true, ..request(id, "Tell me more") });
        let answers = ask(&engine, &mut steps, requests);
        stop(&engine);
        (answers.values().map(Answer::text).collect::<Vec<_>>(), engine.stats().preemptions)
    };
    let (roomy, none) = texts(None);
    let (tight, some) = texts(Some(16));
    assert_eq!((roomy, none), (tight, 0));
    assert!(some > 0);
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
    let (engine, mut steps) = Engine::fake(fake::Options { token_time: Duration::from_secs(3600), ..fake::Options::default() });
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
