//! The least of an HTTP client: one connection, one request at a time; for benchmarks of the API.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::exit::{Code, Failure};

/// An API of OpenAI's dialect: where it is, and as whom it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    address: SocketAddr,
    /// As the URL names it.
    authority: String,
    /// What its paths begin with.
    prefix: String,
    key: Option<String>,
}

/// One of our own.
impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Target { address, authority: address.to_string(), prefix: PREFIX.to_owned(), key: None }
    }
}

/// Where nobody says otherwise.
const PREFIX: &str = "/v1";

impl Target {
    /// Looks an URL up: a host, and the path of its endpoints where it is not /v1.
    ///
    /// # Errors
    /// When it is none, or its host is not known.
    pub(crate) async fn find(url: &str, key: Option<String>) -> Result<Target, Failure> {
        let (authority, prefix) = split(url).ok_or_else(|| {
            Failure::told(Code::Usage, format!("{url} is no URL to measure: take http://HOST:PORT, or http://HOST:PORT/PATH"))
        })?;
        let found = tokio::net::lookup_host(&authority).await.map(|mut addresses| addresses.next());
        let address = found.map_err(|error| {
            Failure::new(Code::Unavailable, anyhow::Error::new(error).context(format!("failed to find {authority}")))
        })?;
        let address = address.ok_or_else(|| Failure::told(Code::Unavailable, format!("{authority} has no address")))?;
        Ok(Target { address, authority, prefix, key })
    }

    /// The same server, with other paths.
    pub(crate) fn at(self, prefix: &str) -> Target {
        Target { prefix: prefix.to_owned(), ..self }
    }
}

/// Host with port, and path.
fn split(url: &str) -> Option<(String, String)> {
    let rest = url.strip_prefix("http://")?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if host.is_empty() {
        return None;
    }
    let ported = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let authority = if ported { host.to_owned() } else { format!("{host}:80") };
    let path = path.trim_end_matches('/');
    Some((authority, if path.is_empty() { PREFIX.to_owned() } else { path.to_owned() }))
}

/// A connection that is kept.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    target: Arc<Target>,
}

/// What an answer begins with.
pub(crate) struct Head {
    pub(crate) status: u16,
    /// When it says to come back.
    pub(crate) retry_after: Option<Duration>,
}

impl Connection {
    pub(crate) async fn open(target: &Arc<Target>) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(target.address).await.with_context(|| format!("failed to dial {}", target.authority))?;
        stream.set_nodelay(true).context("failed to switch Nagle's algorithm off")?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("failed to speak HTTP")?;
        // Ends with the sender; what went wrong, the sender hears too.
        tokio::spawn(connection);
        Ok(Connection { sender, target: Arc::clone(target) })
    }

    /// Whether the other end has closed it.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Posts JSON to an endpoint, and returns the whole answer; anything but 200 is an error.
    pub(crate) async fn post(&mut self, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        whole(self.ask(Method::POST, path, body).await?).await
    }

    /// As [`Connection::post`], without a question.
    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<Bytes> {
        whole(self.ask(Method::GET, path, Bytes::new()).await?).await
    }

    /// Posts JSON, hands the answer over piece by piece whatever it is, and says what it is.
    pub(crate) async fn post_any(&mut self, path: &str, body: Bytes, mut piece: impl FnMut(&[u8])) -> anyhow::Result<Head> {
        let answer = self.ask(Method::POST, path, body).await?;
        let number = |name| answer.headers().get(name).and_then(|value| value.to_str().ok()?.parse().ok());
        let seconds = || number("retry-after").map(Duration::from_secs);
        let retry_after = number("retry-after-ms").map(Duration::from_millis).or_else(seconds);
        let head = Head { status: answer.status().as_u16(), retry_after };
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.context("an answer broke off")?.data_ref() {
                piece(data);
            }
        }
        Ok(head)
    }

    async fn ask(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        self.sender.ready().await.context("the API closed the connection")?;
        let Target { authority, prefix, key, .. } = &*self.target;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{prefix}{path}"))
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body)).context("failed to make a request")?;
        self.sender.send_request(request).await.context("failed to ask the API")
    }
}

/// All of an answer; anything but 200 is an error.
async fn whole(answer: Response<Incoming>) -> anyhow::Result<Bytes> {
    let status = answer.status();
    let body = answer.into_body().collect().await.context("failed to read the API's answer")?.to_bytes();
    if !status.is_success() {
        bail!("the API answered {status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_url_has_a_host_and_perhaps_a_port_and_a_path() {
        let both = |authority: &str, prefix: &str| Some((authority.to_owned(), prefix.to_owned()));
        assert_eq!(split("http://127.0.0.1:8080"), both("127.0.0.1:8080", "/v1"));
        assert_eq!(split("http://localhost/"), both("localhost:80", "/v1"));
        assert_eq!(split("http://[::1]:9/v1/"), both("[::1]:9", "/v1"));
        assert_eq!(split("http://a:4000/openai/v1"), both("a:4000", "/openai/v1"));
        for wrong in ["https://a", "a:80", "http://", "http:///v1"] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }
}
