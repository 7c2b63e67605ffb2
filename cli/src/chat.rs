//! `banyan chat`: a conversation in the terminal, with any API of OpenAI's dialect.

use std::{io::IsTerminal as _, sync::Arc};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, stdin},
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{
    exit::{Code, Failure},
    http::{Connection, Target},
    output,
};

/// What may be said instead of a message.
const COMMANDS: &str = "/new begins again, /model NAME asks another model, /exit ends; Ctrl-C ends an answer";
/// No message is longer; the API's own limit is of this size.
const MESSAGE_BYTES_MAX: u64 = 4 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The API: that of `banyan up`, or another server's.
    #[arg(long, env = "BANYAN_URL", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The key to ask with.
    #[arg(long, env = "BANYAN_API_KEY", value_name = "KEY", hide_env_values = true)]
    key: Option<String>,
    /// The model to talk to; by default the first that the API lists.
    #[arg(long, env = "BANYAN_MODEL", value_name = "NAME")]
    model: Option<String>,
    /// What the model is told before everything else.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// 0 takes the likeliest token each time.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
}

/// What was said, and to whom the next thing is said.
struct Conversation {
    target: Arc<Target>,
    model: String,
    args: Args,
    messages: Vec<Value>,
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Nothing,
    Say(&'a str),
    New,
    Model(&'a str),
    Help,
    Exit,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let target = Arc::new(Target::find(&args.url, args.key.clone()).await?);
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(&target).await.map_err(|failure| away(failure, &args.url))?,
    };
    let mut conversation = Conversation { target, model, messages: opening(&args), args };
    let mut interrupts = signal(SignalKind::interrupt())?;
    if std::io::stdin().is_terminal() {
        return talk(&mut conversation, &mut interrupts).await;
    }
    // What comes through a pipe is one message.
    let mut text = String::new();
    stdin().take(MESSAGE_BYTES_MAX).read_to_string(&mut text).await?;
    if text.trim().is_empty() {
        return Err(Failure::told(Code::Usage, "nothing was said").hint("echo 'Hello' | banyan chat"));
    }
    conversation.say(text.trim(), &mut interrupts).await?.ok_or_else(Failure::interrupted)
}

async fn talk(conversation: &mut Conversation, interrupts: &mut Signal) -> Result<(), Failure> {
    output::note(&format!("talking to {}; {COMMANDS}", conversation.model));
    let mut lines = BufReader::new(stdin()).lines();
    let mut terminations = signal(SignalKind::terminate())?;
    loop {
        eprint!("> ");
        let line = tokio::select! {
            line = lines.next_line() => line?,
            _ = interrupts.recv() => return Err(Failure::interrupted()),
            _ = terminations.recv() => return Err(Failure::interrupted()),
        };
        // Ctrl-D.
        let Some(line) = line else { return Ok(()) };
        match read(&line) {
            Line::Nothing => {}
            Line::Exit => return Ok(()),
            Line::Help => output::note(COMMANDS),
            Line::New => conversation.messages = opening(&conversation.args),
            Line::Model(name) => name.clone_into(&mut conversation.model),
            // What goes wrong with one message, the next may be spared.
            Line::Say(text) => match conversation.say(text, interrupts).await {
                Ok(Some(())) => {}
                Ok(None) => output::note("\n(ended here)"),
                Err(failure) => output::note(&format!("error: {failure}")),
            },
        }
    }
}

impl Conversation {
    /// Says something, and writes the answer as it comes; `None` when it was interrupted.
    async fn say(&mut self, text: &str, interrupts: &mut Signal) -> Result<Option<()>, Failure> {
        self.messages.push(json!({ "role": "user", "content": text }));
        let mut body = json!({ "model": self.model, "messages": self.messages, "stream": true });
        if let Some(max_tokens) = self.args.max_tokens {
            body["max_tokens"] = max_tokens.into();
        }
        if let Some(temperature) = self.args.temperature {
            body["temperature"] = temperature.into();
        }
        let mut events = Events::default();
        let answered = {
            let asked = ask(&self.target, &body, &mut events);
            tokio::select! {
                asked = asked => Some(asked),
                _ = interrupts.recv() => None,
            }
        };
        match answered {
            Some(Err(failure)) => {
                // It was not heard, so it was not said.
                self.messages.pop();
                Err(away(failure, &self.args.url))
            }
            interrupted => {
                output::print("")?;
                self.messages.push(json!({ "role": "assistant", "content": events.text }));
                Ok(interrupted.map(|_| ()))
            }
        }
    }
}

fn opening(args: &Args) -> Vec<Value> {
    args.system.iter().map(|system| json!({ "role": "system", "content": system })).collect()
}

fn read(line: &str) -> Line<'_> {
    let line = line.trim();
    match line.split_once(' ').unwrap_or((line, "")) {
        ("", _) => Line::Nothing,
        ("/new", _) => Line::New,
        ("/exit" | "/quit" | "/bye", _) => Line::Exit,
        ("/model", name) if !name.trim().is_empty() => Line::Model(name.trim()),
        (command, _) if command.starts_with('/') => Line::Help,
        _ => Line::Say(line),
    }
}

async fn first_model(target: &Arc<Target>) -> Result<String, Failure> {
    let listing = Connection::open(target).await?.get("/models").await?;
    let listing: Value = serde_json::from_slice(&listing).unwrap_or_default();
    let first = listing["data"][0]["id"].as_str().map(str::to_owned);
    first.ok_or_else(|| {
        Failure::told(Code::Unavailable, "the API has no model yet")
            .hint("`banyan node run my-node --parent root` adds a node that serves one")
    })
}

async fn ask(target: &Arc<Target>, body: &Value, events: &mut Events) -> Result<(), Failure> {
    let mut connection = Connection::open(target).await?;
    let mut broken = Ok(());
    let head = connection
        .post_any("/chat/completions", Bytes::from(body.to_string()), |bytes| {
            for text in events.feed(bytes) {
                if broken.is_ok() {
                    broken = output::piece(&text);
                }
            }
        })
        .await?;
    broken?;
    let refusal = events.error.take().or_else(|| (head.status != 200).then(|| events.refusal()));
    match refusal {
        None => Ok(()),
        Some(why) => {
            let code = match head.status {
                404 => Code::NotFound,
                429 | 502 | 503 => Code::Unavailable,
                504 => Code::TimedOut,
                _ => Code::Error,
            };
            let failure = Failure::told(code, why);
            Err(match (head.status, head.retry_after) {
                (401 | 403, _) => {
                    failure.hint("`--key KEY` or BANYAN_API_KEY says who you are; `banyan key create --name NAME` makes a key")
                }
                (_, Some(wait)) => failure.hint(format!("say it again in {} s", wait.as_secs().max(1))),
                _ => failure,
            })
        }
    }
}

/// A connection that nobody takes is most of the time an API that does not run.
fn away(failure: Failure, url: &str) -> Failure {
    match failure.is_refused_connection() {
        true => failure
            .coded(Code::Unavailable)
            .hint(format!("nothing answers at {url}: `banyan up` starts a tree with an API, and `--url URL` names another")),
        false => failure,
    }
}

/// An answer's server-sent events, as they come.
#[derive(Default)]
struct Events {
    /// The begin of a line whose end has not come.
    line: Vec<u8>,
    /// The answer so far.
    text: String,
    /// What does not look like an event: the body of a refusal.
    other: Vec<u8>,
    error: Option<String>,
}

impl Events {
    /// The texts that these bytes add.
    fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut texts = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                match line.strip_prefix(b"data: ") {
                    Some(data) => texts.extend(self.event(data)),
                    None => self.other.extend(line),
                }
            }
        }
        self.text.extend(texts.iter().map(String::as_str));
        texts
    }

    fn event(&mut self, data: &[u8]) -> Option<String> {
        // `[DONE]` is none.
        let event: Value = serde_json::from_slice(data).ok()?;
        if let Some(message) = event["error"]["message"].as_str() {
            self.error = Some(message.to_owned());
        }
        event["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// Why there is no stream.
    fn refusal(&mut self) -> String {
        self.other.append(&mut self.line);
        let body: Value = serde_json::from_slice(&self.other).unwrap_or_default();
        body["error"]["message"].as_str().map_or_else(|| String::from_utf8_lossy(&self.other).into_owned(), str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_wherever_the_stream_is_cut() {
        let stream = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"ä \\\" b\"}}]}\n\n: heartbeat\n\ndata: [DONE]\n\n";
        for cut in 1..stream.len() {
            let mut events = Events::default();
            let texts: Vec<String> = stream.as_bytes().chunks(cut).flat_map(|part| events.feed(part)).collect();
            assert_eq!((texts.concat().as_str(), events.text.as_str()), ("ä \" b", "ä \" b"));
            assert_eq!(events.error, None);
        }
    }

    #[test]
    fn an_error_is_told_before_the_stream_and_within_it() {
        let mut events = Events::default();
        assert!(events.feed(b"data: {\"error\":{\"message\":\"full\"}}\n\n").is_empty());
        assert_eq!(events.error.as_deref(), Some("full"));
        let mut refused = Events::default();
        refused.feed(b"{\"error\":{\"message\":\"no such model\"}}");
        assert_eq!(refused.refusal(), "no such model");
    }

    #[test]
    fn a_line_is_something_to_say_or_a_command() {
        assert_eq!(read("  hello there "), Line::Say("hello there"));
        assert_eq!([read("/exit"), read("/new"), read(""), read("/what")], [Line::Exit, Line::New, Line::Nothing, Line::Help]);
        assert_eq!([read("/model gpt2"), read("/model")], [Line::Model("gpt2"), Line::Help]);
    }
}
