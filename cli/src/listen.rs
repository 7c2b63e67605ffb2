//! Binding addresses, and saying what to do when one is taken.

use std::io;

use tokio::net::TcpListener;

use crate::exit::{Code, Failure};

/// Where the embedded registry listens unless told otherwise.
pub(crate) const REGISTRY: &str = "127.0.0.1:2379";
/// Where the API listens unless told otherwise.
pub(crate) const API: &str = "127.0.0.1:8080";
/// The first node of a machine listens here, the next ones behind it.
const NODE_PORT: u16 = 7600;
/// More nodes than that on one machine are given ports by the system.
const NODE_PORTS: u16 = 200;

/// Binds `address` for `what`, which `flag` moves elsewhere.
pub(crate) async fn bind(what: &str, flag: &str, address: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| failure(what, flag, address, error))
}

/// Binds the address that was asked for, or else the next free port for nodes on loopback.
pub(crate) async fn bind_node(asked: Option<&str>) -> Result<TcpListener, Failure> {
    if let Some(address) = asked {
        return bind("the node", "--listen", address).await;
    }
    for port in NODE_PORT..NODE_PORT + NODE_PORTS {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound.map_err(|error| failure("the node", "--listen", &format!("127.0.0.1:{port}"), error)),
        }
    }
    bind("the node", "--listen", "127.0.0.1:0").await
}

fn failure(what: &str, flag: &str, address: &str, error: io::Error) -> Failure {
    let (code, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            Code::Conflict,
            format!(
                "another program listens there: stop it, or choose another port with `{flag} HOST:PORT` (port 0 takes a free one)"
            ),
        ),
        io::ErrorKind::AddrNotAvailable => {
            (Code::Error, format!("this machine has no such address: choose one of its own with `{flag} HOST:PORT`"))
        }
        io::ErrorKind::PermissionDenied => {
            (Code::Error, format!("choose a port above 1023 with `{flag} HOST:PORT`, or run with the right to bind this one"))
        }
        _ => (Code::Error, format!("choose another address with `{flag} HOST:PORT`")),
    };
    Failure::new(code, anyhow::Error::new(error).context(format!("{what} can't listen on {address}"))).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_a_conflict_that_names_the_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let failure = bind("the API", "--listen", &address).await.unwrap_err();
        assert_eq!(failure.code(), Code::Conflict);
        let text = failure.to_string();
        assert!(text.contains(&format!("the API can't listen on {address}")) && text.contains("`--listen HOST:PORT`"), "{text}");
    }

    #[tokio::test]
    async fn two_nodes_take_two_ports() {
        let one = bind_node(None).await.unwrap();
        let other = bind_node(None).await.unwrap();
        assert_ne!(one.local_addr().unwrap(), other.local_addr().unwrap());
    }
}
