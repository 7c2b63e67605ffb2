//! Which key pays for a call: what each may spend, what is reserved before a call and settled after it, and how long one that
//! failed is left alone. Pure: time comes in with each call, in milliseconds from any start.
//!
//! Reserved is what a call may come to, so that what many callers reserve at once never exceeds what a key has left; settled is
//! what it came to.

use banyan_engine::Account;

use crate::window::Window;

/// The pause after a first failure, doubled with each further one …
const BACK_OFF_MS: u64 = 1000;
/// … up to this.
const BACK_OFF_MAX_MS: u64 = 300_000;
/// A key that is not accepted will hardly be in a second.
const BACK_OFF_DENIED_MS: u64 = 60_000;
/// An upstream that asks for more is asked again after that all the same: somebody may have paid meanwhile.
const RETRY_AFTER_MAX_MS: u64 = 3_600_000;
/// Shares are compared in millionths.
const WHOLE: u64 = 1_000_000;

/// What one key may be used for; `u64::MAX`: without end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Per minute.
    pub(crate) requests_max: u64,
    /// Per minute.
    pub(crate) tokens_max: u64,
    /// Tokens per budget period.
    pub(crate) budget: u64,
    /// How long a budget period lasts; it begins with the first call after the last one.
    pub(crate) budget_every_ms: u64,
}

/// All keys of a provider.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    keys: Vec<Key>,
    /// Counts reservations: who was used longest ago.
    turn: u64,
}

#[derive(Debug)]
struct Key {
    upstream: usize,
    /// For people.
    upstream_name: String,
    masked: String,
    limits: Limits,
    window: Window,
    running: u32,
    /// Tokens of this budget period, and when it began.
    spent: u64,
    period_from: Option<u64>,
    failures: u32,
    /// When it last failed, and until when it is left alone.
    cooled_at: Option<u64>,
    cool_until: u64,
    error: String,
    used_at: u64,
}

/// What a call may come to, taken from one key. It is settled or given back, exactly once.
#[derive(Debug)]
#[must_use]
pub(crate) struct Reservation {
    /// Which key.
    pub(crate) key: usize,
    tokens: u64,
    second: u64,
    period_from: Option<u64>,
    begun_at: u64,
}

/// Why no key pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broke {
    /// None can now; one can after so long, if nothing else comes.
    NotNow {
        /// Milliseconds.
        wait_ms: u64,
    },
    /// It is more than any key may ever spend at once.
    Never {
        /// Tokens that one may.
        limit: u64,
    },
    /// Those that were not tried are none.
    Tried,
}

/// How a call failed, as far as its key is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// For people.
    pub(crate) error: String,
    /// What the upstream asked for.
    pub(crate) retry_after_ms: Option<u64>,
    /// Whose fault it is.
    pub(crate) kind: FaultKind,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// The upstream can't be reached, or has no time for it.
    Busy,
    /// The key itself is not accepted.
    Denied,
    /// The upstream failed with the query, perhaps because of it.
    Failed,
}

impl Keys {
    pub(crate) fn add(&mut self, upstream: usize, upstream_name: &str, masked: String, limits: Limits) -> usize {
        self.keys.push(Key {
            upstream,
            upstream_name: upstream_name.to_owned(),
            masked,
            limits,
            window: Window::default(),
            running: 0,
            spent: 0,
            period_from: None,
            failures: 0,
            cooled_at: None,
            cool_until: 0,
            error: String::new(),
            used_at: 0,
        });
        self.keys.len() - 1
    }

    /// The upstream that a key belongs to.
    pub(crate) fn upstream(&self, key: usize) -> usize {
        self.keys[key].upstream
    }

    /// Takes what a call may come to from the least used key of these upstreams that was not tried and has it.
    pub(crate) fn reserve(&mut self, now: u64, upstreams: &[usize], tried: &[usize], tokens: u64) -> Result<Reservation, Broke> {
        let mut best: Option<(usize, (u64, u32, u64))> = None;
        let mut wait: Option<u64> = None;
        let (mut limit, mut untried) = (0, false);
        for (index, key) in self.keys.iter_mut().enumerate() {
            if !upstreams.contains(&key.upstream) || tried.contains(&index) {
                continue;
            }
            untried = true;
            key.pass(now);
            let most = key.limits.tokens_max.min(key.limits.budget);
            limit = limit.max(most);
            if tokens > most || key.limits.requests_max == 0 {
                continue;
            }
            match key.wait_ms(now, tokens) {
                0 => {
                    let usage = (key.used_share(), key.running, key.used_at);
                    if best.as_ref().is_none_or(|(_, least)| usage < *least) {
                        best = Some((index, usage));
                    }
                }
                longer => wait = Some(wait.map_or(longer, |known| known.min(longer))),
            }
        }
        let Some((index, _)) = best else {
            return Err(match (wait, untried) {
                (Some(wait_ms), _) => Broke::NotNow { wait_ms },
                (None, true) => Broke::Never { limit },
                (None, false) => Broke::Tried,
            });
        };
        self.turn += 1;
        let key = &mut self.keys[index];
        key.used_at = self.turn;
        key.running += 1;
        let period_from = *key.period_from.get_or_insert(now);
        key.spent += tokens;
        let second = key.window.add(now, tokens);
        Ok(Reservation { key: index, tokens, second, period_from: Some(period_from), begun_at: now })
    }

    /// The call has ended, and took so many tokens.
    pub(crate) fn settle(&mut self, reservation: Reservation, tokens: u64) {
        self.correct(reservation, tokens, true);
    }

    /// The call was never made.
    pub(crate) fn give_back(&mut self, reservation: Reservation) {
        self.correct(reservation, 0, false);
    }

    fn correct(&mut self, reservation: Reservation, tokens: u64, was_request: bool) {
        let key = &mut self.keys[reservation.key];
        key.running -= 1;
        key.window.correct(reservation.second, reservation.tokens, tokens, was_request);
        if key.period_from == reservation.period_from {
            key.spent = key.spent - reservation.tokens + tokens;
        }
    }

    /// The upstream answers with this key.
    pub(crate) fn succeeded(&mut self, reservation: &Reservation) {
        let key = &mut self.keys[reservation.key];
        // One that began before a failure proves nothing about what came after.
        if key.cooled_at.is_none_or(|at| reservation.begun_at >= at) {
            (key.failures, key.cool_until) = (0, 0);
            key.error.clear();
        }
    }

    /// The upstream does not answer with this key, which is left alone for a while. `jitter` is from 0 to 1.
    pub(crate) fn failed(&mut self, now: u64, reservation: &Reservation, fault: Fault, jitter: f64) {
        let key = &mut self.keys[reservation.key];
        // Calls that were under way together fail together, and that is one failure.
        if key.cooled_at.is_none_or(|at| reservation.begun_at >= at) {
            key.failures = key.failures.saturating_add(1);
            key.cooled_at = Some(now + 1);
        }
        let first = if fault.kind == FaultKind::Denied { BACK_OFF_DENIED_MS } else { BACK_OFF_MS };
        let doubled = first.saturating_mul(1 << key.failures.saturating_sub(1).min(20)).min(BACK_OFF_MAX_MS);
        let pause = match fault.retry_after_ms {
            // Asked for at least that; who were refused together are not to come back together.
            Some(asked) => asked.min(RETRY_AFTER_MAX_MS) + (BACK_OFF_MS as f64 * jitter) as u64,
            None => doubled / 2 + (doubled as f64 * jitter) as u64 / 2,
        };
        key.cool_until = key.cool_until.max(now + pause);
        key.error = fault.error;
    }

    /// How many calls of `tokens` each the keys would take now, but for those of some upstreams.
    pub(crate) fn free(&mut self, now: u64, tokens: u64, but: &[usize]) -> u64 {
        let others = self.keys.iter_mut().filter(|key| !but.contains(&key.upstream));
        others.map(|key| key.free(now, tokens.max(1))).fold(0, u64::saturating_add)
    }

    /// Until some key has more to give than now; `None`: not by waiting.
    pub(crate) fn next_change_ms(&self, now: u64) -> Option<u64> {
        let of = |key: &Key| {
            let cooling = (key.cool_until > now).then(|| key.cool_until - now);
            let window = Some(key.window.reset_ms(now)).filter(|left| *left > 0);
            let budget = Some(key.budget_reset_ms(now)).filter(|left| *left > 0 && key.spent >= key.limits.budget);
            [cooling, window, budget].into_iter().flatten().min()
        };
        self.keys.iter().filter_map(of).min()
    }

    /// How all of them stand.
    pub(crate) fn accounts(&mut self, now: u64) -> Vec<Account> {
        let shown = |limit: u64| if limit == u64::MAX { 0 } else { limit };
        let of = |key: &mut Key| {
            key.pass(now);
            Account {
                upstream: key.upstream_name.clone(),
                key: key.masked.clone(),
                running: key.running,
                requests: key.window.requests(),
                requests_max: shown(key.limits.requests_max),
                tokens: key.window.tokens(),
                tokens_max: shown(key.limits.tokens_max),
                reset_ms: key.window.reset_ms(now),
                spent: key.spent,
                budget: shown(key.limits.budget),
                budget_reset_ms: if key.limits.budget == u64::MAX { 0 } else { key.budget_reset_ms(now) },
                failures: key.failures,
                cooling_ms: key.cool_until.saturating_sub(now),
                error: key.error.clone(),
            }
        };
        self.keys.iter_mut().map(of).collect()
    }
}

impl Key {
    fn pass(&mut self, now: u64) {
        self.window.pass(now);
        if self.period_from.is_some() && self.budget_reset_ms(now) == 0 {
            // What is under way stays in the period that it was taken from.
            (self.period_from, self.spent) = (None, 0);
        }
    }

    fn budget_reset_ms(&self, now: u64) -> u64 {
        self.period_from.map_or(0, |from| from.saturating_add(self.limits.budget_every_ms).saturating_sub(now))
    }

    /// Until it can take a call of so many tokens; 0: now.
    fn wait_ms(&self, now: u64, tokens: u64) -> u64 {
        let cooling = self.cool_until.saturating_sub(now);
        // After a failure one call finds out for all of them.
        let probing = if self.failures > 0 && self.running > 0 { BACK_OFF_MS } else { 0 };
        let window = self.window.fits_in_ms(now, tokens, self.limits.requests_max, self.limits.tokens_max);
        let budget = match self.spent.checked_add(tokens) {
            Some(sum) if sum <= self.limits.budget => 0,
            _ => self.budget_reset_ms(now).max(1),
        };
        cooling.max(probing).max(window).max(budget)
    }

    fn free(&mut self, now: u64, tokens: u64) -> u64 {
        self.pass(now);
        if self.wait_ms(now, tokens.min(self.limits.tokens_max).min(self.limits.budget)) > 0 {
            return 0;
        }
        if self.failures > 0 {
            return 1;
        }
        let requests = self.limits.requests_max.saturating_sub(self.window.requests());
        let of = |limit: u64, used: u64| if limit == u64::MAX { u64::MAX } else { (limit.saturating_sub(used) / tokens).max(1) };
        requests.min(of(self.limits.tokens_max, self.window.tokens())).min(of(self.limits.budget, self.spent))
    }

    /// The most used of its limits, in millionths.
    fn used_share(&self) -> u64 {
        let share = |used: u64, limit: u64| match limit {
            u64::MAX => 0,
            limit => (u128::from(used) * u128::from(WHOLE) / u128::from(limit.max(1))) as u64,
        };
        share(self.window.requests(), self.limits.requests_max)
            .max(share(self.window.tokens(), self.limits.tokens_max))
            .max(share(self.spent, self.limits.budget))
    }
}

/// A key as people may see it.
pub(crate) fn masked(key: &str) -> String {
    let characters: Vec<char> = key.chars().collect();
    match characters.len() {
        0 => "none".to_owned(),
        1..12 => "…".to_owned(),
        length => {
            let (begin, end): (String, String) = (characters[..3].iter().collect(), characters[length - 4..].iter().collect());
            format!("{begin}…{end}")
        }
    }
}

#[cfg(test)]
mod tests;
