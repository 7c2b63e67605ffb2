//! What a parent has seen of a child: how long its link takes, how fast its subtree serves, how often it failed in a row. From
//! that follows how often it gets its turn beside its siblings, and when it gets none at all.

use serde::{Deserialize, Serialize};

use super::Service;

/// A child that failed so often in a row is passed over …
const FAILURES_MAX: u64 = 7;
/// … for so long, twice as long each time that its trial fails, give or take a quarter …
const SHUT_MIN_US: u64 = 1_000_000;
/// … but never for longer: a node that was repaired should not have to wait for a person.
const SHUT_MAX_US: u64 = 60_000_000;
/// A trial of which nothing was heard for so long is followed by another one: it may have been cancelled.
const TRIAL_US: u64 = 30_000_000;

/// A child is slow when a query takes that much longer to reach it than the quickest sibling, beside twice as long: less is
/// what reports are coalesced by, and what a busy machine does.
const DELAY_SLACK_US: u64 = 100_000;
/// Tokens after which a pace is worth something.
const PACE_TOKENS: u64 = 16;
/// A pace older than this says nothing of now.
const PACE_MAX_AGE_US: u64 = 10_000_000;
/// However slow, a child gets a turn now and then, by which it can show that it has recovered.
const ONE_IN_MAX: u64 = 8;

/// What a child is worth now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It gets every `one_in`-th turn; 1: every one.
    Turns {
        /// So often.
        one_in: u32,
        /// How long queries take to reach it, in microseconds.
        delay_us: u64,
        /// How long its sequences take for a token, in microseconds; 0: nothing fresh is known.
        pace_us: u64,
    },
    /// It failed too often in a row, and gets nothing.
    Shut {
        /// For so long, in microseconds.
        for_us: u64,
    },
    /// It gets one query, to show whether it works again.
    Trial,
    /// It works again.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Gate {
    Open,
    Shut {
        until: u64,
    },
    /// A query is or will be under way to find out, since then.
    Trial {
        sent: bool,
        since: u64,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// Smoothed; `None`: nothing was acknowledged yet.
    delay_us: Option<u64>,
    pace_us: Option<u64>,
    pace_at: u64,
    /// Counts since the last pace.
    busy_us: u64,
    tokens: u64,
    /// As last reported; `None` on a new link, whose first report may be of another life.
    service: Option<Service>,
    failures: u64,
    /// Times in a row that it was shut.
    shuts: u32,
    gate: Gate,
    /// Its share: one turn in so many.
    pub(super) one_in: u32,
    /// Turns that it was passed over since the last it got.
    pub(super) passed: u32,
}

impl Default for Standing {
    fn default() -> Self {
        Standing {
            delay_us: None,
            pace_us: None,
            pace_at: 0,
            busy_us: 0,
            tokens: 0,
            service: None,
            failures: 0,
            shuts: 0,
            gate: Gate::Open,
            one_in: 1,
            passed: 0,
        }
    }
}

impl Standing {
    /// Whether there is anything that a new link should not wash away.
    pub(super) fn is_bad(&self) -> bool {
        self.failures > 0 || self.gate != Gate::Open
    }

    /// On a new link.
    pub(super) fn renewed(self) -> Standing {
        Standing { failures: self.failures, shuts: self.shuts, gate: self.gate, ..Standing::default() }
    }

    /// How many queries it may be given: `None`: as many as it has room for.
    pub(super) fn places(&self) -> Option<u32> {
        match self.gate {
            Gate::Open => None,
            Gate::Trial { sent: false, .. } => Some(1),
            Gate::Trial { .. } | Gate::Shut { .. } => Some(0),
        }
    }

    /// For how much longer it is given nothing; until a trial has succeeded that is a moment.
    pub(super) fn shut_us(&self, now: u64) -> u64 {
        match self.gate {
            Gate::Shut { until } => until.saturating_sub(now).max(1),
            Gate::Trial { .. } => 1,
            Gate::Open => 0,
        }
    }

    pub(super) fn sent(&mut self, now: u64) {
        if let Gate::Trial { sent, since } = &mut self.gate {
            (*sent, *since) = (true, now);
        }
    }

    /// A query took so long to be acknowledged.
    pub(super) fn acknowledged(&mut self, after_us: u64) {
        self.delay_us = Some(self.delay_us.map_or(after_us, |known| known - known / 4 + after_us / 4));
    }

    /// It reported how it serves.
    pub(super) fn served(&mut self, now: u64, service: Service, seed: u64) -> Option<Verdict> {
        let before = self.service.replace(service)?;
        let (answered, failed) = (service.answered.saturating_sub(before.answered), service.failed.saturating_sub(before.failed));
        let tokens = service.tokens.saturating_sub(before.tokens);
        self.tokens += tokens;
        self.busy_us += service.busy_us.saturating_sub(before.busy_us);
        if self.tokens >= PACE_TOKENS {
            let pace = self.busy_us / self.tokens;
            let fresh = self.pace_us.filter(|_| now.saturating_sub(self.pace_at) < PACE_MAX_AGE_US);
            self.pace_us = Some(fresh.map_or(pace, |known| known.midpoint(pace)));
            (self.pace_at, self.busy_us, self.tokens) = (now, 0, 0);
        }
        if failed > 0 && answered == 0 {
            return self.failed(now, failed, seed);
        }
        let trial = matches!(self.gate, Gate::Trial { sent: true, .. });
        if answered > 0 || trial && tokens > 0 {
            self.failures = 0;
            if self.gate != Gate::Open {
                (self.gate, self.shuts) = (Gate::Open, 0);
                return Some(Verdict::Open);
            }
        }
        None
    }

    /// It failed so often, with nothing answered between. `seed` gives each child, and each time, a jitter of its own.
    pub(super) fn failed(&mut self, now: u64, times: u64, seed: u64) -> Option<Verdict> {
        self.failures += times;
        let trial = matches!(self.gate, Gate::Trial { sent: true, .. });
        if matches!(self.gate, Gate::Shut { .. }) || self.failures < FAILURES_MAX && !trial {
            return None;
        }
        let span = (SHUT_MIN_US << self.shuts.min(16)).min(SHUT_MAX_US);
        let jitter = mix(seed ^ u64::from(self.shuts)) % (span / 2);
        let for_us = span - span / 4 + jitter;
        self.shuts += 1;
        self.gate = Gate::Shut { until: now + for_us };
        Some(Verdict::Shut { for_us })
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: u64) -> Option<Verdict> {
        match self.gate {
            Gate::Shut { until } if now >= until => {
                self.gate = Gate::Trial { sent: false, since: now };
                Some(Verdict::Trial)
            }
            Gate::Trial { sent: true, since } if now.saturating_sub(since) >= TRIAL_US => {
                self.gate = Gate::Trial { sent: false, since: now };
                Some(Verdict::Trial)
            }
            Gate::Open | Gate::Shut { .. } | Gate::Trial { .. } => None,
        }
    }

    /// How long a query takes to reach it: as measured, or as the one that has been on its way the longest shows already.
    pub(super) fn delay_us(&self, oldest_us: u64) -> u64 {
        self.delay_us.unwrap_or(0).max(oldest_us)
    }

    pub(super) fn pace_us(&self, now: u64) -> Option<u64> {
        self.pace_us.filter(|_| now.saturating_sub(self.pace_at) < PACE_MAX_AGE_US)
    }

    /// Compares it with the best of its siblings.
    pub(super) fn compare(&mut self, now: u64, oldest_us: u64, best_delay_us: u64, best_pace_us: u64) -> Option<Verdict> {
        let (delay_us, pace_us) = (self.delay_us(oldest_us), self.pace_us(now).unwrap_or(0));
        // Whoever is slow has to become clearly better before it counts as even again.
        let (numerator, slack) = if self.one_in > 1 { (3, DELAY_SLACK_US / 2) } else { (4, DELAY_SLACK_US) };
        let far = |ours: u64, best: u64, slack: u64| ours > best.saturating_mul(numerator) / 2 + slack;
        let by_delay = match far(delay_us, best_delay_us, slack) {
            true => 1 + (delay_us - best_delay_us) / (best_delay_us + DELAY_SLACK_US),
            false => 1,
        };
        let by_pace = match best_pace_us > 0 && far(pace_us, best_pace_us, 0) {
            true => (pace_us / best_pace_us).max(2),
            false => 1,
        };
        let one_in = by_delay.max(by_pace).min(ONE_IN_MAX) as u32;
        // A share more or less is no news; being slow or not is.
        let news = (one_in > 1) != (self.one_in > 1);
        self.one_in = one_in;
        news.then_some(Verdict::Turns { one_in, delay_us, pace_us })
    }
}

/// SplitMix64's finalizer (Steele, Lea and Flood, 2014).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
