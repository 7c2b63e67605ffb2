//! Virtual time: what happens when.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::random::Random;

/// Events in the order of their times; what happens at the same time comes in an order that the seed decides.
#[derive(Debug)]
pub(super) struct Agenda<E> {
    now: u64,
    number: u64,
    ties: Random,
    heap: BinaryHeap<Reverse<Slot>>,
    /// The events, by slot, so that the heap moves small things.
    events: Vec<Option<E>>,
    free: Vec<u32>,
}

type Slot = (u64, u32, u64, u32);

impl<E> Agenda<E> {
    /// An empty one, at time 0.
    pub(super) fn new(ties: Random) -> Agenda<E> {
        Agenda { now: 0, number: 0, ties, heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new() }
    }

    /// Nanoseconds since the start.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Lets something happen at a time, or now if that is past.
    pub(super) fn at(&mut self, time: u64, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.events[slot as usize] = Some(event);
                slot
            }
            None => {
                self.events.push(Some(event));
                u32::try_from(self.events.len() - 1).expect("fewer than four thousand million events are to come")
            }
        };
        self.number += 1;
        self.heap.push(Reverse((time.max(self.now), self.ties.number() as u32, self.number, slot)));
    }

    /// Lets something happen after a while.
    pub(super) fn after(&mut self, delay: u64, event: E) {
        self.at(self.now.saturating_add(delay), event);
    }

    /// Goes on to the next event, if one comes until then.
    pub(super) fn next_until(&mut self, end: u64) -> Option<E> {
        let Reverse((time, ..)) = self.heap.peek()?;
        if *time > end {
            self.now = self.now.max(end);
            return None;
        }
        let Reverse((time, _, _, slot)) = self.heap.pop()?;
        self.now = time;
        self.free.push(slot);
        self.events[slot as usize].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seed: u64) -> Vec<u32> {
        let mut agenda = Agenda::new(Random::new(seed));
        agenda.at(20, 99);
        (0..10).for_each(|event| agenda.at(10, event));
        std::iter::from_fn(|| agenda.next_until(1000)).collect()
    }

    #[test]
    fn time_decides_the_order_and_the_seed_among_equals() {
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        assert_eq!(order(1).last(), Some(&99));
    }

    #[test]
    fn time_goes_on_to_the_end_when_nothing_happens() {
        let mut agenda: Agenda<u32> = Agenda::new(Random::new(1));
        agenda.at(50, 1);
        assert_eq!(agenda.next_until(40), None);
        assert_eq!(agenda.now(), 40);
        assert_eq!(agenda.next_until(50), Some(1));
    }
}
