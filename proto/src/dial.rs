//! How the parts dial each other: time-outs, keep-alive and limits, in one place for both ends.

use std::time::Duration;

use tonic::transport::{Endpoint, Server};
use tower::layer::util::{Identity, Stack};

use crate::gate::Gate;

/// A peer that can't be reached in that time is tried again later.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A silent peer is found within two seconds: a ping every so often …
const PING_INTERVAL: Duration = Duration::from_millis(500);
/// … and so long for its answer.
const PING_TIMEOUT: Duration = Duration::from_millis(1400);
/// HTTP/2 windows: a burst of frames must not wait for a round trip.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// By default h2 closes a connection after 20 pending resets, remembers 50 streams that it reset, and takes what still comes
/// for forgotten ones as an attack. So a burst of cancelled queries would break a link for everybody.
const PENDING_RESETS: usize = 100_000;

/// Where to dial `address` (`host:port`, or an `http://` URL), with everybody's time-outs and limits. A caller may change
/// some, and connects at once or lazily.
///
/// # Errors
/// When the address is none.
pub fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    Ok(Endpoint::from_shared(url)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_concurrent_reset_streams(PENDING_RESETS)
        .http2_max_local_error_reset_streams(None))
}

/// What the headers of a call may take, in bytes: ours take some hundred.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// A server with the same care, and with a door that looks at the callers' roles.
pub fn server() -> Server<Stack<Gate, Identity>> {
    Server::builder()
        .layer(Gate)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        // Likewise for streams that we reset: a client that drops its stream at the answer's last message is no attacker.
        .http2_max_local_error_reset_streams(None)
        .max_concurrent_streams(Some(65_536))
}
