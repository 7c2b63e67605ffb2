//! A service as providers ask it, that does on purpose what services do by mistake.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use banyan_provider::Config;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::authority::Certificate;

/// How one request is answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Pieces of a chat or a completion, in OpenAI's dialect, to the end.
    Pieces(Vec<&'static str>),
    /// Pieces of a message in Anthropic's.
    Anthropic(Vec<&'static str>),
    /// A status, with a `Retry-After` in seconds where there is one.
    Status(u16, Option<u32>),
    /// Pieces, and then the connection breaks.
    Cut(Vec<&'static str>),
    /// Pieces, and then nothing until the caller leaves.
    Held(Vec<&'static str>),
    /// Pieces, and then an event that says that there is an error.
    Error(Vec<&'static str>),
}

/// One request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its path.
    pub path: String,
    /// Its headers, as they came.
    pub head: String,
    /// Its body.
    pub body: Value,
}

impl Asked {
    /// The key that it came with; empty when with none.
    pub fn key(&self) -> &str {
        let value = |line: &'_ str| -> Option<(String, usize)> {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), line.len() - value.trim_start().len()))
        };
        let of = |line| match value(line) {
            Some((name, at)) if name == "x-api-key" => Some(&line[at..]),
            Some((name, at)) if name == "authorization" => line[at..].strip_prefix("Bearer "),
            _ => None,
        };
        self.head.lines().find_map(of).unwrap_or_default()
    }
}

type Script = Arc<dyn Fn(&Asked, usize) -> Reply + Send + Sync>;

/// The service. Dropping it ends it.
pub struct Upstream {
    scheme: &'static str,
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    left: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Upstream {
    /// Answers as the script says, which is told how many requests came before.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub async fn start(script: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Upstream {
        Upstream::over(None, script).await
    }

    /// The same over TLS.
    ///
    /// # Panics
    /// When the certificate is none.
    pub async fn start_with_tls(
        certificate: &Certificate,
        script: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> Upstream {
        let chain = CertificateDer::pem_slice_iter(certificate.certificate.as_bytes()).collect::<Result<_, _>>();
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).expect("a key in PEM");
        let config =
            ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
        let config = config.expect("there are versions").with_no_client_auth();
        let config = config.with_single_cert(chain.expect("certificates in PEM"), key).expect("the key is the certificate's");
        Upstream::over(Some(TlsAcceptor::from(Arc::new(config))), script).await
    }

    async fn over(tls: Option<TlsAcceptor>, script: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let (asked, (leaves, left)) = (Arc::new(Mutex::new(Vec::new())), watch::channel(0));
        let (script, noted): (Script, _) = (Arc::new(script), Arc::clone(&asked));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, noted, leaves, tls) = (Arc::clone(&script), Arc::clone(&noted), leaves.clone(), tls.clone());
                tokio::spawn(async move {
                    // A caller that leaves in the middle is what some tests are about.
                    let _ = match tls {
                        None => answer(stream, &script, &noted, &leaves).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => answer(stream, &script, &noted, &leaves).await,
                            Err(refused) => Err(refused),
                        },
                    };
                });
            }
        });
        Upstream { scheme, address, asked, left, task }
    }

    /// As a providers' file has it.
    pub fn url(&self) -> String {
        format!("{}://{}/v1", self.scheme, self.address)
    }

    /// All requests until now.
    ///
    /// # Panics
    /// When a test panicked with them in its hands.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("nobody panics with it").clone()
    }

    /// Waits until so many callers have left in the middle of an answer.
    ///
    /// # Panics
    /// When the service has ended.
    pub async fn until_left(&self, count: usize) {
        self.left.clone().wait_for(|left| *left >= count).await.expect("the service runs");
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads a providers' file from its text.
///
/// # Panics
/// When it makes no sense.
pub fn providers(text: &str) -> Config {
    let folder = tempfile::tempdir().expect("there is room for a file");
    let path = folder.path().join("providers.toml");
    std::fs::write(&path, text).expect("there is room for a file");
    Config::read(&path).unwrap_or_else(|error| panic!("{error:?}"))
}

async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: &Script,
    noted: &Mutex<Vec<Asked>>,
    leaves: &watch::Sender<usize>,
) -> std::io::Result<()> {
    let Some(asked) = read(&mut stream).await? else { return Ok(()) };
    let reply = {
        let mut noted = noted.lock().expect("nobody panics with it");
        let reply = script(&asked, noted.len());
        noted.push(asked.clone());
        reply
    };
    let (pieces, anthropic) = match &reply {
        Reply::Status(status, retry_after) => {
            let body = json!({ "error": { "message": format!("told to say {status}") } }).to_string();
            let retry_after = retry_after.map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
            let head =
                format!("HTTP/1.1 {status} Told\r\ncontent-length: {}\r\n{retry_after}connection: close\r\n\r\n", body.len());
            return stream.write_all(format!("{head}{body}").as_bytes()).await;
        }
        Reply::Anthropic(pieces) => (pieces, true),
        Reply::Pieces(pieces) | Reply::Cut(pieces) | Reply::Held(pieces) | Reply::Error(pieces) => (pieces, false),
    };
    // Chunked, so that an end without the last chunk is a broken stream.
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    if anthropic {
        event(&mut stream, &json!({ "type": "message_start", "message": { "usage": { "input_tokens": 9 } } }).to_string())
            .await?;
    }
    for piece in pieces {
        let data = match anthropic {
            true => json!({ "type": "content_block_delta", "delta": { "type": "text_delta", "text": piece } }),
            false => json!({ "choices": [{ "delta": { "content": piece }, "finish_reason": null }] }),
        };
        event(&mut stream, &data.to_string()).await?;
    }
    match reply {
        Reply::Pieces(pieces) => {
            event(&mut stream, &json!({ "choices": [{ "delta": {}, "finish_reason": "stop" }] }).to_string()).await?;
            let usage = json!({ "prompt_tokens": 9, "completion_tokens": pieces.len() });
            event(&mut stream, &json!({ "choices": [], "usage": usage }).to_string()).await?;
            event(&mut stream, "[DONE]").await?;
            stream.write_all(b"0\r\n\r\n").await
        }
        Reply::Anthropic(pieces) => {
            let usage = json!({ "output_tokens": pieces.len() });
            let end = json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn" }, "usage": usage });
            event(&mut stream, &end.to_string()).await?;
            event(&mut stream, &json!({ "type": "message_stop" }).to_string()).await?;
            stream.write_all(b"0\r\n\r\n").await
        }
        Reply::Error(_) => event(&mut stream, &json!({ "error": { "message": "told to fail" } }).to_string()).await,
        Reply::Held(_) => {
            // Nothing more is sent on the connection: it ends.
            let _ = stream.read(&mut [0; 64]).await;
            leaves.send_modify(|left| *left += 1);
            Ok(())
        }
        Reply::Cut(_) | Reply::Status(..) => Ok(()),
    }
}

async fn event(stream: &mut (impl AsyncWrite + Unpin), data: &str) -> std::io::Result<()> {
    let event = format!("data: {data}\n\n");
    stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Asked>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = |line: &str| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok();
            let length = head.lines().find_map(length).unwrap_or_default();
            while bytes.len() < end + 4 + length {
                if stream.read_buf(&mut bytes).await? == 0 {
                    return Ok(None);
                }
            }
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let body = serde_json::from_slice(&bytes[end + 4..]).unwrap_or_default();
            return Ok(Some(Asked { path, head, body }));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}
