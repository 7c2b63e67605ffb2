//! What one client asks and sees, checked as it comes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use banyan_proto::{QueryId, v1};
use prost::Message as _;
use tokio::sync::mpsc;

use super::{engine::token, world::MILLISECOND};

/// A question to be.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Whose lane it waits in.
    pub owner: u32,
    /// The model; empty: any.
    pub model: &'static str,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens of its answer.
    pub tokens: u32,
    /// Milliseconds that it may take.
    pub deadline_ms: u64,
    /// Higher goes first within the owner's lane.
    pub priority: i32,
}

/// A client that waits for its one answer, or has it.
#[derive(Debug)]
pub struct Client {
    /// Of its query.
    pub id: QueryId,
    /// What it wants.
    pub wish: Wish,
    /// When it asked.
    pub asked_at: u64,
    /// When its first token came.
    pub first_at: Option<u64>,
    /// When its answer ended.
    pub ended_at: Option<u64>,
    /// Why there is none.
    pub failed: Option<v1::Failure>,
    /// Whether it went away.
    pub left: bool,
    /// Since when it runs nowhere, as far as it was told.
    pub waits_since: Option<u64>,
    /// Attempts, as far as it was told.
    pub attempts: u32,
    /// The longest way that one of them took.
    pub hops: u32,
    /// The root's life in which it was asked last.
    pub(super) root_life: u32,
    seed: u64,
    got: u32,
    from: Option<(mpsc::UnboundedReceiver<v1::Answer>, Waker)>,
    /// A stream of it broke before its end.
    lost: bool,
    read: Arc<AtomicU64>,
}

impl Client {
    /// One that is about to ask.
    pub(super) fn new(number: u64, seed: u64, wish: Wish, now: u64) -> Client {
        Client {
            id: QueryId::from_u128(u128::from(number) << 64 | u128::from(seed)),
            wish,
            asked_at: now,
            first_at: None,
            ended_at: None,
            failed: None,
            left: false,
            waits_since: Some(now),
            attempts: 0,
            hops: 0,
            root_life: 0,
            seed,
            got: 0,
            from: None,
            lost: false,
            read: Arc::default(),
        }
    }

    /// Opens its stream: what the root of that life is given. A later one goes on behind what came.
    pub(super) fn open(
        &mut self,
        waker: Waker,
        now: u64,
        root_life: u32,
    ) -> (v1::Question, mpsc::UnboundedSender<v1::Answer>, Arc<AtomicU64>) {
        let (to, from) = mpsc::unbounded_channel();
        self.from = Some((from, waker));
        (self.root_life, self.waits_since, self.read) = (root_life, Some(now), Arc::default());
        let ids = (0..self.got).map(|position| token(self.seed, position)).collect();
        let delivered = if self.got > 0 { vec![v1::Tokens { position: 0, ids, ..v1::Tokens::default() }] } else { Vec::new() };
        let ids = (0..self.wish.prompt_tokens).map(|position| token(!self.seed, position)).collect();
        let generation = v1::Generation {
            prompt: Some(v1::generation::Prompt::Tokens(v1::TokenIds { ids })),
            max_tokens: self.wish.tokens,
            ignore_eos: true,
            sampling: Some(v1::Sampling { seed: self.seed, top_p: 1.0, repetition_penalty: 1.0, ..v1::Sampling::default() }),
            ..v1::Generation::default()
        };
        let header = v1::Header {
            id: self.id.to_wire(),
            owner: format!("owner-{}", self.wish.owner),
            model: self.wish.model.to_owned(),
            remaining_ms: self.wish.deadline_ms.saturating_sub((now - self.asked_at) / MILLISECOND),
            priority: self.wish.priority,
            tokens_max: self.wish.prompt_tokens + self.wish.tokens,
            ..v1::Header::default()
        };
        (
            v1::Question {
                header: header.encode_to_vec().into(),
                payload: generation.encode_to_vec().into(),
                delivered,
                again: self.lost,
                ..Default::default()
            },
            to,
            self.read.clone(),
        )
    }

    /// Whether it was answered, or told why not, or does not want to know.
    pub fn is_done(&self) -> bool {
        self.left || self.ended_at.is_some()
    }

    /// Tokens that it has.
    pub fn got(&self) -> u32 {
        self.got
    }

    /// Goes away.
    pub(super) fn leave(&mut self) {
        self.left = true;
        self.from = None;
    }

    /// Reads what came. True when the stream ended before the answer; an error is a broken promise.
    pub(super) fn read(&mut self, now: u64) -> Result<bool, String> {
        loop {
            let Some((from, waker)) = &mut self.from else { return Ok(false) };
            let polled = from.poll_recv(&mut Context::from_waker(waker));
            match polled {
                Poll::Pending => return Ok(false),
                Poll::Ready(Some(answer)) => {
                    self.read.fetch_add(1, Ordering::Relaxed);
                    self.take(answer, now)?;
                }
                Poll::Ready(None) => {
                    self.from = None;
                    let broken = self.ended_at.is_none();
                    self.lost |= broken;
                    return Ok(broken);
                }
            }
        }
    }

    fn take(&mut self, answer: v1::Answer, now: u64) -> Result<(), String> {
        if self.ended_at.is_some() {
            return Err(format!("something came after the end: {answer:?}"));
        }
        match answer.kind {
            Some(v1::answer::Kind::Placed(placed)) => {
                self.attempts = self.attempts.max(placed.attempt);
                self.hops = self.hops.max(placed.trail.len() as u32);
                self.waits_since = if placed.running { None } else { self.waits_since.or(Some(now)) };
            }
            Some(v1::answer::Kind::Tokens(tokens)) => {
                self.waits_since = None;
                if tokens.position != self.got {
                    return Err(format!("position {} came where {} was due", tokens.position, self.got));
                }
                for id in tokens.ids {
                    if id != token(self.seed, self.got) {
                        return Err(format!("the token at position {} is not its own", self.got));
                    }
                    self.got += 1;
                }
                self.first_at.get_or_insert(now);
            }
            Some(v1::answer::Kind::End(_)) => {
                if self.got != self.wish.tokens {
                    return Err(format!("the answer ended after {} of {} tokens", self.got, self.wish.tokens));
                }
                self.end(now);
            }
            Some(v1::answer::Kind::Failed(failed)) => {
                self.failed = Some(failed.reason());
                self.end(now);
            }
            // Said to those who come back; none does here.
            Some(v1::answer::Kind::Accepted(_)) => {}
            None => return Err("an answer that says nothing".to_owned()),
        }
        Ok(())
    }

    /// Its deadline passed, and there is no root to say so.
    pub(super) fn give_up(&mut self, now: u64) {
        self.failed = Some(v1::Failure::Deadline);
        self.end(now);
    }

    fn end(&mut self, now: u64) {
        self.ended_at = Some(now);
        self.waits_since = None;
    }
}
