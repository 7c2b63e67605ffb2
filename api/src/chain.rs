//! A query's way through the models that may serve it: first whoever has a place at once, then whoever it is worth waiting for.
//! Pure: failures come in, the next model comes out. Before the first token only; after it an answer stays where it is.

use std::collections::VecDeque;

use banyan_proto::v1::{self, Failure};

/// A model to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) model: String,
    /// Whether it had better fail than wait at the root.
    pub(crate) impatient: bool,
}

/// Where a query is on its way.
#[derive(Debug)]
pub(crate) struct Chain {
    step: Step,
    next: VecDeque<Step>,
    /// The failure to tell when nobody is left, and whether it is the query's own fault: then any other tells more.
    told: Option<(v1::Failed, bool)>,
}

impl Chain {
    /// The models are tried in that order. Worth waiting for are those that are `served` first.
    pub(crate) fn new(models: Vec<String>, served: impl Fn(&str) -> bool) -> Chain {
        let mut next = VecDeque::new();
        if models.len() > 1 {
            next.extend(models.iter().map(|model| Step { model: model.clone(), impatient: true }));
        }
        let mut patient = models;
        patient.sort_by_key(|model| !served(model));
        next.extend(patient.into_iter().map(|model| Step { model, impatient: false }));
        let step = next.pop_front().unwrap_or(Step { model: String::new(), impatient: false });
        Chain { step, next, told: None }
    }

    /// The model to ask now.
    pub(crate) fn step(&self) -> &Step {
        &self.step
    }

    /// It failed: the next model has its turn.
    ///
    /// # Errors
    /// What to tell the client, when there is none.
    pub(crate) fn fail(&mut self, failed: v1::Failed) -> Result<(), v1::Failed> {
        let (goes_on, at_fault) = match failed.reason() {
            Failure::Overloaded | Failure::UnknownModel | Failure::NoNode | Failure::Deadline | Failure::Engine => (true, false),
            // Another model may have more context, and another service other parameters.
            Failure::TooLong | Failure::Invalid => (true, true),
            // What killed two nodes is not tried on others.
            Failure::Poison => (false, false),
            Failure::Unspecified
            | Failure::Cancelled
            | Failure::ShuttingDown
            | Failure::Duplicate
            | Failure::NotFound
            | Failure::Conflict => (false, false),
        };
        if at_fault {
            // It would be at fault the next time too.
            self.next.retain(|step| step.model != self.step.model);
        }
        // Of those that were waited for the first tells most: when to come again. Whoever had no place at once says little.
        let tells_more = match &self.told {
            None => true,
            Some((_, was_at_fault)) => *was_at_fault && !at_fault,
        };
        if !goes_on || self.next.is_empty() && self.told.is_none() {
            return Err(failed);
        }
        if tells_more && (at_fault || !self.step.impatient) {
            self.told = Some((failed.clone(), at_fault));
        }
        match self.next.pop_front() {
            Some(step) => self.step = step,
            None => return Err(self.told.take().map_or(failed, |(told, _)| told)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(models: &[&str]) -> Chain {
        Chain::new(models.iter().map(|model| (*model).to_owned()).collect(), |model| model != "away")
    }

    fn failed(reason: Failure) -> v1::Failed {
        v1::Failed { reason: reason.into(), ..Default::default() }
    }

    /// The models that are asked when each fails so, and what the client hears.
    fn way(mut chain: Chain, fails: impl Fn(&Step) -> Failure) -> (Vec<String>, Failure) {
        let mut asked = Vec::new();
        loop {
            let step = chain.step().clone();
            asked.push(if step.impatient { step.model.clone() } else { format!("wait {}", step.model) });
            if let Err(told) = chain.fail(v1::Failed { message: step.model.clone(), ..failed(fails(&step)) }) {
                asked.push(format!("tell {}", told.message));
                return (asked, told.reason());
            }
        }
    }

    #[test]
    fn a_single_model_is_waited_for() {
        let (asked, told) = way(chain(&["a"]), |_| Failure::Overloaded);
        assert_eq!((asked.join(", ").as_str(), told), ("wait a, tell a", Failure::Overloaded));
    }

    #[test]
    fn who_has_a_place_is_taken_first_and_then_somebody_is_waited_for() {
        let (asked, told) = way(chain(&["away", "a", "b"]), |_| Failure::Overloaded);
        assert_eq!(asked.join(", "), "away, a, b, wait a, wait b, wait away, tell a");
        assert_eq!(told, Failure::Overloaded);
    }

    #[test]
    fn who_can_never_serve_it_is_not_asked_again() {
        let too_long_for =
            |small: &'static str| move |step: &Step| if step.model == small { Failure::TooLong } else { Failure::Overloaded };
        let (asked, told) = way(chain(&["small", "large"]), too_long_for("small"));
        assert_eq!((asked.join(", ").as_str(), told), ("small, large, wait large, tell large", Failure::Overloaded));
        let (asked, told) = way(chain(&["a", "b"]), |_| Failure::Invalid);
        assert_eq!((asked.join(", ").as_str(), told), ("a, b, tell a", Failure::Invalid));
    }

    #[test]
    fn what_kills_nodes_is_tried_on_no_others() {
        let (asked, told) = way(chain(&["a", "b"]), |_| Failure::Poison);
        assert_eq!((asked.join(", ").as_str(), told), ("a, tell a", Failure::Poison));
    }
}
