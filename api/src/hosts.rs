//! Under which names the API answers: one to a request, and its own while it listens on loopback.
//!
//! Without the latter, a page anywhere on the web could have its own name resolve to 127.0.0.1 (DNS rebinding) and talk to the API of
//! whoever looks at it, or post to it across origins. On other addresses the operator decides who reaches the API.

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, Uri, Version, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use crate::{openai::Error, routes::Context};

/// The names that are accepted.
pub(crate) struct Hosts {
    loopback: bool,
    /// In lower case.
    further: Vec<String>,
}

impl Hosts {
    pub(crate) fn new(listening: SocketAddr, further: Vec<String>) -> Self {
        let further = further.iter().map(|name| name.to_ascii_lowercase()).collect();
        Hosts { loopback: listening.ip().to_canonical().is_loopback(), further }
    }

    /// Whether only who sits at this machine can ask: then everybody is one person.
    pub(crate) fn is_one_persons(&self) -> bool {
        self.loopback && self.further.is_empty()
    }

    /// Whether a request may be served: what it was addressed to, and which page it comes from, must be ours.
    fn check(&self, request: &Parts) -> Result<(), Error> {
        let mut named = request.headers.get_all(header::HOST).iter();
        match (named.next(), named.next()) {
            (_, Some(_)) => return Err(Error::invalid("the request names its host twice: send one Host header")),
            // RFC 9112, section 3.2; version 1.0 did not know the header.
            (None, _) if request.version > Version::HTTP_10 => {
                return Err(Error::invalid("the request does not name its host: send a Host header, such as Host: localhost"));
            }
            _ => {}
        }
        if !self.loopback {
            return Ok(());
        }
        // Browsers always send a host, so a request without one is no page's doing.
        if let Some(host) = request.headers.get(header::HOST)
            && !host.to_str().is_ok_and(|host| self.knows(host))
        {
            return Err(Error::forbidden(
                "this host name is not served: the API listens on loopback, so ask it as localhost or 127.0.0.1, or add the \
                 name to the API's hosts",
            ));
        }
        // A WebSocket begins as a reading, and browsers let every page open one.
        let reads_only = matches!(request.method, Method::GET | Method::HEAD | Method::OPTIONS)
            && !request.headers.contains_key(header::UPGRADE);
        if let Some(origin) = request.headers.get(header::ORIGIN)
            && !reads_only
            && !origin.to_str().is_ok_and(|origin| self.own_page(origin, &request.headers))
        {
            return Err(Error::forbidden(
                "requests from pages of other origins are not served: open the API's own page, or put both behind one origin",
            ));
        }
        Ok(())
    }

    /// Whether nobody but this machine can ask: it listens on loopback, and no proxy is said to stand before it.
    pub(crate) fn are_private(&self) -> bool {
        self.loopback && self.further.is_empty()
    }

    fn knows(&self, authority: &str) -> bool {
        let Ok(uri) = authority.parse::<Uri>() else { return false };
        let Some(host) = uri.host() else { return false };
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
            || self.further.contains(&host)
    }

    /// Whether a browser says that a page of this API asks, wherever the API listens.
    pub(crate) fn comes_from_own_page(&self, headers: &HeaderMap) -> bool {
        let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
        origin.is_some_and(|origin| self.own_page(origin, headers))
    }

    /// A page of the same authority, or of a name that the operator gave (a proxy may have changed the host).
    fn own_page(&self, origin: &str, headers: &HeaderMap) -> bool {
        let Some((_, authority)) = origin.split_once("://") else { return false };
        let named = headers.get(header::HOST).map(HeaderValue::as_bytes);
        let same = named.is_some_and(|host| host.eq_ignore_ascii_case(authority.as_bytes()));
        let named = authority.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_ascii_lowercase));
        same || named.is_some_and(|name| self.further.contains(&name))
    }
}

/// Refuses what [`Hosts`] does not know.
pub(crate) async fn only_known(State(context): State<Context>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match context.hosts.check(&parts) {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http;
    use proptest::prelude::*;

    use super::*;

    fn on(listening: &str) -> Hosts {
        Hosts::new(listening.parse().unwrap(), vec!["Chat.example.com".to_owned()])
    }

    fn request(method: Method, host: &str, origin: Option<&str>) -> Parts {
        let mut request = http::Request::builder().method(method).header(header::HOST, host);
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn loopback_is_asked_by_its_own_names_only() {
        let hosts = on("127.0.0.1:8080");
        for known in [
            "localhost",
            "localhost:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "LOCALHOST",
            "a.localhost:1",
            "chat.example.com",
            "127.8.8.8",
        ] {
            assert!(hosts.check(&request(Method::GET, known, None)).is_ok(), "{known}");
        }
        for strange in ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8080", "10.0.0.1", "", "a b", "[::2]:8080"] {
            assert!(hosts.check(&request(Method::GET, strange, None)).is_err(), "{strange}");
        }
        assert!(on("0.0.0.0:8080").check(&request(Method::GET, "evil.example", None)).is_ok());
    }

    #[test]
    fn pages_of_other_origins_cannot_post() {
        let hosts = on("[::1]:8080");
        let post = |origin| hosts.check(&request(Method::POST, "localhost:8080", Some(origin)));
        assert!(post("http://localhost:8080").is_ok());
        assert!(post("https://chat.example.com").is_ok());
        for strange in ["http://localhost:3000", "https://evil.example", "null", ""] {
            assert!(post(strange).is_err(), "{strange}");
        }
        assert!(hosts.check(&request(Method::GET, "localhost:8080", Some("https://evil.example"))).is_ok());
    }

    proptest! {
        #[test]
        fn no_host_makes_it_panic(host in "[ -~]{0,80}", origin in "[ -~]{0,80}") {
            let _ = on("127.0.0.1:1").check(&request(Method::POST, &host, Some(&origin)));
        }
    }
}
