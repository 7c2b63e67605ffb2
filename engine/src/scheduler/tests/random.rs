//! Every promise about plans and pages, under random loads.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Act {
    /// Prompts of one kind begin alike.
    Submit {
        kind: u32,
        prompt: u32,
        answer: u32,
    },
    Cancel(usize),
    Fail(usize),
    Took(u64),
    Step,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0u32..3, 1u32..50, 1u32..40).prop_map(|(kind, prompt, answer)| Act::Submit { kind, prompt, answer }),
        1 => any::<prop::sample::Index>().prop_map(|index| Act::Cancel(index.index(64))),
        1 => any::<prop::sample::Index>().prop_map(|index| Act::Fail(index.index(64))),
        1 => (0u64..100_000).prop_map(Act::Took),
        12 => Just(Act::Step),
    ];
    proptest::collection::vec(act, 0..160)
}

fn limits() -> impl Strategy<Value = Limits> {
    (1u32..6, 1u32..24, 4u32..40, 1u32..9, any::<bool>()).prop_map(|(batch_max, step_tokens, pages, page_tokens, speculate)| {
        Limits { batch_max, step_tokens, pages, page_tokens, speculate }
    })
}

/// What a runner would know of a sequence.
struct Live {
    tokens: Vec<u32>,
    tokens_max: usize,
    runs: bool,
}

impl Live {
    /// What a model draws, which depends on the text alone, so that texts that began alike go on alike; as long as it was
    /// guessed.
    fn draw(&mut self, draft: &[u32]) -> Vec<u32> {
        let start = self.tokens.len();
        for guess in draft.iter().map(Some).chain([None]) {
            // Mostly a loop, so that there is something to guess.
            let token = match self.tokens.len() % 7 {
                0 => self.tokens.iter().fold(7, |hash: u32, token| hash.wrapping_mul(31).wrapping_add(*token)) % 2,
                place => place as u32,
            };
            self.tokens.push(token);
            if guess != Some(&token) {
                break;
            }
        }
        self.tokens[start..].to_vec()
    }
}

/// A scheduler, and memory that knows which token's KV stands where.
struct World {
    scheduler: Scheduler,
    limits: Limits,
    live: BTreeMap<SequenceId, Live>,
    /// By page and place, the text up to and with the token whose KV stands there.
    memory: Vec<Vec<Option<Vec<u32>>>>,
}

impl World {
    fn new(limits: Limits, recording: &Recording) -> World {
        let memory = vec![vec![None; limits.page_tokens as usize]; limits.pages as usize];
        World { scheduler: Scheduler::new(limits, Some(recording.clone())), limits, live: BTreeMap::new(), memory }
    }

    /// Carries out one plan like a runner, and checks every promise about it. The sequences that it worked on.
    fn step(&mut self) -> usize {
        let oldest = self.live.keys().next().copied();
        let plan = self.scheduler.plan();
        for id in &plan.preempted {
            let youngest = self.live.iter().rev().find(|(_, live)| live.runs).map(|(id, _)| *id);
            assert_eq!(Some(*id), youngest, "the youngest makes room");
            self.live.get_mut(id).unwrap().runs = false;
        }
        for id in &plan.joined {
            let next = self.live.iter().find(|(_, live)| !live.runs).map(|(id, _)| *id);
            assert_eq!(Some(*id), next, "first come, first served");
            self.live.get_mut(id).unwrap().runs = true;
        }
        let batch: Vec<SequenceId> = self.live.iter().filter(|(_, live)| live.runs).map(|(id, _)| *id).collect();
        assert!(batch.len() <= self.limits.batch_max as usize);
        assert_eq!(plan.work.first().map(|work| work.id), oldest, "the oldest goes on in every step");
        self.writers(&plan);
        let (mut prompt_tokens, mut decodes) = (0, 0);
        let mut seen = BTreeSet::new();
        for work in &plan.work {
            assert!(batch.contains(&work.id) && seen.insert(work.id), "who runs, once a step");
            let live = self.live.get_mut(&work.id).unwrap();
            assert_eq!(self.scheduler.tokens(work.id), live.tokens);
            let (from, to) = (work.from as usize, (work.from + work.tokens) as usize);
            assert!(from < to && to <= live.tokens.len());
            assert_eq!(work.samples, to == live.tokens.len());
            match live.tokens.len() - from {
                1 => decodes += 1,
                _ => prompt_tokens += work.tokens,
            }
            assert!(work.draft.is_empty() || (self.limits.speculate && work.samples));
            assert!(to + work.draft.len() < live.tokens_max, "no guess at what nobody wants");
            let rows = [&live.tokens[..], &work.draft].concat();
            compute(&mut self.memory, self.scheduler.pages(work.id), &rows, from..to + work.draft.len());
            if work.samples {
                let drawn = live.draw(&work.draft);
                assert!(self.scheduler.feed(Event::Drawn { id: work.id, tokens: drawn }));
                if live.tokens.len() == live.tokens_max {
                    assert!(self.scheduler.feed(Event::Ended { id: work.id }));
                    self.live.remove(&work.id);
                }
            }
        }
        let most = if decodes == 0 {
            4 * self.limits.step_tokens
        } else {
            self.limits.step_tokens - decodes.min(self.limits.step_tokens)
        };
        assert!(prompt_tokens <= most.max(1), "the budget holds");
        self.audit();
        plan.work.len()
    }

    /// Nobody writes to a page that anybody else holds.
    fn writers(&self, plan: &Plan) {
        let held: Vec<(SequenceId, &[u32])> = self.live.keys().map(|id| (*id, self.scheduler.pages(*id))).collect();
        for work in &plan.work {
            let page_tokens = self.limits.page_tokens;
            let pages = self.scheduler.pages(work.id);
            let last = work.from + work.tokens + work.draft.len() as u32 - 1;
            for place in work.from / page_tokens..=last / page_tokens {
                let page = pages[place as usize];
                assert!(held.iter().all(|(id, pages)| *id == work.id || !pages.contains(&page)), "{:?} writes alone", work.id);
            }
        }
    }

    fn audit(&self) {
        self.scheduler.pages.audit(self.scheduler.running.iter().map(|running| &running.pages[..]));
        let stats = self.scheduler.stats();
        assert!(stats.pages_held + stats.pages_cached <= stats.pages && stats.tokens_reused <= stats.tokens_looked_up);
    }
}

/// Attends to all tokens before, which must stand in the pages, and writes its own.
fn compute(memory: &mut [Vec<Option<Vec<u32>>>], pages: &[u32], tokens: &[u32], range: std::ops::Range<usize>) {
    let page_tokens = memory[0].len();
    let place = |position: usize| (pages[position / page_tokens] as usize, position % page_tokens);
    for position in 0..range.start {
        let (page, slot) = place(position);
        assert_eq!(memory[page][slot].as_deref(), Some(&tokens[..=position]), "the KV of this very text");
    }
    for position in range {
        let (page, slot) = place(position);
        memory[page][slot] = Some(tokens[..=position].to_vec());
    }
}

proptest! {
    #[test]
    fn every_sequence_ends_and_reads_its_own_text_within_all_bounds(acts in acts(), limits in limits()) {
        let recording = Recording::default();
        let mut world = World::new(limits, &recording);
        let mut next = 0;
        for act in acts {
            match act {
                Act::Submit { kind, prompt, answer } => {
                    next += 1;
                    let id = SequenceId(next);
                    let tokens: Vec<u32> = (0..prompt).map(|i| 100 * kind + i % 40).collect();
                    let tokens_max = prompt + answer;
                    let taken = world.scheduler.feed(Event::Submitted { id, tokens: tokens.clone(), tokens_max, whole: prompt % 5 == 0 });
                    prop_assert_eq!(taken, tokens_max.div_ceil(limits.page_tokens) <= limits.pages);
                    if taken {
                        world.live.insert(id, Live { tokens, tokens_max: tokens_max as usize, runs: false });
                    }
                }
                Act::Cancel(index) | Act::Fail(index) => {
                    let id = world.live.keys().nth(index).copied().unwrap_or(SequenceId(u64::MAX));
                    let event = if matches!(act, Act::Fail(_)) { Event::Failed { id } } else { Event::Cancelled { id } };
                    prop_assert_eq!(world.scheduler.feed(event), world.live.remove(&id).is_some());
                    world.audit();
                }
                Act::Took(micros) => {
                    world.scheduler.feed(Event::Took { micros });
                }
                Act::Step => {
                    world.step();
                }
            }
        }
        // No starvation: the oldest computes in every step, at the worst one token, and its text once, because nobody older
        // is there to take its pages.
        let bound: usize = world.live.values().map(|live| live.tokens_max).sum();
        for _ in 0..bound {
            world.step();
        }
        prop_assert!(world.live.is_empty());
        prop_assert!(world.scheduler.is_idle());
        prop_assert_eq!(world.scheduler.pages.available(), limits.pages);
        prop_assert_eq!(replay(recording.limits().unwrap(), &recording.records()), Ok(()));
    }
}
