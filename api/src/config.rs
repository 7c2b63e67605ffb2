//! What an API is told when it starts: the names it answers to, and its bounds.

use std::time::Duration;

use banyan_observe::{Metrics, Tracer};
use banyan_proto::Transport;
use banyan_store::Store;

use crate::{Aliases, Https};

/// How an API runs.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Host names, beside `localhost` and the loopback addresses, that are accepted while the API listens on loopback: those
    /// of a reverse proxy on the same machine. Elsewhere every name is accepted.
    pub hosts: Vec<String>,
    /// What keys, usage, conversations, files and batches are kept in. Without one there are none.
    pub store: Option<Store>,
    /// Serves without keys beyond loopback too, as long as none was ever made.
    pub open: bool,
    /// What this API is called in answers; its address by default.
    pub replica: Option<String>,
    /// Keeps what was asked and answered in the request log, for its operator to read.
    pub log_texts: bool,
    /// Names that stand for models.
    pub aliases: Aliases,
    /// What is bounded, and how.
    pub limits: Limits,
    /// What is measured goes there.
    pub metrics: Metrics,
    /// Spans are made with it.
    pub tracer: Tracer,
    /// How roots are dialled.
    pub transport: Transport,
    /// Serves HTTPS, with this certificate.
    pub https: Option<Https>,
}

/// Bounds of one API. The defaults suit every installation that we know; tests shorten them.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections served at once; more wait in the kernel's backlog. Each costs a file descriptor and some 20 KiB.
    pub connections: usize,
    /// The largest body, in bytes: several times the largest context as text, and below what the tree's messages take.
    pub body_bytes: usize,
    /// What all requests that are under way may take together, in bytes of their bodies. Read, encoded for the tree and kept
    /// until they are answered, they take about three times as much.
    pub bodies_bytes: usize,
    /// Of one connection: a request's head, and what its client has not taken yet of an answer.
    pub buffer_bytes: usize,
    /// How long a client may take for its headers, and leave a connection idle. Longer than the 60 s for which nginx keeps its
    /// connections, so that not we but the proxy closes them.
    pub header_read: Duration,
    /// How long a client may take for its body.
    pub body_read: Duration,
    /// How long a client may refuse to take a byte before it is cut off.
    pub write_stall: Duration,
    /// The longest silence in a stream. Clients and proxies give up after 15 s and more.
    pub heartbeat: Duration,
    /// How long a stream waits for its first token before it answers 200. Until then a failure has a status of its own.
    pub first_token: Duration,
    /// How long to wait for a tree's first root.
    pub root_retry: Duration,
    /// How long a tree may be without its root: until a standby has taken its place, or it was started again. The lease of
    /// one that fell silent has to end first, and takes 10 s.
    pub failover: Duration,
    /// How long a query may take when its request does not say.
    pub deadline: Duration,
    /// Conversations over WebSockets at once. Each costs what a connection does, and what its last messages take.
    pub sockets: usize,
    /// How long nobody may say anything in one of them.
    pub chat_idle: Duration,
    /// How long answers may go on after [`stop`](crate::Api::stop).
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 8192,
            body_bytes: 4 << 20,
            bodies_bytes: 256 << 20,
            buffer_bytes: 64 << 10,
            header_read: Duration::from_secs(65),
            body_read: Duration::from_secs(30),
            write_stall: Duration::from_secs(30),
            heartbeat: Duration::from_secs(10),
            first_token: Duration::from_secs(10),
            root_retry: Duration::from_secs(3),
            failover: Duration::from_secs(20),
            deadline: Duration::from_secs(300),
            sockets: 8192,
            chat_idle: Duration::from_secs(900),
            drain: Duration::from_secs(5),
        }
    }
}
