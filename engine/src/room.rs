//! How much KV an engine has room for: pages, and the context that it can serve with them.

use crate::kv::PAGE_TOKENS;

/// What a sequence must be able to have for an engine to be of any use, where the model's context is longer: a question and
/// its answer.
const CONTEXT_MIN: u32 = 512;
/// Of the available memory, what all engines of a process take for KV unless they are told: weights, activations and
/// everything else that runs here want some too.
const SHARE: u64 = 4;

/// The KV memory is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the KV memory holds {tokens} tokens in {} MB, and a sequence of {wanted} needs {} MB: set --kv-memory to that at least, \
     or free memory",
    megabytes(*.bytes),
    megabytes(*.bytes_wanted)
)]
pub struct KvMemory {
    /// Tokens that would fit.
    pub tokens: u64,
    /// Into these bytes.
    pub bytes: u64,
    /// Tokens that must fit: of one sequence, as long as it may be expected to get.
    pub wanted: u32,
    /// These bytes.
    pub bytes_wanted: u64,
}

fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// What an engine has for KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) pages: u32,
    /// Tokens that a sequence can have: the model's context, or less where that does not fit.
    pub(crate) context: u32,
}

/// The least KV memory that is of any use, in bytes.
pub(crate) fn least_bytes(context: u32, page_bytes: u64) -> u64 {
    u64::from(context.min(CONTEXT_MIN).div_ceil(PAGE_TOKENS)) * page_bytes
}

/// Divides the memory into pages. `budget`: in bytes; `None`: whole contexts for `batch_max` sequences as far as this engine's
/// part goes, being one of `engines`, of a quarter of what is `available`.
pub(crate) fn room(
    context: u32,
    page_bytes: u64,
    batch_max: u32,
    budget: Option<u64>,
    engines: usize,
    available: Option<u64>,
) -> Result<Room, KvMemory> {
    let of = |tokens: u32| u64::from(tokens).div_ceil(u64::from(PAGE_TOKENS));
    let wanted = context.min(CONTEXT_MIN);
    let page_bytes = page_bytes.max(1);
    let share = |part: u64| available.map_or(u64::MAX, |bytes| bytes / part / engines.max(1) as u64 / page_bytes);
    let pages = match budget {
        Some(bytes) => bytes / page_bytes,
        None => {
            let everybody = of(context).saturating_mul(u64::from(batch_max));
            // A small machine gives more than a quarter rather than nothing at all.
            everybody.min(share(SHARE).max(of(wanted).min(share(1))))
        }
    };
    if pages < of(wanted) {
        let (tokens, bytes) = (pages * u64::from(PAGE_TOKENS), budget.unwrap_or(pages * page_bytes));
        return Err(KvMemory { tokens, bytes, wanted, bytes_wanted: of(wanted) * page_bytes });
    }
    let pages = u32::try_from(pages).unwrap_or(u32::MAX);
    Ok(Room { pages, context: context.min(pages.saturating_mul(PAGE_TOKENS)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: u32 = 100_000;
    const PAGE: u64 = 2048;

    fn tokens(count: u64) -> u64 {
        count / u64::from(PAGE_TOKENS) * PAGE
    }

    #[test]
    fn a_budget_smaller_than_a_context_serves_a_shorter_one() {
        let room = room(CONTEXT, PAGE, 8, Some(tokens(2000)), 1, None).unwrap();
        assert_eq!(room, Room { pages: 125, context: 2000 });
    }

    #[test]
    fn a_budget_that_is_too_small_says_what_would_do() {
        let error = room(CONTEXT, PAGE, 8, Some(tokens(496)), 1, None).unwrap_err();
        assert_eq!(error, KvMemory { tokens: 496, bytes: tokens(496), wanted: 512, bytes_wanted: tokens(512) });
        assert!(room(100, PAGE, 8, Some(tokens(112)), 1, None).is_ok());
        assert!(room(100, PAGE, 8, Some(tokens(96)), 1, None).is_err());
    }

    #[test]
    fn engines_divide_a_quarter_of_the_memory_and_take_no_more_than_they_can_use() {
        assert_eq!(room(1024, PAGE, 4, None, 1, None).unwrap().pages, 256);
        let available = Some(tokens(4 * 3 * 1600));
        assert_eq!(room(1024, PAGE, 4, None, 3, available).unwrap(), Room { pages: 100, context: 1024 });
        // A quarter is too little: then what it takes, as long as it is there.
        assert_eq!(room(1024, PAGE, 4, None, 1, Some(tokens(1024))).unwrap(), Room { pages: 32, context: 512 });
        assert!(room(1024, PAGE, 4, None, 3, Some(tokens(1024))).is_err());
    }
}
