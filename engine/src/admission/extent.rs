//! How much text may fit into the context, told by its length alone: what can't is refused before anybody reads it.

use super::room;
use crate::{Message, Refusal};

/// Where a vocabulary gives no bound: no text that anybody wrote has tokens that long.
const TOKEN_BYTES: usize = 1024;
/// Templates leave out spaces, and the thoughts of earlier turns; none leaves out more than seven bytes of eight.
const LEFT_OUT: usize = 8;

/// The room that a request's text has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    context: u32,
    max_tokens: Option<u32>,
    token_bytes: usize,
}

impl Extent {
    /// `token_bytes`: no token stands for more bytes of text; `None` where that is unknown.
    pub(crate) fn new(context: u32, token_bytes: Option<usize>, max_tokens: Option<u32>) -> Extent {
        Extent { context, max_tokens, token_bytes: token_bytes.unwrap_or(TOKEN_BYTES).max(1) }
    }

    /// A longer text can't fit, whatever it says.
    pub(crate) fn bytes_max(&self) -> usize {
        let tokens = self.context.saturating_sub(self.max_tokens.unwrap_or(1)) as usize;
        tokens.saturating_mul(self.token_bytes)
    }

    /// Refuses a text of so many bytes if it can't fit: with the least number of tokens that it can have.
    pub(crate) fn check_text(&self, bytes: usize) -> Result<(), Refusal> {
        room(self.context, bytes.div_ceil(self.token_bytes), self.max_tokens).map(|_| ())
    }

    /// The same for a conversation that is not rendered yet: by what its template leaves at the least.
    pub(crate) fn check_chat(&self, messages: &[Message]) -> Result<(), Refusal> {
        let bytes: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        self.check_text(bytes / LEFT_OUT)
    }

    /// A rendering that was given up when it passed [`Extent::bytes_max`].
    pub(crate) fn too_long(&self) -> Refusal {
        match self.check_text(self.bytes_max().saturating_add(1)) {
            Err(refusal) => refusal,
            // Only a context that no memory could hold gets here.
            Ok(()) => Refusal::TooLong { limit: self.context, got: u32::MAX },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_can_not_fit_is_refused_with_the_least_number_of_tokens_it_can_have() {
        let extent = Extent::new(100, Some(8), None);
        assert_eq!(extent.bytes_max(), 99 * 8);
        assert_eq!(extent.check_text(99 * 8), Ok(()));
        assert_eq!(extent.check_text(99 * 8 + 1), Err(Refusal::TooLong { limit: 100, got: 101 }));
        assert_eq!(extent.check_text(8000), Err(Refusal::TooLong { limit: 100, got: 1001 }));
        assert_eq!(extent.too_long(), Refusal::TooLong { limit: 100, got: 101 });
    }

    #[test]
    fn what_is_asked_for_the_answer_is_taken_from_the_room() {
        let extent = Extent::new(100, Some(8), Some(60));
        assert_eq!(extent.check_text(320), Ok(()));
        assert_eq!(extent.check_text(321), Err(Refusal::TooLong { limit: 100, got: 101 }));
        assert_eq!(Extent::new(100, Some(8), Some(u32::MAX)).bytes_max(), 0);
    }

    #[test]
    fn a_conversation_may_lose_seven_eighths_to_its_template() {
        let extent = Extent::new(10, Some(1), None);
        let chat = |bytes: usize| [Message { role: String::new(), content: "x".repeat(bytes) }];
        assert_eq!(extent.check_chat(&chat(9 * 8 + 7)), Ok(()));
        assert_eq!(extent.check_chat(&chat(10 * 8)), Err(Refusal::TooLong { limit: 10, got: 11 }));
    }
}
