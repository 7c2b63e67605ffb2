//! Deliveries over the links: where a node's straight way to the root is cut, its Deliver stream goes through its parents.
//!
//! Those in between pass its messages on unread, and remember only which child a stream came from. At the root it is a stream
//! like any other; that it takes over from an older one of the same node is the ledger's to know. Bounded: a relay takes at
//! most half of a link's outbox, and whoever finds no space ends it, so that reports and queries keep theirs.

use std::sync::atomic::Ordering;

use banyan_proto::{NodeName, Role, Signature, v1};
use bytes::Bytes;
use prost::Message as _;
use tokio::sync::mpsc;

use super::{
    Core, OUTBOX,
    input::{HolderLink, ToHolder},
};
use crate::journal::Fact;

/// Nodes whose streams one node passes on: with more of them cut off, the root is better tried again than worked around.
const RELAYS_MAX: usize = 256;

/// A stream of a node below that comes through here, or ends here.
pub(super) struct Relay {
    number: u64,
    child: NodeName,
    /// At the root: the stream's number among all.
    stream: u64,
}

/// The node's own stream over its parents.
pub(super) struct Detour {
    number: u64,
    controls: mpsc::Sender<v1::Control>,
}

impl Core {
    /// The node's own stream begins; dropping `controls` says that it has ended.
    pub(super) fn open_detour(&mut self, number: u64, controls: mpsc::Sender<v1::Control>) {
        self.detour = (self.uplink.is_some() && self.ancestry.epoch != 0).then_some(Detour { number, controls });
    }

    /// A message for the root, or the end of the node's own stream.
    pub(super) fn detour(&mut self, number: u64, message: Option<Bytes>) {
        let ended = message.is_none();
        if !ended && self.detour.as_ref().is_none_or(|detour| detour.number != number) {
            return;
        }
        let relay =
            v1::Relay { node: self.name.to_string(), number, message: message.unwrap_or_default(), ended, ..Default::default() };
        if !self.relay_up(self.signed(relay)) || ended {
            self.detour = self.detour.take().filter(|detour| detour.number != number);
        }
    }

    /// The link over which everything went is gone.
    pub(super) fn end_relays_up(&mut self) {
        self.detour = None;
        for (node, relay) in std::mem::take(&mut self.relays) {
            self.relay_down(&node, &relay, Bytes::new(), true);
        }
    }

    /// The link over which some came is gone. A child that went elsewhere begins them again there.
    pub(super) fn end_relays_from(&mut self, child: &NodeName, orderly: bool) {
        let ended: Vec<NodeName> =
            self.relays.iter().filter(|(_, relay)| relay.child == *child).map(|(node, _)| node.clone()).collect();
        for node in ended {
            if !orderly {
                self.end_relay(&node);
            } else if let Some(relay) = self.relays.remove(&node) {
                self.holder_silent(relay.stream);
            }
        }
    }

    /// A child passes on a message of its own stream or of one below it.
    pub(super) fn child_relay(&mut self, child: NodeName, link: u64, message: v1::Relay) {
        let current = self.children.get(&child).is_some_and(|known| known.link == link);
        let Some(node) = message.node.parse::<NodeName>().ok().filter(|_| current) else { return };
        let known = self.relays.get(&node).map(|relay| (relay.number, relay.child == child));
        if message.ended {
            if known == Some((message.number, true)) {
                self.end_relay(&node);
            }
            return;
        }
        // Those in between look at who begins a stream, the root at every message.
        let goes_on = known == Some((message.number, true));
        if (!goes_on || self.desk.is_some()) && !self.is_of(&node, &message) {
            tracing::warn!(%node, %child, "refused what a child passes on in another node's name");
            return self.relay_down(&node, &Relay { number: message.number, child, stream: 0 }, Bytes::new(), true);
        }
        match known {
            Some((number, true)) if number == message.number => {}
            Some((number, _)) if number >= message.number => return,
            _ => {
                let relay = Relay { number: message.number, child, stream: 0 };
                if self.relays.len() >= RELAYS_MAX && known.is_none() {
                    return self.relay_down(&node, &relay, Bytes::new(), true);
                }
                if let Some(old) = self.relays.insert(node.clone(), relay) {
                    self.holder_silent(old.stream);
                }
            }
        }
        if self.desk.is_some() {
            self.relayed(node, message);
        } else if !self.relay_up(message)
            && let Some(relay) = self.relays.remove(&node)
        {
            self.relay_down(&node, &relay, Bytes::new(), true);
        }
    }

    /// The parent passes on a message of the root.
    pub(super) fn parent_relay(&mut self, link: u64, message: v1::Relay) {
        if self.uplink.as_ref().is_none_or(|uplink| uplink.link != link) {
            return;
        }
        if message.node == self.name.as_str() {
            let Some(detour) = self.detour.as_ref().filter(|detour| detour.number == message.number) else { return };
            let said = (!message.ended).then(|| v1::Control::decode(message.message).ok()).flatten();
            if said.is_none_or(|control| detour.controls.try_send(control).is_err()) {
                self.detour = None;
            }
            return;
        }
        let Ok(node) = message.node.parse::<NodeName>() else { return };
        let Some(relay) = self.relays.remove(&node) else { return };
        if relay.number != message.number {
            self.relays.insert(node, relay);
            return;
        }
        self.relay_down(&node, &relay, message.message, message.ended);
        if !message.ended {
            self.relays.insert(node, relay);
        }
    }

    /// What the root has to say on such streams.
    pub(super) fn flush_relayed(&mut self) {
        let Some(desk) = &mut self.desk else { return };
        for (node, stream, control) in desk.take_relayed() {
            if let Some(relay) = self.relays.get(&node).filter(|relay| relay.stream == stream) {
                self.relay_down(&node, relay, control.encode_to_vec().into(), false);
            }
        }
    }

    /// At the root: a stream's message has arrived.
    fn relayed(&mut self, node: NodeName, message: v1::Relay) {
        let said = v1::Delivery::decode(message.message).ok().and_then(|delivery| delivery.kind);
        let Some(relay) = self.relays.get_mut(&node) else { return };
        match said {
            Some(v1::delivery::Kind::Hello(_)) => {
                relay.stream = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
                let (stream, child) = (relay.stream, relay.child.clone());
                self.journal.push(Fact::Note(format!("{node} delivers through {child}")));
                self.holder_joined(HolderLink { name: node, stream, to: ToHolder::Links });
            }
            Some(v1::delivery::Kind::Frame(frame)) if relay.stream != 0 => {
                let stream = relay.stream;
                self.frame(stream, frame);
            }
            // It began before this root knew of it: the node says it all again on a new stream.
            Some(v1::delivery::Kind::Frame(_)) => {
                if let Some(relay) = self.relays.remove(&node) {
                    self.relay_down(&node, &relay, Bytes::new(), true);
                }
            }
            Some(v1::delivery::Kind::Severed(severed)) => {
                if let Ok(node) = severed.node.parse() {
                    self.severed(node);
                }
            }
            Some(v1::delivery::Kind::Presence(presence)) => {
                let stream = relay.stream;
                self.presence(stream, presence);
            }
            // Of a kind that a newer node knows.
            None => {}
        }
    }

    fn end_relay(&mut self, node: &NodeName) {
        let Some(relay) = self.relays.remove(node) else { return };
        if self.desk.is_some() {
            self.holder_silent(relay.stream);
        } else {
            self.relay_up(v1::Relay { node: node.to_string(), number: relay.number, ended: true, ..Default::default() });
        }
    }

    /// In a cluster with certificates, with our signature.
    fn signed(&self, relay: v1::Relay) -> v1::Relay {
        let number = relay.number.to_be_bytes();
        let signature = self.transport.sign(&[relay.node.as_bytes(), &number, &relay.message]);
        let (Some(certificate), Some(Signature { scheme, bytes })) = (self.transport.certificate(), signature) else {
            return relay;
        };
        v1::Relay { certificate: certificate.into(), scheme, signature: bytes.into(), ..relay }
    }

    /// Whether a message is the node's own; where nobody has a certificate, everybody is believed.
    fn is_of(&self, node: &NodeName, relay: &v1::Relay) -> bool {
        if self.transport.identity().is_none() {
            return true;
        }
        let signature = Signature { scheme: relay.scheme, bytes: relay.signature.to_vec() };
        let parts = [relay.node.as_bytes(), &relay.number.to_be_bytes(), &relay.message];
        let signer = self.transport.signer(&relay.certificate, &parts, &signature);
        signer.is_ok_and(|identity| identity.role == Role::Node && identity.name == *node)
    }

    fn relay_up(&self, relay: v1::Relay) -> bool {
        let Some(uplink) = &self.uplink else { return false };
        uplink.to.capacity() > OUTBOX / 2 && uplink.to.try_send(v1::Up { kind: Some(v1::up::Kind::Relay(relay)) }).is_ok()
    }

    fn relay_down(&self, node: &NodeName, relay: &Relay, message: Bytes, ended: bool) {
        let Some(child) = self.children.get(&relay.child) else { return };
        let relay = v1::Relay { node: node.to_string(), number: relay.number, message, ended, ..Default::default() };
        // What can't be told is lost with the link, which ends the stream as well.
        let _ = child.to.try_send(v1::Down { kind: Some(v1::down::Kind::Relay(relay)) });
    }
}
