//! The KV service: Range, Put, DeleteRange, Txn and Compact.

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnRequest, PbTxnResponse,
};
use tonic::{Request, Response, Status};

use super::{
    identity::Identity,
    owner::Owner,
    refusal::not_here,
    rights::{Change, Rights},
};

pub(super) struct Kv {
    pub(super) owner: Owner,
    pub(super) identity: Identity,
}

#[tonic::async_trait]
impl PbKvService for Kv {
    type RangeStreamStream = tokio_stream::Empty<Result<PbRangeStreamResponse, Status>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        let request = request.into_inner();
        let mut response = self.owner.request(move |store, _| store.range(&request)).await?;
        self.identity.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn range_stream(&self, _: Request<PbRangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(not_here("RangeStream"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let rights = Rights::of(&request);
        let request = request.into_inner();
        rights.check(Change::Put, &request.key, b"")?;
        let mut response = self.owner.request(move |store, _| store.put(request)).await?;
        self.identity.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn delete_range(&self, request: Request<PbDeleteRequest>) -> Result<Response<PbDeleteResponse>, Status> {
        let rights = Rights::of(&request);
        let request = request.into_inner();
        rights.check(Change::Deletion, &request.key, &request.range_end)?;
        let mut response = self.owner.request(move |store, _| store.delete(request)).await?;
        self.identity.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let rights = Rights::of(&request);
        let request = request.into_inner();
        rights.check_txn(&request)?;
        let mut response = self.owner.request(move |store, _| store.txn(request)).await?;
        self.identity.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(&self, request: Request<PbCompactionRequest>) -> Result<Response<PbCompactionResponse>, Status> {
        let revision = request.into_inner().revision;
        let mut response = self.owner.request(move |store, _| store.compact(revision)).await?;
        self.identity.sign(&mut response.header);
        Ok(Response::new(response))
    }
}
