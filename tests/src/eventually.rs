//! Waiting for facts.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Far above what anything here takes, so that only a fault gets there, on a loaded machine as well.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until there is something to see, and gives it back.
///
/// # Panics
/// After [`PATIENCE`], with what was waited for.
pub async fn eventually<T, F, W>(what: &str, mut look: F) -> T
where
    F: FnMut() -> W,
    W: Future<Output = Option<T>>,
{
    within(PATIENCE, &mut look).await.unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain: {what}"))
}

/// Looks again and again until there is something to see, or for so long in vain.
pub async fn within<T, F, W>(patience: Duration, mut look: F) -> Option<T>
where
    F: FnMut() -> W,
    W: Future<Output = Option<T>>,
{
    let begun = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return Some(seen);
        }
        if begun.elapsed() >= patience {
            return None;
        }
        sleep(Duration::from_millis(10)).await;
    }
}
