//! What goes wrong, and what must happen then, with parts that others made: three etcd members, network namespaces, a clock
//! that jumps, a small disk; and random harm under load. docs/reliability.md has the list; `./test --all` installs the parts.
//!
//! With `BANYAN_TEST_LONG` set to a number of minutes, as `./test --long` does, outages last as long as the list says, and the
//! random harm that many minutes.

mod clock;
mod disk;
mod nemesis;
mod network;
mod registry;

use std::time::Duration;

use banyan_tests::history::{Story, check};

/// An orphan has another parent in 5 s, of which 4 s are time-outs; a machine that is busy with other tests gets some more.
const ORPHANED_MAX: Duration = Duration::from_secs(10);

/// That every story ended as it has to.
fn assert_told_well(stories: &[Story]) {
    let verdict = check(stories, Duration::from_secs(120));
    assert!(verdict.complaints.is_empty(), "{verdict:#?}");
}

/// For how long `./test --long` wants to see random harm.
fn long() -> Option<Duration> {
    let minutes = std::env::var("BANYAN_TEST_LONG").ok()?;
    let minutes: u64 = minutes.parse().unwrap_or_else(|_| panic!("BANYAN_TEST_LONG={minutes} is no number of minutes"));
    Some(Duration::from_secs(60 * minutes))
}
