//! A reply as it comes: one event per step of the node that runs it, the role first, the reason of the end last.

use std::{fmt::Write as _, pin::Pin};

use banyan_proto::{NodeName, v1};
use bytes::Bytes;
use futures::{FutureExt as _, Stream, stream};
use tokio::time::{Instant, Sleep, sleep};

use super::{
    Dialect,
    comeback::{Seen, Stage},
    reply::Reply,
    shapes::{ChatChunk, ChatLogprobs, Completion, CompletionLogprobs, Delta, Usage, finish_reason},
};
use crate::{
    answer::{Event, Failure},
    sse::Events,
};

/// Events that are ready together go out in one write, up to that many.
const EVENTS_AT_ONCE: usize = 64;

/// The frames of a reply, `early` being what came before the stream began.
///
/// `seen` is what a client has of it that comes back.
pub(super) fn frames(
    reply: Reply,
    early: Vec<(usize, Event)>,
    seen: Option<&[Seen]>,
) -> impl Stream<Item = Bytes> + Send + use<> {
    let seen_of = |index| seen.map_or(Seen::default(), |seen| seen[index]);
    let told = (0..reply.choices.len())
        .map(|index| Told { seen: seen_of(index), behind: seen.map(|_| seen_of(index).position), ..Told::default() })
        .collect();
    let heartbeat = Box::pin(sleep(reply.context.limits.heartbeat));
    let mut streamed = Streamed { open: reply.choices.len(), reply, told, events: Events::default(), heartbeat };
    streamed.begin(early, seen.is_some());
    stream::unfold(streamed, |mut streamed| async move {
        let frame = streamed.frame().await?;
        Some((frame, streamed))
    })
}

struct Streamed {
    reply: Reply,
    told: Vec<Told>,
    events: Events,
    heartbeat: Pin<Box<Sleep>>,
    /// Choices that have not ended; none after a failure.
    open: usize,
}

/// What the client knows of one choice.
#[derive(Default)]
struct Told {
    placed: Option<v1::Placed>,
    /// Characters until now.
    offset: usize,
    seen: Seen,
    /// What comes before was seen by a client that came back.
    behind: Option<u32>,
}

/// What one event adds to a choice.
#[derive(Default)]
struct Addition<'a> {
    role: Option<&'static str>,
    text: Option<&'a str>,
    logprobs: &'a [v1::TokenLogprob],
    /// Begins with the prompt's.
    echoes: bool,
    finish: Option<&'static str>,
}

impl Streamed {
    fn begin(&mut self, early: Vec<(usize, Event)>, again: bool) {
        let new = if again { 0 } else { self.reply.choices.len() };
        for index in 0..new {
            if self.reply.order.dialect == Dialect::Chat {
                self.write(index, Addition { role: Some("assistant"), text: Some(""), ..Default::default() });
            }
            if let Some(prompt) = self.reply.order.echoed(index).map(str::to_owned) {
                self.write(index, Addition { text: Some(&prompt), ..Default::default() });
            }
        }
        for (index, event) in early {
            self.take(Some(Ok((index, event))));
        }
    }

    /// What is to be written next; `None` at the end.
    async fn frame(&mut self) -> Option<Bytes> {
        while self.events.is_empty() && self.open > 0 {
            tokio::select! {
                biased;
                event = self.reply.next() => self.take(event),
                () = &mut self.heartbeat => {
                    let sign = self.sign_of_life();
                    self.events.comment(&sign);
                }
            }
        }
        for _ in 0..EVENTS_AT_ONCE {
            match self.reply.next().now_or_never().filter(|_| self.open > 0) {
                Some(event) => self.take(event),
                None => break,
            }
        }
        self.heartbeat.as_mut().reset(Instant::now() + self.reply.context.limits.heartbeat);
        (!self.events.is_empty()).then(|| self.events.take())
    }

    fn take(&mut self, event: Option<Result<(usize, Event), Failure>>) {
        match event {
            Some(Ok((index, Event::Placed(_)))) => {
                if self.reply.order.parameters.places && self.told[index].seen.position == 0 {
                    self.place(index);
                }
            }
            Some(Ok((index, Event::Tokens(mut chunk, position)))) => {
                // An event of its own would have the name of the next one.
                let echoes = chunk.told.take().is_some_and(|told| {
                    chunk.text.insert_str(0, &told.text);
                    chunk.logprobs.splice(0..0, told.logprobs).count();
                    true
                });
                let told = &mut self.told[index];
                if told.behind.is_some_and(|behind| position <= behind) {
                    // Seen already; what follows goes on counting behind it.
                    let _ = CompletionLogprobs::of(&chunk.logprobs, &mut told.offset, echoes);
                    return;
                }
                told.seen.position = position;
                if self.reply.order.parameters.places {
                    self.reply.name_model();
                }
                if !chunk.text.is_empty() || !chunk.logprobs.is_empty() {
                    let (text, logprobs) = (Some(chunk.text.as_str()), &chunk.logprobs[..]);
                    self.write(index, Addition { text, logprobs, echoes, ..Default::default() });
                }
            }
            Some(Ok((index, Event::End(finish)))) => self.end(index, finish),
            Some(Err(failure)) => {
                self.open = 0;
                let error = self.reply.error(failure);
                self.events.json(&error.shape());
            }
            None => self.open = 0,
        }
    }

    fn end(&mut self, index: usize, mut finish: v1::Finish) {
        let told = finish.told.take().unwrap_or_default();
        let text = told.text + &finish.text;
        if (!text.is_empty() || !told.logprobs.is_empty()) && self.told[index].seen.stage < Stage::Text {
            self.told[index].seen.stage = Stage::Text;
            let (text, logprobs) = (Some(text.as_str()), &told.logprobs[..]);
            self.write(index, Addition { text, logprobs, echoes: !logprobs.is_empty(), ..Default::default() });
        }
        let reason = finish_reason(&finish);
        self.reply.choices[index].finish = Some(finish);
        if self.told[index].seen.stage < Stage::End {
            self.told[index].seen.stage = Stage::End;
            self.write(index, Addition { finish: Some(reason), ..Default::default() });
        }
        self.open -= 1;
        if self.open == 0 {
            if self.reply.order.parameters.include_usage {
                self.name();
                let object = self.object();
                let usage = Some(Some(self.reply.usage()));
                self.events.json(&self.reply.envelope::<ChatChunk<'_>>(object, &[], usage, None));
            }
            self.events.done();
        }
    }

    fn write(&mut self, index: usize, addition: Addition<'_>) {
        self.name();
        let choice = &self.reply.choices[index];
        let told = &mut self.told[index];
        // Told when it changes, and once more at the end, where it says who completed the answer.
        let origin = choice.origin().filter(|_| addition.finish.is_some() || told.placed != choice.placed);
        if origin.is_some() {
            told.placed.clone_from(&choice.placed);
        }
        let usage: Option<Option<Usage>> = self.reply.order.parameters.include_usage.then_some(None);
        match self.reply.order.dialect {
            Dialect::Chat => {
                let delta = Delta { role: addition.role, content: addition.text };
                let logprobs = ChatLogprobs::of(addition.logprobs);
                let choice = ChatChunk { index, delta, logprobs, finish_reason: addition.finish };
                self.events.json(&self.reply.envelope("chat.completion.chunk", &[choice], usage, origin));
            }
            Dialect::Completions => {
                let text = addition.text.unwrap_or_default();
                let logprobs = CompletionLogprobs::of(addition.logprobs, &mut told.offset, addition.echoes);
                let choice = Completion { index, text, logprobs, finish_reason: addition.finish, banyan: None };
                self.events.json(&self.reply.envelope("text_completion", &[choice], usage, origin));
            }
        }
    }

    /// An event that says where an answer lies before it has begun.
    fn place(&mut self, index: usize) {
        let told = &mut self.told[index];
        if told.placed != self.reply.choices[index].placed {
            told.placed.clone_from(&self.reply.choices[index].placed);
            self.name();
            let origin = self.reply.choices[index].origin();
            self.events.json(&self.reply.envelope::<ChatChunk<'_>>(self.object(), &[], None, origin));
        }
    }

    /// Says how much a client has seen that gets the next event.
    fn name(&mut self) {
        let mut name = format!("{}:", self.reply.id);
        for (number, told) in self.told.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            write!(name, "{comma}{}", told.seen).expect("a text takes everything");
        }
        self.events.id(&name);
    }

    fn object(&self) -> &'static str {
        match self.reply.order.dialect {
            Dialect::Chat => "chat.completion.chunk",
            Dialect::Completions => "text_completion",
        }
    }

    /// Says where the first choice lies, for who watches the bytes.
    fn sign_of_life(&self) -> String {
        let placed = self.reply.choices[0].placed.as_ref();
        // Names come over the wire, and a line break in one would end the comment.
        match placed.and_then(|placed| Some((placed.node.parse::<NodeName>().ok()?, placed.running))) {
            Some((node, true)) => format!("running at {node}"),
            Some((node, false)) => format!("queued at {node}"),
            None => "waiting at the root".to_owned(),
        }
    }
}
