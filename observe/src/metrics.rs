//! One process's metrics: families that are made once, sources that are asked when somebody scrapes, and the text of it all.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use prometheus_client::{
    collector::Collector,
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        histogram::Histogram,
    },
    registry::Registry,
};

use crate::process::Process;

/// What [`Metrics::text`] is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// In front of all names but the process's own, which Prometheus's conventions name.
const PREFIX: &str = "banyan";

/// How long a part of the process may take to say how it stands; then the scrape goes without it, and shows what it said last.
const PATIENCE: Duration = Duration::from_secs(2);

/// Names and values. Values are of sets that are bounded: names of nodes and models, outcomes, reasons; never an id, a key or a text.
pub type Labels = Vec<(&'static str, String)>;
/// Counters of one name.
pub type Counters = Family<Labels, Counter>;
/// Histograms of one name.
pub type Histograms = Family<Labels, Histogram, Buckets>;

/// Upper bounds of histograms' buckets.
pub mod buckets {
    /// Of waits and first tokens, in seconds: from what a loopback takes up to the deadline that queries have by default.
    pub const WAIT: &[f64] =
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0];
    /// Of single tokens, in seconds: from a provider's bursts to a large model on an old machine.
    pub const TOKEN: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5];
    /// Of whole answers, in seconds.
    pub const WHOLE: &[f64] = &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 600.0];
    /// Of sequences that run together.
    pub const BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
}

/// Makes histograms.
#[derive(Clone, Copy, Debug)]
pub struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Asked when somebody scrapes: what brings its readings up to date, or nothing when it is gone.
type Source = Box<dyn Fn() -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> + Send + Sync>;

/// The metrics of a process. Clones are the same ones.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    families: Mutex<Families>,
    sources: Mutex<Vec<Source>>,
}

struct Families {
    registry: Registry,
    /// What was made, by its type.
    made: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

impl Default for Inner {
    fn default() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process::default()));
        Inner { families: Mutex::new(Families { registry, made: HashMap::new() }), sources: Mutex::default() }
    }
}

impl Metrics {
    /// The families that `T` holds, made when they are asked for first: parts of a process that are alike share them, and differ by labels.
    pub fn shared<T: Send + Sync + 'static>(&self, make: impl FnOnce(&mut Section<'_>) -> T) -> Arc<T> {
        let mut families = lock(&self.0.families);
        let Families { registry, made } = &mut *families;
        let made = made.entry(TypeId::of::<T>()).or_insert_with(|| {
            let registry = registry.sub_registry_with_prefix(PREFIX);
            Arc::new(make(&mut Section { registry }))
        });
        Arc::clone(made).downcast().expect("what is kept under a type is of that type")
    }

    /// Asks whenever somebody scrapes, until there is nothing more to ask.
    pub fn ask<F>(&self, source: impl Fn() -> Option<F> + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let boxed = move || source().map(|asked| Box::pin(asked) as Pin<Box<dyn Future<Output = ()> + Send>>);
        lock(&self.0.sources).push(Box::new(boxed));
    }

    /// Everything, as [`CONTENT_TYPE`] says.
    pub async fn text(&self) -> String {
        let mut asked = Vec::new();
        lock(&self.0.sources).retain(|source| match source() {
            Some(question) => {
                asked.push(tokio::time::timeout(PATIENCE, question));
                true
            }
            None => false,
        });
        join_all(asked).await;
        let mut text = String::new();
        encode(&mut text, &lock(&self.0.families).registry).expect("a text takes everything");
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Where families are made.
pub struct Section<'a> {
    registry: &'a mut Registry,
}

impl Section<'_> {
    /// Counters; the text says `_total` behind the name.
    pub fn counters(&mut self, name: &str, help: &str) -> Counters {
        let family = Counters::default();
        self.registry.register(name, help, family.clone());
        family
    }

    /// Histograms.
    pub fn histograms(&mut self, name: &str, help: &str, buckets: &'static [f64]) -> Histograms {
        let family = Histograms::new_with_constructor(Buckets(buckets));
        self.registry.register(name, help, family.clone());
        family
    }

    /// What is read when somebody scrapes.
    pub fn collector(&mut self, collector: impl Collector) {
        self.registry.register_collector(Box::new(collector));
    }
}

/// Every change under these locks is one call, so a panic elsewhere can't have left it half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Some {
        seen: Counters,
        took: Histograms,
    }

    fn some(section: &mut Section<'_>) -> Some {
        Some {
            seen: section.counters("seen", "What was seen"),
            took: section.histograms("took_seconds", "How long it took", buckets::TOKEN),
        }
    }

    #[tokio::test]
    async fn parts_that_are_alike_share_a_family_and_the_text_ends_as_openmetrics_does() {
        let metrics = Metrics::default();
        for node in ["a", "b"] {
            let some = metrics.shared(some);
            some.seen.get_or_create(&vec![("node", node.to_owned())]).inc();
            some.took.get_or_create(&vec![("node", node.to_owned())]).observe(0.004);
        }
        let text = metrics.text().await;
        assert_eq!(text.matches("# TYPE banyan_seen counter").count(), 1, "{text}");
        for line in ["banyan_seen_total{node=\"a\"} 1", "banyan_seen_total{node=\"b\"} 1"] {
            assert!(text.contains(line), "{line} is missing in: {text}");
        }
        assert!(text.contains("banyan_took_seconds_bucket{le=\"0.005\",node=\"a\"} 1"), "{text}");
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[tokio::test]
    async fn who_is_gone_is_asked_no_more() {
        let metrics = Metrics::default();
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        metrics.ask(move || {
            let before = count.fetch_add(1, Ordering::Relaxed);
            (before < 2).then_some(std::future::ready(()))
        });
        for _ in 0..5 {
            assert!(metrics.text().await.contains("# EOF"));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }
}
