//! Keys: who pays, and that nobody ever spends more than it has.

use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::window::WINDOW_MS;

const UNLIMITED: Limits = Limits { requests_max: u64::MAX, tokens_max: u64::MAX, budget: u64::MAX, budget_every_ms: 86_400_000 };

fn keys(limits: &[Limits]) -> Keys {
    let mut keys = Keys::default();
    for (number, limits) in limits.iter().enumerate() {
        keys.add(0, "up", format!("k{number}"), limits.clone());
    }
    keys
}

fn reserve(keys: &mut Keys, now: u64, tokens: u64) -> Result<Reservation, Broke> {
    keys.reserve(now, &[0], &[], tokens)
}

fn fault() -> Fault {
    Fault { error: "500".to_owned(), retry_after_ms: None, kind: FaultKind::Failed }
}

#[test]
fn the_least_used_key_pays() {
    let limits = Limits { tokens_max: 1000, ..UNLIMITED };
    let mut keys = keys(&[limits.clone(), limits]);
    let first = reserve(&mut keys, 0, 600).unwrap();
    let second = reserve(&mut keys, 0, 100).unwrap();
    assert_eq!((first.key, second.key), (0, 1));
    let third = reserve(&mut keys, 0, 100).unwrap();
    assert_eq!(third.key, 1, "100 of 1000 is less than 600");
    keys.settle(first, 50);
    let fourth = reserve(&mut keys, 0, 100).unwrap();
    assert_eq!(fourth.key, 0, "it took less than it might have");
}

#[test]
fn keys_without_limits_take_turns() {
    let mut keys = keys(&[UNLIMITED, UNLIMITED, UNLIMITED]);
    let order: Vec<usize> = (0..6)
        .map(|now| {
            let reservation = reserve(&mut keys, now, 10).unwrap();
            let key = reservation.key;
            keys.settle(reservation, 10);
            key
        })
        .collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn what_is_not_there_now_is_there_when_the_minute_is_over() {
    let mut keys = keys(&[Limits { requests_max: 2, tokens_max: 100, ..UNLIMITED }]);
    let one = reserve(&mut keys, 0, 60).unwrap();
    assert_eq!(reserve(&mut keys, 0, 41).unwrap_err(), Broke::NotNow { wait_ms: 61_000 });
    let two = reserve(&mut keys, 0, 40).unwrap();
    assert_eq!(reserve(&mut keys, 10, 0).unwrap_err(), Broke::NotNow { wait_ms: 60_990 }, "two requests a minute");
    assert_eq!(reserve(&mut keys, 10, 101).unwrap_err(), Broke::Never { limit: 100 });
    keys.settle(one, 0);
    keys.give_back(two);
    assert!(reserve(&mut keys, 10, 100).is_ok(), "what was never asked for does not count");
    assert_eq!(keys.reserve(10, &[0], &[0], 1).unwrap_err(), Broke::Tried);
}

#[test]
fn a_budget_lasts_its_period() {
    let mut keys = keys(&[Limits { budget: 100, budget_every_ms: 1000, ..UNLIMITED }]);
    let late = reserve(&mut keys, 500, 80).unwrap();
    assert_eq!(reserve(&mut keys, 500, 30).unwrap_err(), Broke::NotNow { wait_ms: 1000 });
    let next = reserve(&mut keys, 1500, 100).unwrap();
    // Taken from the period before, so it changes nothing in this one.
    keys.settle(late, 10);
    assert_eq!(keys.accounts(1500)[0].spent, 100);
    keys.settle(next, 20);
    assert_eq!(keys.accounts(1500)[0].spent, 20);
}

#[test]
fn a_key_that_fails_is_left_alone_for_longer_each_time_and_then_tried_once() {
    let mut keys = keys(&[UNLIMITED]);
    let mut now = 0;
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let probe = reserve(&mut keys, now, 1).unwrap();
        if !pauses.is_empty() {
            assert!(reserve(&mut keys, now, 1).is_err(), "one finds out for all");
        }
        keys.failed(now, &probe, fault(), 1.0);
        keys.settle(probe, 0);
        let Err(Broke::NotNow { wait_ms }) = reserve(&mut keys, now, 1) else { panic!("it is left alone") };
        pauses.push(wait_ms);
        now += wait_ms;
    }
    assert_eq!(pauses[..4], [1000, 2000, 4000, 8000]);
    assert_eq!(pauses.last(), Some(&BACK_OFF_MAX_MS));
    let probe = reserve(&mut keys, now, 1).unwrap();
    keys.succeeded(&probe);
    assert!(reserve(&mut keys, now, 1).is_ok() && keys.accounts(now)[0].failures == 0, "and forgiven when it answers");
}

#[test]
fn what_fails_together_is_one_failure_and_retry_after_is_kept_to() {
    let mut keys = keys(&[UNLIMITED]);
    let calls: Vec<Reservation> = (0..5).map(|_| reserve(&mut keys, 0, 1).unwrap()).collect();
    for call in calls {
        keys.failed(10, &call, Fault { retry_after_ms: Some(7000), ..fault() }, 0.0);
        keys.settle(call, 0);
    }
    assert_eq!(keys.accounts(10)[0].failures, 1);
    assert_eq!(reserve(&mut keys, 10, 1).unwrap_err(), Broke::NotNow { wait_ms: 7000 });
    assert!(reserve(&mut keys, 7010, 1).is_ok());
}

#[test]
fn a_key_that_is_denied_is_left_alone_for_long() {
    let mut keys = keys(&[UNLIMITED, UNLIMITED]);
    let call = reserve(&mut keys, 0, 1).unwrap();
    keys.failed(0, &call, Fault { kind: FaultKind::Denied, ..fault() }, 0.0);
    keys.settle(call, 0);
    for now in 0..10 {
        assert_eq!(reserve(&mut keys, now, 1).map(|call| call.key), Ok(1));
    }
    assert!(keys.accounts(0)[0].cooling_ms >= BACK_OFF_DENIED_MS / 2);
}

#[test]
fn keys_are_shown_masked() {
    assert_eq!(masked("sk-proj-0123456789abcdef"), "sk-…cdef");
    assert_eq!(masked("short"), "…");
    assert_eq!(masked(""), "none");
}

/// A call under way: when it began, and what it holds.
type Held = (u64, Reservation);

proptest! {
    /// Whatever comes and goes: in no minute does a key's upstream see more than the key may have, and at the end nothing is held.
    #[test]
    fn no_minute_has_more_than_a_key_may(
        steps in proptest::collection::vec((0_u64..20_000, 0_u64..120, 0_u8..4, 0_u64..120), 1..300),
        requests_max in 1_u64..20,
        tokens_max in 100_u64..600,
        count in 1_usize..4,
    ) {
        let limits = Limits { requests_max, tokens_max, budget: 5000, budget_every_ms: 600_000 };
        let mut keys = keys(&vec![limits; count]);
        let mut now = 0;
        let mut held: Vec<Held> = Vec::new();
        // What each key's upstream saw: (when, tokens that were taken for it).
        let mut seen: Vec<Vec<(u64, u64)>> = vec![Vec::new(); count];
        for (pause, tokens, what, used) in steps {
            now += pause;
            match what {
                0 | 1 => if let Ok(reservation) = reserve(&mut keys, now, tokens) {
                    seen[reservation.key].push((now, tokens));
                    held.push((now, reservation));
                },
                2 if !held.is_empty() => {
                    let (at, reservation) = held.remove(used as usize % held.len());
                    // No more than was reserved, as with `max_tokens`.
                    let used = used.min(reservation.tokens);
                    let entry = seen[reservation.key].iter_mut().find(|(when, tokens)| *when == at && *tokens == reservation.tokens);
                    entry.unwrap().1 = used;
                    keys.settle(reservation, used);
                }
                3 if !held.is_empty() => {
                    let (at, reservation) = held.remove(used as usize % held.len());
                    let list = &mut seen[reservation.key];
                    let index = list.iter().position(|(when, tokens)| *when == at && *tokens == reservation.tokens).unwrap();
                    list.remove(index);
                    keys.give_back(reservation);
                }
                _ => {}
            }
            for list in &seen {
                let minute = || list.iter().filter(|(at, _)| at + WINDOW_MS > now);
                prop_assert!(minute().count() as u64 <= requests_max);
                prop_assert!(minute().map(|(_, tokens)| tokens).sum::<u64>() <= tokens_max);
            }
        }
        for (_, reservation) in held {
            keys.settle(reservation, 0);
        }
        let later = now + 700_000;
        for account in keys.accounts(later) {
            prop_assert_eq!((account.running, account.requests, account.tokens, account.spent), (0, 0, 0, 0));
        }
    }

    /// What `free` promises can be reserved, where nothing was used yet.
    #[test]
    fn what_is_free_can_be_reserved(requests_max in 0_u64..30, tokens_max in 1_u64..2000, tokens in 1_u64..100) {
        let mut keys = keys(&[Limits { requests_max, tokens_max, ..UNLIMITED }]);
        let free = keys.free(0, tokens, &[]);
        let tokens = tokens.min(tokens_max);
        for _ in 0..free {
            prop_assert!(reserve(&mut keys, 0, tokens).is_ok());
        }
    }
}

#[test]
fn a_hundred_threads_together_spend_what_one_would() {
    let limits = Limits { requests_max: 500, tokens_max: 10_000, ..UNLIMITED };
    let keys = Mutex::new(keys(&[limits.clone(), limits]));
    let won: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| {
                    let mut won = 0;
                    for _ in 0..50 {
                        let reserved = reserve(&mut keys.lock().unwrap(), 0, 20);
                        if let Ok(reservation) = reserved {
                            won += 1;
                            keys.lock().unwrap().settle(reservation, 20);
                        }
                    }
                    won
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(won, 1000, "two keys of 500 requests and 10,000 tokens");
}
