//! What stands behind the question mark of a path; what can't be read is an error in the one shape.

use std::ops::RangeInclusive;

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use crate::openai::Error;

/// A number of things that somebody asks for.
///
/// # Errors
/// When it is out of its range.
pub(crate) fn within(name: &'static str, asked: Option<i64>, usual: u32, range: RangeInclusive<u32>) -> Result<u32, Error> {
    let Some(asked) = asked else { return Ok(usual) };
    let number = u32::try_from(asked).ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        Error::parameter(name, format!("'{name}' must be a number from {} to {}, not {asked}", range.start(), range.end()))
    })
}

/// A path's query.
pub(crate) struct Asked<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(asked)) => Ok(Asked(asked)),
            Err(error) => Err(Error::invalid(format!("the path's query can't be read: {}", error.body_text()))),
        }
    }
}
