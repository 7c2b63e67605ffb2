//! What a node measures: counted as it happens, each count an addition to a number at hand, or read from its status when somebody
//! scrapes. What each one means to an operator is in docs/observe.md.

mod readings;

use std::{collections::HashMap, sync::Arc, time::Duration};

use banyan_observe::{Counter, Counters, Histogram, Histograms, Labels, Metrics, Readings, Section, buckets};
use banyan_proto::NodeName;

pub(crate) use self::readings::read_when_asked;
use self::readings::{Now, READINGS};
use crate::{
    ledger::{Failure, Way, Why},
    router::{Action, Choice},
};

/// Models that are told apart; more than a tree serves. Those beyond count together.
const MODELS_MAX: usize = 64;
/// What they count as.
const OTHER: &str = "other";
/// What is asked of whatever model there is, and of one that is not served: its name is whatever a client sent.
const ANY: &str = "any";
const UNKNOWN: &str = "unknown";

/// Why an attempt was sent, as labels have it.
const REASONS: [&str; 6] = ["new", "recalled", "returned", "lost", "refused", "resumed"];
/// What a router decided, as labels have it.
const DECISIONS: [&str; 9] =
    ["run", "queue", "forward_preferred", "forward_room", "forward_turn", "refuse", "return", "abort", "drop"];

/// Microseconds.
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// The families that all nodes of a process share.
struct Families {
    decisions: Counters,
    batch: Histograms,
    queued: Histograms,
    attachments: Counters,
    deliveries: Counters,
    root: RootFamilies,
    status: Arc<Readings<Now>>,
}

struct RootFamilies {
    queries: Counters,
    attempts: Counters,
    tokens: Counters,
    waited: Histograms,
    first_token: Histograms,
    per_token: Histograms,
    whole: Histograms,
}

impl Families {
    fn make(section: &mut Section<'_>) -> Families {
        let status = Arc::new(Readings::new("node", READINGS));
        section.collector(Arc::clone(&status));
        Families {
            decisions: section.counters("node_decisions", "What the node's router decided about queries, by decision"),
            batch: section.histograms(
                "node_batch_size",
                "Sequences that ran together in a step that brought news",
                buckets::BATCH,
            ),
            queued: section.histograms(
                "node_queue_time_seconds",
                "How long queries that ran here waited in the node's queue",
                buckets::WAIT,
            ),
            attachments: section.counters("node_attachments", "How often the node attached to a parent"),
            deliveries: section
                .counters("node_delivery_streams", "Streams to the root that were opened, straight or relayed over parents"),
            root: RootFamilies {
                queries: section.counters("root_queries", "Queries that ended at this root, by model and outcome"),
                attempts: section.counters(
                    "root_attempts",
                    "Attempts that this root sent down, or had go on where a node held them, by reason",
                ),
                tokens: section.counters("root_output_tokens", "Tokens that this root passed on to clients"),
                waited: section.histograms(
                    "root_queue_time_seconds",
                    "From a query's acceptance until an engine began with it",
                    buckets::WAIT,
                ),
                first_token: section.histograms(
                    "root_time_to_first_token_seconds",
                    "From a query's acceptance until its first token",
                    buckets::WAIT,
                ),
                per_token: section.histograms(
                    "root_time_per_output_token_seconds",
                    "Of each complete answer: the time from its first token to its end, per token behind the first",
                    buckets::TOKEN,
                ),
                whole: section.histograms(
                    "root_query_duration_seconds",
                    "From acceptance until the end, of complete answers",
                    buckets::WHOLE,
                ),
            },
            status,
        }
    }
}

/// What one node's task counts with. Handles are at hand, so that counting looks nothing up.
pub(crate) struct Meters {
    families: Arc<Families>,
    node: String,
    decisions: [Counter; DECISIONS.len()],
    batch: Histogram,
    queued: Histogram,
    attachments: Counter,
    straight: Counter,
    relayed: Counter,
    /// At a root.
    root: Option<RootMeters>,
}

struct RootMeters {
    families: Arc<Families>,
    node: String,
    attempts: [Counter; REASONS.len()],
    tokens: Counter,
    models: HashMap<Arc<str>, ModelMeters>,
}

struct ModelMeters {
    outcomes: HashMap<&'static str, Counter>,
    waited: Histogram,
    first_token: Histogram,
    per_token: Histogram,
    whole: Histogram,
}

impl Meters {
    pub(crate) fn new(metrics: &Metrics, node: &NodeName) -> Meters {
        let families = metrics.shared(Families::make);
        let node = node.to_string();
        let own = || vec![("node", node.clone())];
        let with = |name, value: &str| vec![("node", node.clone()), (name, value.to_owned())];
        Meters {
            decisions: DECISIONS.map(|decision| families.decisions.get_or_create_owned(&with("decision", decision))),
            batch: families.batch.get_or_create_owned(&own()),
            queued: families.queued.get_or_create_owned(&own()),
            attachments: families.attachments.get_or_create_owned(&own()),
            straight: families.deliveries.get_or_create_owned(&with("way", "straight")),
            relayed: families.deliveries.get_or_create_owned(&with("way", "relayed")),
            root: None,
            families,
            node,
        }
    }

    /// The node is a root: what it counts is there from the first query on, so that none is missed.
    pub(crate) fn reigns(&mut self) {
        self.root();
    }

    /// The router decided.
    pub(crate) fn decided(&self, action: &Action) {
        let decision = match action {
            Action::Execute { .. } => 0,
            Action::Queue { .. } => 1,
            Action::Forward { choice: Choice::Preferred, .. } => 2,
            Action::Forward { choice: Choice::Room, .. } => 3,
            Action::Forward { choice: Choice::Turn, .. } => 4,
            Action::Refuse { .. } => 5,
            Action::Return { .. } => 6,
            Action::Abort { .. } => 7,
            Action::Drop { .. } => 8,
            Action::Judge { .. } | Action::Report { .. } => return,
        };
        self.decisions[decision].inc();
    }

    /// So many sequences ran in a step.
    pub(crate) fn stepped(&self, sequences: usize) {
        self.batch.observe(sequences as f64);
    }

    /// A query that runs now waited so long in the node's queue.
    pub(crate) fn left_queue(&self, after: Duration) {
        self.queued.observe(after.as_secs_f64());
    }

    pub(crate) fn attached(&self) {
        self.attachments.inc();
    }

    pub(crate) fn connected(&self, relayed: bool) {
        if relayed {
            self.relayed.inc()
        } else {
            self.straight.inc()
        };
    }

    /// The ledger sent an attempt, or adopted one.
    pub(crate) fn sent(&mut self, why: Why) {
        self.root().attempts[place(why)].inc();
    }

    /// Tokens were passed on.
    pub(crate) fn delivered(&mut self, tokens: u64) {
        self.root().tokens.inc_by(tokens);
    }

    /// A query ended. `served`: its model is, or was, one of the tree's.
    pub(crate) fn ended(&mut self, way: &Way, outcome: &'static str, served: bool) {
        let model = match &*way.model {
            "" => ANY,
            model if served => model,
            _ => UNKNOWN,
        };
        self.root().ended(way, outcome, model);
    }

    /// Made when the node is a root first.
    fn root(&mut self) -> &mut RootMeters {
        let (families, node) = (&self.families, &self.node);
        self.root.get_or_insert_with(|| RootMeters::new(Arc::clone(families), node))
    }
}

impl RootMeters {
    fn new(families: Arc<Families>, node: &str) -> RootMeters {
        let own = || ("node", node.to_owned());
        let attempts = &families.root.attempts;
        RootMeters {
            attempts: REASONS.map(|reason| attempts.get_or_create_owned(&vec![own(), ("reason", reason.to_owned())])),
            tokens: families.root.tokens.get_or_create_owned(&vec![own()]),
            models: HashMap::new(),
            node: node.to_owned(),
            families,
        }
    }

    fn ended(&mut self, way: &Way, outcome: &'static str, model: &str) {
        let has_place = self.models.len() < MODELS_MAX || self.models.contains_key(model);
        let model = if has_place { model } else { OTHER };
        let labels = || vec![("node", self.node.clone()), ("model", model.to_owned())];
        let families = &self.families.root;
        if !self.models.contains_key(model) {
            self.models.insert(model.into(), ModelMeters::new(families, &labels()));
        }
        let meters = self.models.get_mut(model).expect("it was put there above");
        let counter = meters
            .outcomes
            .entry(outcome)
            .or_insert_with(|| families.queries.get_or_create_owned(&[labels(), vec![("outcome", outcome.to_owned())]].concat()));
        counter.inc();
        if outcome == FINISHED {
            meters.finished(way);
        }
    }
}

impl ModelMeters {
    fn new(families: &RootFamilies, labels: &Labels) -> ModelMeters {
        ModelMeters {
            outcomes: HashMap::new(),
            waited: families.waited.get_or_create_owned(labels),
            first_token: families.first_token.get_or_create_owned(labels),
            per_token: families.per_token.get_or_create_owned(labels),
            whole: families.whole.get_or_create_owned(labels),
        }
    }

    fn finished(&self, way: &Way) {
        if let Some(began) = way.tries.iter().find_map(|one| one.started_us) {
            self.waited.observe(seconds(began));
        }
        let Some(ended) = way.ended_us else { return };
        self.whole.observe(seconds(ended));
        let Some(first) = way.first_token_us else { return };
        self.first_token.observe(seconds(first));
        if way.tokens > 1 {
            self.per_token.observe(seconds(ended.saturating_sub(first)) / f64::from(way.tokens - 1));
        }
    }
}

/// Why an attempt was sent, as labels and spans have it.
pub(crate) fn reason(why: Why) -> &'static str {
    REASONS[place(why)]
}

fn place(why: Why) -> usize {
    match why {
        Why::New => 0,
        Why::Recalled => 1,
        Why::Returned => 2,
        Why::Lost => 3,
        Why::Refused => 4,
        Why::Adopted => 5,
    }
}

/// Of a complete answer.
pub(crate) const FINISHED: &str = "finished";
/// Of one that its client gave up.
pub(crate) const CANCELLED: &str = "cancelled";

/// What a failure is called.
pub(crate) fn outcome(failure: &Failure) -> &'static str {
    match failure {
        Failure::Overloaded { .. } => "overloaded",
        Failure::Hopeless { .. } => "hopeless",
        Failure::UnknownModel { .. } => "unknown_model",
        Failure::NoPlace => "no_place",
        Failure::Unserved => "unserved",
        Failure::Deadline => "deadline",
        Failure::Poison => "poison",
        Failure::Broken => "broken",
        Failure::Abandoned => CANCELLED,
        Failure::Holder => "refused",
    }
}
