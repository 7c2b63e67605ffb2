//! What is read of a node when somebody scrapes: its status, as `node tree` has it, under the names that operators see.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    time::{SystemTime, UNIX_EPOCH},
};

use banyan_observe::{Metrics, Reading, Say};
use banyan_proto::{VERSION, v1};

use super::Families;
use crate::inspect::Inspector;

/// How a node stands when somebody scrapes, and what it knows of the registry.
pub(super) struct Now {
    status: v1::NodeStatus,
    registry_live: bool,
    members: usize,
}

/// Asks a node how it stands whenever somebody scrapes.
pub(crate) fn read_when_asked(metrics: &Metrics, inspector: &Arc<Inspector>) {
    let readings = Arc::clone(&metrics.shared(Families::make).status);
    let (name, inspector) = (inspector.facts.name.to_string(), Arc::downgrade(inspector));
    metrics.ask(move || {
        let Some(inspector) = Weak::upgrade(&inspector) else {
            readings.forget(&name);
            return None;
        };
        let (readings, name) = (Arc::clone(&readings), name.clone());
        Some(async move {
            match inspector.status("").await {
                Ok(status) => {
                    let (registry_live, members) = {
                        let view = inspector.view.borrow();
                        (view.live, view.members.len())
                    };
                    readings.set(&name, Now { status, registry_live, members });
                }
                // It has stopped.
                Err(_) => readings.forget(&name),
            }
        })
    });
}

const STATES: [&str; 5] = ["ready", "busy", "draining", "detached", "standby"];

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

pub(super) static READINGS: &[Reading<Now>] = &[
    Reading::gauge("node_info", "What the node is; always 1", |now, say| {
        let status = &now.status;
        say(&[("tree", &status.tree), ("role", &status.role), ("version", VERSION), ("device", &status.device)], 1.0);
    }),
    Reading::gauge("node_state", "1 for the state that the node is in", |now, say| {
        STATES.iter().for_each(|state| say(&[("state", state)], flag(now.status.state == *state)));
    }),
    Reading::gauge("node_start_time_seconds", "When the node started, as Unix time", |now, say| {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        say(&[], at.as_secs_f64() - now.status.uptime_ms as f64 / 1e3);
    }),
    Reading::gauge("node_epoch", "The number of the root's reign that the node knows; 0 while it knows none", |now, say| {
        say(&[], now.status.epoch as f64);
    }),
    Reading::gauge("node_registered", "Whether the node has its name in the registry", |now, say| {
        say(&[], flag(now.status.registered))
    }),
    Reading::gauge("registry_connected", "Whether the node hears of the registry's changes", |now, say| {
        say(&[], flag(now.registry_live))
    }),
    Reading::gauge("registry_members", "Nodes that the registry held when it was last heard", |now, say| {
        say(&[], now.members as f64)
    }),
    Reading::gauge(
        "node_relayed",
        "Whether the node's answers go over its parents, as the straight way to the root is cut",
        |now, say| {
            say(&[], flag(!now.status.delivers_through.is_empty()));
        },
    ),
    Reading::gauge("node_running_sequences", "Sequences in the node's engine", |now, say| say(&[], now.status.running.into())),
    Reading::gauge("node_queued_queries", "Queries in the node's queue", |now, say| say(&[], now.status.queued.into())),
    Reading::gauge("node_busy_at", "Sequences at which the node passes queries on", |now, say| {
        say(&[], now.status.busy_at.into())
    }),
    Reading::gauge("node_batch_max", "Sequences that the node runs together at most", |now, say| {
        say(&[], now.status.batch_max.into())
    }),
    Reading::gauge("node_room", "Sequences that would start at once in the node's whole subtree", |now, say| {
        say(&[], now.status.room.into());
    }),
    Reading::gauge(
        "node_children",
        "Children, by how their parent treats them: open, slow (fewer turns), shut (failed too often)",
        |now, say| {
            let children = &now.status.children;
            let shut = children.iter().filter(|child| child.shut_ms > 0).count();
            let slow = children.iter().filter(|child| child.shut_ms == 0 && child.one_in > 1).count();
            say(&[("state", "open")], (children.len() - shut - slow) as f64);
            say(&[("state", "slow")], slow as f64);
            say(&[("state", "shut")], shut as f64);
        },
    ),
    Reading::counter("node_output_tokens", "Tokens that the node's engine generated", |now, say| {
        say(&[], now.status.tokens as f64)
    }),
    Reading::gauge("root_live_queries", "Queries that this root has not ended yet", |now, say| {
        if now.status.role == "root" {
            say(&[], now.status.live.into());
        }
    }),
    Reading::gauge("root_waiting_queries", "Queries that wait in this root's lanes", |now, say| {
        if now.status.role == "root" {
            say(&[], now.status.waiting.into());
        }
    }),
    Reading::gauge(
        "node_kv_pages",
        "Pages of the engine's KV memory, of 16 tokens: held by sequences, cached for others to reuse, or free",
        |now, say| {
            if let Some(kv) = &now.status.kv {
                say(&[("state", "held")], kv.pages_held.into());
                say(&[("state", "cached")], kv.pages_cached.into());
                say(&[("state", "free")], kv.pages.saturating_sub(kv.pages_held + kv.pages_cached).into());
            }
        },
    ),
    Reading::counter("node_kv_evictions", "Cached pages that had to make room", |now, say| {
        now.status.kv.iter().for_each(|kv| say(&[], kv.pages_evicted as f64));
    }),
    Reading::counter("node_prefix_tokens_looked_up", "Tokens that sequences came with", |now, say| {
        now.status.kv.iter().for_each(|kv| say(&[], kv.tokens_looked_up as f64));
    }),
    Reading::counter("node_prefix_tokens_reused", "Of these, tokens whose KV was there already", |now, say| {
        now.status.kv.iter().for_each(|kv| say(&[], kv.tokens_reused as f64));
    }),
    Reading::counter("node_preemptions", "How often a sequence gave its pages to an older one", |now, say| {
        now.status.kv.iter().for_each(|kv| say(&[], kv.preemptions as f64));
    }),
    Reading::counter("node_draft_tokens", "Tokens that were guessed", |now, say| {
        now.status.kv.iter().for_each(|kv| say(&[], kv.tokens_drafted as f64));
    }),
    Reading::counter("node_draft_tokens_accepted", "Of these, tokens that were right", |now, say| {
        now.status.kv.iter().for_each(|kv| say(&[], kv.tokens_accepted as f64));
    }),
    Reading::gauge("provider_calls", "Calls to an upstream service that are under way", |now, say| {
        by_upstream(now, |accounts| accounts.map(|account| f64::from(account.running)).sum(), say);
    }),
    Reading::gauge("provider_keys", "Keys that a provider spends from", |now, say| {
        by_upstream(now, |accounts| accounts.count() as f64, say);
    }),
    Reading::gauge("provider_keys_cooling", "Of these, keys that are left alone for a while after a failure", |now, say| {
        by_upstream(now, |accounts| accounts.filter(|account| account.cooling_ms > 0).count() as f64, say);
    }),
];

/// Upstreams are those of the operator's own file; keys are not told apart.
fn by_upstream(now: &Now, of: fn(&mut dyn Iterator<Item = &v1::Account>) -> f64, say: &mut Say<'_>) {
    let upstreams: BTreeSet<&str> = now.status.accounts.iter().map(|account| account.upstream.as_str()).collect();
    for upstream in upstreams {
        let mut accounts = now.status.accounts.iter().filter(|account| account.upstream == upstream);
        say(&[("upstream", upstream)], of(&mut accounts));
    }
}
