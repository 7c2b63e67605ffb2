//! The node's side of the way back: one Deliver stream to the root, kept open as long as the node lives. It goes straight there;
//! while that is cut, it goes over the node's parents.

use std::time::Duration;

use banyan_proto::{Expected, NodeName, Transport, VERSION, dial, v1, v1::root_client::RootClient};
use futures::FutureExt as _;
use prost::Message as _;
use rand::Rng as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::core::{self, Handle, Input};

/// How long a root has to welcome a node.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause before the next try.
pub const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// The node finds a cut before the root does, so that the stream over its parents takes over before the old one counts as lost.
const PING_TIMEOUT: Duration = Duration::from_millis(800);
/// How long the root has to welcome a node over the links.
const DETOUR_TIMEOUT: Duration = Duration::from_secs(1);
/// While that works the straight way is tried again that often.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long a stream over the parents stays behind the one that took over.
const LINGER: Duration = Duration::from_secs(2);

/// Where the root is, in which reign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootAddress {
    pub(crate) name: NodeName,
    pub(crate) address: String,
    pub(crate) epoch: u64,
}

/// What the stream's task needs to know of its node.
pub(crate) struct Deliver {
    pub(crate) name: NodeName,
    pub(crate) incarnation: u64,
    pub(crate) fingerprint: String,
    pub(crate) core: Handle,
    pub(crate) root: watch::Receiver<Option<RootAddress>>,
    pub(crate) transport: Transport,
}

/// How a stream to the root ended.
#[derive(PartialEq)]
enum Ended {
    Broken,
    /// The root is another one, or elsewhere.
    Changed,
    /// The straight way is open again.
    Straight,
    /// The node is stopping.
    Stopped,
}

type Straight = (mpsc::Sender<v1::Delivery>, tonic::Streaming<v1::Control>);

impl Deliver {
    /// Keeps a stream open to whoever is the root, until the node stops.
    pub(crate) async fn run(mut self) {
        // A root that stays away is news once.
        let mut told = false;
        let mut found: Option<Straight> = None;
        // Larger than those of any earlier life.
        let mut detours = self.incarnation;
        loop {
            let Some(root) = self.root.borrow_and_update().clone() else {
                if self.root.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let straight = match found.take() {
                Some(straight) => Ok(straight),
                None => {
                    // Whoever takes the place of a silent root need not wait until that one's time is over.
                    let (hello, transport, mut news) = (self.hello(), self.transport.clone(), self.root.clone());
                    tokio::select! {
                        connected = connect(&hello, &root, &transport) => connected,
                        changed = news.changed() => match changed {
                            Ok(()) => continue,
                            Err(_) => return,
                        },
                    }
                }
            };
            let mut ended = Ended::Broken;
            match straight {
                Ok((to, controls)) => {
                    told = false;
                    if self.core.tell(Input::RootConnected { to, relayed: false }).await.is_err() {
                        return;
                    }
                    ended = self.serve(&root, controls).await;
                }
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::info!(node = %self.name, root = root.address, error, "can't reach the root, trying again");
                }
                Err(error) => tracing::debug!(node = %self.name, root = root.address, error, "can't reach the root"),
            }
            if ended == Ended::Broken {
                detours += 1;
                ended = self.detour(detours, &root, &mut found).await;
            }
            match ended {
                Ended::Stopped => return,
                Ended::Straight => continue,
                Ended::Broken | Ended::Changed => {}
            }
            if self.core.tell(Input::RootLost).await.is_err() {
                return;
            }
            let factor = rand::rng().random_range(0.5..1.5);
            sleep(RECONNECT_PAUSE.mul_f64(factor)).await;
        }
    }

    /// Delivers over the parents until the straight way is open again, which is then in `found`.
    async fn detour(&mut self, number: u64, root: &RootAddress, found: &mut Option<Straight>) -> Ended {
        let (to, outbox) = mpsc::channel(core::OUTBOX);
        let (told, mut controls) = mpsc::channel(core::OUTBOX);
        let hello = v1::Delivery { kind: Some(v1::delivery::Kind::Hello(self.hello())) };
        to.try_send(hello).expect("a new channel has room");
        if self.core.tell(Input::OpenDetour { number, controls: told }).await.is_err() {
            return Ended::Stopped;
        }
        tokio::spawn(pass_on(self.core.clone(), number, outbox));
        let (mut to, welcome_until) = (Some(to), Instant::now() + DETOUR_TIMEOUT);
        let mut pause = RECONNECT_PAUSE;
        let mut trying = retry(self.hello(), root.clone(), self.transport.clone(), pause).boxed();
        loop {
            tokio::select! {
                control = controls.recv() => match control {
                    Some(v1::Control { kind: Some(v1::control::Kind::Welcome(_)) }) => {
                        let Some(to) = to.take() else { continue };
                        tracing::info!(node = %self.name, "the straight way to the root is cut, delivering through the parents");
                        if self.core.tell(Input::RootConnected { to, relayed: true }).await.is_err() {
                            return Ended::Stopped;
                        }
                    }
                    Some(control) => {
                        if self.core.tell(Input::Control(control)).await.is_err() {
                            return Ended::Stopped;
                        }
                    }
                    None => return Ended::Broken,
                },
                straight = &mut trying => match straight {
                    Ok(straight) => {
                        *found = Some(straight);
                        return Ended::Straight;
                    }
                    Err(error) => {
                        tracing::debug!(node = %self.name, root = root.address, error, "can't reach the root straight");
                        pause = (pause * 2).min(RETRY_PAUSE_MAX);
                        trying = retry(self.hello(), root.clone(), self.transport.clone(), pause).boxed();
                    }
                },
                () = sleep_until(welcome_until), if to.is_some() => return Ended::Broken,
                changed = self.root.changed() => match changed {
                    Ok(()) if self.root.borrow().as_ref() == Some(root) => {}
                    Ok(()) => return Ended::Changed,
                    Err(_) => return Ended::Stopped,
                }
            }
        }
    }

    fn hello(&self) -> v1::Holder {
        v1::Holder {
            node: self.name.to_string(),
            incarnation: self.incarnation,
            version: VERSION.to_owned(),
            fingerprint: self.fingerprint.clone(),
        }
    }

    /// Reads controls until the stream ends or the root is another one. When the node stops it reads until the root has closed
    /// the stream, because what was handed back last may still be on its way.
    async fn serve(&mut self, root: &RootAddress, mut controls: tonic::Streaming<v1::Control>) -> Ended {
        let mut stopping = false;
        let broken = |stopping| if stopping { Ended::Stopped } else { Ended::Broken };
        loop {
            tokio::select! {
                control = controls.message() => match control {
                    Ok(Some(control)) => stopping |= self.core.tell(Input::Control(control)).await.is_err(),
                    Ok(None) => return broken(stopping),
                    Err(status) => {
                        tracing::info!(node = %self.name, root = root.address, error = status.message(), "the stream to the root broke");
                        return broken(stopping);
                    }
                },
                changed = self.root.changed(), if !stopping => match changed {
                    Ok(()) if self.root.borrow().as_ref() == Some(root) => {}
                    Ok(()) => return Ended::Changed,
                    Err(_) => stopping = true,
                }
            }
        }
    }
}

/// Passes on what the node delivers over its parents.
async fn pass_on(core: Handle, number: u64, mut outbox: mpsc::Receiver<v1::Delivery>) {
    while let Some(delivery) = outbox.recv().await {
        let message = Some(delivery.encode_to_vec().into());
        if core.tell(Input::Detour { number, message }).await.is_err() {
            return;
        }
    }
    // The stream that takes over has to be known to the root before this one ends.
    sleep(LINGER).await;
    // Fails only when the node is stopping.
    let _ = core.tell(Input::Detour { number, message: None }).await;
}

async fn retry(hello: v1::Holder, root: RootAddress, transport: Transport, pause: Duration) -> Result<Straight, String> {
    let factor = rand::rng().random_range(0.5..1.5);
    sleep(pause.mul_f64(factor)).await;
    connect(&hello, &root, &transport).await
}

/// Opens the straight way.
async fn connect(hello: &v1::Holder, root: &RootAddress, transport: &Transport) -> Result<Straight, String> {
    let endpoint = dial::endpoint(&root.address).map_err(|error| error.to_string())?;
    let channel = transport.lazily(&endpoint.keep_alive_timeout(PING_TIMEOUT), Expected::root(&root.name));
    let mut client = RootClient::new(channel)
        .max_decoding_message_size(banyan_proto::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(banyan_proto::MESSAGE_BYTES_MAX);
    let (to, outbox) = mpsc::channel(core::OUTBOX);
    let hello = v1::Delivery { kind: Some(v1::delivery::Kind::Hello(hello.clone())) };
    to.try_send(hello).expect("a new channel has room");
    let welcomed = async {
        let mut controls =
            client.deliver(ReceiverStream::new(outbox)).await.map_err(|status| status.message().to_owned())?.into_inner();
        match controls.message().await.map_err(|status| status.message().to_owned())?.and_then(|control| control.kind) {
            Some(v1::control::Kind::Welcome(_)) => Ok(controls),
            _ => Err("it did not welcome us".to_owned()),
        }
    };
    let controls = timeout(WELCOME_TIMEOUT, welcomed).await.map_err(|_| "it did not answer in time".to_owned())??;
    Ok((to, controls))
}
