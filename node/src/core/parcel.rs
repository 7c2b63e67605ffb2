//! A query on its way down: read where the node needs it, and kept as it came for whoever it is passed on to.
//!
//! Protobuf merges what is concatenated: a hop is added by appending a query that has nothing but that hop. So fields which
//! this version does not know reach the next node, and a payload is never encoded again.

use banyan_observe::Place;
use banyan_proto::{Attempt, NodeName, v1};
use bytes::{Bytes, BytesMut};
use prost::Message as _;

use super::traced;

/// Tag and length of a header.
const HEADER_FRAME_BYTES: usize = 11;

pub(super) struct Parcel {
    query: v1::Query,
    /// As it came.
    bytes: Bytes,
    /// What was added here.
    added: Vec<u8>,
}

impl Parcel {
    /// Reads what came down the link; nothing when it is no query with a header.
    pub(super) fn read(bytes: Bytes) -> Option<Parcel> {
        let query = v1::Query::decode(bytes.clone()).ok()?;
        query.header.as_ref()?;
        Some(Parcel { query, bytes, added: Vec::new() })
    }

    /// A query that begins its way here: its client's header, and what the root says in it. Nothing when that is no header.
    pub(super) fn new(header: &Bytes, said: v1::Header, payload: Bytes, delivered: &[u32]) -> Option<Parcel> {
        let said = v1::Query { header: Some(said), payload, delivered: delivered.to_vec() };
        let mut bytes = Vec::with_capacity(header.len() + said.encoded_len() + HEADER_FRAME_BYTES);
        prost::encoding::bytes::encode(1, header, &mut bytes);
        said.encode(&mut bytes).expect("a buffer that grows takes everything");
        Parcel::read(bytes.into())
    }

    pub(super) fn header(&self) -> &v1::Header {
        self.query.header.as_ref().expect("a parcel has a header")
    }

    pub(super) fn attempt(&self) -> Attempt {
        self.header().attempt.unwrap_or_default().into()
    }

    pub(super) fn trail(&self) -> &[v1::Hop] {
        &self.header().trail
    }

    pub(super) fn add_hop(&mut self, node: &NodeName, reason: v1::Reason) {
        let hop = v1::Hop { node: node.to_string(), reason: reason.into(), spent_us: 0 };
        let header = v1::Header { trail: vec![hop.clone()], ..Default::default() };
        let hop_alone = v1::Query { header: Some(header), ..Default::default() };
        hop_alone.encode(&mut self.added).expect("a buffer that grows takes everything");
        self.query.header.as_mut().expect("a parcel has a header").trail.push(hop);
    }

    /// What goes on from here is below that place in the trace.
    pub(super) fn pass(&mut self, place: &Place) {
        let mut header = v1::Header::default();
        traced::write(Some(place), &mut header);
        let alone = v1::Query { header: Some(header), ..Default::default() };
        alone.encode(&mut self.added).expect("a buffer that grows takes everything");
    }

    /// For the next node.
    pub(super) fn into_bytes(self) -> Bytes {
        if self.added.is_empty() {
            return self.bytes;
        }
        let mut all = BytesMut::with_capacity(self.bytes.len() + self.added.len());
        all.extend_from_slice(&self.bytes);
        all.extend_from_slice(&self.added);
        all.freeze()
    }

    /// For this node, which keeps it.
    pub(super) fn into_query(self) -> v1::Query {
        self.query
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_version_added_survives_root_and_middle() {
        let name: NodeName = "middle".parse().unwrap();
        let header = v1::Header { id: vec![7; 16].into(), model: "m".to_owned(), ..Default::default() };
        let mut header = header.encode_to_vec();
        // Field 900 of the header and field 901 of the query, which nobody here knows.
        let unknown = |number: u32, text: &str| {
            let mut bytes = Vec::new();
            prost::encoding::string::encode(number, &text.to_owned(), &mut bytes);
            bytes
        };
        header.extend(unknown(900, "in the header"));
        let mut query =
            v1::Query { payload: Bytes::from_static(b"payload"), delivered: vec![1, 2], ..Default::default() }.encode_to_vec();
        prost::encoding::bytes::encode(1, &header, &mut query);
        query.extend(unknown(901, "in the query"));

        // From the root on …
        let said = v1::Header { remaining_ms: 5, ..Default::default() };
        let begun = Parcel::new(&header.clone().into(), said, Bytes::from_static(b"payload"), &[1]).unwrap();
        assert_eq!((begun.header().model.as_str(), begun.header().remaining_ms), ("m", 5));
        let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(has(&begun.into_bytes(), "in the header"));

        // … and through every node.
        let mut parcel = Parcel::read(query.clone().into()).unwrap();
        parcel.add_hop(&name, v1::Reason::ChildWithRoom);
        let passed_on = parcel.into_bytes();
        assert!(passed_on.starts_with(&query), "nothing of it was changed");
        let read = v1::Query::decode(passed_on).unwrap();
        assert_eq!((read.payload.as_ref(), &read.delivered[..]), (&b"payload"[..], &[1, 2][..]));
        let header = read.header.unwrap();
        assert_eq!((header.model.as_str(), header.trail.len(), header.trail[0].node.as_str()), ("m", 1, "middle"));
    }
}
