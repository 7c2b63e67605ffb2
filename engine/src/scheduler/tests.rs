//! The rules one by one, and every promise about plans under random loads.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { batch_max: 4, step_tokens: 16, pages: 16, page_tokens: 4 };

fn submitted(id: u64, prompt_tokens: u32) -> Event {
    Event::Submitted { id: SequenceId(id), prompt_tokens, tokens_max: prompt_tokens + 1 }
}

fn ended(id: u64) -> Event {
    Event::Ended { id: SequenceId(id) }
}

fn decode(id: u64) -> Work {
    Work { id: SequenceId(id), tokens: 1, samples: true }
}

fn chunk(id: u64, tokens: u32) -> Work {
    Work { id: SequenceId(id), tokens, samples: false }
}

fn last_chunk(id: u64, tokens: u32) -> Work {
    Work { id: SequenceId(id), tokens, samples: true }
}

#[test]
fn a_newcomer_joins_at_the_next_step() {
    let mut scheduler = Scheduler::new(LIMITS, None);
    scheduler.feed(submitted(1, 3));
    assert_eq!(scheduler.plan(), Plan { joined: vec![SequenceId(1)], work: vec![last_chunk(1, 3)] });
    scheduler.feed(submitted(2, 5));
    assert_eq!(scheduler.plan(), Plan { joined: vec![SequenceId(2)], work: vec![decode(1), last_chunk(2, 5)] });
    assert_eq!(scheduler.plan(), Plan { joined: vec![], work: vec![decode(1), decode(2)] });
}

#[test]
fn a_finished_one_leaves_at_once_and_the_next_takes_its_slot() {
    let mut scheduler = Scheduler::new(Limits { batch_max: 1, ..LIMITS }, None);
    scheduler.feed(submitted(1, 1));
    scheduler.feed(submitted(2, 1));
    assert_eq!(scheduler.plan().work, vec![last_chunk(1, 1)]);
    assert_eq!(scheduler.plan().work, vec![decode(1)]);
    scheduler.feed(ended(1));
    assert_eq!(scheduler.plan().work, vec![last_chunk(2, 1)]);
}

#[test]
fn a_long_prompt_is_chunked_and_stalls_nobody() {
    let mut scheduler = Scheduler::new(LIMITS, None);
    scheduler.feed(submitted(1, 1));
    scheduler.plan();
    scheduler.feed(submitted(2, 40));
    assert_eq!(scheduler.plan().work, vec![decode(1), chunk(2, 15)]);
    assert_eq!(scheduler.plan().work, vec![decode(1), chunk(2, 15)]);
    assert_eq!(scheduler.plan().work, vec![decode(1), last_chunk(2, 10)]);
    assert_eq!(scheduler.plan().work, vec![decode(1), decode(2)]);
}

#[test]
fn nobody_joins_without_the_pages_for_its_whole_answer() {
    let mut scheduler = Scheduler::new(Limits { pages: 3, ..LIMITS }, None);
    let big = |id| Event::Submitted { id: SequenceId(id), prompt_tokens: 1, tokens_max: 8 };
    assert!(scheduler.feed(big(1)));
    assert!(scheduler.feed(big(2)));
    assert_eq!(scheduler.plan().joined, vec![SequenceId(1)]);
    assert_eq!(scheduler.plan().joined, vec![]);
    scheduler.feed(ended(1));
    assert_eq!(scheduler.plan().joined, vec![SequenceId(2)]);
    let hopeless = Event::Submitted { id: SequenceId(3), prompt_tokens: 1, tokens_max: 13 };
    assert!(!scheduler.feed(hopeless), "four pages never fit into three");
}

#[test]
fn a_cancelled_one_is_gone_wherever_it_was() {
    let mut scheduler = Scheduler::new(Limits { batch_max: 1, ..LIMITS }, None);
    scheduler.feed(submitted(1, 1));
    scheduler.feed(submitted(2, 1));
    scheduler.plan();
    assert!(scheduler.feed(Event::Cancelled { id: SequenceId(2) }));
    assert!(scheduler.feed(Event::Cancelled { id: SequenceId(1) }));
    assert!(!scheduler.feed(Event::Cancelled { id: SequenceId(1) }));
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.plan(), Plan::default());
}

#[derive(Clone, Debug)]
enum Act {
    Submit { prompt: u32, answer: u32 },
    Cancel(usize),
    Step,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => (0u32..50, 1u32..12).prop_map(|(prompt, answer)| Act::Submit { prompt, answer }),
        1 => any::<prop::sample::Index>().prop_map(|index| Act::Cancel(index.index(64))),
        5 => Just(Act::Step),
    ];
    proptest::collection::vec(act, 0..120)
}

fn limits() -> impl Strategy<Value = Limits> {
    (1u32..6, 1u32..24, 16u32..40, 1u32..9).prop_map(|(batch_max, step_tokens, pages, page_tokens)| Limits {
        batch_max,
        step_tokens,
        pages,
        page_tokens,
    })
}

/// What a runner would know of a sequence.
struct Live {
    prompt: u32,
    computed: u32,
    answer_left: u32,
    tokens_max: u32,
    joined: bool,
}

/// Carries out one plan like a runner, and checks every promise about it.
fn step(scheduler: &mut Scheduler, live: &mut BTreeMap<SequenceId, Live>, limits: Limits) -> Plan {
    let plan = scheduler.plan();
    let waiting_first = live.iter().filter(|(_, live)| !live.joined).map(|(id, _)| *id).take(plan.joined.len());
    assert_eq!(plan.joined, waiting_first.collect::<Vec<_>>(), "first come, first served");
    for id in &plan.joined {
        live.get_mut(id).expect("only live sequences join").joined = true;
    }
    let batch: Vec<_> = live.iter().filter(|(_, live)| live.joined).collect();
    assert!(batch.len() <= limits.batch_max as usize);
    let pages: u32 = batch.iter().map(|(_, live)| live.tokens_max.div_ceil(limits.page_tokens)).sum();
    assert!(pages <= limits.pages, "KV within its budget");
    let must_decode: BTreeSet<_> = batch.iter().filter(|(_, live)| live.computed >= live.prompt).map(|(id, _)| **id).collect();
    assert!(plan.work.len() <= batch.len());
    if batch.is_empty() {
        assert!(live.is_empty(), "somebody waits and nobody runs");
    } else {
        assert!(!plan.work.is_empty(), "every step is progress");
    }
    let mut prompt_tokens = 0;
    let mut seen = BTreeSet::new();
    for work in &plan.work {
        assert!(seen.insert(work.id), "once a step");
        let sequence = live.get_mut(&work.id).expect("only live sequences run");
        assert!(sequence.joined && work.tokens > 0);
        if sequence.computed >= sequence.prompt {
            assert_eq!((work.tokens, work.samples), (1, true));
        } else {
            prompt_tokens += work.tokens;
            assert_eq!(work.samples, sequence.computed + work.tokens == sequence.prompt);
        }
        sequence.computed += work.tokens;
        assert!(sequence.computed <= sequence.tokens_max);
    }
    assert!(must_decode.is_subset(&seen), "whoever can decode does");
    let decodes = u32::try_from(must_decode.len()).unwrap();
    assert!(prompt_tokens <= limits.step_tokens.saturating_sub(decodes).max(1), "the budget holds");
    for work in plan.work.iter().filter(|work| work.samples) {
        let sequence = live.get_mut(&work.id).unwrap();
        sequence.answer_left -= 1;
        if sequence.answer_left == 0 {
            assert!(scheduler.feed(Event::Ended { id: work.id }));
            live.remove(&work.id);
        }
    }
    plan
}

proptest! {
    #[test]
    fn every_sequence_ends_exactly_once_within_all_bounds(acts in acts(), limits in limits()) {
        let recording = Recording::default();
        let mut scheduler = Scheduler::new(limits, Some(recording.clone()));
        let mut live: BTreeMap<SequenceId, Live> = BTreeMap::new();
        let mut next = 0;
        for act in acts {
            match act {
                Act::Submit { prompt, answer } => {
                    next += 1;
                    let id = SequenceId(next);
                    let prompt = prompt.max(1);
                    let tokens_max = prompt + answer;
                    let taken = scheduler.feed(Event::Submitted { id, prompt_tokens: prompt, tokens_max });
                    prop_assert_eq!(taken, tokens_max.div_ceil(limits.page_tokens) <= limits.pages);
                    if taken {
                        live.insert(id, Live { prompt, computed: 0, answer_left: answer, tokens_max, joined: false });
                    }
                }
                Act::Cancel(index) => {
                    let id = live.keys().nth(index).copied().unwrap_or(SequenceId(u64::MAX));
                    prop_assert_eq!(scheduler.feed(Event::Cancelled { id }), live.remove(&id).is_some());
                }
                Act::Step => {
                    step(&mut scheduler, &mut live, limits);
                }
            }
        }
        // No starvation: what is there now is through after a bounded number of steps, one token a step at the worst.
        let bound: u32 = live.values().map(|live| live.tokens_max).sum();
        for _ in 0..bound {
            step(&mut scheduler, &mut live, limits);
        }
        prop_assert!(live.is_empty());
        prop_assert!(scheduler.is_idle());
        prop_assert_eq!(scheduler.pages_free, limits.pages);
        prop_assert_eq!(replay(recording.limits().unwrap(), &recording.records()), Ok(()));
    }
}

#[test]
fn a_replay_notices_another_plan() {
    let recording = Recording::default();
    let mut scheduler = Scheduler::new(LIMITS, Some(recording.clone()));
    scheduler.feed(submitted(1, 3));
    scheduler.plan();
    let mut records = recording.records();
    if let Record::Plan(plan) = &mut records[1] {
        plan.work.clear();
    }
    assert_eq!(replay(LIMITS, &records).unwrap_err().line, 1);
}
