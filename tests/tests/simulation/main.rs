//! Production's routing, ledger and node task under virtual time: ten thousand nodes, and many small worlds in which
//! everything goes wrong. A world that breaks a promise says its seed; `BANYAN_TEST_SEED=N` plays it again, and
//! `BANYAN_TEST_LONG=M`, as `./test --long` sets it, goes on with new ones for so many minutes.

mod determinism;
mod large;
mod small;

use banyan_engine::fake;
use std::time::Duration;

/// An engine that batches so many, with steps of so many milliseconds.
fn engine(model: &str, batch_max: u32, step_ms: u64) -> fake::Options {
    fake::Options {
        model: model.to_owned(),
        batch_max,
        token_time: Duration::from_millis(step_ms),
        prefill_time: Duration::from_micros(100),
        context: 512,
        speculate: false,
        ..fake::Options::default()
    }
}
