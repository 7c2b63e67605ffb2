//! What a key was used for in the last minute, second by second. Pure: time comes in, in milliseconds from any start.

use std::collections::VecDeque;

/// What limits per minute count over.
pub(crate) const WINDOW_MS: u64 = 60_000;
/// What is used in one second stops counting together.
const SLOT_MS: u64 = 1000;

/// Requests and tokens of the last minute. A second counts until it has ended more than a minute ago: whatever minute an upstream
/// looks at, no more than this was in it.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// At most 62.
    slots: VecDeque<Slot>,
    requests: u64,
    tokens: u64,
}

#[derive(Debug)]
struct Slot {
    second: u64,
    requests: u64,
    tokens: u64,
}

impl Slot {
    fn until_ms(&self) -> u64 {
        (self.second + 1) * SLOT_MS + WINDOW_MS
    }
}

impl Window {
    /// Forgets what no longer counts.
    pub(crate) fn pass(&mut self, now_ms: u64) {
        while let Some(slot) = self.slots.front().filter(|slot| slot.until_ms() <= now_ms) {
            self.requests -= slot.requests;
            self.tokens -= slot.tokens;
            self.slots.pop_front();
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Counts a request and its tokens now. Returns the second to correct it by.
    pub(crate) fn add(&mut self, now_ms: u64, tokens: u64) -> u64 {
        // Time that steps back counts as standing still.
        let second = (now_ms / SLOT_MS).max(self.slots.back().map_or(0, |slot| slot.second));
        if self.slots.back().is_none_or(|slot| slot.second != second) {
            self.slots.push_back(Slot { second, requests: 0, tokens: 0 });
        }
        let slot = self.slots.back_mut().expect("one was pushed where there was none");
        slot.requests += 1;
        slot.tokens += tokens;
        self.requests += 1;
        self.tokens += tokens;
        second
    }

    /// What was counted in that second had other tokens, or was no request at all.
    pub(crate) fn correct(&mut self, second: u64, counted: u64, really: u64, was_request: bool) {
        // Else it no longer counts, whatever it was.
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.second == second) else { return };
        slot.tokens = slot.tokens - counted + really;
        self.tokens = self.tokens - counted + really;
        if !was_request {
            slot.requests -= 1;
            self.requests -= 1;
        }
    }

    /// Until the oldest of it no longer counts.
    pub(crate) fn reset_ms(&self, now_ms: u64) -> u64 {
        self.slots.front().map_or(0, |slot| slot.until_ms().saturating_sub(now_ms))
    }

    /// Until a request of so many tokens fits below these limits, if nothing else comes.
    pub(crate) fn fits_in_ms(&self, now_ms: u64, tokens: u64, requests_max: u64, tokens_max: u64) -> u64 {
        let (mut requests, mut all) = (self.requests, self.tokens);
        let fits = |requests: u64, all: u64| requests < requests_max && all.saturating_add(tokens) <= tokens_max;
        let mut until = 0;
        for slot in &self.slots {
            if fits(requests, all) {
                break;
            }
            requests -= slot.requests;
            all -= slot.tokens;
            until = slot.until_ms().saturating_sub(now_ms);
        }
        until
    }
}
