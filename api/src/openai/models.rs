//! `GET /v1/models` and `GET /v1/models/{id}`: what the tree serves.

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::PathRejection},
};
use schemars::JsonSchema;
use serde::Serialize;

use super::Error;
use crate::{caller::Caller, catalogue::Offer, routes::Context};

/// A list, as OpenAI shows lists.
#[derive(JsonSchema, Serialize)]
pub(crate) struct List {
    object: &'static str,
    data: Vec<Model>,
}

/// One model.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Ours.
    banyan: Served,
}

#[derive(JsonSchema, Serialize)]
struct Served {
    /// Whether it has a chat template of its own; the others complete text.
    chat: bool,
    /// In tokens.
    context: u32,
    nodes: Vec<String>,
    /// Of an alias: the models that it stands for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stands_for: Vec<String>,
}

impl From<Offer> for Model {
    fn from(offer: Offer) -> Self {
        let nodes = offer.nodes.into_iter().map(String::from).collect();
        let banyan = Served { chat: offer.chat, context: offer.context, nodes, stands_for: offer.stands_for };
        Model { id: offer.id, object: "model", created: offer.created, owned_by: "banyan", banyan }
    }
}

/// All of them.
pub(crate) async fn models(State(context): State<Context>, Extension(caller): Extension<Caller>) -> Json<List> {
    let offers = context.roots.offers(caller.key.as_deref());
    Json(List { object: "list", data: offers.into_iter().map(Model::from).collect() })
}

/// One of them; names have slashes.
pub(crate) async fn model(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, Error> {
    let Path(id) = id?;
    let mut offers = context.roots.offers(caller.key.as_deref());
    match offers.iter().position(|offer| offer.id == id) {
        Some(at) => Ok(Json(offers.swap_remove(at).into())),
        None => Err(Error::no_such_model(&id, offers.iter().map(|offer| offer.id.as_str()))),
    }
}
