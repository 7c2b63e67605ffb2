//! What goes wrong, and what must happen then, with real processes and nothing to install: docs/reliability.md has the list.
//!
//! Every scenario ends with the tree whole again: connected and without circles, the registry's names those of the living,
//! gauges and queues at zero, descriptors and memory back at what they were.

mod clients;
mod deaths;
mod every_token;
mod links;
mod load;
mod names;

use std::time::Duration;

use banyan_tests::history::{Story, check};

/// An orphan has another parent in 5 s, of which 4 s are time-outs; a machine that is busy with other tests gets some more.
const ORPHANED_MAX: Duration = Duration::from_secs(10);

/// That every story ended as it has to.
fn assert_told_well(stories: &[Story]) {
    let verdict = check(stories, Duration::from_secs(120));
    assert!(verdict.complaints.is_empty(), "{verdict:#?}");
}
