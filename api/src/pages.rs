//! The pages: `web/` as it is written, but for lines that are comments, embedded in the binary, sent compressed and with the headers
//! that keep them to themselves.

use std::{collections::HashMap, io::Write as _, sync::LazyLock};

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use rust_embed::{EmbeddedFile, RustEmbed};

/// No build step comes between what is written and this.
#[derive(RustEmbed)]
#[folder = "../web/"]
struct Files;

/// Scripts, styles, pictures and connections from here only; nothing inline, no frames, no strings made into markup.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self'; manifest-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'";

/// A page or part of one.
pub(crate) struct Page {
    media_type: &'static str,
    /// Of the bytes as they are written, in hexadecimal digits.
    digest: String,
    plain: Bytes,
    /// What is smaller so.
    gzipped: Option<Bytes>,
}

/// All of them, by their paths without the slash; compressed once, as they never change.
static PAGES: LazyLock<HashMap<String, Page>> = LazyLock::new(|| {
    let page = |path: std::borrow::Cow<'static, str>| Some((path.to_string(), Page::new(&path, Files::get(&path)?)));
    Files::iter().filter_map(page).collect()
});

/// What lies at a path; `None` when nothing does.
pub(crate) fn at(path: &str) -> Option<&'static Page> {
    match path.strip_prefix('/')? {
        "" => PAGES.get("index.html"),
        "tree" => PAGES.get("tree.html"),
        path => PAGES.get(path),
    }
}

impl Page {
    fn new(path: &str, file: EmbeddedFile) -> Self {
        let digest = file.metadata.sha256_hash()[..16].iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let plain = match media_type(path) {
            kind if kind.starts_with("text/javascript") || kind.starts_with("text/css") => without_comments(&file.data),
            _ => file.data.into_owned(),
        };
        let plain = Bytes::from(plain);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(&plain).expect("memory takes everything");
        let gzipped = gzip.finish().expect("memory takes everything");
        let gzipped = Some(Bytes::from(gzipped)).filter(|gzipped| gzipped.len() < plain.len());
        Page { media_type: media_type(path), digest, plain, gzipped }
    }
}

/// Answers with a page, unless the browser has it.
pub(crate) fn answer(page: &Page, request: &HeaderMap) -> Response {
    let gzipped = page.gzipped.as_ref().filter(|_| accepts_gzip(request));
    // One tag for each form (RFC 9110, section 8.8.3.3).
    let tag = format!("\"{}{}\"", page.digest, if gzipped.is_some() { "-gzip" } else { "" });
    let tag = HeaderValue::try_from(tag).expect("hexadecimal digits are a header's value");
    let known = request.get_all(header::IF_NONE_MATCH).iter().any(|tags| holds(tags, &tag));
    let body = gzipped.unwrap_or(&page.plain).clone();
    let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { body.into_response() };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, tag);
    if gzipped.is_some() && !known {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    // Asked again each time, and answered with 304: a new binary's page is there at once.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(page.media_type));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

/// Code less the lines that are nothing but comments: a fifth of it, which no browser needs. All else stays as it is.
fn without_comments(code: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(code.len());
    let mut inside = false;
    for line in code.split_inclusive(|byte| *byte == b'\n') {
        let text = line.trim_ascii();
        let begins = text.starts_with(b"/*") && !text[2..text.len().max(2)].windows(2).any(|pair| pair == b"*/");
        let whole = text.starts_with(b"//") || (text.starts_with(b"/*") && text.ends_with(b"*/"));
        if !inside && !begins && !whole {
            kept.extend_from_slice(line);
        }
        inside = begins || (inside && !text.ends_with(b"*/"));
    }
    kept
}

/// Whether a client takes gzip, and did not say that it would rather not.
fn accepts_gzip(request: &HeaderMap) -> bool {
    let codings = request.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    codings.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().trim_start_matches("q=").parse().unwrap_or(1.0);
        name.trim().eq_ignore_ascii_case("gzip") && weight > 0.0
    })
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
        Some("png") => "image/png",
        Some("svg") => "image/svg+xml",
        Some("webmanifest") => "application/manifest+json",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_comments_are_not_sent() {
        let code = "// one\n/** two */\nlet a = 1; // three\n  /**\n   * four\n   */\n/* five\n six */\nf(/** @type {X} */ (a));\n/** @x */ (b);\n";
        let sent = "let a = 1; // three\nf(/** @type {X} */ (a));\n/** @x */ (b);\n";
        assert_eq!(String::from_utf8(without_comments(code.as_bytes())).unwrap(), sent);
    }
}
