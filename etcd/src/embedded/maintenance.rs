//! The Maintenance and Cluster services: what `etcdctl endpoint status` and `member list` ask for, and nothing else.

use etcd_client::{
    AlarmAction,
    proto::{
        PbAlarmRequest, PbAlarmResponse, PbClusterService, PbDefragmentRequest, PbDefragmentResponse, PbDowngradeRequest,
        PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest, PbHashResponse, PbMaintenanceService,
        PbMemberAddRequest, PbMemberAddResponse, PbMemberListRequest, PbMemberListResponse, PbMemberPromoteRequest,
        PbMemberPromoteResponse, PbMemberRemoveRequest, PbMemberRemoveResponse, PbMemberUpdateRequest, PbMemberUpdateResponse,
        PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest, PbSnapshotResponse, PbStatusRequest, PbStatusResponse,
    },
};
use tonic::{Request, Response, Status};

use super::{identity::Identity, owner::Owner, refusal::not_here};

/// The etcd whose API this is, and what it really is, as a semantic version with build metadata.
const SERVER_VERSION: &str = concat!("3.4.0+banyan.", env!("CARGO_PKG_VERSION"));

pub(super) struct Maintenance {
    pub(super) owner: Owner,
    pub(super) identity: Identity,
}

pub(super) struct Cluster {
    pub(super) owner: Owner,
    pub(super) identity: Identity,
}

#[tonic::async_trait]
impl PbMaintenanceService for Maintenance {
    type SnapshotStream = tokio_stream::Empty<Result<PbSnapshotResponse, Status>>;

    async fn status(&self, _: Request<PbStatusRequest>) -> Result<Response<PbStatusResponse>, Status> {
        let (revision, bytes) = self.owner.ask(|store, _| (store.revision(), store.keyspace.bytes())).await?;
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(Response::new(PbStatusResponse {
            header: self.identity.header(revision),
            version: SERVER_VERSION.into(),
            db_size: bytes,
            db_size_in_use: bytes,
            db_size_quota: i64::try_from(super::store::STORE_BYTES_MAX).unwrap_or(i64::MAX),
            leader: self.identity.member_id(),
            raft_index: revision.unsigned_abs(),
            raft_applied_index: revision.unsigned_abs(),
            raft_term: self.identity.term(),
            ..PbStatusResponse::default()
        }))
    }

    async fn alarm(&self, request: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        if request.into_inner().action != AlarmAction::Get as i32 {
            return Err(not_here("alarms to set"));
        }
        Ok(Response::new(PbAlarmResponse { header: self.identity.header(*self.owner.revision().borrow()), alarms: Vec::new() }))
    }

    async fn defragment(&self, _: Request<PbDefragmentRequest>) -> Result<Response<PbDefragmentResponse>, Status> {
        Err(not_here("Defragment"))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        Err(not_here("Hash"))
    }

    async fn hash_kv(&self, _: Request<PbHashKvRequest>) -> Result<Response<PbHashKvResponse>, Status> {
        Err(not_here("HashKV"))
    }

    async fn snapshot(&self, _: Request<PbSnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(not_here("Snapshot"))
    }

    async fn move_leader(&self, _: Request<PbMoveLeaderRequest>) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(not_here("MoveLeader"))
    }

    async fn downgrade(&self, _: Request<PbDowngradeRequest>) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(not_here("Downgrade"))
    }
}

#[tonic::async_trait]
impl PbClusterService for Cluster {
    async fn member_list(&self, _: Request<PbMemberListRequest>) -> Result<Response<PbMemberListResponse>, Status> {
        let header = self.identity.header(*self.owner.revision().borrow());
        Ok(Response::new(PbMemberListResponse { header, members: vec![self.identity.member()] }))
    }

    async fn member_add(&self, _: Request<PbMemberAddRequest>) -> Result<Response<PbMemberAddResponse>, Status> {
        Err(not_here("other members"))
    }

    async fn member_remove(&self, _: Request<PbMemberRemoveRequest>) -> Result<Response<PbMemberRemoveResponse>, Status> {
        Err(not_here("other members"))
    }

    async fn member_update(&self, _: Request<PbMemberUpdateRequest>) -> Result<Response<PbMemberUpdateResponse>, Status> {
        Err(not_here("other members"))
    }

    async fn member_promote(&self, _: Request<PbMemberPromoteRequest>) -> Result<Response<PbMemberPromoteResponse>, Status> {
        Err(not_here("other members"))
    }
}
