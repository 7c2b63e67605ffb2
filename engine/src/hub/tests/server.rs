//! A hub on this machine: Hugging Face's three requests, a storage behind a redirect, and whatever may go wrong on the way.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use sha2::{Digest, Sha256};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) authorization: Option<String>,
}

/// What happens to the next transfers of large files, in order; then all goes well.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// One byte is another.
    Flip,
    /// The whole file, whatever range was asked for.
    NoRange,
    /// An error of the server.
    Status(u16),
    /// Nothing, until the gate opens.
    Wait,
}

/// The hub itself.
pub(super) struct Server {
    pub(super) endpoint: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    /// Where the storage is: another host name of the same machine.
    storage: String,
    faults: Mutex<VecDeque<Fault>>,
    /// Status and error code for all requests.
    refuse: Mutex<Option<(u16, &'static str)>>,
    asked: Mutex<Vec<Asked>>,
    gate: Mutex<bool>,
    opened: Condvar,
}

impl Server {
    /// A hub with one model, `owner/name`; files of more than 1000 bytes lie in the storage.
    pub(super) fn start(files: &[(&str, Vec<u8>)]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            files: files.iter().map(|(name, bytes)| (name.to_string(), bytes.clone())).collect(),
            storage: format!("http://localhost:{port}"),
            ..Shared::default()
        });
        let server = Server { endpoint: format!("http://127.0.0.1:{port}"), shared: shared.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                // A client that hangs up is one of the cases.
                std::thread::spawn(move || drop(answer(&shared, stream)));
            }
        });
        server
    }

    pub(super) fn fault(&self, fault: Fault) {
        self.shared.faults.lock().unwrap().push_back(fault);
    }

    pub(super) fn refuse(&self, status: u16, code: &'static str) {
        *self.shared.refuse.lock().unwrap() = Some((status, code));
    }

    pub(super) fn open_gate(&self) {
        *self.shared.gate.lock().unwrap() = true;
        self.shared.opened.notify_all();
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Ranges of the transfers from the storage; `None` is a whole one.
    pub(super) fn transfers(&self) -> Vec<Option<String>> {
        self.asked().into_iter().filter(|asked| asked.path.starts_with("/storage/")).map(|asked| asked.range).collect()
    }
}

fn answer(shared: &Shared, stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_string());
    }
    let Some(request) = lines.first() else { return Ok(()) };
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default().to_string(), words.next().unwrap_or_default().to_string());
    let header = |name: &str| {
        let found = lines.iter().filter_map(|line| line.split_once(": ")).find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_string())
    };
    let asked = Asked { method, path, range: header("range"), authorization: header("authorization") };
    shared.asked.lock().unwrap().push(asked.clone());
    if let Some((status, code)) = *shared.refuse.lock().unwrap() {
        return reply(stream, status, &[("x-error-code", code)], b"", asked.method == "HEAD");
    }
    if asked.path.starts_with("/api/models/owner/") {
        let siblings: Vec<_> = shared.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return reply(stream, 200, &[], body.as_bytes(), false);
    }
    if let Some(file) = asked.path.strip_prefix("/owner/old/resolve/") {
        // A model that was renamed.
        return reply(stream, 307, &[("location", &format!("/owner/name/resolve/{file}"))], b"", true);
    }
    if let Some(file) = asked.path.strip_prefix(&format!("/owner/name/resolve/{COMMIT}/"))
        && let Some(bytes) = shared.files.get(file)
    {
        let (sha, size) = (format!("\"{:x}\"", Sha256::digest(bytes)), bytes.len().to_string());
        if bytes.len() > 1000 {
            let location = format!("{}/storage/{file}", shared.storage);
            let headers =
                [("location", location.as_str()), ("x-linked-etag", &sha), ("x-linked-size", &size), ("etag", "\"none\"")];
            return reply(stream, 302, &headers, b"", asked.method == "HEAD");
        }
        let etag = format!("W/\"{}\"", &sha[1..41]);
        return reply(stream, 200, &[("etag", &etag)], bytes, asked.method == "HEAD");
    }
    if let Some(bytes) = asked.path.strip_prefix("/storage/").and_then(|file| shared.files.get(file)) {
        let fault = shared.faults.lock().unwrap().pop_front();
        return store(shared, stream, &asked, bytes, fault);
    }
    reply(stream, 404, &[("x-error-code", "EntryNotFound")], b"", asked.method == "HEAD")
}

/// The storage, which knows ranges.
fn store(shared: &Shared, mut stream: TcpStream, asked: &Asked, bytes: &[u8], fault: Option<Fault>) -> std::io::Result<()> {
    let range = asked.range.as_deref().filter(|_| !matches!(fault, Some(Fault::NoRange)));
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let mut body = bytes[start.unwrap_or(0)..].to_vec();
    let status = if start.is_some() { 206 } else { 200 };
    let content_range = format!("bytes {}-{}/{}", start.unwrap_or(0), bytes.len() - 1, bytes.len());
    let headers: &[(&str, &str)] = if start.is_some() { &[("content-range", &content_range)] } else { &[] };
    match fault {
        Some(Fault::Status(status)) => return reply(stream, status, &[], b"", false),
        Some(Fault::Flip) => body[0] ^= 1,
        Some(Fault::Cut(at)) => {
            write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n", body.len())?;
            headers.iter().try_for_each(|(name, value)| write!(stream, "{name}: {value}\r\n"))?;
            write!(stream, "connection: close\r\n\r\n")?;
            return stream.write_all(&body[..at.min(body.len())]);
        }
        Some(Fault::Wait) => {
            let gate = shared.gate.lock().unwrap();
            drop(shared.opened.wait_while(gate, |open| !*open).unwrap());
        }
        Some(Fault::NoRange) | None => {}
    }
    reply(stream, status, headers, &body, false)
}

fn reply(mut stream: TcpStream, status: u16, headers: &[(&str, &str)], body: &[u8], head: bool) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n", body.len())?;
    headers.iter().try_for_each(|(name, value)| write!(stream, "{name}: {value}\r\n"))?;
    stream.write_all(b"\r\n")?;
    if head { Ok(()) } else { stream.write_all(body) }
}
