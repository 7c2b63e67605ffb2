//! A sequence as the scheduler sees it: its tokens, how many of them are computed, and the pages that hold their KV.

use crate::SequenceId;
use crate::draft::Drafter;
use crate::pages::Pages;

/// Waiting (it holds no pages), or running.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Prompt and answer so far.
    pub(super) tokens: Vec<u32>,
    /// Tokens that it can grow to.
    tokens_max: usize,
    /// It takes nothing from the cache.
    whole: bool,
    /// Tokens whose KV stands in the pages, once the steps that were planned are through.
    pub(super) computed: usize,
    /// Position `p` is in number `p / page_tokens`.
    pub(super) pages: Vec<u32>,
    /// How many of its pages others can find: these are full, and written no more.
    remembered: usize,
    /// Tokens that it found computed when it came first.
    pub(super) cached: u32,
    /// It ran before, and gave its pages to an older one.
    pub(super) preempted: bool,
    drafter: Drafter,
    /// Tokens of the draft that is being checked.
    drafted: usize,
    page_tokens: usize,
}

impl Sequence {
    pub(super) fn new(id: SequenceId, tokens: Vec<u32>, tokens_max: u32, whole: bool, page_tokens: u32) -> Sequence {
        Sequence {
            id,
            whole,
            tokens_max: (tokens_max as usize).max(tokens.len()),
            tokens,
            computed: 0,
            pages: Vec::new(),
            remembered: 0,
            cached: 0,
            preempted: false,
            drafter: Drafter::new(),
            drafted: 0,
            page_tokens: page_tokens as usize,
        }
    }

    /// Tokens that no plan has taken yet.
    pub(super) fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Pages for its tokens so far.
    pub(super) fn pages_now(&self) -> usize {
        self.tokens.len().div_ceil(self.page_tokens)
    }

    /// Pages that it can grow to.
    pub(super) fn pages_max(&self) -> usize {
        self.tokens_max.div_ceil(self.page_tokens)
    }

    /// Whether its tokens want a page that it does not have.
    pub(super) fn lacks_page(&self) -> bool {
        self.pages.len() < self.pages_now()
    }

    /// Of its tokens from the first on, the cached pages that hold them: full ones, and never all, because the last token's
    /// logits have to be computed.
    pub(super) fn found<'a>(&'a self, pages: &'a Pages) -> impl Iterator<Item = u32> + 'a {
        let mut before = None;
        let wanted = if self.whole { 0 } else { self.tokens.len() - 1 };
        self.tokens[..wanted].chunks_exact(self.page_tokens).map_while(move |tokens| {
            before = pages.find(before, tokens);
            before
        })
    }

    /// Goes on behind tokens that were drawn; how many of them were guessed, and how many of the guesses were right.
    pub(super) fn draw(&mut self, tokens: Vec<u32>) -> (usize, usize) {
        let (drafted, accepted) = (std::mem::take(&mut self.drafted), tokens.len().saturating_sub(1));
        self.drafter.learn(drafted, accepted);
        self.tokens.extend(tokens);
        self.computed = self.tokens.len() - 1;
        (drafted, accepted)
    }

    /// Guesses at most so many of the tokens that follow, within what it can grow to; `spare` pages more can be had for them.
    pub(super) fn draft(&mut self, most: usize, pages: &mut Pages, spare: usize) -> Vec<u32> {
        self.drafter.index(&self.tokens);
        // The last token that it can grow to is drawn, and never goes through the model.
        let room = (self.tokens_max - self.tokens.len()).saturating_sub(1);
        let held = (self.pages.len() + spare) * self.page_tokens - self.tokens.len();
        let draft = self.drafter.propose(&self.tokens, most.min(room).min(held));
        while self.pages.len() * self.page_tokens < self.tokens.len() + draft.len() {
            self.pages.push(pages.take().expect("spare pages can be had"));
        }
        self.drafted = draft.len();
        draft
    }

    /// Takes from the cache what it would compute next; for how many tokens.
    pub(super) fn reuse(&mut self, pages: &mut Pages) -> usize {
        let start = self.computed;
        // A page that is begun is finished.
        while !self.whole && self.computed == self.remembered * self.page_tokens && self.left() > self.page_tokens {
            let tokens = &self.tokens[self.computed..self.computed + self.page_tokens];
            let Some(page) = pages.find(self.last_remembered(), tokens) else { break };
            pages.hold(page);
            match self.pages.get_mut(self.remembered) {
                Some(own) => pages.release(std::mem::replace(own, page)),
                None => self.pages.push(page),
            }
            self.remembered += 1;
            self.computed += self.page_tokens;
        }
        if !self.preempted {
            self.cached += u32::try_from(self.computed - start).unwrap_or(u32::MAX);
        }
        self.computed - start
    }

    /// Lets others find the pages that are full.
    pub(super) fn remember(&mut self, pages: &mut Pages) {
        while (self.remembered + 1) * self.page_tokens <= self.computed {
            let start = self.remembered * self.page_tokens;
            let tokens = &self.tokens[start..start + self.page_tokens];
            self.pages[self.remembered] = pages.remember(self.last_remembered(), tokens, self.pages[self.remembered]);
            self.remembered += 1;
        }
    }

    /// Gives all pages back. What stands in those that others can find stays findable.
    pub(super) fn release(&mut self, pages: &mut Pages) {
        pages.release_all(std::mem::take(&mut self.pages));
        (self.computed, self.remembered, self.drafted) = (0, 0, 0);
    }

    fn last_remembered(&self) -> Option<u32> {
        self.remembered.checked_sub(1).map(|last| self.pages[last])
    }
}
