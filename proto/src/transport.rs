//! How the parts are linked: over plain TCP on one machine, over mutual TLS 1.3 where a cluster has certificates.
//!
//! One handle dials and serves. Whoever dials says who should answer; whoever serves knows who called. Nothing here decides
//! what a caller may do: roles say so ([`crate::Role::may_call`]), and services compare names ([`Peer`]).

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::PollSemaphore;
use tonic::transport::{Channel, Endpoint, server::Connected};

use crate::{Credentials, Expected, Identity, credentials::Current, tls};

/// A peer that takes longer for its handshake is not one.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way: what comes beyond them waits in the kernel.
const HANDSHAKES_MAX: usize = 256;
/// Every node of the largest tree, with the APIs and who looks in.
const CONNECTIONS_MAX: usize = 70_000;
/// How long to wait before accepting again when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How peers are dialled and served. Plain by default.
#[derive(Clone, Debug, Default)]
pub struct Transport(Option<Current>);

/// Which clients a server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Those of the cluster.
    OfCluster,
    /// Those without a certificate as well: they come to get one.
    Anybody,
}

/// Who called, as the transport knows. A service reads it from a request's extensions; none over plain TCP, where anybody may
/// call himself what he likes, and for who came without a certificate.
#[derive(Clone, Debug)]
pub struct Peer(pub Option<Identity>);

impl Peer {
    /// Who made a request.
    pub fn of<T>(request: &tonic::Request<T>) -> Peer {
        request.extensions().get::<Peer>().cloned().unwrap_or(Peer(None))
    }

    /// Refuses whoever calls himself somebody else than his certificate does.
    ///
    /// # Errors
    /// When the names differ.
    pub fn must_be(&self, name: &str) -> Result<(), tonic::Status> {
        match &self.0 {
            Some(identity) if identity.name.as_str() != name => {
                tracing::warn!(peer = %identity, claimed = name, "refused a peer that calls itself somebody else");
                Err(tonic::Status::permission_denied(format!("your certificate is {identity}'s, so you can't be {name:?}")))
            }
            _ => Ok(()),
        }
    }
}

impl Transport {
    /// Mutual TLS, as whom the credentials say.
    pub fn mutual(credentials: Credentials) -> Self {
        Transport(Some(Current::new(credentials)))
    }

    /// Who we are; none over plain TCP.
    pub fn identity(&self) -> Option<Identity> {
        self.0.as_ref().map(|current| current.get().identity().clone())
    }

    pub(crate) fn credentials(&self) -> Option<Credentials> {
        self.0.as_ref().map(Current::get)
    }

    /// Shows other credentials from now on. Connections that exist go on.
    pub fn renew(&self, credentials: Credentials) {
        if let Some(current) = &self.0 {
            current.set(credentials);
        }
    }

    /// Dials when it is needed, and again when that broke. An answer of anybody but the expected peer fails.
    pub fn lazily(&self, endpoint: &Endpoint, expected: Expected) -> Channel {
        match &self.0 {
            None => endpoint.connect_lazy(),
            Some(current) => endpoint.connect_with_connector_lazy(tls::connector(tls::known(current, expected))),
        }
    }

    /// Dials now.
    ///
    /// # Errors
    /// When nobody answers, or not who was expected.
    pub async fn connect(&self, endpoint: &Endpoint, expected: Expected) -> Result<Channel, tonic::transport::Error> {
        match &self.0 {
            None => endpoint.connect().await,
            Some(current) => endpoint.connect_with_connector(tls::connector(tls::known(current, expected))).await,
        }
    }

    /// Dials the authority whose certificate has this SHA-256, as somebody who has no certificate yet.
    ///
    /// # Errors
    /// When nobody answers, or another authority.
    pub async fn pinned(endpoint: &Endpoint, pin: [u8; 32]) -> Result<Channel, tonic::transport::Error> {
        endpoint.connect_with_connector(tls::connector(tls::pinned(pin))).await
    }

    /// Accepts connections until the stream is dropped, and the listener with it.
    pub fn incoming(&self, listener: TcpListener, clients: Clients) -> Incoming {
        Incoming {
            listener,
            acceptor: self.0.as_ref().map(|current| TlsAcceptor::from(Arc::new(tls::server(current, clients)))),
            greeting: JoinSet::new(),
            places: PollSemaphore::new(Arc::new(Semaphore::new(CONNECTIONS_MAX))),
            place: None,
            pause: None,
        }
    }
}

/// Takes connections in, and greets each beside the others.
pub struct Incoming {
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    greeting: JoinSet<Option<Connection>>,
    places: PollSemaphore,
    /// For the next one.
    place: Option<OwnedSemaphorePermit>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.greeting.poll_join_next(context) {
                Poll::Ready(Some(Ok(Some(connection)))) => return Poll::Ready(Some(Ok(connection))),
                Poll::Ready(Some(_)) => continue,
                Poll::Ready(None) | Poll::Pending => {}
            }
            if self.greeting.len() >= HANDSHAKES_MAX {
                return Poll::Pending;
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            if self.place.is_none() {
                self.place = ready!(self.places.poll_acquire(context));
            }
            let (stream, from) = match ready!(self.listener.poll_accept(context)) {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                    continue;
                }
            };
            // Tokens are small and wanted at once.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "failed to switch Nagle's algorithm off");
            }
            let place = self.place.take();
            match self.acceptor.clone() {
                None => {
                    return Poll::Ready(Some(Ok(Connection { stream: Inner::Plain(stream), peer: Peer(None), _place: place })));
                }
                Some(acceptor) => {
                    self.greeting.spawn(greet(acceptor, stream, from, place));
                }
            }
        }
    }
}

async fn greet(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    from: SocketAddr,
    place: Option<OwnedSemaphorePermit>,
) -> Option<Connection> {
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%from, %error, "refused a connection");
            return None;
        }
        Err(_) => {
            tracing::info!(%from, "a connection took too long for its handshake");
            return None;
        }
    };
    // The verifier has read the same certificate; who shows none comes this far only where anybody may.
    let peer = match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        Some(certificate) => Peer(Some(Identity::of_certificate(certificate).ok()?)),
        None => Peer(None),
    };
    Some(Connection { stream: Inner::Tls(Box::new(stream)), peer, _place: place })
}

/// An accepted connection, whose caller is known where it was encrypted.
pub struct Connection {
    stream: Inner,
    peer: Peer,
    _place: Option<OwnedSemaphorePermit>,
}

enum Inner {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Inner::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Inner::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Inner::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Inner::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Inner::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Inner::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Inner::Plain(stream) => stream.is_write_vectored(),
            Inner::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Inner::Plain(stream) => Pin::new(stream).poll_flush(context),
            Inner::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Inner::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Inner::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
