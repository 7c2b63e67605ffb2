//! Reads a batch's file: JSON lines, each a request with a name of its own.

use std::collections::HashSet;

use banyan_store::{Error as StoreError, NewLine, Problem, Store};
use serde_json::Value;

/// OpenAI's.
const LINES_MAX: usize = 50_000;
const CUSTOM_ID_BYTES_MAX: usize = 512;

/// Who has so many wrong sees the pattern.
const PROBLEMS_MAX: usize = 50;

/// Reads a file line by line, whatever its pieces are.
pub(super) struct Input<'a> {
    store: &'a Store,
    file_id: &'a str,
    endpoint: &'a str,
    line_bytes_max: usize,
    piece: u32,
    unread: Vec<u8>,
    ended: bool,
    /// Of the file, counted from 1.
    line: u64,
    /// Of the batch: without empty lines.
    position: u32,
    names: HashSet<String>,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Input<'a> {
    pub(super) fn new(store: &'a Store, file_id: &'a str, endpoint: &'a str, line_bytes_max: usize) -> Self {
        Input {
            store,
            file_id,
            endpoint,
            line_bytes_max,
            piece: 0,
            unread: Vec::new(),
            ended: false,
            line: 0,
            position: 0,
            names: HashSet::new(),
            problems: Vec::new(),
        }
    }

    /// Lines that were read so far.
    pub(super) fn count(&self) -> u64 {
        self.position.into()
    }

    /// The next lines, up to so many; none at the end. What is wrong with others is in `problems`.
    pub(super) async fn next(&mut self, most: usize) -> Result<Vec<NewLine>, StoreError> {
        let mut lines = Vec::new();
        while lines.len() < most && self.problems.len() < PROBLEMS_MAX {
            let Some(bytes) = self.line().await? else { break };
            self.line += 1;
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if self.names.len() == LINES_MAX {
                self.problem("too_many_requests", format!("a batch has at most {LINES_MAX} requests: split the file"), None);
                self.ended = true;
                self.unread.clear();
                break;
            }
            match self.read(&bytes) {
                Ok(line) => {
                    self.position += 1;
                    lines.push(line);
                }
                Err((code, message, param)) => self.problem(code, message, param),
            }
        }
        if lines.is_empty() && self.names.is_empty() && self.problems.is_empty() {
            self.problem("empty_file", "the file has no requests".to_owned(), None);
        }
        Ok(lines)
    }

    fn read(&mut self, bytes: &[u8]) -> Result<NewLine, (&'static str, String, Option<&'static str>)> {
        if bytes.len() > self.line_bytes_max {
            return Err(("request_too_large", format!("a request has at most {} bytes", self.line_bytes_max), None));
        }
        let mut value: Value =
            serde_json::from_slice(bytes).map_err(|error| ("invalid_json_line", format!("this is no JSON: {error}"), None))?;
        let wrong = |param, message: &str| Err(("invalid_request", message.to_owned(), Some(param)));
        let custom_id = match value["custom_id"].as_str() {
            Some(id) if (1..=CUSTOM_ID_BYTES_MAX).contains(&id.len()) => id.to_owned(),
            _ => return wrong("custom_id", "'custom_id' must be a string of 1 to 512 bytes"),
        };
        if value["method"] != "POST" {
            return wrong("method", "'method' must be \"POST\"");
        }
        if value["url"] != self.endpoint {
            return wrong("url", "'url' must be the batch's endpoint");
        }
        let Some(body) = value.get_mut("body").filter(|body| body.is_object()) else {
            return wrong("body", "'body' must be an object: what the endpoint is asked");
        };
        if body["stream"] == true {
            return wrong("body.stream", "a batch can't stream: leave 'stream' out");
        }
        let body = body.take().to_string();
        if !self.names.insert(custom_id.clone()) {
            return Err(("duplicate_custom_id", "another line has this 'custom_id'".to_owned(), Some("custom_id")));
        }
        Ok(NewLine { position: self.position, custom_id, body })
    }

    fn problem(&mut self, code: &str, message: String, param: Option<&str>) {
        let (code, param) = (code.to_owned(), param.map(str::to_owned));
        self.problems.push(Problem { code, message, param, line: Some(self.line) });
    }

    async fn line(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.unread[searched..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.unread.drain(..=searched + end).collect();
                line.pop();
                return Ok(Some(line));
            }
            searched = self.unread.len();
            if self.ended {
                return Ok((searched > 0).then(|| std::mem::take(&mut self.unread)));
            }
            match self.store.piece(self.file_id, self.piece).await? {
                Some(piece) if searched <= self.line_bytes_max => self.unread.extend_from_slice(&piece),
                // Longer than a line may be: its rest is not kept, only its end looked for.
                Some(piece) => {
                    self.unread.truncate(self.line_bytes_max + 1);
                    searched = self.unread.len();
                    if let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
                        self.unread.extend_from_slice(&piece[end..]);
                    }
                }
                None => self.ended = true,
            }
            self.piece += 1;
        }
    }
}
