//! Clients that are slow, many, or not who they say they are; and the end of the API.

use std::time::Duration;

use banyan_api::{Config, Https, Limits};
use banyan_ca::Authority;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use crate::{
    client::{self, Connection},
    rig::{Rig, quick, rig},
    root::{Step, hello, placed, token},
};

#[tokio::test]
async fn slow_headers_are_cut_off() {
    let rig = Rig::start(|_, _| hello(), Limits { header_read: Duration::from_millis(100), ..quick() }).await;
    for sent in ["", "GET /livez HT", "GET /livez HTTP/1.1\r\nhost: localhost\r\nx-slow: "] {
        let mut stream = TcpStream::connect(rig.api.address()).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.expect("never cut off");
    }
}

/// A certificate for loopback, of an authority that goes with the folder.
fn https(folder: &std::path::Path) -> Https {
    let authority = Authority::init(&folder.join("ca"), "prod".parse().unwrap()).unwrap();
    let identity = "banyan://prod/api/api".parse().unwrap();
    let out = folder.join("api");
    banyan_ca::member::issue(&authority, &out, &identity, banyan_ca::VALID, &["127.0.0.1".to_owned()]).unwrap();
    Https::read(&out.join("tls.crt"), &out.join("tls.key")).unwrap()
}

#[tokio::test]
async fn who_does_not_greet_where_https_is_served_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { header_read: Duration::from_millis(100), ..quick() };
    let config = Config { limits, https: Some(https(folder.path())), ..Config::default() };
    let rig = Rig::start_over(|_, _| hello(), config).await;
    for sent in [&b""[..], b"\x16\x03\x01", b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let mut stream = TcpStream::connect(rig.api.address()).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.expect("never cut off");
        assert!(!rest.starts_with(b"HTTP"), "it speaks without encryption");
    }
}

#[tokio::test]
async fn floods_of_headers_and_bodies_are_refused_and_others_are_served() {
    let limits = Limits { body_bytes: 64 << 10, bodies_bytes: 128 << 10, body_read: Duration::from_secs(1), ..quick() };
    let rig = Rig::start(|_, _| hello(), limits).await;
    let address = rig.api.address();
    let many: String = (0..200).map(|number| format!("x-{number}: a\r\n")).collect();
    let long = format!("x-long: {}\r\n", "a".repeat(512 << 10));
    for headers in [many, long] {
        let head = format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may close before all of it was sent.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut told = Vec::new();
        let _ = stream.read_to_end(&mut told).await;
        assert!(told.is_empty() || told.starts_with(b"HTTP/1.1 431 "), "{:?}", String::from_utf8_lossy(&told));
    }
    // Bodies that are announced, sent in part and never ended hold what they were given, and no more than there is.
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{{", 60 << 10);
    let mut floods = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        floods.push(stream);
    }
    let mut refused = 0;
    for stream in &mut floods {
        let mut read = [0; 64];
        if let Ok(Ok(count)) = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut read)).await {
            let text = String::from_utf8_lossy(&read[..count]);
            assert!(text.starts_with("HTTP/1.1 429 ") || text.starts_with("HTTP/1.1 408 "), "{text}");
            refused += 1;
        }
        // Whoever asks for little is served meanwhile.
        assert_eq!(client::ask(address, "GET", "/livez", &[], b"").await.status, 200);
    }
    assert_eq!(refused, 64);
}

#[tokio::test]
async fn slow_bodies_are_refused() {
    let rig = Rig::start(|_, _| hello(), Limits { body_read: Duration::from_millis(50), ..quick() }).await;
    let head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{";
    let reply = client::raw(rig.api.address(), head).await;
    assert_eq!(reply.status, 408);
    assert!(reply.error()["message"].as_str().unwrap().contains("did not arrive"));
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off_and_its_query_cancelled() {
    let many = (0..4000).map(|position| token(position, &"x".repeat(10_000)));
    let steps: Vec<Step> = [placed("leaf-1", true)].into_iter().chain(many).chain([Step::Hang]).collect();
    let limits = Limits { write_stall: Duration::from_millis(200), ..quick() };
    let mut rig = Rig::start(move |_, _| steps.clone(), limits).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(rig.api.address()).await.unwrap();
    let body = json!({ "model": "tiny", "prompt": "a", "stream": true }).to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    rig.root.sees_a_query_dropped().await;
    // Others were served all the while.
    assert_eq!(rig.get("/livez").await.status, 200);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let rig = Rig::start(|_, _| hello(), Limits { connections: 1, ..quick() }).await;
    let mut first = TcpStream::connect(rig.api.address()).await.unwrap();
    first.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(first.read(&mut [0; 1024]).await.unwrap() > 0);
    let second = Connection::send(rig.api.address(), "GET", "/livez", &[], b"").await;
    let mut waiting = std::pin::pin!(second.finish());
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err());
    drop(first);
    assert_eq!(waiting.await.status, 200);
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let rig = rig(hello()).await;
    let two =
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\nGET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut stream = TcpStream::connect(rig.api.address()).await.unwrap();
    stream.write_all(two).await.unwrap();
    let mut both = String::new();
    stream.read_to_string(&mut both).await.unwrap();
    assert_eq!(both.matches("HTTP/1.1 200 OK").count(), 2);
}

#[tokio::test]
async fn names_that_are_not_ours_and_pages_of_others_are_refused() {
    let rig = rig(hello()).await;
    let address = rig.api.address();
    let rebound = client::ask(address, "GET", "/v1/models", &[("host", "evil.example")], b"").await;
    assert_eq!(rebound.status, 403);
    assert!(rebound.error()["message"].as_str().unwrap().contains("localhost"));
    let body = json!({ "model": "tiny", "prompt": "a" }).to_string();
    let post =
        async |origin: &str| client::ask(address, "POST", "/v1/completions", &[("origin", origin)], body.as_bytes()).await.status;
    assert_eq!(post("https://evil.example").await, 403);
    assert_eq!(post(&format!("http://{address}")).await, 200);
    let reply = rig.get("/v1/models").await;
    assert!(!reply.headers.keys().any(|name| name.starts_with("access-control")), "no CORS: {:?}", reply.headers);
}

#[tokio::test]
async fn a_request_names_its_host_exactly_once() {
    let rig = rig(hello()).await;
    let status = async |head: &str| {
        let reply = client::raw(rig.api.address(), head.as_bytes()).await;
        if reply.status != 200 {
            assert!(reply.error()["message"].as_str().unwrap().contains("Host"), "{}", reply.text());
        }
        reply.status
    };
    let end = "connection: close\r\n\r\n";
    assert_eq!(status(&format!("GET /livez HTTP/1.1\r\nhost: localhost\r\n{end}")).await, 200);
    assert_eq!(status(&format!("GET /livez HTTP/1.1\r\n{end}")).await, 400);
    assert_eq!(status(&format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n{end}")).await, 400);
    // Version 1.0 does not know the header.
    assert_eq!(status("GET /livez HTTP/1.0\r\n\r\n").await, 200);
}

#[tokio::test]
async fn a_request_keeps_the_name_that_its_client_gave_it() {
    let rig = rig(hello()).await;
    let named = client::ask(rig.api.address(), "GET", "/livez", &[("x-request-id", "mine-1")], b"").await;
    assert_eq!(named.headers["x-request-id"], "mine-1");
    let silly = client::ask(rig.api.address(), "GET", "/livez", &[("x-request-id", &"x".repeat(200))], b"").await;
    assert!(silly.headers["x-request-id"].starts_with("req-"));
}

#[tokio::test]
async fn stopping_lets_answers_finish() {
    let go = std::sync::Arc::new(tokio::sync::Notify::new());
    let wait = Step::Await(go.clone());
    let limits = Limits { drain: Duration::from_secs(20), ..quick() };
    let rig = Rig::start(move |_, _| vec![token(0, "a"), wait.clone(), token(1, "b"), crate::root::end(2)], limits).await;
    let mut connection = rig.open("/v1/completions", &json!({ "model": "tiny", "prompt": "a", "stream": true })).await;
    connection.until("\"a\"").await;
    let stopped = tokio::spawn(rig.api.stop());
    go.notify_one();
    connection.until("data: [DONE]").await;
    stopped.await.unwrap();
}

#[tokio::test]
async fn stopping_tells_those_who_come_to_go_elsewhere() {
    let go = std::sync::Arc::new(tokio::sync::Notify::new());
    let wait = Step::Await(go.clone());
    let limits = Limits { drain: Duration::from_secs(20), ..quick() };
    let rig = Rig::start(move |_, _| vec![token(0, "a"), wait.clone(), crate::root::end(1)], limits).await;
    let (address, body) = (rig.api.address(), json!({ "model": "tiny", "prompt": "a", "stream": true }));
    let mut connection = rig.open("/v1/completions", &body).await;
    connection.until("\"a\"").await;
    let stopped = tokio::spawn(rig.api.stop());
    while client::ask(address, "GET", "/readyz", &[], b"").await.status != 503 {}
    assert_eq!(client::ask(address, "GET", "/livez", &[], b"").await.status, 200);
    let late = client::ask(address, "POST", "/v1/completions", &[], body.to_string().as_bytes()).await;
    assert_eq!((late.status, late.headers.contains_key("retry-after")), (503, true), "{late:?}");
    go.notify_one();
    connection.until("data: [DONE]").await;
    stopped.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn stopping_ends_the_rest_with_an_error() {
    let mut rig = rig(vec![token(0, "a"), Step::Hang]).await;
    let address = rig.api.address();
    let mut connection = rig.open("/v1/completions", &json!({ "model": "tiny", "prompt": "a", "stream": true })).await;
    connection.until("\"a\"").await;
    rig.api.stop().await;
    connection.until("shutting down").await;
    rig.root.sees_a_query_dropped().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn stopping_waits_for_no_request_that_is_incomplete() {
    // Were one waited for, so would be these minutes.
    let minutes = Duration::from_secs(600);
    let rig = Rig::start(|_, _| hello(), Limits { drain: minutes, body_read: minutes, ..quick() }).await;
    let address = rig.api.address();
    let half = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-le";
    let mut connections = Vec::new();
    for sent in ["", half, &format!("GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n{half}")] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        connections.push(stream);
    }
    // One that was answered, and sends the next request bit by bit.
    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(kept.read(&mut [0; 1024]).await.unwrap() > 0);
    kept.write_all(half.as_bytes()).await.unwrap();
    connections.push(kept);
    // And one whose body is on its way; that one is told.
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n";
    let mut half_body = TcpStream::connect(address).await.unwrap();
    half_body.write_all(head.as_bytes()).await.unwrap();
    let mut read = [0; 1024];
    let count = half_body.read(&mut read).await.unwrap();
    assert!(read[..count].starts_with(b"HTTP/1.1 100 "), "{:?}", String::from_utf8_lossy(&read[..count]));
    half_body.write_all(b"{").await.unwrap();

    tokio::time::timeout(Duration::from_secs(20), rig.api.stop()).await.expect("it waits for what may never come");
    let mut told = String::new();
    half_body.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("shutting down"), "{told}");
    for mut stream in connections {
        // Closed or reset.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
}

#[tokio::test]
async fn stopping_lets_slow_readers_have_what_was_written() {
    // More than sockets hold, so that most of it is in the API when it stops.
    let many = (0..2000).map(|position| token(position, &"x".repeat(10_000)));
    let steps: Vec<Step> = many.chain([crate::root::end(2000)]).collect();
    let limits = Limits { drain: Duration::from_secs(20), ..quick() };
    let rig = Rig::start(move |_, _| steps.clone(), limits).await;
    let address = rig.api.address();
    let mut connection = rig.open("/v1/completions", &json!({ "model": "tiny", "prompt": "a" })).await;
    connection.until("\r\n").await;
    let stopped = tokio::spawn(rig.api.stop());
    while client::ask(address, "GET", "/readyz", &[], b"").await.status != 503 {}
    let mut rest = Vec::new();
    connection.stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() > 19_000_000 && rest.ends_with(b"}"), "{} bytes", rest.len());
    stopped.await.unwrap();
}
