//! The pages: `web/` as it is written, embedded in the binary, with the headers that keep them to themselves.

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use rust_embed::{EmbeddedFile, RustEmbed};

/// What is written is what ships.
#[derive(RustEmbed)]
#[folder = "../web/"]
struct Files;

/// Scripts, styles, pictures and connections from here only; nothing inline, no frames, no strings made into markup.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self'; manifest-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'";

/// A page or part of one.
pub(crate) struct Page<'a> {
    path: &'a str,
    file: EmbeddedFile,
}

/// What lies at a path; `None` when nothing does.
pub(crate) fn at(path: &str) -> Option<Page<'_>> {
    let path = match path.trim_start_matches('/') {
        "" => "index.html",
        path => path,
    };
    Some(Page { path, file: Files::get(path)? })
}

/// Answers with a page, unless the browser has it.
pub(crate) fn answer(Page { path, file }: Page<'_>, request: &HeaderMap) -> Response {
    let tag = file.metadata.sha256_hash()[..16].iter().fold(String::new(), |tag, byte| tag + &format!("{byte:02x}"));
    let tag = HeaderValue::try_from(format!("\"{tag}\"")).expect("hexadecimal digits are a header's value");
    let known = request.get_all(header::IF_NONE_MATCH).iter().any(|tags| holds(tags, &tag));
    let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { file.data.into_response() };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, tag);
    // Asked again each time, and answered with 304: a new binary's page is there at once.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type(path)));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

/// Whether a list of tags holds one, by the weak comparison of RFC 9110, section 8.8.3.2.
fn holds(tags: &HeaderValue, tag: &HeaderValue) -> bool {
    let strong = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    tags.to_str().is_ok_and(|tags| tags.split(',').any(|known| known.trim() == "*" || strong(known).as_bytes() == tag.as_bytes()))
}

fn media_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("webmanifest") => "application/manifest+json",
        _ => "application/octet-stream",
    }
}
