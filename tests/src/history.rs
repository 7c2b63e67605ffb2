//! What clients saw, and whether that may be: every query ends once, by its deadline, with the text that an undisturbed run
//! gives; one that fails says why, and only where that was to be expected. Pure: stories in, complaints out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

/// One thing that a client saw.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// Who has the query now, at which attempt.
    Placed {
        /// The node.
        node: String,
        /// Counted from 1.
        attempt: u64,
    },
    /// More of the text.
    Text(String),
    /// The end, with the reason and the completion's tokens where they were told.
    Finished {
        /// `stop` or `length`.
        reason: String,
        /// As usage says.
        completion_tokens: Option<u64>,
    },
    /// An error in words: before the answer with a status, within a stream without.
    Failed {
        /// HTTP's.
        status: Option<u16>,
        /// What was said.
        message: String,
    },
    /// The connection broke without a word.
    Cut(String),
    /// The client itself closed the connection.
    Left,
}

impl Seen {
    /// Who has the query from here on.
    pub fn node(&self) -> Option<&str> {
        if let Seen::Placed { node, .. } = self { Some(node) } else { None }
    }

    fn is_end(&self) -> bool {
        !matches!(self, Seen::Placed { .. } | Seen::Text(_))
    }
}

/// One query, as its client tells it.
#[derive(Clone, Debug)]
pub struct Story {
    /// What the client calls it.
    pub number: u64,
    /// When it was asked.
    pub asked: Instant,
    /// The id under which it was answered.
    pub id: Option<String>,
    /// What an undisturbed run answers.
    pub expected: String,
    /// The tokens of that.
    pub expected_tokens: Option<u64>,
    /// What was seen, and when.
    pub seen: Vec<(Instant, Seen)>,
}

impl Story {
    /// The text, as far as it was seen.
    pub fn text(&self) -> String {
        self.seen.iter().filter_map(|(_, seen)| if let Seen::Text(text) = seen { Some(text.as_str()) } else { None }).collect()
    }

    /// How it ended.
    pub fn end(&self) -> Option<&Seen> {
        self.seen.iter().map(|(_, seen)| seen).find(|seen| seen.is_end())
    }

    /// Who ran it at a moment.
    fn holder_at(&self, at: Instant) -> Option<&str> {
        self.seen.iter().take_while(|(then, _)| *then <= at).fold(None, |last, (_, seen)| match seen {
            Seen::Placed { node, .. } => Some(node.as_str()),
            Seen::Text(_) => last,
            _ => None,
        })
    }
}

/// What all clients saw together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// All that were asked.
    pub queries: usize,
    /// Those that were answered to the end.
    pub finished: usize,
    /// Those whose clients left.
    pub left: usize,
    /// Those that were refused for overload, with a clear error.
    pub refused: usize,
    /// Those that failed otherwise: lost.
    pub lost: usize,
    /// What may not be, in words.
    pub complaints: Vec<String>,
}

/// Reads all stories. `deadline` is that of every query.
pub fn check(stories: &[Story], deadline: Duration) -> Verdict {
    let mut verdict = Verdict { queries: stories.len(), ..Verdict::default() };
    let mut ids = BTreeMap::new();
    for story in stories {
        let mut complain = |what: String| verdict.complaints.push(format!("query {} ({:?}): {what}", story.number, story.id));
        if let Some(other) = story.id.as_ref().and_then(|id| ids.insert(id, story.number)) {
            complain(format!("has the id of query {other}"));
        }
        let text = story.text();
        if !story.expected.starts_with(&text) {
            let at = text.bytes().zip(story.expected.bytes()).take_while(|(one, other)| one == other).count();
            complain(format!("the text is another from byte {at} on: {text:?} and not {:?}", story.expected));
        }
        let ends: Vec<&(Instant, Seen)> = story.seen.iter().filter(|(_, seen)| seen.is_end()).collect();
        let [(at, end)] = ends[..] else {
            complain(format!("has {} ends: {ends:?}", ends.len()));
            verdict.lost += usize::from(ends.is_empty());
            continue;
        };
        if *at > story.asked + deadline {
            complain(format!("ended {:?} after it was asked", *at - story.asked));
        }
        match end {
            Seen::Finished { completion_tokens, .. } => {
                verdict.finished += 1;
                if text != story.expected {
                    complain(format!("ended early: {text:?} and not {:?}", story.expected));
                }
                if let (Some(told), Some(expected)) = (completion_tokens, story.expected_tokens)
                    && *told != expected
                {
                    complain(format!("was told to have {told} tokens and has {expected}"));
                }
            }
            Seen::Left => verdict.left += 1,
            Seen::Failed { status: Some(429), .. } => verdict.refused += 1,
            Seen::Failed { .. } | Seen::Cut(_) => {
                verdict.lost += 1;
                complain(format!("was lost: {end:?}"));
            }
            Seen::Placed { .. } | Seen::Text(_) => {}
        }
    }
    verdict
}

/// For each loss of a node at a moment, and each answer that it was writing then: how long its client waited for what came
/// next.
pub fn recoveries(stories: &[Story], losses: &[(Instant, String)]) -> Vec<Duration> {
    let mut waits = Vec::new();
    for story in stories {
        let hits: BTreeSet<Instant> =
            losses.iter().filter(|(at, node)| story.holder_at(*at) == Some(node)).map(|(at, _)| *at).collect();
        for hit in hits {
            let next = story.seen.iter().find(|(at, seen)| *at > hit && matches!(seen, Seen::Text(_) | Seen::Finished { .. }));
            waits.extend(next.map(|(at, _)| *at - hit));
        }
    }
    waits.sort();
    waits
}

/// The value below which a share of sorted values lie.
pub fn percentile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}

/// For each moment, and each answer that was being written then: how long its client waited from then on for what came next.
pub fn pauses(stories: &[Story], moments: &[Instant]) -> Vec<Duration> {
    let text = |seen: &Seen| matches!(seen, Seen::Text(_) | Seen::Finished { .. });
    let mut waits = Vec::new();
    for story in stories {
        for moment in moments {
            let before = story.seen.iter().any(|(at, seen)| at <= moment && text(seen));
            let next = story.seen.iter().find(|(at, seen)| at > moment && text(seen));
            waits.extend(next.filter(|_| before).map(|(at, _)| *at - *moment));
        }
    }
    waits.sort();
    waits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(seen: &[Seen]) -> Story {
        let asked = Instant::now();
        let at = |index: usize| asked + Duration::from_secs(index as u64 + 1);
        let seen = seen.iter().enumerate().map(|(index, seen)| (at(index), seen.clone())).collect();
        Story { number: 1, asked, id: None, expected: "1 2 3".to_owned(), expected_tokens: Some(3), seen }
    }

    fn text(text: &str) -> Seen {
        Seen::Text(text.to_owned())
    }

    fn finished() -> Seen {
        Seen::Finished { reason: "stop".to_owned(), completion_tokens: Some(3) }
    }

    fn complaints(stories: &[Story]) -> Vec<String> {
        check(stories, Duration::from_secs(60)).complaints
    }

    #[test]
    fn a_whole_answer_and_a_client_that_left_are_fine() {
        let stories = [told(&[text("1 2"), text(" 3"), finished()]), told(&[text("1"), Seen::Left])];
        let verdict = check(&stories, Duration::from_secs(60));
        assert_eq!(verdict, Verdict { queries: 2, finished: 1, left: 1, ..Verdict::default() });
    }

    #[test]
    fn whatever_may_not_be_is_told() {
        for (wrong, why) in [
            (told(&[text("1 2"), text(" 2 3"), finished()]), "another from byte 4"),
            (told(&[text("1 3"), finished()]), "another from byte 2"),
            (told(&[text("1 2"), finished()]), "ended early"),
            (told(&[text("1 2 3"), finished(), finished()]), "2 ends"),
            (told(&[text("1 2 3")]), "0 ends"),
            (told(&[text("1"), Seen::Cut("reset".to_owned())]), "lost"),
            (told(&[Seen::Failed { status: Some(500), message: "oh".to_owned() }]), "lost"),
            (told(&[text("1 2 3"), Seen::Finished { reason: "stop".to_owned(), completion_tokens: Some(5) }]), "5 tokens"),
        ] {
            let complaints = complaints(std::slice::from_ref(&wrong));
            assert!(complaints.iter().any(|complaint| complaint.contains(why)), "{why}: {complaints:?}");
        }
        let mut late = told(&[text("1 2 3"), finished()]);
        late.seen[1].0 += Duration::from_secs(60);
        assert!(complaints(&[late])[0].contains("after it was asked"));
        let twice = Story { id: Some("a".to_owned()), ..told(&[text("1 2 3"), finished()]) };
        assert!(complaints(&[twice.clone(), twice])[0].contains("has the id"));
    }

    #[test]
    fn a_recovery_lasts_from_the_loss_of_the_holder_to_the_next_token() {
        let placed = |node: &str| Seen::Placed { node: node.to_owned(), attempt: 1 };
        let story = told(&[placed("a"), text("1"), placed("b"), text(" 2"), text(" 3"), finished()]);
        let at = |ms| story.asked + Duration::from_millis(ms);
        let waits = |ms, node: &str| recoveries(std::slice::from_ref(&story), &[(at(ms), node.to_owned())]);
        assert_eq!(waits(2_500, "a"), [Duration::from_millis(1_500)]);
        assert_eq!(waits(2_500, "b"), Vec::<Duration>::new());
        assert_eq!(waits(3_500, "b"), [Duration::from_millis(500)]);
        assert_eq!(waits(9_000, "b"), Vec::<Duration>::new());
    }
}
