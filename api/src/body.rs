//! Reading a request's body: bounded in size, in time and by the API's end, with an error that says which.

use axum::{
    body::Body,
    extract::{FromRequest, Request},
    http::{StatusCode, header},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::{openai::Error, routes::Context};

/// A whole body.
pub(crate) struct Whole(pub(crate) Bytes);

impl FromRequest<Context> for Whole {
    type Rejection = Error;

    async fn from_request(request: Request, context: &Context) -> Result<Self, Error> {
        let limits = &context.limits;
        let too_large = || {
            Error::invalid(format!("the body is larger than {} bytes: shorten it", limits.body_bytes))
                .status(StatusCode::PAYLOAD_TOO_LARGE)
        };
        let announced =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limits.body_bytes as u64) {
            return Err(too_large());
        }
        let body: Limited<Body> = Limited::new(request.into_body(), limits.body_bytes);
        let arrived = tokio::select! {
            biased;
            arrived = tokio::time::timeout(limits.body_read, body.collect()) => arrived,
            () = context.stopping.cancelled() => return Err(Error::closing()),
        };
        match arrived {
            Ok(Ok(whole)) => Ok(Whole(whole.to_bytes())),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err(Error::invalid("the body ended before its announced length: send it again")),
            Err(_) => {
                Err(Error::invalid(format!("the body did not arrive within {} s: send it again", limits.body_read.as_secs()))
                    .status(StatusCode::REQUEST_TIMEOUT))
            }
        }
    }
}
