//! What a supervisor is told: that the process is ready, that it lives, and that it stops; systemd's protocol (sd_notify(3)).
//!
//! Where nobody asks for it, which `NOTIFY_SOCKET` says, nothing is sent.

#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt as _;
use std::{
    env,
    ffi::OsStr,
    io,
    os::unix::{
        ffi::OsStrExt as _,
        net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

use crate::stop::Stop;

/// Says that whatever was started serves, and from then on, as often as the supervisor wants to hear it, that the process lives:
/// a runtime that hangs says nothing. Says once that it stops.
pub(crate) fn ready(stop: &Stop) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    tell(&socket, "READY=1");
    let (stop, every) = (stop.clone(), period(env::var("WATCHDOG_USEC").ok().as_deref()));
    tokio::spawn(async move {
        loop {
            // Without a watchdog there is nothing to say for a long time.
            let pause = tokio::time::sleep(every.unwrap_or(Duration::from_secs(3600)));
            tokio::select! {
                () = stop.asked() => break,
                () = pause => tell(&socket, "WATCHDOG=1"),
            }
        }
        tell(&socket, "STOPPING=1");
        // It is still watched while it drains.
        while let Some(every) = every {
            tokio::time::sleep(every).await;
            tell(&socket, "WATCHDOG=1");
        }
    });
}

/// Half of what the supervisor waits, as it advises.
fn period(microseconds: Option<&str>) -> Option<Duration> {
    let whole: u64 = microseconds?.parse().ok()?;
    (whole > 0).then(|| Duration::from_micros(whole / 2))
}

/// A supervisor that does not listen is no reason to fail, and one that does not read none to wait.
fn tell(socket: &OsStr, state: &str) {
    let send = || {
        let datagram = UnixDatagram::unbound()?;
        datagram.set_nonblocking(true)?;
        datagram.send_to_addr(state.as_bytes(), &address(socket)?)
    };
    let _ = send();
}

/// A path, or with an @ a name in Linux' abstract namespace.
fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes().strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(socket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_hears_twice_as_often_as_it_waits() {
        assert_eq!(period(Some("30000000")), Some(Duration::from_secs(15)));
        assert_eq!([period(None), period(Some("0")), period(Some("often"))], [None; 3]);
    }

    #[test]
    fn a_socket_is_a_path_or_an_abstract_name() {
        assert!(address(OsStr::new("/run/systemd/notify")).unwrap().as_pathname().is_some());
        assert_eq!(address(OsStr::new("@banyan")).unwrap().as_abstract_name(), Some(&b"banyan"[..]));
    }
}
