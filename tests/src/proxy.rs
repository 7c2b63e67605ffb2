//! A TCP proxy that does what networks do to those who trust them: delays, narrow pipes, silence, cuts.
//!
//! It knows no protocol. What it does to a direction of a connection is decided when bytes are passed on, so faults hit
//! connections that exist as well as those to come. Bytes are never changed and never lost within a connection, as TCP's are
//! not: a partition holds them back until it heals, and a peer that vanished is a connection that stays silent for good.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

/// What is read at once.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks on their way in one direction: enough for a link of 2 s, few enough to push back.
const CHUNKS: usize = 256;

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Every byte comes so much later.
    pub delay: Duration,
    /// Bytes per second; 0: as many as there are.
    pub bytes_per_s: u64,
    /// Nothing passes until this ends; then all that was held back does.
    pub held: bool,
}

/// What happens to connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// From whoever dialled to whoever listens.
    pub up: Flow,
    /// From whoever listens to whoever dialled.
    pub down: Flow,
    /// New connections are closed as soon as they are made.
    pub refuses: bool,
}

impl Weather {
    /// Nothing passes in either direction.
    pub fn partition() -> Weather {
        let held = Flow { held: true, ..Flow::default() };
        Weather { up: held, down: held, refuses: false }
    }

    /// Every byte comes so much later, in both directions.
    pub fn delay(delay: Duration) -> Weather {
        let late = Flow { delay, ..Flow::default() };
        Weather { up: late, down: late, refuses: false }
    }

    /// So many bytes per second, in both directions.
    pub fn throttle(bytes_per_s: u64) -> Weather {
        let narrow = Flow { bytes_per_s, ..Flow::default() };
        Weather { up: narrow, down: narrow, refuses: false }
    }

    /// Whoever listens hears everything, and whoever dialled hears nothing: acknowledgements are lost.
    pub fn deaf() -> Weather {
        Weather { down: Flow { held: true, ..Flow::default() }, ..Weather::default() }
    }

    /// Nobody is there.
    pub fn refusing() -> Weather {
        Weather { refuses: true, ..Weather::default() }
    }
}

/// A proxy in front of one listener. Its connections end when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

struct Shared {
    upstream: String,
    weather: watch::Sender<Weather>,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: BTreeMap<u64, Connection>,
}

struct Connection {
    /// Set once: nothing passes any more, and nobody is told.
    forsaken: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of loopback for whoever wants `upstream` (`host:port`).
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn to(upstream: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            weather: watch::Sender::new(Weather::default()),
            connections: Mutex::default(),
        });
        let listening = tokio::spawn(listen(listener, Arc::clone(&shared)));
        Proxy { address, shared, listening }
    }

    /// Where it listens, as `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Changes what happens from now on.
    pub fn set(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }

    /// Passes everything on again.
    pub fn clear(&self) {
        self.set(Weather::default());
    }

    /// Closes all connections at once.
    pub fn cut(&self) {
        for (_, connection) in std::mem::take(&mut self.shared.connections().open) {
            connection.task.abort();
        }
    }

    /// Leaves all connections half-open for good, as when a machine loses its power: nothing passes, and nobody is told. New
    /// ones work.
    pub fn forsake(&self) {
        for connection in self.shared.connections().open.values() {
            connection.forsaken.send_replace(true);
        }
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.shared.connections().open.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of descriptors: those that end give some back.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        if shared.weather.borrow().refuses {
            continue;
        }
        let mut connections = shared.connections();
        let number = connections.next;
        connections.next += 1;
        let (forsaken, silence) = watch::channel(false);
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                connect(client, &shared, silence).await;
                shared.connections().open.remove(&number);
            }
        });
        connections.open.insert(number, Connection { forsaken, task });
    }
}

async fn connect(client: TcpStream, shared: &Shared, forsaken: watch::Receiver<bool>) {
    // A SYN does not get through a partition either.
    let mut weather = shared.weather.subscribe();
    if weather.wait_for(|weather| !weather.up.held).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(&shared.upstream).await else { return };
    // Fails only for a socket that is closed already.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let pass = |from, to, flow: fn(&Weather) -> Flow| pass(from, to, flow, shared.weather.subscribe(), forsaken.clone());
    // Either end closes both: nobody here speaks on in one direction only.
    tokio::select! {
        () = pass(from_client, to_server, |weather| weather.up) => {}
        () = pass(from_server, to_client, |weather| weather.down) => {}
    }
}

/// Passes one direction on until its end. An end is passed on as late as bytes are.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    flow: fn(&Weather) -> Flow,
    mut weather: watch::Receiver<Weather>,
    forsaken: watch::Receiver<bool>,
) {
    let (chunks, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS);
    let delay = {
        let weather = weather.clone();
        move || flow(&weather.borrow()).delay
    };
    let reading = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let read = from.read(&mut buffer).await.unwrap_or(0);
            if chunks.send((Instant::now() + delay(), buffer[..read].to_vec())).await.is_err() || read == 0 {
                return std::future::pending::<()>().await;
            }
        }
    };
    let writing = async {
        while let Some((at, bytes)) = due.recv().await {
            sleep_until(at).await;
            if weather.wait_for(|weather| !flow(weather).held).await.is_err() || *forsaken.borrow() {
                break;
            }
            if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
                return;
            }
            let bytes_per_s = flow(&weather.borrow()).bytes_per_s;
            if bytes_per_s > 0 {
                sleep(Duration::from_secs_f64(bytes.len() as f64 / bytes_per_s as f64)).await;
            }
        }
        // Forsaken: whoever writes now fills buffers, and hears nothing.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// A server that sends back what it hears, and a proxy in front of it.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        Proxy::to(&address).await
    }

    async fn say(stream: &mut TcpStream, text: &str) -> String {
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut heard = vec![0; text.len()];
        stream.read_exact(&mut heard).await.unwrap();
        String::from_utf8(heard).unwrap()
    }

    #[tokio::test]
    async fn it_passes_everything_on_until_told_otherwise() {
        let proxy = echo().await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut stream, "hello").await, "hello");
        proxy.set(Weather::delay(Duration::from_millis(40)));
        let begun = Instant::now();
        assert_eq!(say(&mut stream, "late").await, "late");
        assert!(begun.elapsed() >= Duration::from_millis(80));
        proxy.set(Weather::throttle(1000));
        let begun = Instant::now();
        stream.write_all(&[0; 100]).await.unwrap();
        stream.read_exact(&mut [0; 100]).await.unwrap();
        stream.write_all(&[0; 1]).await.unwrap();
        stream.read_exact(&mut [0; 1]).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn what_a_partition_holds_back_comes_when_it_heals() {
        let proxy = echo().await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut stream, "hello").await, "hello");
        proxy.set(Weather::partition());
        stream.write_all(b"later").await.unwrap();
        let mut heard = [0; 5];
        assert!(timeout(Duration::from_millis(50), stream.read_exact(&mut heard)).await.is_err());
        proxy.clear();
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"later");
    }

    #[tokio::test]
    async fn cut_connections_end_and_forsaken_ones_stay_silent() {
        let proxy = echo().await;
        let mut cut = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut cut, "hello").await, "hello");
        proxy.cut();
        assert_eq!(cut.read(&mut [0; 1]).await.unwrap_or(0), 0);
        let mut forsaken = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut forsaken, "hello").await, "hello");
        proxy.forsake();
        forsaken.write_all(b"anybody?").await.unwrap();
        assert!(timeout(Duration::from_millis(50), forsaken.read(&mut [0; 1])).await.is_err());
        let mut new = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut new, "hello").await, "hello");
        proxy.set(Weather::refusing());
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(refused.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
}
