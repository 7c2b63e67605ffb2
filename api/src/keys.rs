//! `/v1/keys`: who may ask, for an operator; secrets are in nobody's answer. Keys are made and ended by `banyan key`.

use axum::{Extension, Json, extract::State};
use serde_json::{Value, json};

use crate::{caller::Caller, openai::Error, routes::Context};

/// All keys, the oldest first.
pub(crate) async fn list(State(context): State<Context>, Extension(caller): Extension<Caller>) -> Result<Json<Value>, Error> {
    context.only_operators(&caller)?;
    let keys = context.store()?.list_keys().await.map_err(Error::of_store)?;
    Ok(Json(json!({ "object": "list", "data": keys })))
}
