//! The rules one by one; `tests/random.rs` has every promise about plans under random loads.

mod random;

use super::*;

const LIMITS: Limits = Limits { batch_max: 4, step_tokens: 16, pages: 16, page_tokens: 4, speculate: false };

/// A prompt that has nothing in common with others'.
fn prompt(id: u64, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|i| id as u32 * 1000 + i).collect()
}

fn submitted(id: u64, prompt_tokens: u32) -> Event {
    Event::Submitted { id: SequenceId(id), tokens: prompt(id, prompt_tokens), tokens_max: prompt_tokens + 1, whole: false }
}

fn ended(id: u64) -> Event {
    Event::Ended { id: SequenceId(id) }
}

fn work(id: u64, from: u32, tokens: u32, samples: bool) -> Work {
    Work { id: SequenceId(id), from, tokens, samples, draft: Vec::new() }
}

fn decode(id: u64, from: u32) -> Work {
    work(id, from, 1, true)
}

fn chunk(id: u64, from: u32, tokens: u32) -> Work {
    work(id, from, tokens, false)
}

fn last_chunk(id: u64, from: u32, tokens: u32) -> Work {
    work(id, from, tokens, true)
}

/// Plans, and does what a runner does: every part that samples draws a token, told from all others.
fn step(scheduler: &mut Scheduler) -> Plan {
    let plan = scheduler.plan();
    for work in plan.work.iter().filter(|work| work.samples) {
        assert!(scheduler.feed(Event::Drawn { id: work.id, tokens: vec![9_000_000 + work.id.0 as u32 * 1000 + work.from] }));
    }
    plan
}

#[test]
fn a_newcomer_joins_at_the_next_step() {
    let mut scheduler = Scheduler::new(LIMITS, None);
    scheduler.feed(submitted(1, 3));
    let first = Plan { joined: vec![SequenceId(1)], work: vec![last_chunk(1, 0, 3)], ..Plan::default() };
    assert_eq!(step(&mut scheduler), first);
    scheduler.feed(submitted(2, 5));
    let second = Plan { joined: vec![SequenceId(2)], work: vec![decode(1, 3), last_chunk(2, 0, 5)], ..Plan::default() };
    assert_eq!(step(&mut scheduler), second);
    assert_eq!(step(&mut scheduler), Plan { work: vec![decode(1, 4), decode(2, 5)], ..Plan::default() });
}

#[test]
fn a_finished_one_leaves_at_once_and_the_next_takes_its_slot() {
    let mut scheduler = Scheduler::new(Limits { batch_max: 1, ..LIMITS }, None);
    scheduler.feed(submitted(1, 1));
    scheduler.feed(submitted(2, 1));
    assert_eq!(step(&mut scheduler).work, [decode(1, 0)]);
    assert_eq!(step(&mut scheduler).work, [decode(1, 1)]);
    scheduler.feed(ended(1));
    assert_eq!(step(&mut scheduler).work, [decode(2, 0)]);
}

#[test]
fn a_long_prompt_is_chunked_and_stalls_nobody() {
    let mut scheduler = Scheduler::new(LIMITS, None);
    scheduler.feed(submitted(1, 1));
    step(&mut scheduler);
    scheduler.feed(submitted(2, 40));
    assert_eq!(step(&mut scheduler).work, [decode(1, 1), chunk(2, 0, 15)]);
    assert_eq!(step(&mut scheduler).work, [decode(1, 2), chunk(2, 15, 15)]);
    assert_eq!(step(&mut scheduler).work, [decode(1, 3), last_chunk(2, 30, 10)]);
    assert_eq!(step(&mut scheduler).work, [decode(1, 4), decode(2, 40)]);
}

#[test]
fn a_long_prompt_alone_takes_larger_chunks_and_beside_others_only_what_is_soon_done() {
    let mut scheduler = Scheduler::new(Limits { step_tokens: 128, pages: 1000, ..LIMITS }, None);
    scheduler.feed(submitted(1, 2000));
    assert_eq!(step(&mut scheduler).work, [chunk(1, 0, 128)]);
    scheduler.feed(Event::Took { micros: 12_800 });
    assert_eq!(step(&mut scheduler).work, [chunk(1, 128, 512)]);
    scheduler.feed(Event::Took { micros: 512_000_000 });
    assert_eq!(step(&mut scheduler).work, [chunk(1, 640, 32)], "a machine that has become slow");
}

#[test]
fn a_cancelled_one_is_gone_wherever_it_was() {
    let mut scheduler = Scheduler::new(Limits { batch_max: 1, ..LIMITS }, None);
    scheduler.feed(submitted(1, 1));
    scheduler.feed(submitted(2, 1));
    step(&mut scheduler);
    assert!(scheduler.feed(Event::Cancelled { id: SequenceId(2) }));
    assert!(scheduler.feed(Event::Cancelled { id: SequenceId(1) }));
    assert!(!scheduler.feed(Event::Cancelled { id: SequenceId(1) }));
    assert!(scheduler.is_idle());
    assert_eq!(step(&mut scheduler), Plan::default());
}

#[test]
fn what_can_never_fit_is_refused_and_what_fits_alone_is_not() {
    let mut scheduler = Scheduler::new(Limits { pages: 3, ..LIMITS }, None);
    let submit = |id, tokens_max| Event::Submitted { id: SequenceId(id), tokens: prompt(id, 1), tokens_max, whole: false };
    assert!(!scheduler.feed(submit(1, 13)), "four pages never fit into three");
    assert!(scheduler.feed(submit(2, 12)));
    assert!(!scheduler.feed(submit(2, 12)), "it is here");
    assert!(!scheduler.feed(Event::Submitted { id: SequenceId(3), tokens: Vec::new(), tokens_max: 4, whole: false }));
}

#[test]
fn a_newcomer_waits_until_those_who_run_have_room_to_grow() {
    let mut scheduler = Scheduler::new(Limits { pages: 5, ..LIMITS }, None);
    let submit = |id| Event::Submitted { id: SequenceId(id), tokens: prompt(id, 3), tokens_max: 20, whole: false };
    scheduler.feed(submit(1));
    scheduler.feed(submit(2));
    // Two pages for their tokens and two for each to grow are six.
    assert_eq!(step(&mut scheduler).joined, [SequenceId(1)]);
    assert_eq!(step(&mut scheduler).joined, []);
    scheduler.feed(ended(1));
    assert_eq!(step(&mut scheduler).joined, [SequenceId(2)]);
}

#[test]
fn the_youngest_makes_room_for_the_oldest_and_comes_back() {
    let mut scheduler = Scheduler::new(Limits { pages: 6, ..LIMITS }, None);
    let submit = |id| Event::Submitted { id: SequenceId(id), tokens: prompt(id, 3), tokens_max: 16, whole: false };
    scheduler.feed(submit(1));
    scheduler.feed(submit(2));
    assert_eq!(step(&mut scheduler).joined.len(), 2);
    scheduler.feed(submit(3));
    let mut plans = Vec::new();
    while plans.last().is_none_or(|plan: &Plan| plan.preempted.is_empty()) {
        plans.push(step(&mut scheduler));
    }
    let plan = plans.last().unwrap();
    // Both have 12 tokens in three pages and want a fourth.
    assert_eq!((&plan.preempted[..], &plan.joined[..]), (&[SequenceId(2)][..], &[][..]));
    assert_eq!(plan.work, [decode(1, 12)]);
    while scheduler.tokens(SequenceId(1)).len() < 16 {
        assert_eq!(step(&mut scheduler).joined, [], "the third does not overtake the second");
    }
    scheduler.feed(ended(1));
    let plan = step(&mut scheduler);
    assert_eq!(plan.joined, [SequenceId(2)], "and then there is no room for the third to grow");
    // The first took one page more, the end of what the second had computed; the others are still there.
    assert_eq!(plan.work, [last_chunk(2, 8, 5)]);
    assert_eq!(scheduler.tokens(SequenceId(2)).len(), 14);
    assert_eq!(scheduler.stats().preemptions, 1);
    assert_eq!(scheduler.stats().tokens_looked_up, 6, "who comes back is not counted again");
}

#[test]
fn the_next_turn_of_a_chat_computes_only_what_is_new() {
    let mut scheduler = Scheduler::new(LIMITS, None);
    scheduler.feed(Event::Submitted { id: SequenceId(1), tokens: prompt(1, 10), tokens_max: 20, whole: false });
    for _ in 0..4 {
        step(&mut scheduler);
    }
    let mut tokens = scheduler.tokens(SequenceId(1)).to_vec();
    assert_eq!(tokens.len(), 14);
    scheduler.feed(ended(1));
    // Of the 14 tokens 13 were computed: three full pages.
    tokens.extend(prompt(2, 3));
    scheduler.feed(Event::Submitted { id: SequenceId(2), tokens: tokens.clone(), tokens_max: 20, whole: false });
    assert_eq!(step(&mut scheduler).work, [last_chunk(2, 12, 5)]);
    assert_eq!(scheduler.cached_tokens(SequenceId(2)), 12);
    let stats = scheduler.stats();
    assert_eq!((stats.tokens_looked_up, stats.tokens_reused, stats.pages_evicted), (27, 12, 0));
    // Another one shares the pages while they are in use, and its last token is computed although all stands there.
    scheduler.feed(Event::Submitted { id: SequenceId(3), tokens: tokens[..12].to_vec(), tokens_max: 20, whole: false });
    assert_eq!(step(&mut scheduler).work, [decode(2, 17), last_chunk(3, 8, 4)]);
    assert_eq!(scheduler.pages(SequenceId(2))[..2], scheduler.pages(SequenceId(3))[..2]);
    step(&mut scheduler);
    assert_eq!(scheduler.pages(SequenceId(2))[..3], scheduler.pages(SequenceId(3))[..3], "the same text stands once");
}

#[test]
fn what_came_together_is_computed_once_where_the_budget_parts_it() {
    let mut scheduler = Scheduler::new(LIMITS, None);
    for id in 1..=2 {
        scheduler.feed(Event::Submitted { id: SequenceId(id), tokens: prompt(7, 18), tokens_max: 20, whole: false });
    }
    assert_eq!(step(&mut scheduler).work, [chunk(1, 0, 16)]);
    assert_eq!(step(&mut scheduler).work, [last_chunk(1, 16, 2), last_chunk(2, 16, 2)]);
    assert_eq!(scheduler.cached_tokens(SequenceId(2)), 16);
}

#[test]
fn of_a_failed_step_nothing_is_kept() {
    let mut scheduler = Scheduler::new(LIMITS, None);
    scheduler.feed(submitted(1, 10));
    scheduler.plan();
    scheduler.feed(Event::Failed { id: SequenceId(1) });
    scheduler.feed(submitted(1, 10));
    assert_eq!(scheduler.plan().work, [last_chunk(1, 0, 10)]);
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

#[test]
fn a_sequence_that_repeats_itself_decodes_several_tokens_in_a_step() {
    let mut scheduler = Scheduler::new(Limits { speculate: true, ..LIMITS }, None);
    scheduler.feed(Event::Submitted { id: SequenceId(1), tokens: vec![1, 2, 3, 4, 5, 6, 1, 2, 3], tokens_max: 30, whole: false });
    assert_eq!(scheduler.plan().work, [last_chunk(1, 0, 9)], "prompts leave no time to guess");
    scheduler.feed(Event::Drawn { id: SequenceId(1), tokens: vec![4] });
    assert_eq!(scheduler.plan().work, [Work { draft: vec![5, 6, 1], ..decode(1, 9) }]);
    scheduler.feed(Event::Drawn { id: SequenceId(1), tokens: vec![5, 6, 7] });
    assert_eq!(scheduler.plan().work, [decode(1, 12)]);
    scheduler.feed(Event::Drawn { id: SequenceId(1), tokens: vec![1] });
    assert_eq!((scheduler.stats().tokens_drafted, scheduler.stats().tokens_accepted), (3, 2));
    // What does not fit is not guessed, and a neighbour that has a prompt to compute comes first.
    scheduler.feed(submitted(2, 5));
    assert!(scheduler.plan().work.iter().all(|work| work.draft.is_empty()));
}
