//! What a world counted, and what it means.

use std::collections::BTreeMap;

use super::client::Client;

/// Counts of one world.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Events of the simulation.
    pub events: u64,
    /// Inputs that nodes handled.
    pub handled: u64,
    /// Messages on links, and ends of links.
    pub messages: u64,
    /// Tokens that clients read.
    pub tokens: u64,
    /// Questions.
    pub asked: u64,
    /// Answers.
    pub answered: u64,
    /// Clients that went away.
    pub left: u64,
    /// Clear errors, by their reason's name on the wire.
    pub failed: BTreeMap<&'static str, u64>,
    /// Queries that had more than one attempt.
    pub again: u64,
    /// The longest way of a query, in nodes.
    pub hops: u32,
    /// Links to parents that were made.
    pub attachments: u64,
    /// Nodes that were killed.
    pub kills: u64,
    /// Roots that were killed.
    pub failovers: u64,
    /// Links and networks that were cut.
    pub cuts: u64,
    /// Nodes that were told to leave.
    pub drains: u64,
    /// Nodes that were moved.
    pub moves: u64,
    /// From question to first token, in nanoseconds, of those that were answered.
    pub first_token: Vec<u64>,
}

impl Figures {
    pub(super) fn ended(&mut self, client: &Client) {
        self.hops = self.hops.max(client.hops);
        self.again += u64::from(client.attempts > 1);
        match client.failed {
            Some(reason) => *self.failed.entry(reason.as_str_name()).or_default() += 1,
            None => {
                self.answered += 1;
                self.first_token.push(client.first_at.unwrap_or(client.asked_at) - client.asked_at);
            }
        }
    }

    /// Clear errors of all kinds.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Messages for each question.
    pub fn messages_per_query(&self) -> f64 {
        self.messages as f64 / self.asked.max(1) as f64
    }
}

/// A distribution's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// How many there are.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Half are no greater.
    pub p50: f64,
    /// 90 % are no greater.
    pub p90: f64,
    /// 99 % are no greater.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Summary {
    /// Of these.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Summary {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let Some(&max) = values.last() else { return Summary::default() };
        // The nearest rank.
        let at = |share: f64| values[((share * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Summary { count: values.len(), mean, p50: at(0.5), p90: at(0.9), p99: at(0.99), max }
    }
}
