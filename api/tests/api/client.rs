//! A client that sees bytes: HTTP/1.1 written by hand, so that framing is tested and not a library's reading of it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// No test waits longer for bytes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A whole response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The error, after a check that it has all four keys and a request id.
    pub(crate) fn error(&self) -> Value {
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("{json}"));
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert!(self.headers.contains_key("x-request-id"));
        assert_eq!(self.headers["content-type"], "application/json");
        json["error"].clone()
    }

    /// The streamed events, after a check of their framing.
    pub(crate) fn events(&self) -> Vec<String> {
        events(self.text())
    }
}

/// Splits a whole stream into its events' data.
pub(crate) fn events(text: &str) -> Vec<String> {
    let text = text.strip_suffix("\n\n").unwrap_or_else(|| panic!("not framed: {text:?}"));
    // One line of data, and before it perhaps the event's id.
    let data = |event: &str| {
        let data = event.strip_prefix("id: ").and_then(|named| named.split_once('\n')).map_or(event, |(_, data)| data);
        data.strip_prefix("data: ").filter(|data| !data.contains('\n')).map(str::to_owned)
    };
    text.split("\n\n").filter(|event| !event.starts_with(": ")).map(|event| data(event).expect(event)).collect()
}

/// Sends one request and reads its whole response.
pub(crate) async fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    Connection::send(address, method, path, headers, body).await.finish().await
}

/// One request's connection.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    pub(crate) async fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "host") {
            head += &format!("host: {address}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        // Refused ones may be closed before they are sent.
        let _ = stream.write_all(body).await;
        Connection { stream, unread: Vec::new() }
    }

    /// Reads until `needle` was read, and gives everything up to its end.
    pub(crate) async fn until(&mut self, needle: &str) -> String {
        loop {
            if let Some(at) = find(&self.unread, needle.as_bytes()) {
                return String::from_utf8(self.unread.drain(..at + needle.len()).collect()).unwrap();
            }
            let read = self.read().await;
            assert!(read > 0, "ended without {needle:?}: {:?}", String::from_utf8_lossy(&self.unread));
        }
    }

    /// Reads to the end.
    pub(crate) async fn finish(mut self) -> Reply {
        while self.read().await > 0 {}
        let at =
            find(&self.unread, b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {:?}", String::from_utf8_lossy(&self.unread)));
        let head = std::str::from_utf8(&self.unread[..at]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
        let headers: BTreeMap<_, _> = lines.map(header).collect();
        let body = self.unread[at + 4..].to_vec();
        let chunked = headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked");
        Reply { status, body: if chunked { unchunked(&body) } else { body }, headers }
    }

    async fn read(&mut self) -> usize {
        let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await;
        read.expect("no bytes came").unwrap_or(0)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// RFC 9112, section 7.1.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let at = find(body, b"\r\n").expect("the stream was cut");
        let length = usize::from_str_radix(std::str::from_utf8(&body[..at]).unwrap(), 16).unwrap();
        if length == 0 {
            return whole;
        }
        whole.extend_from_slice(&body[at + 2..at + 2 + length]);
        body = &body[at + 2 + length + 2..];
    }
}

/// Sends bytes as they are and reads the whole response.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    Connection { stream, unread: Vec::new() }.finish().await
}
