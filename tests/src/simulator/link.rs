//! Links between nodes: who is at their ends, and what is under way.

use banyan_proto::v1;

use super::pipe::Pipe;

/// A child's link to a parent.
#[derive(Debug)]
pub(super) struct Tie {
    pub(super) child: u32,
    pub(super) child_life: u32,
    pub(super) parent: u32,
    pub(super) parent_life: u32,
    pub(super) up: Option<Pipe<v1::Up>>,
    pub(super) down: Option<Pipe<v1::Down>>,
    /// Broken: nothing more gets through, and both ends will learn of it.
    pub(super) lost: bool,
    /// The child is done with it …
    pub(super) left: bool,
    /// … and so is the parent.
    pub(super) ended: bool,
}

/// A node's stream to the root.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) node: u32,
    pub(super) node_life: u32,
    pub(super) root: u32,
    pub(super) root_life: u32,
    pub(super) deliveries: Option<Pipe<v1::Delivery>>,
    pub(super) controls: Option<Pipe<v1::Control>>,
    pub(super) lost: bool,
    pub(super) left: bool,
}

/// Links by number. Numbers are not used again, and those of links that have ended cost a pointer.
#[derive(Debug)]
pub(super) struct Links<L>(Vec<Option<Box<L>>>);

impl<L> Default for Links<L> {
    fn default() -> Self {
        // Number 0 is nobody's, as in production.
        Links(vec![None])
    }
}

impl<L> Links<L> {
    pub(super) fn add(&mut self, link: L) -> u32 {
        self.0.push(Some(Box::new(link)));
        u32::try_from(self.0.len() - 1).expect("fewer than four thousand million links")
    }

    pub(super) fn get(&self, number: u32) -> Option<&L> {
        self.0.get(number as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut L> {
        self.0.get_mut(number as usize)?.as_deref_mut()
    }

    pub(super) fn remove(&mut self, number: u32) {
        self.0[number as usize] = None;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &L)> {
        self.0.iter().enumerate().filter_map(|(number, link)| Some((number as u32, link.as_deref()?)))
    }
}
