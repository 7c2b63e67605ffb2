//! The least of an HTTP client: one connection, one request at a time; for benchmarks of the API.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1, header, http::request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A connection that is kept.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    address: SocketAddr,
}

/// What an answer begins with.
pub(crate) struct Head {
    pub(crate) status: u16,
    /// When it says to come back.
    pub(crate) retry_after: Option<Duration>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("failed to dial {address}"))?;
        stream.set_nodelay(true).context("failed to switch Nagle's algorithm off")?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("failed to speak HTTP")?;
        // Ends with the sender; what went wrong, the sender hears too.
        tokio::spawn(connection);
        Ok(Connection { sender, address })
    }

    /// Whether the other end has closed it.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Posts JSON, and returns the whole answer; anything but 200 is an error.
    pub(crate) async fn post(&mut self, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        whole(self.ask(Request::post(path), body).await?).await
    }

    /// As [`Connection::post`], without a question.
    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<Bytes> {
        whole(self.ask(Request::get(path), Bytes::new()).await?).await
    }

    /// Posts JSON, and hands the answer over piece by piece as it comes.
    pub(crate) async fn post_stream(&mut self, path: &str, body: Bytes, mut piece: impl FnMut(&[u8])) -> anyhow::Result<()> {
        let answer = self.ask(Request::post(path), body).await?;
        if !answer.status().is_success() {
            return whole(answer).await.map(|_| ());
        }
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.context("an answer broke off")?.data_ref() {
                piece(data);
            }
        }
        Ok(())
    }

    /// Posts JSON, hands the answer over piece by piece whatever it is, and says what it is.
    pub(crate) async fn post_any(&mut self, path: &str, body: Bytes, mut piece: impl FnMut(&[u8])) -> anyhow::Result<Head> {
        let answer = self.ask(Request::post(path), body).await?;
        let milliseconds = answer.headers().get("retry-after-ms").and_then(|value| value.to_str().ok()?.parse().ok());
        let head = Head { status: answer.status().as_u16(), retry_after: milliseconds.map(Duration::from_millis) };
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.context("an answer broke off")?.data_ref() {
                piece(data);
            }
        }
        Ok(head)
    }

    async fn ask(&mut self, request: request::Builder, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        self.sender.ready().await.context("the API closed the connection")?;
        let request = request
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .context("failed to make a request")?;
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
