//! What was said of an answer, chunk by chunk, within a bound: a root keeps it for those who come back, a node for the root
//! that comes next.

use banyan_proto::v1;

/// What a chunk takes beside its text and ids, about.
const ENTRY_BYTES: usize = 48;

/// The last chunks of an answer, without a gap.
pub(super) struct Chunks {
    kept: Vec<v1::Tokens>,
    bytes: usize,
    bytes_max: usize,
    from: u32,
    position: u32,
}

impl Chunks {
    /// Of an answer whose first token here has that position. Beyond so many bytes all that was kept is let go.
    pub(super) fn new(position: u32, bytes_max: usize) -> Self {
        Chunks { kept: Vec::new(), bytes: 0, bytes_max, from: position, position }
    }

    /// The first position that is kept.
    pub(super) fn from(&self) -> u32 {
        self.from
    }

    /// Of the next token.
    pub(super) fn position(&self) -> u32 {
        self.position
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, tokens: &v1::Tokens) {
        self.position = behind(tokens);
        let bytes = self.bytes + tokens.chunk.len() + size_of_val(&tokens.ids[..]) + ENTRY_BYTES;
        if bytes > self.bytes_max {
            return self.cut();
        }
        self.bytes = bytes;
        self.kept.push(tokens.clone());
    }

    /// Lets go of all that was kept.
    pub(super) fn cut(&mut self) {
        (self.kept, self.bytes, self.from) = (Vec::new(), 0, self.position);
    }

    /// Whether one can go on from there: a chunk begins there, or the next one will.
    pub(super) fn begins_at(&self, position: u32) -> bool {
        position >= self.position || self.kept.iter().any(|tokens| tokens.position == position)
    }

    /// Those from a position on.
    pub(super) fn since(&self, position: u32) -> impl Iterator<Item = &v1::Tokens> {
        self.kept.iter().filter(move |tokens| tokens.position >= position)
    }
}

/// The position behind them.
pub(super) fn behind(tokens: &v1::Tokens) -> u32 {
    tokens.position.saturating_add(tokens.ids.len() as u32)
}
