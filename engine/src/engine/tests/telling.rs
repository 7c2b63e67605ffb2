//! What is told of prompts: echoes with log-probabilities, and embeddings.

use super::real::{STORY, kv_bytes, model};
use super::*;
use crate::kernels::Pool;

fn embedding(id: u64, prompt: Prompt) -> Request {
    Request { prompt, tell: Tell::Embedding, max_tokens: Some(0), ..request(id, "") }
}

fn echo(id: u64, prompt: &str, tokens: u32) -> Request {
    let sampling = Sampling { temperature: 0.0, logprobs: Some(2), ..Sampling::default() };
    Request { sampling, tell: Tell::Echo, max_tokens: Some(tokens), ..request(id, prompt) }
}

fn prompts() -> impl Iterator<Item = (u64, String)> {
    (1..=7).map(|id| (id, format!("{}{STORY}", "One day, the sun was up. ".repeat(id as usize * 2 % 9))))
}

fn numbers(answer: &Answer) -> &[f32] {
    match &answer.told {
        Some(Told::Embedding(numbers)) => numbers,
        other => panic!("expected an embedding, got {other:?}"),
    }
}

/// What one pass over the whole prompt gives, added up here.
fn mean(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let pool = Pool::new(1).unwrap();
    let pages: Vec<u32> = (0..tokens.len().div_ceil(crate::kv::PAGE_TOKENS as usize) as u32).collect();
    let mut cache = model.cache(pages.len() as u32).unwrap();
    let segment = crate::kernels::Segment { row: 0, rows: tokens.len(), position: 0, pages: &pages };
    let all: Vec<u32> = (0..tokens.len() as u32).collect();
    let states = model.network.states(model.compute(&pool), &mut cache, tokens, &[segment], &all).unwrap().unwrap();
    let rows: Vec<Vec<f32>> = states.to_vec2().unwrap();
    let sum = |at: usize| rows.iter().map(|row| f64::from(row[at])).fold(0.0, |sum, number| sum + number);
    (0..rows[0].len()).map(|at| (sum(at) / rows.len() as f64) as f32).collect()
}

#[test]
fn an_embedding_is_the_mean_of_the_last_states_in_any_company_and_any_chunks() {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Q8] {
        let model = model(dtype);
        let wanted: Vec<Vec<f32>> = prompts().map(|(_, prompt)| mean(&model, &model.tokenizer.encode(&prompt))).collect();
        // Others decode beside them, and half of the prompts stand in the cache.
        for (threads, batch_max, step_tokens) in [(1, 1, 256), (3, 12, 8), (2, 5, 17)] {
            let options = Options { threads: Some(threads), batch_max, step_tokens, ..Options::default() };
            let (engine, mut steps) = Engine::start(Arc::clone(&model), options).unwrap();
            ask_one(&engine, &mut steps, Request { max_tokens: Some(2), ..request(99, &prompts().last().unwrap().1) });
            let answers = (10..13).map(|id| Request { max_tokens: Some(30), ..request(id, STORY) });
            let embeddings = prompts().map(|(id, prompt)| embedding(id, Prompt::Text(prompt)));
            let answers = ask(&engine, &mut steps, answers.chain(embeddings));
            for ((id, prompt), wanted) in prompts().zip(&wanted) {
                assert_eq!(numbers(&answers[&id]), wanted, "{dtype}, {threads} threads, {batch_max} at once");
                let usage = answers[&id].usage();
                let tokens = model.tokenizer.encode(&prompt).len() as u32;
                assert_eq!(usage, Usage { prompt_tokens: tokens, completion_tokens: 0, cached_tokens: 0 });
            }
            let ids = Prompt::Tokens(model.tokenizer.encode(&prompts().next().unwrap().1));
            assert_eq!(numbers(&ask_one(&engine, &mut steps, embedding(1, ids))), wanted[0], "by its tokens");
        }
    }
}

#[test]
fn an_embedding_that_gave_way_is_computed_again_to_the_same_bits() {
    let model = model(Dtype::Q8);
    let text = "One day, the sun was up. ".repeat(40);
    let wanted = mean(&model, &model.tokenizer.encode(&text));
    let options = Options { kv_memory: Some(kv_bytes(512)), step_tokens: 16, batch_max: 8, ..Options::default() };
    let (engine, mut steps) = Engine::start(model, options).unwrap();
    let older = (1..4).map(|id| Request { max_tokens: Some(150), ignore_eos: true, ..request(id, STORY) });
    let answers = ask(&engine, &mut steps, older.chain([embedding(9, Prompt::Text(text))]));
    assert_eq!(numbers(&answers[&9]), wanted);
}

#[test]
fn an_echo_tells_what_the_model_thought_of_each_token_and_changes_no_answer() {
    for dtype in [Dtype::F32, Dtype::Q8] {
        let model = model(dtype);
        let plain = |id, prompt: &str| Request { tell: Tell::Nothing, ..echo(id, prompt, 8) };
        let (engine, mut steps) = Engine::start(Arc::clone(&model), Options::default()).unwrap();
        let wanted: Vec<Answer> = prompts().map(|(id, prompt)| ask_one(&engine, &mut steps, plain(id, &prompt))).collect();
        let mut seen: Option<BTreeMap<u64, Answer>> = None;
        for (threads, batch_max, step_tokens) in [(1, 7, 256), (3, 3, 8), (2, 7, 17)] {
            let options = Options { threads: Some(threads), batch_max, step_tokens, ..Options::default() };
            let (engine, mut steps) = Engine::start(Arc::clone(&model), options).unwrap();
            let mut answers = ask(&engine, &mut steps, prompts().map(|(id, prompt)| echo(id, &prompt, 8)));
            for ((id, prompt), wanted) in prompts().zip(&wanted) {
                let answer = &answers[&id];
                assert_eq!(answer.content(), wanted.content(), "the answer is the one without an echo");
                let Some(Told::Echo { text, logprobs }) = &answer.told else { panic!("{answer:?}") };
                assert_eq!(text, &prompt);
                let tokens = model.tokenizer.encode(&prompt);
                assert_eq!(logprobs.iter().map(|one| one.token).collect::<Vec<_>>(), tokens);
                let logits = model.logits(&tokens, 64, 1).unwrap();
                for (row, one) in logits.iter().zip(&logprobs[1..]) {
                    let most = row.iter().copied().fold(f32::MIN, f32::max);
                    let sum: f64 = row.iter().map(|logit| f64::from(logit - most).exp()).sum();
                    let wanted = f64::from(row[one.token as usize] - most) - sum.ln();
                    assert!((f64::from(one.logprob) - wanted).abs() < 1e-4, "{} and {wanted}", one.logprob);
                    assert_eq!(one.top.len(), 2);
                    assert!(one.top[0].2 >= one.top[1].2 && one.top[0].2 >= one.logprob);
                }
            }
            answers.values_mut().for_each(|answer| answer.texts.clear());
            let told = |answers: &BTreeMap<u64, Answer>| answers.values().map(|answer| answer.told.clone()).collect::<Vec<_>>();
            if let Some(seen) = &seen {
                assert_eq!(told(&answers), told(seen), "{dtype}, {threads} threads, {batch_max} at once");
            }
            seen = Some(answers);
        }
    }
}

#[test]
fn a_prompt_may_only_be_read_and_a_resumed_one_is_not_told_again() {
    let model = model(Dtype::Q8);
    let (engine, mut steps) = Engine::start(Arc::clone(&model), Options::default()).unwrap();
    let read = ask_one(&engine, &mut steps, echo(1, STORY, 0));
    assert_eq!((read.tokens.len(), read.usage().completion_tokens, read.reason()), (0, 0, FinishReason::Length));
    let whole = ask_one(&engine, &mut steps, echo(2, STORY, 6));
    assert_eq!(read.told, whole.told);
    let resumed = ask_one(&engine, &mut steps, Request { resume: whole.tokens[..2].to_vec(), ..echo(3, STORY, 6) });
    assert_eq!((resumed.told.as_ref(), &resumed.tokens[2..]), (None, &whole.tokens[2..]));
    // Without log-probabilities the text alone, which needs no pass of its own.
    let ids = Prompt::Tokens(model.tokenizer.encode(STORY));
    let mut text = Request { prompt: ids, ..echo(4, "", 0) };
    text.sampling.logprobs = None;
    let text = ask_one(&engine, &mut steps, text);
    assert_eq!(text.told, Some(Told::Echo { text: STORY.into(), logprobs: Vec::new() }));
    assert!(!text.started);
}

#[test]
fn the_fake_tells_what_it_is_asked_too() {
    let (engine, mut steps) = Engine::fake(fake::Options::default());
    let said = |told: &Option<Told>| match told {
        Some(Told::Echo { text, logprobs }) => {
            let bytes: Vec<u8> = logprobs.iter().flat_map(|one| one.bytes.clone()).collect();
            (text.clone(), String::from_utf8(bytes).unwrap())
        }
        other => panic!("{other:?}"),
    };
    let answer = ask_one(&engine, &mut steps, echo(1, "one  two\nthree", 4));
    assert_eq!(said(&answer.told), ("one  two\nthree".into(), "one  two\nthree".into()));
    let ids = ask_one(&engine, &mut steps, Request { prompt: Prompt::Tokens(vec![1, 32, 64]), ..echo(2, "", 0) });
    assert_eq!(said(&ids.told), ("The banyan sees".into(), "The banyan sees".into()));
    let twice = [3, 4].map(|id| ask_one(&engine, &mut steps, embedding(id, Prompt::Text("one two".into()))));
    assert_eq!((numbers(&twice[0]), numbers(&twice[0]).len()), (numbers(&twice[1]), 16));
}
