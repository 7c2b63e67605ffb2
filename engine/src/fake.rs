//! An engine without weights: deterministic text at a settable speed, for trees that are tested and loaded.
//!
//! It runs under the real scheduler and the real runner; only tokens and time are made up. The text is a function of
//! prompt, seed and position, so that a resumed answer goes on exactly. Prompts may carry markers, for tests:
//! `[[count N]]` answers with the numbers from 1 to N, `[[loop N]]` with N numbers that begin again after four, `[[hostile N]]` with N
//! pieces of what no model should say, `[[fail]]` makes the step fail that computes the prompt, `[[panic]]` makes it panic, and
//! `[[abort]]` ends the whole process with it.

use std::borrow::Cow;
use std::hash::Hasher;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::engine::{Info, Served};
use crate::language::{Language, Reading};
use crate::runner::{Backend, Drawn, Item, Outcome};
use crate::scheduler::{Limits, Recording};
use crate::text::{first_stop, may_become_stop};
use crate::{Prompt, Refusal, Request, Tell, TokenLogprob, Told, admission};

/// How long a sleeping step may overlook that the engine is to stop.
const NAP: Duration = Duration::from_millis(20);
/// Tokens of a page: as the real engine's, so that plans look alike.
const PAGE_TOKENS: u32 = 16;

/// The end-of-text token.
const END: u32 = 0;
/// Tokens from here on are numbers; below are words.
const NUMBERS: u32 = 1024;
/// Tokens from here on are pieces of what no model should say.
const HOSTILE: u32 = NUMBERS + (1 << 20);
/// One more than the greatest token.
const VOCABULARY: u32 = HOSTILE + PIECES.len() as u32;

/// What no model should say, and what it may become when it is put together: markup, scripts, links that lead astray, Markdown without
/// end, commands to terminals, text that is read backwards. The last one stands for a line of 100,000 letters.
#[rustfmt::skip]
const PIECES: [&str; 40] = [
    "<script>hit()</script>", "<img src=x onerror=hit()>", "<scr", "ipt>hit()", "</script>", "<svg onload=hit()>",
    "<iframe src='javascript:hit()'>", "[a](javascript:hit())", "[b](JaVa\tScRiPt:hit())", "](", "javascript:hit()", ")", "[",
    "![x](https://evil.example/pixel.png)", "![x](data:image/svg+xml,<svg/onload=hit()>)", "[https://bank.example](https://evil.example)",
    "<https://evil.example/\"onmouseover=\"hit()>", "```html\n<b>", "\n```\n", "~~~\" onclick=\"hit()\n", "`", "``", "**", "_", "~~",
    "\n\n| a | <b> |\n|---|---|\n| [x](vbscript:hit()) | `|` |\n\n", "\n\n- - - - - - - - - - - - x\n", "\n>>>>>>>>>>>>>>>>>>>> deep\n",
    "\u{1b}[31mred\u{1b}[0m", "\u{1b}]8;;https://evil.example\u{1b}\\link", "\u{7}\u{8}\0", "file\u{202e}gnp.exe", "\u{2066}hidden\u{2069}",
    "&lt;script&gt;", "&#106;avascript:hit()", "__proto__", "constructor", "\u{2028}\u{200b}\u{feff}", "data: [DONE]\n\n", "",
];
/// Letters of the longest line.
const LINE: usize = 100_000;

/// Numbers of an embedding.
const WIDTH: u8 = 16;

#[rustfmt::skip]
const OPENERS: [&str; 16] = [
    "The", "A", "Every", "Some", "No", "This", "That", "Each", "One", "Another", "My", "Your", "Our", "Their", "Her", "His",
];
#[rustfmt::skip]
const NOUNS: [&str; 32] = [
    "banyan", "branch", "root", "leaf", "river", "bird", "monkey", "village", "garden", "storm", "lantern", "story", "teacher",
    "market", "shadow", "mountain", "letter", "tiger", "road", "well", "child", "song", "morning", "field", "temple", "window",
    "boat", "friend", "seed", "forest", "café", "夢",
];
#[rustfmt::skip]
const VERBS: [&str; 32] = [
    "sees", "carries", "finds", "follows", "keeps", "loves", "forgets", "builds", "answers", "crosses", "hears", "brings",
    "watches", "holds", "leaves", "opens", "meets", "feeds", "teaches", "paints", "asks", "lifts", "guards", "wakes", "calls",
    "covers", "joins", "reaches", "remembers", "shelters", "warms", "grows",
];

/// How to pretend.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model's public name.
    pub model: String,
    /// Sequences that run at once.
    pub batch_max: u32,
    /// A step's time, however many sequences are in it: that is what batching means. Zero costs nothing.
    pub token_time: Duration,
    /// Added to a step for each prompt token in it.
    pub prefill_time: Duration,
    /// Tokens after which an answer ends by itself; `max_tokens` may end it before.
    pub tokens_default: u32,
    /// Tokens of a prompt and its answer together.
    pub context: u32,
    /// Prompt tokens in one step.
    pub step_tokens: u32,
    /// KV pages; `None`: whole contexts for the whole batch.
    pub pages: Option<u32>,
    /// Whether to guess at the tokens that follow.
    pub speculate: bool,
    /// Keeps what the scheduler was told and what it planned.
    pub recording: Option<Recording>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            model: "fake".into(),
            batch_max: 8,
            token_time: Duration::ZERO,
            prefill_time: Duration::ZERO,
            tokens_default: 32,
            context: 4096,
            step_tokens: 256,
            pages: None,
            speculate: true,
            recording: None,
        }
    }
}

impl Options {
    /// Tokens that a sequence can have.
    fn context(&self) -> u32 {
        self.context.min(self.pages.map_or(u32::MAX, |pages| pages.saturating_mul(PAGE_TOKENS)))
    }

    /// What its scheduler keeps to.
    pub fn limits(&self) -> Limits {
        let batch_max = self.batch_max.max(1);
        let pages = self.pages.unwrap_or_else(|| self.context.div_ceil(PAGE_TOKENS).saturating_mul(batch_max));
        let step_tokens = self.step_tokens.max(batch_max.saturating_add(1));
        Limits { batch_max, step_tokens, pages, page_tokens: PAGE_TOKENS, speculate: self.speculate }
    }

    /// A step's time with so many prompt tokens in it.
    pub fn step_time(&self, prompt_tokens: usize) -> Duration {
        self.token_time.saturating_add(self.prefill_time.saturating_mul(u32::try_from(prompt_tokens).unwrap_or(u32::MAX)))
    }

    /// What it serves.
    pub fn info(&self) -> Info {
        let served = Served {
            model: self.model.clone(),
            context: self.context(),
            chat: true,
            dtype: "none".into(),
            // Version, and what the text is a function of besides prompt and seed.
            fingerprint: format!("fake-{}-{}", env!("CARGO_PKG_VERSION"), self.tokens_default),
            parameters: 0,
            created: 0,
        };
        Info { models: vec![served], device: "fake".into(), batch_max: self.batch_max.max(1), queues: true }
    }
}

/// The made-up language.
pub(crate) struct Words {
    context: u32,
    tokens_default: u32,
}

impl Words {
    pub(crate) fn new(options: &Options) -> Words {
        Words { context: options.context(), tokens_default: options.tokens_default }
    }
}

pub(crate) struct Fake {
    options: Options,
    stopping: watch::Receiver<bool>,
    /// When the step in progress would end if every step took exactly its time.
    due: Instant,
}

pub(crate) struct State {
    /// Of prompt and seed.
    key: u64,
    /// Tokens before the end of text.
    length: u32,
    /// How many tokens the prompt has.
    prompt_tokens: usize,
    says: Says,
    /// Whether it says anything.
    generates: bool,
    logprobs: bool,
    /// What is told of the prompt, until it was.
    told: Option<Told>,
    failpoint: Option<Failpoint>,
    text: Text,
}

/// What an answer consists of.
#[derive(Clone, Copy)]
enum Says {
    Words,
    Numbers,
    /// 1 2 3 4 1 2 3 4 …
    Loop,
    /// What no model should say.
    Hostile,
}

#[derive(Clone, Copy)]
enum Failpoint {
    Fail,
    Panic,
    Abort,
}

impl Fake {
    pub(crate) fn new(options: &Options, stopping: watch::Receiver<bool>) -> Fake {
        Fake { options: options.clone(), stopping, due: Instant::now() }
    }

    /// Lets a step's time pass, unless the engine is to stop.
    fn pass(&mut self, time: Duration) {
        if time.is_zero() {
            return;
        }
        let now = Instant::now();
        // Steps follow each other without drift, and an idle engine does not save up time.
        self.due = if self.due + time < now { now + time } else { self.due + time };
        loop {
            let left = self.due.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stopping.has_changed().is_err() || *self.stopping.borrow() {
                return;
            }
            thread::sleep(left.min(NAP));
        }
    }
}

impl Language for Words {
    type State = State;

    fn context(&self) -> u32 {
        self.context
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY as usize
    }

    fn read<'a>(&self, request: &'a Request) -> Result<Reading<'a>, Refusal> {
        // A word may be of any length.
        let extent = admission::Extent::new(self.context, None, request.max_tokens);
        let mut tokens = Vec::new();
        let text = match &request.prompt {
            Prompt::Text(text) => Cow::Borrowed(text.as_str()),
            Prompt::Chat(messages) => {
                extent.check_chat(messages)?;
                Cow::Owned(messages.iter().map(|message| format!("{}: {}\n", message.role, message.content)).collect())
            }
            Prompt::Tokens(ids) => {
                admission::room(self.context, ids.len(), request.max_tokens)?;
                admission::check_prompt(ids, VOCABULARY as usize)?;
                tokens.clone_from(ids);
                Cow::Borrowed("")
            }
        };
        extent.check_text(text.len())?;
        tokens.extend(text.split_whitespace().map(|word| 1 + hash(&[word.as_bytes()]) as u32 % (NUMBERS - 1)));
        if tokens.is_empty() {
            tokens.push(END);
        }
        Ok(Reading { text, tokens, stop: Vec::new() })
    }

    fn begin(&self, request: &Request, reading: &Reading<'_>) -> State {
        let Reading { text, tokens, .. } = reading;
        let ids: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let count = |name| marker(text, name).and_then(|rest| rest.split("]]").next()?.trim().parse::<u32>().ok());
        let counted = count("[[count ").map(|count| (Says::Numbers, count));
        let looped = || Some((Says::Loop, count("[[loop ")?));
        let hostile = || Some((Says::Hostile, count("[[hostile ")?));
        let (says, length) = counted.or_else(looped).or_else(hostile).unwrap_or((Says::Words, self.tokens_default));
        let failpoint = [("[[fail]]", Failpoint::Fail), ("[[panic]]", Failpoint::Panic), ("[[abort]]", Failpoint::Abort)]
            .into_iter()
            .find_map(|(marker, failpoint)| text.contains(marker).then_some(failpoint));
        State {
            key: hash(&[text.as_bytes(), &ids, &request.sampling.seed.to_le_bytes()]),
            length,
            prompt_tokens: tokens.len(),
            says,
            generates: request.max_tokens != Some(0),
            told: if request.resume.is_empty() { told(request, reading) } else { None },
            logprobs: request.sampling.logprobs.is_some(),
            failpoint,
            text: Text::new(request.stop.clone()),
        }
    }

    fn accept(&self, _: &mut State, _: u32) {}

    fn is_end(&self, token: u32) -> bool {
        token == END
    }

    fn push(&self, state: &mut State, token: u32, stops_count: bool) -> (String, bool) {
        let first = state.text.is_new();
        state.text.push(&word(token, first), stops_count)
    }

    fn tells(&self, state: &State) -> bool {
        match &state.told {
            None => false,
            Some(Told::Echo { logprobs, .. }) => !logprobs.is_empty(),
            Some(Told::Embedding(_)) => true,
        }
    }

    fn told(&self, state: &mut State) -> Option<Told> {
        state.told.take()
    }

    fn finish(&self, state: State) -> String {
        state.text.held
    }
}

impl Backend for Fake {
    type Language = Words;

    fn compute(&mut self, items: &mut [Item<'_, State>]) -> Result<Vec<Outcome>, String> {
        let prompt_tokens: usize =
            items.iter().map(|item| item.state.prompt_tokens.saturating_sub(item.computed).min(item.count)).sum();
        self.pass(self.options.step_time(prompt_tokens));
        for item in items.iter() {
            match item.state.failpoint {
                None => {}
                Some(Failpoint::Fail) => return Err("the prompt asked for a failure".into()),
                Some(Failpoint::Panic) => panic!("the prompt asked for a panic"),
                Some(Failpoint::Abort) => std::process::abort(),
            }
        }
        let outcome = |item: &Item<'_, State>| match (item.samples, item.state.generates) {
            (false, _) => Outcome::Computed,
            (true, false) => Outcome::Read,
            (true, true) => Outcome::Drawn(item.state.draw(item.tokens.len(), item.draft)),
        };
        Ok(items.iter().map(outcome).collect())
    }
}

impl State {
    /// What comes behind so many tokens of prompt and answer, and behind each guess that is right.
    fn draw(&self, tokens: usize, draft: &[u32]) -> Vec<Drawn> {
        let position = u32::try_from(tokens - self.prompt_tokens).unwrap_or(u32::MAX);
        let right = (position..).zip(draft).take_while(|(position, token)| self.token(*position) == **token).count();
        (position..).take(right + 1).map(|position| self.drawn(position)).collect()
    }

    fn drawn(&self, position: u32) -> Drawn {
        let token = self.token(position);
        let logprob = self.logprobs.then(|| TokenLogprob {
            token,
            bytes: word(token, position == 0).into_bytes(),
            logprob: 0.0,
            top: Vec::new(),
        });
        Drawn { token, logprob }
    }

    /// The token at a position of the answer.
    fn token(&self, position: u32) -> u32 {
        if position == self.length {
            return END;
        }
        match self.says {
            Says::Words => {}
            Says::Numbers => return NUMBERS + (position + 1) % (HOSTILE - NUMBERS),
            Says::Loop => return NUMBERS + 1 + position % 4,
            // Each once, and then in any order.
            Says::Hostile if position < PIECES.len() as u32 => return HOSTILE + position,
            Says::Hostile => {}
        }
        let random = hash(&[&self.key.to_le_bytes(), &position.to_le_bytes()]) as u32;
        if matches!(self.says, Says::Hostile) {
            // But for the long line, of which one is enough.
            return HOSTILE + random % (PIECES.len() as u32 - 1);
        }
        // Sentences of six tokens: opener, noun, verb, "the", noun, full stop.
        match position % 6 {
            0 => 1 + random % 16,
            1 | 4 => 32 + random % 32,
            2 => 64 + random % 32,
            3 => 96,
            _ => 97,
        }
    }
}

/// What a request wants to be told of its prompt. All is equally likely here, and an embedding is a function of the tokens.
fn told(request: &Request, reading: &Reading<'_>) -> Option<Told> {
    let Reading { text, tokens, .. } = reading;
    match request.tell {
        Tell::Nothing => None,
        Tell::Echo => {
            let mut rest = &**text;
            let mut said = |token, first| match rest.split_whitespace().next() {
                Some(next) => {
                    // With the space before it, so that all together they are the text.
                    let (now, later) = rest.split_at(next.as_ptr() as usize - rest.as_ptr() as usize + next.len());
                    rest = later;
                    now.to_owned()
                }
                None => word(token, first),
            };
            let said: Vec<String> = tokens.iter().enumerate().map(|(at, &token)| said(token, at == 0)).collect();
            let text = if text.is_empty() { said.concat() } else { text.clone().into_owned() };
            let logprob = |(&token, bytes): (&u32, String)| TokenLogprob {
                token,
                bytes: bytes.into_bytes(),
                logprob: 0.0,
                top: Vec::new(),
            };
            let logprobs = request.sampling.logprobs.map(|_| tokens.iter().zip(said).map(logprob).collect());
            Some(Told::Echo { text, logprobs: logprobs.unwrap_or_default() })
        }
        Tell::Embedding => {
            let ids: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            let number = |at: u8| (hash(&[&ids, &[at]]) as u32) as f32 / u32::MAX as f32 - 0.5;
            Some(Told::Embedding((0..WIDTH).map(number).collect()))
        }
    }
}

/// A token's text.
fn word(token: u32, first: bool) -> String {
    let space = if first { "" } else { " " };
    match token {
        END => String::new(),
        1..=16 => format!("{space}{}", OPENERS[token as usize - 1]),
        32..=63 => format!("{space}{}", NOUNS[token as usize - 32]),
        64..=95 => format!("{space}{}", VERBS[token as usize - 64]),
        96 => format!("{space}the"),
        97 => ".".into(),
        NUMBERS..HOSTILE => format!("{space}{}", token - NUMBERS),
        HOSTILE.. => match PIECES.get((token - HOSTILE) as usize) {
            Some(piece) if !piece.is_empty() => (*piece).to_owned(),
            _ => "a".repeat(LINE),
        },
        _ => format!("{space}w{token}"),
    }
}

/// The answer's text, with what may become a stop string held back.
struct Text {
    stops: Vec<String>,
    held: String,
    new: bool,
}

impl Text {
    fn new(stops: Vec<String>) -> Text {
        Text { stops, held: String::new(), new: true }
    }

    fn is_new(&self) -> bool {
        self.new
    }

    fn push(&mut self, text: &str, stops_count: bool) -> (String, bool) {
        self.new = false;
        self.held.push_str(text);
        if stops_count && let Some(at) = first_stop(&self.held, &self.stops) {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let safe = self.held.len() - if stops_count { may_become_stop(&self.held, &self.stops) } else { 0 };
        let rest = self.held.split_off(safe);
        (std::mem::replace(&mut self.held, rest), false)
    }
}

fn marker<'a>(prompt: &'a str, name: &str) -> Option<&'a str> {
    prompt.split_once(name).map(|(_, rest)| rest)
}

/// The same in every process and every version of Rust: FNV-1a, and a finish that mixes all bits.
fn hash(parts: &[&[u8]]) -> u64 {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            // MurmurHash3's finalizer.
            let mut bits = self.0;
            bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
            bits ^ (bits >> 33)
        }

        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
    }
    let mut fnv = Fnv(0xcbf2_9ce4_8422_2325);
    for part in parts {
        fnv.write(&(part.len() as u64).to_le_bytes());
        fnv.write(part);
    }
    fnv.finish()
}
