//! How many threads this process may run at once.

use std::num::NonZero;
use std::thread;

/// Threads that this process may run at once: cores, less what affinity and cgroups take away.
pub fn available() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}
