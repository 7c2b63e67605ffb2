//! Talking to a hub: which files a model has, what each is, and its bytes.
//!
//! Three requests, those of Hugging Face's own client: `GET /api/models/<repo>/revision/<revision>`,
//! `HEAD` and `GET /<repo>/resolve/<commit>/<file>`.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use ureq::http::{Response, header};
use ureq::{Agent, Body};

use super::{Hub, Repo};
use crate::error::ResolveError;
use crate::gguf;
use crate::progress::Progress;

/// A hub that can be reached is reached in less; a machine without network should not make its user wait longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A hub that is reached and says nothing for that long has lost us.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Tries without progress before a transfer is given up; with the pauses between them about six seconds, which outlasts a
/// changed network and not a user's patience.
const TRIES: u32 = 5;

/// Bytes that count as progress, so that a server which cuts after every byte is given up.
const PROGRESS_BYTES: u64 = 1 << 20;

/// The listing of a model with thousands of files is a tenth of this.
const LISTING_BYTES_MAX: u64 = 16 << 20;

/// Redirects that a file's name may take within the hub (renamed models).
const RENAMES: usize = 4;

pub(super) struct Client<'a> {
    hub: &'a Hub,
    repo: &'a Repo,
    agent: Agent,
    /// For requests whose redirects are looked at, not followed.
    direct: Agent,
    /// The first pause; each further one is twice as long.
    pause: Duration,
}

/// A model's files at a commit.
pub(super) struct Listing {
    pub(super) commit: String,
    files: Vec<String>,
}

impl Listing {
    pub(super) fn has(&self, file: &str) -> bool {
        self.files.iter().any(|found| found == file)
    }

    pub(super) fn has_gguf(&self) -> bool {
        self.files.iter().any(|file| gguf::is_gguf(file.as_ref()))
    }
}

/// What the hub says of a file.
pub(super) struct Remote {
    /// The blob's name: SHA-256 of a large file, git's own hash of a small one.
    pub(super) etag: String,
    /// Bytes.
    pub(super) size: u64,
    url: String,
}

/// Why one try of a transfer ended early.
enum Cut {
    /// Trying again may help.
    Again(String),
    Fatal(ResolveError),
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub, repo: &'a Repo) -> Self {
        let agent = |redirects: u32| -> Agent {
            let config = Agent::config_builder()
                .timeout_resolve(Some(CONNECT_TIMEOUT))
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_recv_response(Some(ANSWER_TIMEOUT))
                .timeout_per_read(Some(READ_TIMEOUT))
                .timeout_per_write(Some(READ_TIMEOUT))
                .http_status_as_error(false)
                .max_redirects(redirects)
                .max_redirects_will_error(false)
                // The token goes to the hub and not to the storage that it sends us to.
                .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
                .user_agent(concat!("banyan/", env!("CARGO_PKG_VERSION")));
            // A hub on this machine is not reached by a proxy.
            let local =
                ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|local| hub.endpoint.starts_with(local));
            if local { config.proxy(None).build().into() } else { config.build().into() }
        };
        Client { hub, repo, agent: agent(10), direct: agent(0), pause: Duration::from_millis(200) }
    }

    /// The model's files, and the commit that its revision means.
    pub(super) fn listing(&self) -> Result<Listing, ResolveError> {
        let repo = hf_hub::Repo::with_revision(self.repo.id.clone(), hf_hub::RepoType::Model, self.repo.revision.clone());
        let url = format!("{}/api/{}", self.hub.endpoint, repo.api_url());
        let mut response = self.ask(|| self.authorised(self.agent.get(&url)).call(), &url, None)?;
        let body = response.body_mut().with_config().limit(LISTING_BYTES_MAX).read_to_vec();
        let body = body.map_err(|error| self.unreachable(&error))?;
        let sense = |what: &str| ResolveError::Answer { url: url.clone(), what: what.into() };
        let info: hf_hub::api::RepoInfo = serde_json::from_slice(&body).map_err(|_| sense("no description of a model"))?;
        if !super::is_commit(&info.sha) {
            return Err(sense("a commit that is none"));
        }
        Ok(Listing { commit: info.sha, files: info.siblings.into_iter().map(|file| file.rfilename).collect() })
    }

    /// What a file is, before its bytes come.
    pub(super) fn file(&self, commit: &str, file: &str) -> Result<Remote, ResolveError> {
        let url = format!("{}/{}/resolve/{commit}/{file}", self.hub.endpoint, self.repo.id);
        let mut at = url.clone();
        for _ in 0..=RENAMES {
            let response = self.ask(|| self.authorised(self.direct.head(&at)).call(), &at, Some(file))?;
            let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            // A path alone is the hub's own renaming; a whole address is where the bytes lie.
            if response.status().is_redirection()
                && text("x-linked-etag").is_none()
                && let Some(location) = text("location").filter(|location| location.starts_with('/'))
            {
                at = format!("{}{location}", self.origin());
                continue;
            }
            let sense = |what: &str| ResolveError::Answer { url: at.clone(), what: what.into() };
            let etag = text("x-linked-etag").or_else(|| text("etag")).ok_or_else(|| sense("without an ETag"))?;
            let etag = etag.trim_start_matches("W/").trim_matches('"').to_string();
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if etag.is_empty() || etag.len() > 128 || !etag.bytes().all(plain) {
                return Err(sense("an ETag that can't name a file"));
            }
            let length = || text("content-length").filter(|_| response.status().is_success());
            let size = text("x-linked-size").or_else(length).and_then(|size| size.parse().ok());
            let size = size.ok_or_else(|| sense("without a length"))?;
            return Ok(Remote { etag, size, url });
        }
        Err(ResolveError::Answer { url, what: "one redirect after the other".into() })
    }

    /// A file's bytes to `to`, behind those that are there already.
    pub(super) fn download(&self, file: &str, remote: &Remote, to: &Path, progress: &Progress) -> Result<(), ResolveError> {
        let failed = |action| move |source| ResolveError::Cache { action, path: to.to_path_buf(), source };
        let mut out = File::options().create(true).truncate(false).read(true).write(true).open(to).map_err(failed("open"))?;
        let mut transfer = progress.transfer(file, remote.size);
        let mut tries = 0;
        loop {
            let start = out.metadata().map_err(failed("read"))?.len();
            if start == remote.size {
                return Ok(());
            }
            if start > remote.size {
                out.set_len(0).map_err(failed("write"))?;
                continue;
            }
            out.seek(SeekFrom::Start(start)).map_err(failed("write"))?;
            let reason = match self.append(file, remote, start, &mut out, to, &mut |done| transfer.at(done)) {
                Ok(()) => continue,
                Err(Cut::Fatal(error)) => return Err(error),
                Err(Cut::Again(reason)) => reason,
            };
            let done = fs::metadata(to).map_err(failed("read"))?.len();
            tries = if done >= start + PROGRESS_BYTES { 1 } else { tries + 1 };
            tracing::debug!(file, done, size = remote.size, %reason, "transfer cut");
            if tries == TRIES {
                return Err(ResolveError::Cut { file: file.into(), done, size: remote.size, reason });
            }
            std::thread::sleep(self.pause * 2u32.pow(tries - 1));
        }
    }

    /// One try: everything from `start` on.
    fn append(
        &self,
        file: &str,
        remote: &Remote,
        start: u64,
        out: &mut File,
        path: &Path,
        at: &mut dyn FnMut(u64),
    ) -> Result<(), Cut> {
        let failed = |source| Cut::Fatal(ResolveError::Cache { action: "write", path: path.to_path_buf(), source });
        let mut request = self.authorised(self.agent.get(&remote.url));
        if start > 0 {
            request = request.header(header::RANGE, format!("bytes={start}-"));
        }
        let response = request.call().map_err(|error| Cut::Again(short(&error)))?;
        let mut done = start;
        match response.status().as_u16() {
            206 if starts_at(&response, start) => {}
            // The server knows no ranges, or the file on its side is another one: from the beginning.
            200 | 206 | 416 => {
                out.set_len(0).map_err(failed)?;
                out.seek(SeekFrom::Start(0)).map_err(failed)?;
                if response.status() != 200 {
                    return Err(Cut::Again(format!("HTTP {} to a range from {start}", response.status().as_u16())));
                }
                done = 0;
            }
            status if is_transient(status) => return Err(Cut::Again(format!("HTTP {status}"))),
            _ => return Err(Cut::Fatal(self.refusal(&response, &remote.url, Some(file)))),
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            at(done);
            let read = body.read(&mut buffer).map_err(|error| Cut::Again(error.to_string()))?;
            if read == 0 {
                break;
            }
            done += read as u64;
            if done > remote.size {
                out.set_len(0).map_err(failed)?;
                return Err(Cut::Again(format!("more than the {} bytes that were announced", remote.size)));
            }
            out.write_all(&buffer[..read]).map_err(failed)?;
        }
        if done == remote.size { Ok(()) } else { Err(Cut::Again("the connection ended early".into())) }
    }

    /// Asks until there is an answer that means something: only what may pass by itself is asked again.
    fn ask(
        &self,
        call: impl Fn() -> Result<Response<Body>, ureq::Error>,
        url: &str,
        file: Option<&str>,
    ) -> Result<Response<Body>, ResolveError> {
        for tries in 0.. {
            let response = call().map_err(|error| self.unreachable(&error))?;
            let status = response.status().as_u16();
            if !is_transient(status) {
                let fine = response.status().is_success() || response.status().is_redirection();
                return if fine { Ok(response) } else { Err(self.refusal(&response, url, file)) };
            }
            if tries == TRIES - 2 {
                let reason = format!("it answers HTTP {status}");
                return Err(ResolveError::Unreachable { endpoint: self.hub.endpoint.clone(), reason });
            }
            std::thread::sleep(self.pause * 2u32.pow(tries));
        }
        unreachable!("the last try returns")
    }

    fn authorised<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.hub.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {}", token.0)),
            None => request,
        }
    }

    /// The endpoint without its path.
    fn origin(&self) -> &str {
        let endpoint = &self.hub.endpoint;
        let host = endpoint.find("://").map_or(0, |scheme| scheme + 3);
        endpoint[host..].find('/').map_or(endpoint, |path| &endpoint[..host + path])
    }

    fn unreachable(&self, error: &ureq::Error) -> ResolveError {
        ResolveError::Unreachable { endpoint: self.hub.endpoint.clone(), reason: short(error) }
    }

    /// What a refusal means, and what to do about it.
    fn refusal(&self, response: &Response<Body>, url: &str, file: Option<&str>) -> ResolveError {
        let (endpoint, repo) = (self.hub.endpoint.clone(), self.repo.id.clone());
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
        let gated = code == "GatedRepo";
        let known = self.hub.token.is_some();
        match response.status().as_u16() {
            // The hub does not tell strangers whether a model exists.
            401 if gated => ResolveError::Unauthorized {
                endpoint,
                repo,
                hint: "the model is gated: accept its terms on its page, then set HF_TOKEN",
            },
            401 if known => ResolveError::Unauthorized {
                endpoint,
                repo,
                hint: "your token is not valid, or there is no such model: correct HF_TOKEN, or unset it for a public model",
            },
            401 => ResolveError::Unauthorized {
                endpoint,
                repo,
                hint: "there is no such public model: check the spelling, or set HF_TOKEN if it is private",
            },
            403 if known => ResolveError::Forbidden {
                endpoint,
                repo,
                hint: "your token may not read it: accept the model's terms on its page, or give the token read access to gated models",
            },
            403 => ResolveError::Forbidden {
                endpoint,
                repo,
                hint: "the model may be gated: accept its terms on its page, then set HF_TOKEN; or a proxy is in the way",
            },
            404 => {
                let at = format!("{repo} at {}", self.repo.revision);
                match (code, file) {
                    ("RevisionNotFound", _) => ResolveError::NotFound {
                        endpoint,
                        what: at,
                        hint: "choose another revision (owner/name@revision), or leave it out",
                    },
                    (_, Some(file)) => ResolveError::NotFound {
                        endpoint,
                        what: format!("{file} in {at}"),
                        hint: "choose another revision or model",
                    },
                    (_, None) => ResolveError::NotFound {
                        endpoint,
                        what: at,
                        hint: "check the spelling of owner/name; a private model needs HF_TOKEN",
                    },
                }
            }
            status => ResolveError::Answer { url: url.into(), what: format!("HTTP {status}") },
        }
    }
}

fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}

/// Whether `Content-Range: bytes 5-9/10` begins where it should.
fn starts_at(response: &Response<Body>, start: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    first == Some(start)
}

/// A transport error in a few words.
fn short(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "its name can't be resolved".into(),
        ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
            format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())
        }
        ureq::Error::Timeout(ureq::Timeout::RecvResponse) => format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
        ureq::Error::Io(error) => match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
            _ => error.to_string(),
        },
        other => other.to_string(),
    }
}
