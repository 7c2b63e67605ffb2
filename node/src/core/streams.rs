//! At the root: when the end of a node's Deliver stream means that the node is lost.
//!
//! A stream that ends alone may be followed by another one, straight or over the links, that takes over from it; that takes
//! a moment, and until then nothing is lost. Where the node's link to its parent has broken as well, it is dead.

use std::time::Duration;

use banyan_proto::{NodeName, v1};
use tokio::time::Instant;

use super::Core;

/// How long another stream may take to take over.
const SUCCESSION: Duration = Duration::from_millis(250);
/// What breaks together is found to have within that time.
const TOGETHER: Duration = Duration::from_secs(1);

impl Core {
    /// A stream has ended, or another one is about to take over from it.
    pub(super) fn holder_silent(&mut self, stream: u64) {
        let Some(name) = self.desk.as_ref().and_then(|desk| desk.holder(stream)) else { return };
        if self.is_severed(name) {
            self.holder_gone(stream);
        } else {
            self.ended_streams.push((stream, self.now));
        }
    }

    /// A node's link to its parent broke.
    pub(super) fn severed(&mut self, node: NodeName) {
        let Some(desk) = &self.desk else { return };
        let (dead, alive): (Vec<_>, Vec<_>) =
            self.ended_streams.drain(..).partition(|(stream, _)| desk.holder(*stream) == Some(&node));
        self.ended_streams = alive;
        self.severed.insert(node, self.now);
        for (stream, _) in dead {
            self.holder_gone(stream);
        }
    }

    /// The link to a child broke, which the root should know.
    pub(super) fn tell_severed(&mut self, child: &NodeName) {
        if self.desk.is_some() {
            self.severed(child.clone());
        } else if let Some(work) = &mut self.engine {
            work.tell(v1::delivery::Kind::Severed(v1::Severed { node: child.to_string() }));
        }
    }

    /// Streams from which nobody took over are lost, with what was held there.
    pub(super) fn end_streams(&mut self) {
        let now = self.now;
        let passed = |since: &Instant, time: Duration| now.duration_since(*since) >= time;
        self.severed.retain(|_, since| !passed(since, TOGETHER));
        let due = self.ended_streams.partition_point(|(_, since)| passed(since, SUCCESSION));
        for (stream, _) in self.ended_streams.drain(..due).collect::<Vec<_>>() {
            self.holder_gone(stream);
        }
    }

    fn is_severed(&self, node: &NodeName) -> bool {
        self.severed.get(node).is_some_and(|since| self.now.duration_since(*since) < TOGETHER)
    }
}
