//! Who answers: the one member of a cluster of one.

use std::net::SocketAddr;

use etcd_client::proto::{PbMember, PbResponseHeader};

/// The term of the one leader that there ever is.
const TERM: u64 = 1;

/// The server as it presents itself to clients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    address: SocketAddr,
    /// Differs from run to run, so that clients can tell a restart without a file from the server before it.
    member: u64,
}

impl Identity {
    pub(super) fn new(address: SocketAddr) -> Identity {
        Identity { address, member: rand::random_range(1..=u64::MAX) }
    }

    /// Completes a header that has a revision.
    pub(super) fn sign(&self, header: &mut Option<PbResponseHeader>) {
        let header = header.get_or_insert_default();
        // "banyan" in ASCII: one cluster per server, so its number says only what kind of server it is.
        header.cluster_id = 0x6261_6e79_616e;
        header.member_id = self.member;
        header.raft_term = TERM;
    }

    /// A header of its own.
    pub(super) fn header(&self, revision: i64) -> Option<PbResponseHeader> {
        let mut header = Some(PbResponseHeader { revision, ..PbResponseHeader::default() });
        self.sign(&mut header);
        header
    }

    pub(super) fn member_id(&self) -> u64 {
        self.member
    }

    pub(super) fn term(&self) -> u64 {
        TERM
    }

    pub(super) fn member(&self) -> PbMember {
        PbMember {
            id: self.member,
            name: "banyan".into(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: vec![format!("http://{}", self.address)],
            is_learner: false,
        }
    }
}
