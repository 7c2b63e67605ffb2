//! A listener of its own for `GET /metrics`: plain HTTP, a few connections, nothing that changes anything.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{CONTENT_TYPE, Metrics};

/// A few Prometheus servers, and a person with curl.
const CONNECTIONS: usize = 16;
/// Longer than the minute after which scrapes follow each other.
const CONNECTION: Duration = Duration::from_secs(300);
/// How long one may take to ask, and keep a connection idle.
const HEADERS: Duration = Duration::from_secs(75);
/// A scrape's head is some hundred bytes.
const HEAD_BYTES: usize = 16 << 10;
/// When the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves a process's metrics. Dropping it ends that.
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves on `listener`.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start(metrics: Metrics, listener: TcpListener) -> io::Result<Server> {
        let address = listener.local_addr()?;
        Ok(Server { address, task: tokio::spawn(serve(metrics, listener)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(metrics: Metrics, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let metrics = metrics.clone();
        tokio::spawn(async move {
            // Whoever is cut off comes again.
            let _ = timeout(CONNECTION, connection(metrics, stream)).await;
            drop(permit);
        });
    }
}

async fn connection(metrics: Metrics, stream: TcpStream) {
    let service = service_fn(move |request| answer(metrics.clone(), request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(HEAD_BYTES);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a scrape's connection ended");
    }
}

async fn answer(metrics: Metrics, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let reads_only = matches!(*request.method(), Method::GET | Method::HEAD);
    Ok(match request.uri().path() {
        "/metrics" if reads_only => {
            let mut response = Response::new(Full::from(metrics.text().await));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
            response
        }
        "/metrics" => said(StatusCode::METHOD_NOT_ALLOWED, "metrics are read with GET\n"),
        _ => said(StatusCode::NOT_FOUND, "there is only GET /metrics here\n"),
    })
}

fn said(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}
