//! Queries at a root's gRPC service, as an API puts them; tokens with their positions.

use std::time::Duration;

use banyan_proto::{
    QueryId,
    v1::{self, answer::Kind, inspect_client::InspectClient, root_client::RootClient},
};
use prost::Message as _;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

/// How long a node has to say how it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// An answer that is being read.
pub struct Asked {
    /// The query.
    pub id: QueryId,
    answers: Streaming<v1::Answer>,
    /// Ids by position, as far as they were read.
    pub tokens: Vec<u32>,
    /// The text, as far as it was read.
    pub text: String,
    /// The tokens' log-probabilities, where they were asked for.
    pub logprobs: Vec<v1::TokenLogprob>,
    /// Where the query was said to lie, in order; empty names are the root's lanes.
    pub places: Vec<(String, bool)>,
}

/// How an answer ended.
#[derive(Debug)]
pub enum Ended {
    /// Well.
    Finished(v1::Finish),
    /// With a failure.
    Failed(v1::Failed),
    /// Without a word.
    Broken(Option<tonic::Status>),
}

/// Dials an address of a node.
///
/// # Panics
/// When nobody listens there.
pub async fn channel(address: &str) -> Channel {
    let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(uri).expect("a node's address is part of a URL");
    endpoint.connect().await.unwrap_or_else(|error| panic!("failed to dial {address}: {error:?}"))
}

/// A node's own status, as it tells it, or as the node at `address` hears it from below.
pub async fn status(address: &str, name: &str) -> Option<v1::NodeStatus> {
    // Whoever is stopped takes connections and says nothing.
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?.connect_timeout(PATIENCE).timeout(PATIENCE);
    let mut client = InspectClient::new(endpoint.connect().await.ok()?);
    Some(client.status(v1::Target { name: name.to_owned() }).await.ok()?.into_inner())
}

/// The tree below a root, as it tells it.
pub async fn view(address: &str) -> Option<v1::TreeView> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?.connect_timeout(PATIENCE).timeout(PATIENCE);
    let mut client = InspectClient::new(endpoint.connect().await.ok()?);
    Some(client.view(v1::Target::default()).await.ok()?.into_inner())
}

/// Asks a root to continue `prompt` with `max_tokens` tokens (0: as many as come).
///
/// # Panics
/// When the root does not take the question.
pub async fn ask(root: &str, prompt: &str, max_tokens: u32, seed: u64) -> Asked {
    let sampling = v1::Sampling { temperature: 1.0, top_p: 1.0, repetition_penalty: 1.0, seed, ..v1::Sampling::default() };
    let generation = v1::Generation {
        prompt: Some(v1::generation::Prompt::Text(prompt.to_owned())),
        max_tokens,
        sampling: Some(sampling),
        ..v1::Generation::default()
    };
    put(root, QueryId::new(), &generation).await
}

/// Asks a root for any generation, under an id of one's own.
///
/// # Panics
/// When the root does not take the question.
pub async fn put(root: &str, id: QueryId, generation: &v1::Generation) -> Asked {
    put_over(channel(root).await, id, generation).await
}

/// The same over a connection that is open.
///
/// # Panics
/// When the root does not take the question.
pub async fn put_over(root: Channel, id: QueryId, generation: &v1::Generation) -> Asked {
    let mut client = RootClient::new(root);
    let header = v1::Header {
        id: id.to_wire(),
        owner: "tests".to_owned(),
        remaining_ms: 60_000,
        tokens_max: generation.max_tokens.max(64),
        ..v1::Header::default()
    };
    let question =
        v1::Question { header: header.encode_to_vec().into(), payload: generation.encode_to_vec().into(), ..Default::default() };
    let answers = client.ask(question).await.expect("the root takes questions").into_inner();
    Asked { id, answers, tokens: Vec::new(), text: String::new(), logprobs: Vec::new(), places: Vec::new() }
}

impl Asked {
    /// Reads on until there are `count` tokens.
    ///
    /// # Panics
    /// When the answer ends before, or a position repeats or is left out.
    pub async fn read_tokens(&mut self, count: usize) {
        while self.tokens.len() < count {
            let end = self.read().await;
            assert!(end.is_none(), "the answer ended after {} tokens: {end:?}", self.tokens.len());
        }
    }

    /// Reads to the end.
    ///
    /// # Panics
    /// When a position repeats or is left out.
    pub async fn end(&mut self) -> Ended {
        loop {
            if let Some(end) = self.read().await {
                return end;
            }
        }
    }

    async fn read(&mut self) -> Option<Ended> {
        let answer = match self.answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Some(Ended::Broken(None)),
            Err(status) => return Some(Ended::Broken(Some(status))),
        };
        match answer.kind? {
            Kind::Placed(placed) => self.places.push((placed.node, placed.running)),
            Kind::Tokens(tokens) => {
                let at = tokens.position as usize;
                assert_eq!(at, self.tokens.len(), "tokens at position {at} behind {} that were read", self.tokens.len());
                self.tokens.extend(tokens.ids);
                let chunk = v1::Chunk::decode(tokens.chunk).expect("a chunk");
                self.text.push_str(&chunk.text);
                self.logprobs.extend(chunk.logprobs);
            }
            Kind::End(end) => {
                let finish = v1::Finish::decode(end.finish).expect("a finish");
                self.text.push_str(&finish.text);
                return Some(Ended::Finished(finish));
            }
            Kind::Failed(failed) => return Some(Ended::Failed(failed)),
            Kind::Accepted(_) => {}
        }
        None
    }
}
