//! A profile as people read it: each part's time beside the least that it could take on this machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::median;
use crate::Model;
use crate::limits::Limits;
use crate::profile::{Arithmetic, Part, Shape, Steps};

/// Where the time of a step, or of a whole prompt, goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Breakdown {
    /// The whole pass and what lies between two, in milliseconds.
    pub ms: f64,
    /// The least that it could take: all bytes once from memory, or all arithmetic, whichever is longer. In milliseconds;
    /// none where no limits were measured.
    pub limit_ms: Option<f64>,
    /// The parts, the longest first.
    pub parts: Vec<Spent>,
}

/// What one part takes and needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// A product's tensor, or what else is done.
    pub part: String,
    /// In the step, or the prompt.
    pub calls: f64,
    /// Of all calls together.
    pub ms: f64,
    /// Read or written, each once.
    pub bytes: f64,
    /// Multiplications and additions.
    pub operations: f64,
    /// By the roofline: bytes by the memory's limit, or operations by the processor's, whichever is longer. In milliseconds.
    pub limit_ms: Option<f64>,
}

/// Sums of one part.
#[derive(Default)]
struct Sum {
    calls: f64,
    seconds: f64,
    bytes: f64,
    operations: f64,
    arithmetic: Arithmetic,
}

impl Breakdown {
    /// Of what makes up one unit (a step, a prompt), of which `units` were profiled; `None` where nothing was.
    pub(super) fn new(steps: &BTreeMap<Shape, Steps>, units: f64, model: &Model, limits: Option<&Limits>) -> Option<Breakdown> {
        let mut sums: BTreeMap<Part, Sum> = BTreeMap::new();
        for steps in steps.values() {
            for (part, noted) in &steps.parts {
                // Medians, because the machine may take a core away for one step.
                let each = noted.seconds.len() as f64 / units;
                let sum = sums.entry(*part).or_default();
                sum.calls += f64::from(noted.calls) * each;
                sum.seconds += median(noted.seconds.clone()) * each;
                sum.bytes += noted.bytes as f64 / units;
                sum.operations += noted.operations as f64 / units;
                sum.arithmetic = noted.arithmetic;
            }
        }
        if sums.is_empty() {
            return None;
        }
        let limit_ms = limits.map(|limits| {
            let bytes: f64 = sums.values().map(|sum| sum.bytes).sum();
            let arithmetic: f64 = sums.values().map(|sum| limits.arithmetic_s(sum.operations, sum.arithmetic)).sum();
            limits.memory_s(bytes).max(arithmetic) * 1e3
        });
        let spent = |(part, sum): (&Part, &Sum)| Spent {
            part: name(*part, model),
            calls: sum.calls,
            ms: sum.seconds * 1e3,
            bytes: sum.bytes,
            operations: sum.operations,
            limit_ms: limits
                .filter(|_| sum.bytes > 0.0)
                .map(|limits| limits.memory_s(sum.bytes).max(limits.arithmetic_s(sum.operations, sum.arithmetic)) * 1e3),
        };
        let mut parts: Vec<Spent> = sums.iter().map(spent).collect();
        parts.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        Some(Breakdown { ms: parts.iter().map(|part| part.ms).sum(), limit_ms, parts })
    }
}

fn name(part: Part, model: &Model) -> String {
    match part {
        Part::Product { inputs, columns } => match model.product(inputs, columns) {
            Some(name) => format!("{name} {inputs}×{columns}"),
            None => format!("product {inputs}×{columns}"),
        },
        Part::Attention => "attention".to_owned(),
        Part::Norm => "norms".to_owned(),
        Part::Turn => "rotary positions".to_owned(),
        Part::SwiGlu => "SwiGLU".to_owned(),
        Part::Sampling => "sampling".to_owned(),
        Part::Rest => "the rest of the pass".to_owned(),
        Part::Between => "scheduling, texts".to_owned(),
    }
}
