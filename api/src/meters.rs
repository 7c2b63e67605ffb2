//! What an API measures: requests as they are answered, queries as they end. What each figure means to an operator is in
//! docs/observe.md.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use banyan_observe::{Counter, Counters, Histogram, Histograms, Labels, Metrics, Reading, Readings, Section, buckets};
use banyan_store::Store;
use tokio::time::Instant;

use crate::routes::{Context, Shared};

/// Models that are told apart; more than a cluster serves. Those beyond count together.
const MODELS_MAX: usize = 64;
const OTHER: &str = "other";
/// What is asked of no model that is served; its name is whatever a client sent.
const UNKNOWN: &str = "unknown";
/// What is asked of whatever model there is.
const ANY: &str = "any";

/// The families of a process's APIs.
struct Families {
    requests: Counters,
    durations: Histograms,
    queries: Counters,
    prompt_tokens: Counters,
    output_tokens: Counters,
    first_token: Histograms,
    per_token: Histograms,
    whole: Histograms,
    limited: Counters,
    retries: Counters,
    now: Arc<Readings<Now>>,
}

impl Families {
    fn make(section: &mut Section<'_>) -> Families {
        let now = Arc::new(Readings::new("replica", READINGS));
        section.collector(Arc::clone(&now));
        Families {
            requests: section.counters("api_requests", "Requests whose answers began, by endpoint and status"),
            durations: section.histograms(
                "api_request_duration_seconds",
                "From a request's head until its answer began",
                buckets::WHOLE,
            ),
            queries: section.counters("api_queries", "Requests for generated text that ended, by model and outcome"),
            prompt_tokens: section.counters("api_prompt_tokens", "Tokens of prompts"),
            output_tokens: section.counters("api_output_tokens", "Tokens of answers"),
            first_token: section.histograms(
                "api_time_to_first_token_seconds",
                "From a request until the first token of its answer",
                buckets::WAIT,
            ),
            per_token: section.histograms(
                "api_time_per_output_token_seconds",
                "Of each complete answer of one choice: the time from its first token to its end, per token behind the first",
                buckets::TOKEN,
            ),
            whole: section.histograms(
                "api_query_duration_seconds",
                "From a request until the end of its complete answer",
                buckets::WHOLE,
            ),
            limited: section.counters("api_limited", "Requests that a key's limit refused (429), by limit"),
            retries: section.counters("api_root_retries", "How often a root was asked again, by reason"),
            now,
        }
    }
}

/// What one API counts with.
pub(crate) struct Meters {
    families: Arc<Families>,
    by_requests: Counter,
    by_tokens: Counter,
    under_way: AtomicU64,
    models: Mutex<HashMap<String, Arc<Model>>>,
}

/// One model's.
pub(crate) struct Model {
    label: String,
    prompt_tokens: Counter,
    output_tokens: Counter,
    first_token: Histogram,
    per_token: Histogram,
    whole: Histogram,
}

/// A request for generated text that has ended.
pub(crate) struct Ended {
    /// It went on with what another one had asked for, and that one counts.
    pub(crate) silent: bool,
    pub(crate) status: u16,
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
    /// Of one choice; those of several overlap.
    pub(crate) alone: bool,
    pub(crate) first_token: Option<Duration>,
    pub(crate) whole: Duration,
}

impl Meters {
    pub(crate) fn new(metrics: &Metrics) -> Meters {
        let families = metrics.shared(Families::make);
        let limited = |limit: &str| families.limited.get_or_create_owned(&vec![("limit", limit.to_owned())]);
        Meters {
            by_requests: limited("requests"),
            by_tokens: limited("tokens"),
            under_way: AtomicU64::new(0),
            models: Mutex::default(),
            families,
        }
    }

    /// The meters of a model that is asked for; `is_served` says whether there is one of that name.
    pub(crate) fn model(&self, name: &str, is_served: impl FnOnce() -> bool) -> Arc<Model> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = models.get(name) {
            return Arc::clone(model);
        }
        let label = match name {
            "" => ANY,
            _ if !is_served() => UNKNOWN,
            _ if models.len() < MODELS_MAX => name,
            _ => OTHER,
        };
        let families = &self.families;
        let made = models.entry(label.to_owned()).or_insert_with(|| {
            let labels: Labels = vec![("model", label.to_owned())];
            Arc::new(Model {
                label: label.to_owned(),
                prompt_tokens: families.prompt_tokens.get_or_create_owned(&labels),
                output_tokens: families.output_tokens.get_or_create_owned(&labels),
                first_token: families.first_token.get_or_create_owned(&labels),
                per_token: families.per_token.get_or_create_owned(&labels),
                whole: families.whole.get_or_create_owned(&labels),
            })
        });
        Arc::clone(made)
    }

    /// A request for generated text begins.
    pub(crate) fn begun(&self) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
    }

    /// One that had begun ended.
    pub(crate) fn ended(&self, model: &Model, ended: &Ended) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        if ended.silent {
            return;
        }
        let labels = vec![("model", model.label.clone()), ("outcome", outcome(ended.status).to_owned())];
        self.families.queries.get_or_create(&labels).inc();
        model.prompt_tokens.inc_by(ended.prompt_tokens.into());
        model.output_tokens.inc_by(ended.output_tokens.into());
        if let Some(first_token) = ended.first_token {
            model.first_token.observe(first_token.as_secs_f64());
        }
        if ended.status != 200 {
            return;
        }
        model.whole.observe(ended.whole.as_secs_f64());
        if let Some(first_token) = ended.first_token.filter(|_| ended.alone && ended.output_tokens > 1) {
            let rest = ended.whole.saturating_sub(first_token);
            model.per_token.observe(rest.as_secs_f64() / f64::from(ended.output_tokens - 1));
        }
    }

    /// A key has used up one of its limits.
    pub(crate) fn limited(&self, by_tokens: bool) {
        if by_tokens {
            self.by_tokens.inc()
        } else {
            self.by_requests.inc()
        };
    }

    /// A root is asked again.
    pub(crate) fn retried(&self, reason: &'static str) {
        self.families.retries.get_or_create(&vec![("reason", reason.to_owned())]).inc();
    }
}

fn outcome(status: u16) -> &'static str {
    match status {
        200 => "ok",
        429 => "refused",
        499 => "client_gone",
        400..=498 => "invalid",
        503 => "unavailable",
        504 => "deadline",
        _ => "failed",
    }
}

/// Counts a request, by its endpoint as the router knows it.
pub(crate) async fn counted(State(context): State<Context>, request: Request, next: Next) -> Response {
    // Pages, and whatever is not there.
    let path = request.extensions().get::<MatchedPath>().map_or_else(|| OTHER.to_owned(), |path| path.as_str().to_owned());
    let begun = Instant::now();
    let response = next.run(request).await;
    let families = &context.meters.families;
    let endpoint = ("endpoint", path);
    families.durations.get_or_create(&vec![endpoint.clone()]).observe(begun.elapsed().as_secs_f64());
    let labels = vec![endpoint, ("status", response.status().as_str().to_owned())];
    families.requests.get_or_create(&labels).inc();
    response
}

/// How an API stands when somebody scrapes.
struct Now {
    under_way: u64,
    live: bool,
    members: usize,
    roots: usize,
    sockets: usize,
    body_bytes: usize,
    store_errors: u64,
    records_lost: u64,
}

/// Asks an API how it stands whenever somebody scrapes.
pub(crate) fn read_when_asked(metrics: &Metrics, shared: &Arc<Shared>) {
    let readings = Arc::clone(&metrics.shared(Families::make).now);
    let (name, shared) = (shared.replica.clone(), Arc::downgrade(shared));
    metrics.ask(move || {
        let Some(shared) = Weak::upgrade(&shared) else {
            readings.forget(&name);
            return None;
        };
        let view = shared.roots.view();
        readings.set(
            &name,
            Now {
                under_way: shared.meters.under_way.load(Ordering::Relaxed),
                live: view.live,
                members: view.members.len(),
                roots: view.roots.len(),
                sockets: shared.limits.sockets.saturating_sub(shared.sockets.available_permits()),
                body_bytes: shared.limits.bodies_bytes.saturating_sub(1024 * shared.bodies.available_permits()),
                store_errors: shared.store.as_ref().map_or(0, Store::troubles),
                records_lost: shared.recorder.lost(),
            },
        );
        Some(std::future::ready(()))
    });
}

static READINGS: &[Reading<Now>] = &[
    Reading::gauge("api_queries_under_way", "Requests for generated text that have not ended", |now, say| {
        say(&[], now.under_way as f64);
    }),
    Reading::gauge("api_registry_connected", "Whether the API hears of the registry's changes", |now, say| {
        say(&[], f64::from(u8::from(now.live)));
    }),
    Reading::gauge("api_registry_members", "Nodes that the registry held when it was last heard", |now, say| {
        say(&[], now.members as f64)
    }),
    Reading::gauge("api_roots", "Roots that the registry held when it was last heard", |now, say| say(&[], now.roots as f64)),
    Reading::gauge("api_websockets", "Conversations over WebSockets that are open", |now, say| say(&[], now.sockets as f64)),
    Reading::gauge("api_request_bytes", "Bytes of the bodies of requests that are under way", |now, say| {
        say(&[], now.body_bytes as f64)
    }),
    Reading::counter(
        "api_store_errors",
        "How often the store could not do what it was asked: away, full, busy or damaged",
        |now, say| say(&[], now.store_errors as f64),
    ),
    Reading::counter(
        "api_records_lost",
        "Requests whose usage was not written, because the store was away or too slow for too long",
        |now, say| say(&[], now.records_lost as f64),
    ),
];
