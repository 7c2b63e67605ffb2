//! The node's side of the straight way back: one Deliver stream to the root, kept open as long as the node lives.

use std::time::Duration;

use banyan_proto::{NodeName, VERSION, dial, v1, v1::root_client::RootClient};
use rand::Rng as _;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::core::{self, Handle, Input};

/// How long a root has to welcome a node.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause before the next try.
pub const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// Where the root is, in which reign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootAddress {
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
}

impl Deliver {
    /// Keeps a stream open to whoever is the root, until the node stops.
    pub(crate) async fn run(mut self) {
        // A root that stays away is news once.
        let mut told = false;
        loop {
            let Some(root) = self.root.borrow_and_update().clone() else {
                if self.root.changed().await.is_err() {
                    return;
                }
                continue;
            };
            // Whoever takes the place of a silent root need not wait until that one's time is over.
            let mut news = self.root.clone();
            let connected = tokio::select! {
                connected = self.connect(&root) => connected,
                changed = news.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            match connected {
                Ok((to, controls)) => {
                    told = false;
                    if self.core.tell(Input::RootConnected { to }).await.is_err() || self.serve(&root, controls).await {
                        return;
                    }
                    if self.core.tell(Input::RootLost).await.is_err() {
                        return;
                    }
                }
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::info!(node = %self.name, root = root.address, error, "can't reach the root, trying again");
                }
                Err(error) => tracing::debug!(node = %self.name, root = root.address, error, "can't reach the root"),
            }
            let factor = rand::rng().random_range(0.5..1.5);
            sleep(RECONNECT_PAUSE.mul_f64(factor)).await;
        }
    }

    async fn connect(&self, root: &RootAddress) -> Result<(mpsc::Sender<v1::Delivery>, tonic::Streaming<v1::Control>), String> {
        let channel = dial::endpoint(&root.address).map_err(|error| error.to_string())?.connect_lazy();
        let mut client = RootClient::new(channel)
            .max_decoding_message_size(banyan_proto::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(banyan_proto::MESSAGE_BYTES_MAX);
        let (to, outbox) = mpsc::channel(core::OUTBOX);
        let hello = v1::Holder {
            node: self.name.to_string(),
            incarnation: self.incarnation,
            version: VERSION.to_owned(),
            fingerprint: self.fingerprint.clone(),
        };
        to.try_send(v1::Delivery { kind: Some(v1::delivery::Kind::Hello(hello)) }).expect("a new channel has room");
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

    /// Reads controls until the stream ends or the root is another one. True when the node stops; then too it reads until the
    /// root has closed the stream, because what was handed back last may still be on its way.
    async fn serve(&mut self, root: &RootAddress, mut controls: tonic::Streaming<v1::Control>) -> bool {
        let mut stopping = false;
        loop {
            tokio::select! {
                control = controls.message() => match control {
                    Ok(Some(control)) => stopping |= self.core.tell(Input::Control(control)).await.is_err(),
                    Ok(None) => return stopping,
                    Err(status) => {
                        tracing::info!(node = %self.name, root = root.address, error = status.message(), "the stream to the root broke");
                        return stopping;
                    }
                },
                changed = self.root.changed(), if !stopping => match changed {
                    Ok(()) if self.root.borrow().as_ref() == Some(root) => {}
                    Ok(()) => return false,
                    Err(_) => stopping = true,
                }
            }
        }
    }
}
