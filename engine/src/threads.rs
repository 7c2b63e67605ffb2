//! How many threads an engine gets.

use std::num::NonZero;
use std::thread;

/// Threads that this process may run at once: cores, less what affinity and cgroups take away.
pub fn available() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// The share of one of several engines in a process: together they use the cores once, and each has at least one.
/// `index` counts from 0; the first ones get what does not divide evenly.
pub fn share(index: usize, engines: usize) -> usize {
    divide(available(), index, engines)
}

fn divide(cores: usize, index: usize, engines: usize) -> usize {
    let engines = engines.max(1);
    (cores / engines + usize::from(index < cores % engines)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_divide_the_cores_and_each_has_one() {
        assert_eq!([divide(5, 0, 2), divide(5, 1, 2)], [3, 2]);
        assert_eq!([divide(2, 0, 3), divide(2, 1, 3), divide(2, 2, 3)], [1, 1, 1]);
        assert_eq!(divide(4, 0, 0), 4);
    }
}
