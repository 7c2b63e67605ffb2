//! Figures that somebody has anyway, read when a scrape asks for them: they cost nothing while nobody looks.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// What a figure does over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A figure: its name, what it means, and how it is read.
pub struct Reading<T> {
    /// Behind the prefix, and before `_total`.
    name: &'static str,
    /// In a sentence.
    help: &'static str,
    /// What it does.
    kind: Kind,
    /// Reads it.
    read: fn(&T, &mut Say<'_>),
}

/// Takes further labels and a number.
pub type Say<'a> = dyn FnMut(&[(&str, &str)], f64) + 'a;

impl<T> Reading<T> {
    /// One that goes up and down.
    pub const fn gauge(name: &'static str, help: &'static str, read: fn(&T, &mut Say<'_>)) -> Self {
        Reading { name, help, kind: Kind::Gauge, read }
    }

    /// One that only grows; the text says `_total` behind the name.
    pub const fn counter(name: &'static str, help: &'static str, read: fn(&T, &mut Say<'_>)) -> Self {
        Reading { name, help, kind: Kind::Counter, read }
    }
}

/// How each of several parts stands, by name, and what is told of it.
pub struct Readings<T: 'static> {
    /// The label that has the part's name.
    label: &'static str,
    table: &'static [Reading<T>],
    now: Mutex<BTreeMap<String, T>>,
}

impl<T> Readings<T> {
    /// None yet.
    pub fn new(label: &'static str, table: &'static [Reading<T>]) -> Self {
        Readings { label, table, now: Mutex::default() }
    }

    /// A part stands like this.
    pub fn set(&self, part: &str, now: T) {
        self.now().insert(part.to_owned(), now);
    }

    /// A part is gone.
    pub fn forget(&self, part: &str) {
        self.now().remove(part);
    }

    fn now(&self) -> MutexGuard<'_, BTreeMap<String, T>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Readings<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readings").field("label", &self.label).finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Collector for Readings<T> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = self.now();
        for reading in self.table {
            let mut said = Vec::new();
            for (part, state) in now.iter() {
                (reading.read)(state, &mut |labels, value| {
                    let own = [(self.label, part.as_str())];
                    let labels: Vec<(String, String)> =
                        own.iter().chain(labels).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
                    said.push((labels, value));
                });
            }
            if said.is_empty() {
                continue;
            }
            let kind = match reading.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut family = encoder.encode_descriptor(reading.name, reading.help, None, kind)?;
            for (labels, value) in said {
                let metric = family.encode_family(&labels)?;
                match reading.kind {
                    Kind::Counter => ConstCounter::new(value).encode(metric)?,
                    Kind::Gauge => ConstGauge::new(value).encode(metric)?,
                }
            }
        }
        Ok(())
    }
}
