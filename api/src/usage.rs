//! `/v1/usage`: what a caller has used, by day, model and node, as JSON or CSV; and its last requests.

use axum::{
    Extension, Json,
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use banyan_store::{LogEntry, UsageRow, day_of, unix_ms};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    asked::{Asked, within},
    caller::Caller,
    openai::Error,
    routes::Context,
};

const DAYS_MS: i64 = 30 * 86_400_000;
const REQUESTS: u32 = 100;
pub(crate) const REQUESTS_MAX: u32 = 1_000;

/// Which days, and how to show them.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    from: Option<String>,
    to: Option<String>,
    format: Option<String>,
    /// Everybody's, for an operator.
    everyone: Option<bool>,
}

/// Which requests.
#[derive(Deserialize)]
pub(crate) struct Last {
    before: Option<i64>,
    limit: Option<i64>,
}

/// A list.
#[derive(JsonSchema, Serialize)]
pub(crate) struct List<T> {
    object: &'static str,
    data: Vec<T>,
}

/// Sums of the caller's key; of everything while there are no keys.
pub(crate) async fn usage(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Asked(wanted): Asked<Wanted>,
) -> Result<Response, Error> {
    let now = unix_ms();
    let from = day("from", wanted.from)?.unwrap_or_else(|| day_of(now - DAYS_MS));
    let to = day("to", wanted.to)?.unwrap_or_else(|| day_of(now));
    let mut key = caller.key.as_ref().map(|key| key.id.as_str());
    if wanted.everyone == Some(true) {
        context.only_operators(&caller)?;
        key = None;
    }
    let data = context.store()?.usage(&from, &to, key).await.map_err(Error::of_store)?;
    match wanted.format.as_deref() {
        None | Some("json") => Ok(Json(List { object: "list", data }).into_response()),
        Some("csv") => Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], csv(&data)).into_response()),
        Some(_) => Err(Error::parameter("format", "'format' must be json or csv")),
    }
}

/// The caller's last requests; everybody's while there are no keys.
pub(crate) async fn requests(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Asked(last): Asked<Last>,
) -> Result<Json<List<LogEntry>>, Error> {
    let key = caller.key.as_ref().map(|key| key.id.as_str());
    let limit = within("limit", last.limit, REQUESTS, 1..=REQUESTS_MAX)?;
    let data = context.store()?.request_log(last.before, limit, key).await.map_err(Error::of_store)?;
    Ok(Json(List { object: "list", data }))
}

fn day(name: &'static str, text: Option<String>) -> Result<Option<String>, Error> {
    let is_day = |text: &str| {
        let shape = |(at, byte): (usize, u8)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() };
        text.len() == 10 && text.bytes().enumerate().all(shape)
    };
    match text {
        Some(text) if !is_day(&text) => Err(Error::parameter(name, format!("'{name}' must be a day like 2026-11-20"))),
        text => Ok(text),
    }
}

fn csv(rows: &[UsageRow]) -> String {
    // RFC 4180.
    let cell = |text: &str| {
        if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
    };
    let mut text = "day,key,model,node,requests,failed,prompt_tokens,completion_tokens\r\n".to_owned();
    for row in rows {
        let names = [&row.day, &row.key, &row.model, &row.node].map(|name| cell(name));
        let numbers = [row.requests, row.failed, row.prompt_tokens, row.completion_tokens].map(|number| number.to_string());
        text.push_str(&[&names[..], &numbers[..]].concat().join(","));
        text.push_str("\r\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_comma_is_one_cell() {
        let row = UsageRow {
            day: "2026-11-20".into(),
            key_id: "key_1".into(),
            key: "a, \"b\"".into(),
            model: "m".into(),
            node: String::new(),
            requests: 1,
            failed: 0,
            prompt_tokens: 5,
            completion_tokens: 6,
        };
        assert!(csv(&[row]).ends_with("\r\n2026-11-20,\"a, \"\"b\"\"\",m,,1,0,5,6\r\n"));
    }
}
