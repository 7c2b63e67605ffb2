//! An answer as it comes: when its first token was there, how many came, and whether it came to its end.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use serde::Deserialize;

/// One answer as its client saw it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) tokens: u64,
    pub(super) first: Duration,
    pub(super) whole: Duration,
}

impl Seen {
    /// From one token to the next, where there are two.
    pub(super) fn each(&self) -> Option<Duration> {
        let gaps = u32::try_from(self.tokens).ok()?.checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some(self.whole.saturating_sub(self.first) / gaps)
    }
}

/// Server-sent events of one answer, read as they come.
#[derive(Default)]
pub(super) struct Events {
    /// The begin of a line whose end has not come.
    line: Vec<u8>,
    first: Option<Duration>,
    chunks: u64,
    usage: Option<u64>,
    /// What a server says instead of an answer.
    error: Option<String>,
    done: bool,
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
    pub(super) fn feed(&mut self, bytes: &[u8], asked: Instant) {
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
        } else if data.trim_ascii_end() == b"[DONE]" {
            self.done = true;
        } else if data.starts_with(b"{\"error\"") {
            self.error = Some(String::from_utf8_lossy(data).trim().to_owned());
        }
    }

    /// # Errors
    /// When it is an error, or broke off.
    pub(super) fn seen(self, whole: Duration) -> anyhow::Result<Seen> {
        if let Some(error) = self.error {
            bail!("an answer failed: {error}");
        }
        ensure!(self.done, "an answer ended without [DONE]");
        // A server that tells no usage sends a chunk for each token, nearly.
        let tokens = self.usage.unwrap_or(self.chunks);
        Ok(Seen { tokens, first: self.first.unwrap_or(whole), whole })
    }
}

fn find(data: &[u8], what: &[u8]) -> Option<usize> {
    data.windows(what.len()).position(|window| window == what)
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
        assert!(events.seen(Duration::ZERO).unwrap_err().to_string().contains("full"));
        let mut cut = Events::default();
        cut.feed(b"data: {\"choices\":[{\"text\":\"a\"}]}\n\n", Instant::now());
        assert!(cut.seen(Duration::ZERO).is_err());
    }
}
