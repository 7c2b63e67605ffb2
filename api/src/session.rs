//! `/v1/session`: how a page's person shows a key once, and goes on without the page knowing it.
//!
//! The key itself becomes a cookie that scripts can't read and other sites can't send, so that any API of the tree knows it, and
//! revoking the key ends the session. Whoever is known by the cookie alone may change nothing from another origin.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::{
    body::Whole,
    caller::{Caller, EVERYBODY},
    openai::{Documented, Error, Field, Fields, Text, object_schema},
    routes::Context,
};

/// Where it is told, and asked for.
pub(crate) const PATH: &str = "/v1/session";

const COOKIE: &str = "banyan-key";
/// A month: whoever does not come back for so long shows the key again.
const AGE_S: u32 = 30 * 24 * 3600;
/// Keys are shorter.
const KEY_BYTES_MAX: usize = 512;

static KEY: Field<Text> = Field { name: "key", holds: Text(1..=KEY_BYTES_MAX), about: "As the operator gave it." };

/// What signs in, as a JSON schema.
pub(crate) fn schema() -> Value {
    let fields: [&dyn Documented; 1] = [&KEY];
    object_schema(&[&fields], &["key"])
}

/// Who somebody is to this API.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Session {
    object: &'static str,
    /// Whether a key has to be shown at all.
    required: bool,
    /// Whether a good one was.
    signed_in: bool,
    /// Whether one may change the tree, and see what others used.
    operator: bool,
    /// Whose history the API keeps for this page; none where it keeps nothing, or where nothing tells people apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    keeps: Option<String>,
}

/// What the cookie says, where there is one.
pub(crate) fn secret(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(name, value)| (name == COOKIE).then_some(value))
}

/// Whether one is signed in.
pub(crate) async fn read(State(context): State<Context>, headers: HeaderMap) -> Response {
    let required = context.keyring.check(None).is_err();
    let known = context.keyring.check(secret(&headers)).ok();
    let signed_in = required && known.is_some();
    let operator = known.clone().is_some_and(|key| context.is_operator(&Caller::of(key, "".into())));
    let keeps = known.filter(|key| context.store.is_some() && (key.is_some() || context.hosts.is_one_persons()));
    let keeps = keeps.map(|key| key.map_or(EVERYBODY.to_owned(), |key| key.id.clone()));
    let session = Session { object: "session", required, signed_in, operator, keeps };
    ([(header::CACHE_CONTROL, "no-store")], Json(session)).into_response()
}

/// Signs in.
pub(crate) async fn open(State(context): State<Context>, headers: HeaderMap, whole: Whole) -> Result<Response, Error> {
    let key = Fields::parse(&whole.bytes)?.text(&KEY)?;
    let Some(key) = key.as_deref().map(str::trim) else {
        return Err(Error::parameter("key", "'key' is missing: send the key that the operator gave you"));
    };
    if !context.hosts.comes_from_own_page(&headers) {
        return Err(Error::forbidden(
            "pages of other origins sign nobody in: open the API's own page; where a proxy gives it another name, say so with `--host NAME`",
        ));
    }
    if context.keyring.check(Some(key)).map_err(Error::unknown_key)?.is_none() {
        return Err(Error::invalid("this API needs no key").status(StatusCode::CONFLICT));
    }
    Ok(with_cookie(key, AGE_S, &headers))
}

/// Signs out.
pub(crate) async fn close(headers: HeaderMap) -> Response {
    with_cookie("", 0, &headers)
}

fn with_cookie(value: &str, age_s: u32, headers: &HeaderMap) -> Response {
    // Only the page knows whether there is TLS between it and a proxy.
    let encrypted = headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"));
    let secure = if encrypted { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={value}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Strict{secure}");
    match HeaderValue::try_from(cookie) {
        Ok(cookie) => (StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response(),
        Err(_) => Error::invalid("this key can't stand in a cookie").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_is_found_among_others() {
        let with = |cookies: &'static str| HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_static(cookies))]);
        assert_eq!(secret(&with("a=b; banyan-key=sk-1; c=d")), Some("sk-1"));
        assert_eq!(secret(&with("banyan-key=sk-1")), Some("sk-1"));
        assert_eq!(secret(&with("not-banyan-key=sk-1; banyan-keys=2")), None);
        assert_eq!(secret(&HeaderMap::new()), None);
    }
}
