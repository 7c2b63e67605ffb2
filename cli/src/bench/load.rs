//! `banyan bench load`: keeps a number of clients asking an API for streamed answers, and tells tokens a second and waiting
//! times. It speaks OpenAI's dialect, so it measures other servers too.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::{
    bench::latencies::{Latencies, Summary},
    exit::{Code, Failure},
    http::Connection,
    output::{self, Format},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The API: that of `banyan up`, or another server's.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The model to ask for; by default the first that GET /v1/models lists.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    #[command(flatten)]
    plan: Plan,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

/// What to ask, and how often.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Plan {
    /// How many clients ask; each asks again when its answer has ended.
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) concurrency: u16,
    /// How many answers each client reads.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// How long prompts are: words of a chat's message, or token ids of a completion.
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) prompt: u32,
    /// Tokens of each answer; servers that don't know `ignore_eos` may end it before.
    #[arg(long = "new", value_name = "N", default_value = "128", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) new_tokens: u32,
    /// What is asked.
    #[arg(long, value_enum, default_value = "chat")]
    pub(crate) endpoint: Endpoint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Endpoint {
    /// /v1/chat/completions, with a message of words.
    Chat,
    /// /v1/completions, with a prompt of token ids.
    Completions,
}

/// What the clients saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) concurrency: u16,
    pub(crate) answers: usize,
    pub(crate) tokens: u64,
    /// Of all clients, from the first question to the last answer's end.
    pub(crate) tokens_per_s: f64,
    /// To the first chunk with text.
    pub(crate) first_token: Summary,
    /// From one token to the next: each answer's mean.
    pub(crate) each_token: Summary,
    /// To an answer's end.
    pub(crate) answer: Summary,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let address = resolve(&args.url).await?;
    let model = match args.model {
        Some(model) => model,
        None => first_model(address).await?,
    };
    let report = measure(address, &model, &args.plan).await?;
    match args.output {
        Format::Json => output::print_json(&report),
        Format::Table => output::print(&draw(&report)),
    }
}

pub(crate) async fn resolve(url: &str) -> Result<SocketAddr, Failure> {
    let usage = || Failure::told(Code::Usage, format!("{url} is no URL to measure: take http://HOST:PORT, without a path"));
    let host = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')).filter(|host| !host.contains('/'));
    let host = host.ok_or_else(usage)?;
    let host = if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut addresses = tokio::net::lookup_host(&host)
        .await
        .map_err(|error| Failure::new(Code::Unavailable, anyhow::Error::new(error).context(format!("failed to find {host}"))))?;
    addresses.next().ok_or_else(|| Failure::told(Code::Unavailable, format!("{host} has no address")))
}

/// The first model that the API lists.
pub(crate) async fn first_model(address: SocketAddr) -> Result<String, Failure> {
    let ask = async {
        let listed = Connection::open(address).await?.get("/v1/models").await?;
        let listed: serde_json::Value = serde_json::from_slice(&listed).context("the list of models is no JSON")?;
        let name = listed["data"][0]["id"].as_str().context("the API lists no model")?;
        anyhow::Ok(name.to_owned())
    };
    ask.await.map_err(|error| {
        Failure::new(Code::Unavailable, error).hint("start a tree with `banyan up`, or name another server with `--url`")
    })
}

/// Lets the clients ask, after one question that is not counted.
pub(crate) async fn measure(address: SocketAddr, model: &str, plan: &Plan) -> anyhow::Result<Report> {
    let warm = Plan { concurrency: 1, rounds: 1, new_tokens: 2, ..plan.clone() };
    client(address, model.to_owned(), warm, u64::MAX).await.context("the first question failed")?;
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..plan.concurrency {
        clients.spawn(client(address, model.to_owned(), plan.clone(), u64::from(number)));
    }
    let (mut tokens, mut answers) = (0, 0);
    let (mut first_token, mut each_token, mut whole) = (Latencies::default(), Latencies::default(), Latencies::default());
    while let Some(client) = clients.join_next().await {
        for seen in client.context("a client panicked")?? {
            answers += 1;
            tokens += seen.tokens;
            first_token.push(seen.first);
            whole.push(seen.whole);
            if let Some(gaps) = u32::try_from(seen.tokens).ok().and_then(|tokens| tokens.checked_sub(1)).filter(|gaps| *gaps > 0)
            {
                each_token.push((seen.whole - seen.first) / gaps);
            }
        }
    }
    let tokens_per_s = tokens as f64 / begun.elapsed().as_secs_f64();
    Ok(Report {
        concurrency: plan.concurrency,
        answers,
        tokens,
        tokens_per_s,
        first_token: first_token.summary(),
        each_token: each_token.summary(),
        answer: whole.summary(),
    })
}

/// One answer as its client saw it.
struct Seen {
    tokens: u64,
    first: Duration,
    whole: Duration,
}

/// Asks for one answer after another over a connection that is kept.
async fn client(address: SocketAddr, model: String, plan: Plan, number: u64) -> anyhow::Result<Vec<Seen>> {
    let mut connection = Connection::open(address).await?;
    let mut seen = Vec::new();
    for round in 0..plan.rounds {
        let (path, body) = question(&model, &plan, number.wrapping_mul(1 << 20).wrapping_add(u64::from(round)));
        let asked = Instant::now();
        let mut events = Events::default();
        connection.post_stream(path, body, |bytes| events.feed(bytes, asked)).await?;
        seen.push(events.seen(asked.elapsed())?);
    }
    Ok(seen)
}

fn question(model: &str, plan: &Plan, number: u64) -> (&'static str, Bytes) {
    // Other words for each question, so that no server answers from what it computed before.
    let ids = (0..u64::from(plan.prompt)).map(|at| {
        let mixed = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at).wrapping_mul(0xff51_afd7_ed55_8ccd);
        1 + (mixed >> 40) % 200
    });
    let mut body = serde_json::json!({
        "model": model, "stream": true, "stream_options": { "include_usage": true },
        "temperature": 0, "max_tokens": plan.new_tokens, "ignore_eos": true,
    });
    let path = match plan.endpoint {
        Endpoint::Chat => {
            let words: Vec<String> = ids.map(|id| format!("{}", char::from(b'a' + (id % 26) as u8))).collect();
            body["messages"] = serde_json::json!([{ "role": "user", "content": words.join(" ") }]);
            "/v1/chat/completions"
        }
        Endpoint::Completions => {
            body["prompt"] = ids.collect();
            "/v1/completions"
        }
    };
    (path, body.to_string().into())
}

/// Server-sent events of one answer, read as they come.
#[derive(Default)]
struct Events {
    /// The begin of a line whose end has not come.
    line: Vec<u8>,
    first: Option<Duration>,
    chunks: u64,
    usage: Option<u64>,
    /// What a server says instead of an answer.
    error: Option<String>,
}

#[derive(Deserialize)]
struct WithUsage {
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: u64,
}

impl Events {
    fn feed(&mut self, bytes: &[u8], asked: Instant) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                if let Some(data) = line.strip_prefix(b"data: ") {
                    self.event(data, asked);
                }
            }
        }
    }

    /// Looks for what matters without reading every event as JSON: the client shares its cores with the server.
    fn event(&mut self, data: &[u8], asked: Instant) {
        let text = |name: &[u8]| find(data, name).is_some_and(|at| data.get(at + name.len()).is_some_and(|byte| *byte != b'"'));
        if text(b"\"content\":\"") || text(b"\"text\":\"") {
            self.chunks += 1;
            self.first.get_or_insert_with(|| asked.elapsed());
        } else if find(data, b"\"completion_tokens\"").is_some() {
            let read = serde_json::from_slice::<WithUsage>(data).ok().and_then(|event| event.usage);
            self.usage = read.map(|usage| usage.completion_tokens).or(self.usage);
        } else if data.starts_with(b"{\"error\"") {
            self.error = Some(String::from_utf8_lossy(data).trim().to_owned());
        }
    }

    fn seen(self, whole: Duration) -> anyhow::Result<Seen> {
        if let Some(error) = self.error {
            bail!("an answer failed: {error}");
        }
        // A server that tells no usage sends a chunk for each token, nearly.
        let tokens = self.usage.unwrap_or(self.chunks);
        Ok(Seen { tokens, first: self.first.unwrap_or(whole), whole })
    }
}

fn find(data: &[u8], what: &[u8]) -> Option<usize> {
    data.windows(what.len()).position(|window| window == what)
}

pub(crate) fn draw(report: &Report) -> String {
    let us = |us: f64| output::microseconds(us as u64);
    let mut rows = vec![["", "MEAN", "P50", "P90", "P99", "MAX"].map(str::to_owned).to_vec()];
    for (name, summary) in
        [("first token", &report.first_token), ("each token", &report.each_token), ("whole answer", &report.answer)]
    {
        let figures = [summary.mean_us, summary.p50_us, summary.p90_us, summary.p99_us, summary.max_us];
        rows.push(std::iter::once(name.to_owned()).chain(figures.map(us)).collect());
    }
    format!(
        "{:.1} tokens/s over HTTP: {} of {} tokens in all, {} at once\n\n{}",
        report.tokens_per_s,
        output::count(report.answers, "answer"),
        report.tokens,
        report.concurrency,
        output::table(&rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_read_wherever_the_stream_is_cut() {
        let stream = b"data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"a \\\" b\"}}]}\n\n: heartbeat\n\n\
            data: {\"choices\":[],\"usage\":{\"completion_tokens\":7}}\n\ndata: [DONE]\n\n";
        for cut in 1..stream.len() {
            let mut events = Events::default();
            let asked = Instant::now();
            stream.chunks(cut).for_each(|part| events.feed(part, asked));
            assert_eq!((events.chunks, events.usage, events.first.is_some()), (1, Some(7), true));
            assert_eq!(events.seen(Duration::from_secs(1)).unwrap().tokens, 7);
        }
    }

    #[test]
    fn an_error_in_the_stream_is_no_answer() {
        let mut events = Events::default();
        events.feed(b"data: {\"error\":{\"message\":\"full\"}}\n\n", Instant::now());
        assert!(events.seen(Duration::ZERO).is_err());
    }

    #[test]
    fn every_question_is_another() {
        for endpoint in [Endpoint::Chat, Endpoint::Completions] {
            let plan = Plan { concurrency: 1, rounds: 1, prompt: 32, new_tokens: 1, endpoint };
            let questions: std::collections::HashSet<_> = (0..200).map(|number| question("m", &plan, number).1).collect();
            assert_eq!(questions.len(), 200);
        }
    }
}
