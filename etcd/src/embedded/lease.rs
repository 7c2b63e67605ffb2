//! The Lease service: grant, revoke, keep alive, time to live, list.

use std::pin::Pin;

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse, PbLeaseLeasesRequest,
    PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService, PbLeaseTimeToLiveRequest,
    PbLeaseTimeToLiveResponse,
};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{
    identity::Identity,
    owner::Owner,
    refusal::Refusal,
    rights::{Change, Rights},
    store::Store,
};

pub(super) struct Lease {
    pub(super) owner: Owner,
    pub(super) identity: Identity,
}

#[tonic::async_trait]
impl PbLeaseService for Lease {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<PbLeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(&self, request: Request<PbLeaseGrantRequest>) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let PbLeaseGrantRequest { id, ttl } = request.into_inner();
        let grant = move |store: &mut Store, now| {
            if id != 0 {
                return store.grant(id, ttl, now);
            }
            loop {
                // Drawn, so that a client with a lease of an earlier run never meets one of this run.
                match store.grant(rand::random_range(1..=i64::MAX), ttl, now) {
                    Err(Refusal::LeaseExists) => {}
                    granted => return granted,
                }
            }
        };
        let mut response = self.owner.request(grant).await?;
        self.identity.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_revoke(&self, request: Request<PbLeaseRevokeRequest>) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        let rights = Rights::of(&request);
        let id = request.into_inner().id;
        // What goes with a lease is deleted by whoever ends it.
        let revoke = move |store: &mut Store, _| {
            let keys = store.leases.get(id).into_iter().flat_map(|lease| &lease.keys);
            keys.map(Vec::as_slice).try_for_each(|key| rights.check(Change::Deletion, key, b""))?;
            store.revoke(id)
        };
        let mut response = self.owner.request(revoke).await?;
        self.identity.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (owner, identity) = (self.owner.clone(), self.identity);
        let ended = owner.ended().cancelled_owned();
        let answers = request.into_inner().then(move |request| {
            let owner = owner.clone();
            async move {
                let id = request?.id;
                let mut response = owner.ask(move |store, now| store.keep_alive(id, now)).await?;
                identity.sign(&mut response.header);
                Ok(response)
            }
        });
        Ok(Response::new(Box::pin(answers.take_until(ended))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let request = request.into_inner();
        let mut response = self.owner.ask(move |store, now| store.time_to_live(&request, now)).await?;
        self.identity.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_leases(&self, _: Request<PbLeaseLeasesRequest>) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let mut response = self.owner.ask(|store, _| store.list_leases()).await?;
        self.identity.sign(&mut response.header);
        Ok(Response::new(response))
    }
}
