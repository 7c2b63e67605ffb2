//! Small plans over the bundled model.

use super::*;
use crate::{LoadOptions, Source};

fn model() -> Arc<Model> {
    Arc::new(Model::load(&Source::bundled(), &LoadOptions::default(), &crate::Progress::silent()).unwrap())
}

fn plan() -> Plan {
    Plan {
        batches: vec![1, 3],
        new_tokens: 4,
        rounds: 2,
        first_token_prompts: vec![5],
        limits: false,
        threads: Some(2),
        ..Plan::default()
    }
}

#[test]
fn a_small_plan_is_measured_and_an_impossible_one_refused() {
    let model = model();
    let report = run(&model, &plan()).unwrap();
    assert_eq!(report.decode.iter().map(|row| row.batch).collect::<Vec<_>>(), [1, 3]);
    assert!(report.decode.iter().all(|row| row.tokens_per_s > 0.0 && row.tokens_per_s_with_prompts > 0.0));
    assert!(report.decode.iter().all(|row| row.rounds_tokens_per_s[0] <= row.tokens_per_s && row.limits.is_none()));
    assert_eq!((report.first_token.len(), report.first_token[0].prompt_tokens), (1, 5));
    assert!(matches!(run(&model, &Plan { rounds: 0, ..plan() }), Err(BenchError::Plan(_))));
    let long = Plan { first_token_prompts: vec![4096], ..plan() };
    assert_eq!(run(&model, &long).unwrap().first_token[0].prompt_tokens, 510);
    let endless = Plan { new_tokens: 4096, ..plan() };
    assert!(matches!(run(&model, &endless), Err(BenchError::Refused(Refusal::TooLong { .. }))));
}

#[test]
fn a_steps_parts_are_named_and_each_has_its_limit() {
    // Enough tokens that both are there at once, however late the second one is submitted.
    let plan = Plan { limits: true, batches: vec![2], new_tokens: 96, ..plan() };
    let report = run(&model(), &plan).unwrap();
    let step = report.decode[0].step.as_ref().expect("the steps of both sequences were profiled");
    let has = |name: &str| step.parts.iter().any(|part| part.part.starts_with(name) && part.ms > 0.0);
    for name in ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "lm_head", "attention", "norms", "sampling", "the rest"]
    {
        assert!(has(name), "{name} in {step:?}");
    }
    let sum: f64 = step.parts.iter().map(|part| part.ms).sum();
    assert!((sum - step.ms).abs() < 1e-6 && step.limit_ms.is_some_and(|limit| limit > 0.0));
    assert!(report.decode[0].limit_tokens_per_s.is_some_and(|limit| limit > 0.0));
    assert!(report.first_token[0].prompt.as_ref().is_some_and(|prompt| prompt.ms > 0.0 && prompt.limit_ms.is_some()));
    assert!(report.memory.peak >= report.memory.first_batch_peak);
}

#[test]
fn no_two_prompts_begin_alike() {
    let firsts: std::collections::HashSet<_> = (0..1000).map(|sequence| prompt(sequence, 16)).collect();
    assert_eq!(firsts.len(), 1000);
    assert!(firsts.iter().flatten().all(|token| (1..=200).contains(token)));
}

#[test]
fn medians_are_medians() {
    assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0])), (2.0, 2.5));
    assert_eq!(extremes([2.0, 1.0, 3.0].into_iter()), [1.0, 3.0]);
}
