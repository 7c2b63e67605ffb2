//! Many clients of one API, each asking one query after another, and what they saw.
//!
//! What they ask is decided by a seed, and what they must be answered is known before: a count, or a text that an undisturbed
//! run gave. Some take streams and some whole answers, and some leave.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    history::{Seen, Story},
    http::{Answer, Events, Http, joined},
    random::Random,
};

/// How long a client tries to find somebody, and the pause between two tries.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// A query that somebody wants to ask.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// What is posted.
    pub body: Value,
    /// `/v1/completions` or `/v1/chat/completions`.
    pub path: &'static str,
    /// What an undisturbed run answers.
    pub expected: String,
    /// The tokens of that.
    pub expected_tokens: Option<u64>,
    /// Closes the connection after so many pieces of text.
    pub leaves_after: Option<u64>,
}

/// The numbers from 1 to `last`, as the engine without weights writes them.
pub fn count_to(last: u64) -> String {
    (1..=last).map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
}

impl Wish {
    /// A stream that counts.
    pub fn count(last: u64) -> Wish {
        Wish {
            body: json!({
                "model": "fake", "prompt": format!("[[count {last}]]"), "max_tokens": last + 8,
                "stream": true, "stream_options": { "include_usage": true },
            }),
            path: "/v1/completions",
            expected: count_to(last),
            expected_tokens: None,
            leaves_after: None,
        }
    }

    /// Not as a stream.
    pub fn whole(mut self) -> Wish {
        let body = self.body.as_object_mut().expect("a body is an object");
        body.remove("stream");
        body.remove("stream_options");
        self
    }

    /// Asks, and tells what was seen.
    pub async fn ask(&self, api: Http, number: u64) -> Story {
        self.ask_among(&[api], number).await
    }

    /// Asks one of several APIs. When nobody answers there, it is about to stop or the line breaks, the client goes on at the next one:
    /// with a stream behind what it has, and with a whole answer under the same key.
    pub async fn ask_among(&self, apis: &[Http], number: u64) -> Story {
        let mut story = Story {
            number,
            asked: Instant::now(),
            id: None,
            expected: self.expected.clone(),
            expected_tokens: self.expected_tokens,
            seen: Vec::new(),
        };
        let key = format!("story {number}");
        let (mut heard, mut trouble) = (Heard::default(), None);
        for turn in number.. {
            let api = apis[(turn % apis.len() as u64) as usize];
            let header = match () {
                () if !heard.last.is_empty() => Some(("last-event-id", heard.last.clone())),
                () if self.body.get("stream").is_none() && apis.len() > 1 => Some(("idempotency-key", key.clone())),
                () => None,
            };
            let headers: Vec<(&str, &str)> = header.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let before = heard.last.clone();
            let broken = match api.try_stream_with(self.path, &headers, &self.body).await {
                Ok(Ok(events)) => match self.follow(events, &mut story, &mut heard).await {
                    Ok(()) => return story,
                    Err(broken) => broken,
                },
                Ok(Err(answer)) if answer.status == StatusCode::SERVICE_UNAVAILABLE && apis.len() > 1 => "503".to_owned(),
                Ok(Err(answer)) => {
                    whole(&answer, &mut story);
                    return story;
                }
                Err(broken) => broken,
            };
            if before != heard.last {
                trouble = None;
            }
            let since = *trouble.get_or_insert_with(Instant::now);
            let end = match () {
                () if self.leaves_after.is_some() => Seen::Left,
                () if apis.len() == 1 || since.elapsed() > PATIENCE => Seen::Cut(broken),
                () => {
                    sleep(PAUSE).await;
                    continue;
                }
            };
            story.seen.push((Instant::now(), end));
            break;
        }
        story
    }

    /// Asks, and reads whatever comes until somebody ends this.
    pub async fn hold(&self, api: Http) {
        if let Ok(Ok(mut events)) = api.try_stream(self.path, &self.body).await {
            while events.next().await.is_some() {}
        }
    }

    /// Reads a stream until the story has its end; an error says why it has none.
    async fn follow(&self, mut events: Events, story: &mut Story, heard: &mut Heard) -> Result<(), String> {
        if self.leaves_after == Some(0) {
            story.seen.push((Instant::now(), Seen::Left));
            return Ok(());
        }
        while let Some(event) = events.next().await {
            let mut saw = |seen| story.seen.push((event.at, seen));
            if event.data == "[DONE]" {
                saw(Seen::Finished { reason: heard.finish.take().unwrap_or_default(), completion_tokens: heard.usage });
                return Ok(());
            }
            let json = event.json();
            if let Some(error) = json.get("error") {
                saw(Seen::Failed { status: None, message: error.to_string() });
                return Ok(());
            }
            if let Some(placed) = placed(&json) {
                saw(placed);
            }
            let text = event.text();
            if !text.is_empty() {
                saw(Seen::Text(text));
                heard.pieces += 1;
                if self.leaves_after == Some(heard.pieces) {
                    saw(Seen::Left);
                    return Ok(());
                }
            }
            story.id = json["id"].as_str().map(str::to_owned);
            heard.finish = json["choices"][0]["finish_reason"].as_str().map(str::to_owned).or(heard.finish.take());
            heard.usage = json["usage"]["completion_tokens"].as_u64().or(heard.usage);
            if !event.id.is_empty() {
                heard.last = event.id;
            }
        }
        Err("the stream ended without its end".to_owned())
    }
}

/// What a client has of a stream.
#[derive(Default)]
struct Heard {
    pieces: u64,
    finish: Option<String>,
    usage: Option<u64>,
    /// The last event's id.
    last: String,
}

fn whole(answer: &Answer, story: &mut Story) {
    let mut saw = |seen| story.seen.push((Instant::now(), seen));
    if !answer.status.is_success() {
        let message = String::from_utf8_lossy(&answer.body).into_owned();
        return saw(Seen::Failed { status: Some(answer.status.as_u16()), message });
    }
    let json = answer.json();
    if let Some(placed) = placed(&json) {
        saw(placed);
    }
    saw(Seen::Text(answer.text()));
    let reason = json["choices"][0]["finish_reason"].as_str().unwrap_or_default().to_owned();
    saw(Seen::Finished { reason, completion_tokens: json["usage"]["completion_tokens"].as_u64() });
    story.id = json["id"].as_str().map(str::to_owned);
}

fn placed(json: &Value) -> Option<Seen> {
    let origin = json.get("banyan")?;
    Some(Seen::Placed { node: origin["node"].as_str().unwrap_or_default().to_owned(), attempt: origin["attempt"].as_u64()? })
}

/// Clients at work.
pub struct Clients {
    working: Vec<JoinHandle<Vec<Story>>>,
    enough: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
}

impl Clients {
    /// So many clients begin to ask; `seed` decides what. Between two queries each waits up to `pause`.
    ///
    /// # Panics
    /// When the tree does not answer what is asked of it before the clients begin.
    pub async fn start(api: Http, seed: u64, clients: u64, pause: Duration) -> Clients {
        Clients::start_among(vec![api], seed, clients, pause).await
    }

    /// The same where there are several APIs.
    ///
    /// # Panics
    /// When the tree does not answer what is asked of it before the clients begin.
    pub async fn start_among(apis: Vec<Http>, seed: u64, clients: u64, pause: Duration) -> Clients {
        let tales = undisturbed(apis[0], seed).await;
        let (enough, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let working = (0..clients).map(|client| {
            let (enough, asked, tales, apis) = (Arc::clone(&enough), Arc::clone(&asked), tales.clone(), apis.clone());
            let mut random = Random::new(seed.wrapping_add(client.wrapping_mul(0x1000_0001)));
            tokio::spawn(async move {
                let mut stories = Vec::new();
                while !enough.load(Ordering::Relaxed) {
                    let wish = wish(&mut random, &tales);
                    stories.push(wish.ask_among(&apis, asked.fetch_add(1, Ordering::Relaxed)).await);
                    sleep(pause.mul_f64(random.within(0..100) as f64 / 100.0)).await;
                }
                stories
            })
        });
        Clients { working: working.collect(), enough, asked }
    }

    /// How many queries were asked until now.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Lets everybody finish what they wait for, and gives back what they saw.
    ///
    /// # Panics
    /// When a client panicked.
    pub async fn finish(self) -> Vec<Story> {
        self.enough.store(true, Ordering::Relaxed);
        join_all(self.working).await.into_iter().flat_map(|stories| stories.expect("no client panics")).collect()
    }
}

/// Tales that are the same for the same seed, told once while nothing disturbs.
async fn undisturbed(api: Http, seed: u64) -> Vec<Wish> {
    let tales = (0..6_u64).map(|number| async move {
        let mut wish = Wish::count(0);
        let tokens = 12 + 9 * number;
        wish.body["prompt"] = json!(format!("tale {number} of {seed}"));
        wish.body["max_tokens"] = json!(tokens);
        wish.body["ignore_eos"] = json!(true);
        wish.body["seed"] = json!(seed % 1000 + number);
        let events = api.stream(wish.path, &wish.body).await.rest().await;
        assert_eq!(events.last().map(|event| event.data.as_str()), Some("[DONE]"), "{events:?}");
        Wish { expected: joined(&events), expected_tokens: Some(tokens), ..wish }
    });
    join_all(tales).await
}

/// What a client asks next.
fn wish(random: &mut Random, tales: &[Wish]) -> Wish {
    let mut wish = match random.within(0..4) {
        0 => random.one_of(tales).clone(),
        1 => {
            let mut chat = Wish::count(random.within(1..70));
            let prompt = chat.body["prompt"].take();
            chat.body["messages"] = json!([{ "role": "user", "content": prompt }]);
            chat.body.as_object_mut().expect("a body is an object").remove("prompt");
            Wish { path: "/v1/chat/completions", ..chat }
        }
        _ => Wish::count(random.within(1..70)),
    };
    match random.within(0..8) {
        0 => wish.leaves_after = Some(random.within(0..10)),
        1 | 2 => wish = wish.whole(),
        _ => {}
    }
    wish
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_what_is_asked() {
        let tales = [Wish::count(3), Wish::count(4)];
        let wishes = |seed| {
            let mut random = Random::new(seed);
            (0..50).map(|_| wish(&mut random, &tales)).collect::<Vec<_>>()
        };
        assert_eq!(wishes(1), wishes(1));
        assert_ne!(wishes(1), wishes(2));
    }
}
