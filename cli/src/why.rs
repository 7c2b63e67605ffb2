//! `banyan why`: the way one query took.

use banyan_proto::v1::{Hop, Reason, Try, Way, WhyRequest};
use serde_json::{Value, json};

use crate::{
    args::RegistryArgs,
    exit::{Code, Failure},
    lookout::Lookout,
    output::{self, Format, microseconds},
};

/// Of a whole id.
const DIGITS: usize = 32;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The query's id, as the API and the page show it; its first digits will do when they are unambiguous.
    #[arg(value_parser = query)]
    id: String,
    #[command(flatten)]
    registry: RegistryArgs,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let lookout = Lookout::open(&args.registry).await?;
    let roots = lookout.roots();
    if roots.is_empty() {
        return Err(Failure::told(Code::NotFound, "no root is registered, so nobody knows the way of any query")
            .hint("start a tree with `banyan up`, or name another registry with `--etcd URL`"));
    }
    let mut unknown = None;
    for root in roots {
        let (mut client, _) = lookout.reach(&root.name).await?;
        match client.why(WhyRequest { id: args.id.clone() }).await {
            Ok(way) => {
                let way = way.into_inner();
                return match args.output {
                    Format::Json => output::print_json(&value(&way)),
                    Format::Table => output::print(&draw(&way)),
                };
            }
            Err(status) if status.code() == tonic::Code::NotFound => unknown = Some(status),
            Err(status) => return Err(status.into()),
        }
    }
    let failure = unknown.map_or_else(|| Failure::told(Code::NotFound, "no such query"), Failure::from);
    Err(failure.hint("ids are in answers (`id`) and under each answer on the page; a root remembers only its latest queries"))
}

/// Checks that a text is an id or the beginning of one, in a form in which it is shown.
fn query(text: &str) -> Result<String, String> {
    let digits = ["chatcmpl-", "cmpl-"].iter().find_map(|form| text.strip_prefix(form)).unwrap_or(text);
    if (1..=DIGITS).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Ok(digits.to_ascii_lowercase());
    }
    Err(format!(
        "expected an id as answers have it (`id`), such as chatcmpl-0192f3a4…, or some of its {DIGITS} hexadecimal digits"
    ))
}

fn draw(way: &Way) -> String {
    let mut text = String::new();
    let mut facts = vec![("query", way.id.clone())];
    if !way.model.is_empty() {
        facts.push(("model", way.model.clone()));
    }
    if !way.owner.is_empty() {
        facts.push(("owner", way.owner.clone()));
    }
    let mut state = format!("{}, {}", way.state, output::count(way.tokens as usize, "token"));
    if way.first_token_us > 0 {
        state.push_str(&format!(", the first after {}", microseconds(way.first_token_us)));
    }
    if way.ended_us > 0 {
        state.push_str(&format!(", ended after {}", microseconds(way.ended_us)));
    }
    facts.push(("state", state));
    if !way.error.is_empty() {
        facts.push(("error", way.error.clone()));
    }
    text.push_str(&output::table(&facts.into_iter().map(|(label, fact)| vec![label.to_owned(), fact]).collect::<Vec<_>>()));
    for attempt in &way.tries {
        // The first one has no reason but the question.
        let why = if attempt.number == 1 { String::new() } else { format!(": {}", reason(attempt.reason())) };
        text.push_str(&format!("\nattempt {}, sent after {}{why}\n", attempt.number, microseconds(attempt.sent_us)));
        text.push_str(&output::table(&steps(attempt)));
    }
    text
}

/// What happened in one attempt, a row each: when, where, what.
fn steps(attempt: &Try) -> Vec<Vec<String>> {
    let row = |at: String, place: &str, what: String| vec![format!("  {at}"), place.to_owned(), what];
    let mut rows = Vec::new();
    for hop in &attempt.trail {
        let spent = if hop.spent_us == 0 { String::new() } else { format!(" ({})", microseconds(hop.spent_us)) };
        rows.push(row(String::new(), &hop.node, format!("{}{spent}", reason(hop.reason()))));
    }
    let holder = attempt.holder.as_str();
    for (at, what) in [(attempt.held_us, "holds it"), (attempt.started_us, "runs it")] {
        if at > 0 {
            rows.push(row(format!("+{}", microseconds(at)), holder, what.to_owned()));
        }
    }
    if !attempt.outcome.is_empty() {
        rows.push(row(format!("+{}", microseconds(attempt.ended_us)), holder, attempt.outcome.clone()));
    }
    rows
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "for a reason this version does not know",
        Reason::Room => "had room",
        Reason::ChildWithRoom => "busy: passed to a child whose subtree has room",
        Reason::RoundRobin => "no child had room: passed on round-robin",
        Reason::Queued => "busy, and nobody to pass it to: queued",
        Reason::Preferred => "the node that the query prefers",
        Reason::Waited => "waited at the root for room",
        Reason::Recalled => "recalled from a queue: there was room elsewhere",
        Reason::Returned => "handed back by a node that left",
        Reason::Adopted => "held since an earlier root's reign",
        Reason::Lost => "its holder was lost, or nobody said to hold it",
        Reason::Refused => "the node could not take it",
    }
}

fn value(way: &Way) -> Value {
    let some = |us: u64| (us > 0).then_some(us);
    let hop = |hop: &Hop| json!({ "node": hop.node, "reason": reason_name(hop.reason()), "spent_us": hop.spent_us });
    let attempt = |attempt: &Try| {
        json!({
            "number": attempt.number,
            "holder": attempt.holder,
            "reason": reason_name(attempt.reason()),
            "sent_us": attempt.sent_us,
            "held_us": some(attempt.held_us),
            "started_us": some(attempt.started_us),
            "ended_us": some(attempt.ended_us),
            "outcome": attempt.outcome,
            "trail": attempt.trail.iter().map(hop).collect::<Vec<_>>(),
        })
    };
    json!({
        "id": way.id,
        "model": way.model,
        "owner": way.owner,
        "state": way.state,
        "tokens": way.tokens,
        "first_token_us": some(way.first_token_us),
        "ended_us": some(way.ended_us),
        "error": (!way.error.is_empty()).then_some(&way.error),
        "attempts": way.tries.iter().map(attempt).collect::<Vec<_>>(),
    })
}

/// `REASON_CHILD_WITH_ROOM` is `child_with_room`.
fn reason_name(reason: Reason) -> String {
    reason.as_str_name().trim_start_matches("REASON_").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way() -> Way {
        let hop = |node: &str, reason: Reason, spent_us| Hop { node: node.into(), reason: reason as i32, spent_us };
        Way {
            id: "0192".into(),
            model: "tiny".into(),
            owner: "anonymous".into(),
            state: "finished".into(),
            tokens: 2,
            first_token_us: 1_500,
            ended_us: 20_000,
            error: String::new(),
            tries: vec![
                Try {
                    number: 1,
                    holder: "a".into(),
                    sent_us: 10,
                    held_us: 400,
                    started_us: 500,
                    ended_us: 900,
                    trail: vec![hop("root", Reason::ChildWithRoom, 5), hop("a", Reason::Room, 40)],
                    reason: Reason::ChildWithRoom as i32,
                    outcome: "lost".into(),
                },
                Try { number: 2, sent_us: 950, reason: Reason::Lost as i32, ..Try::default() },
            ],
        }
    }

    #[test]
    fn a_way_is_drawn_attempt_by_attempt() {
        let expected = "\
query  0192
model  tiny
owner  anonymous
state  finished, 2 tokens, the first after 1.5 ms, ended after 20.0 ms

attempt 1, sent after 10 µs
           root  busy: passed to a child whose subtree has room (5 µs)
           a     had room (40 µs)
  +400 µs  a     holds it
  +500 µs  a     runs it
  +900 µs  a     lost

attempt 2, sent after 950 µs: its holder was lost, or nobody said to hold it
";
        assert_eq!(draw(&way()), expected);
    }

    #[test]
    fn an_id_is_known_by_its_digits_in_every_form() {
        let whole = "0192f3a4b5c67d8e9fa0b1c2d3e4f506";
        for shown in [whole, &format!("chatcmpl-{whole}"), &format!("cmpl-{whole}"), &whole.to_ascii_uppercase()] {
            assert_eq!(query(shown).as_deref(), Ok(whole));
        }
        assert_eq!(query("chatcmpl-0").as_deref(), Ok("0"));
        for wrong in ["", "chatcmpl-", "cmpl-", "-", "root", "chatcmpl-xyz", "0x12", &format!("{whole}0")] {
            assert!(query(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn json_names_reasons_and_leaves_open_what_has_not_happened() {
        let json = value(&way());
        assert_eq!(json["attempts"][0]["trail"][0]["reason"], "child_with_room");
        assert_eq!(json["attempts"][1]["reason"], "lost");
        assert!(json["attempts"][1]["held_us"].is_null() && json["error"].is_null());
    }
}
