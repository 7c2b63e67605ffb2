//! A provider's engine, and a service that fails on purpose: which key pays, and what becomes of an answer.

use std::{collections::BTreeMap, time::Duration};

use banyan_engine::{Account, Engine, FinishReason, Message, Output, Prompt, Refusal, Request, Sampling, SequenceId, Step};
use banyan_tests::{
    authority::Authority,
    eventually,
    upstream::{Reply, Upstream, providers},
};
use tokio::sync::mpsc::Receiver;

/// A running provider.
struct Rig {
    engine: Engine,
    steps: Receiver<Step>,
    slots: Option<u32>,
}

/// What came of a query.
#[derive(Debug, Default)]
struct Heard {
    text: String,
    positions: u32,
    end: Option<Output>,
}

impl Heard {
    fn refusal(&self) -> &Refusal {
        match &self.end {
            Some(Output::Refused { refusal, .. }) => refusal,
            other => panic!("no refusal but {other:?}"),
        }
    }
}

impl Rig {
    fn start(file: &str) -> Rig {
        let (engine, steps) = banyan_provider::start(providers(file), "").unwrap();
        Rig { engine, steps, slots: None }
    }

    /// With one upstream that has so many keys, each in a file of its own, and those limits.
    fn keys(upstream: &Upstream, rest: &str, keys: &[(&str, &str)]) -> (Rig, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let mut file = format!("[[upstream]]\nname = 'up'\nurl = '{}'\nmodels = ['m']\n{rest}\n", upstream.url());
        for (key, limits) in keys {
            let path = folder.path().join(key);
            std::fs::write(&path, key).unwrap();
            file.push_str(&format!("[[upstream.key]]\nfile = '{}'\n{limits}\n", path.display()));
        }
        (Rig::start(&file), folder)
    }

    fn submit(&self, id: u64) {
        self.engine.submit(request(id));
    }

    /// Listens until so many queries have ended.
    async fn hear(&mut self, count: usize) -> BTreeMap<u64, Heard> {
        let mut heard: BTreeMap<u64, Heard> = BTreeMap::new();
        while heard.values().filter(|heard| heard.end.is_some()).count() < count {
            let step = self.steps.recv().await.expect("the engine runs");
            self.slots = step.slots.or(self.slots);
            for output in step.outputs {
                let heard = heard.entry(output.id().0).or_default();
                assert!(heard.end.is_none(), "nothing follows an end");
                match output {
                    Output::Tokens { position, tokens, text, .. } => {
                        assert_eq!(position, heard.positions, "positions follow each other");
                        heard.positions += tokens.len() as u32;
                        heard.text.push_str(&text);
                    }
                    last if last.is_last() => heard.end = Some(last),
                    _ => {}
                }
            }
        }
        heard
    }

    async fn ask(&mut self, id: u64) -> Heard {
        self.submit(id);
        self.hear(1).await.remove(&id).unwrap()
    }

    fn account(&self, key: usize) -> Account {
        self.engine.accounts().swap_remove(key)
    }
}

fn request(id: u64) -> Request {
    let mut request = Request::fixed(SequenceId(id), Vec::new(), 10);
    request.prompt = Prompt::Chat(vec![Message { role: "user".into(), content: "hello there".into() }]);
    (request.ignore_eos, request.sampling) = (false, Sampling::default());
    request
}

const FIRST: &str = "key-number-one";
const SECOND: &str = "key-number-two";

#[tokio::test(flavor = "multi_thread")]
async fn pieces_are_passed_through_and_what_was_reserved_is_settled() {
    let upstream = Upstream::start(|_, _| Reply::Pieces(vec!["a", " b", "é"])).await;
    let (mut rig, _keys) = Rig::keys(&upstream, "", &[(FIRST, "tokens_per_minute = 1000")]);
    let heard = rig.ask(1).await;
    assert_eq!((heard.text.as_str(), heard.positions), ("a bé", 3));
    let Some(Output::Finished { reason, usage, .. }) = heard.end else { panic!("{:?}", heard.end) };
    assert_eq!((reason, usage.prompt_tokens, usage.completion_tokens), (FinishReason::Stop, 9, 3));
    let asked = &upstream.asked()[0];
    assert_eq!((asked.path.as_str(), asked.key(), &asked.body["model"]), ("/v1/chat/completions", FIRST, &"m".into()));
    let account = eventually("the call is settled", || async { Some(rig.account(0)).filter(|one| one.running == 0) }).await;
    assert_eq!((account.key.as_str(), account.requests, account.tokens), ("key…-one", 1, 12));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_says_where_its_query_is_in_a_trace() {
    let upstream = Upstream::start(|_, _| Reply::Pieces(vec!["a"])).await;
    let (mut rig, _keys) = Rig::keys(&upstream, "", &[(FIRST, "")]);
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    rig.engine.submit(Request { traceparent: traceparent.to_owned(), ..request(1) });
    rig.hear(1).await;
    rig.ask(2).await;
    let heads: Vec<bool> =
        upstream.asked().iter().map(|asked| asked.head.contains(&format!("traceparent: {traceparent}"))).collect();
    assert_eq!(heads, [true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn anthropics_dialect_is_spoken_too() {
    let upstream = Upstream::start(|_, _| Reply::Anthropic(vec!["a", "b"])).await;
    let (mut rig, _keys) = Rig::keys(&upstream, "dialect = 'anthropic'", &[(FIRST, "")]);
    let heard = rig.ask(1).await;
    assert_eq!(heard.text, "ab");
    let Some(Output::Finished { usage, .. }) = heard.end else { panic!("{:?}", heard.end) };
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (9, 2));
    assert_eq!((upstream.asked()[0].path.as_str(), upstream.asked()[0].key()), ("/v1/messages", FIRST));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_refused_is_left_alone_as_long_as_it_was_told_and_the_next_one_pays() {
    for (status, retry_after) in [(429, Some(7)), (500, None), (503, None), (401, None)] {
        let script = move |asked: &banyan_tests::upstream::Asked, _| match asked.key() {
            FIRST => Reply::Status(status, retry_after),
            _ => Reply::Pieces(vec!["ok"]),
        };
        let upstream = Upstream::start(script).await;
        let (mut rig, _keys) = Rig::keys(&upstream, "", &[(FIRST, ""), (SECOND, "")]);
        for id in 1..=3 {
            assert_eq!(rig.ask(id).await.text, "ok", "{status}");
        }
        let keys: Vec<String> = upstream.asked().iter().map(|asked| asked.key().to_owned()).collect();
        assert_eq!(keys, [FIRST, SECOND, SECOND, SECOND], "{status}");
        let account = rig.account(0);
        assert_eq!((account.failures, account.error.contains(&status.to_string())), (1, true), "{account:?}");
        if retry_after.is_some() {
            assert!((5000..9000).contains(&account.cooling_ms), "{account:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_key_left_the_root_is_told_and_the_engine_has_no_room() {
    let upstream = Upstream::start(|_, _| Reply::Status(429, Some(60))).await;
    let (mut rig, _keys) = Rig::keys(&upstream, "", &[(FIRST, "")]);
    let heard = rig.ask(1).await;
    assert!(matches!(heard.refusal(), Refusal::Busy(why) if why.contains("429")), "{:?}", heard.end);
    while rig.slots != Some(0) {
        let step = rig.steps.recv().await.unwrap();
        rig.slots = step.slots.or(rig.slots);
    }
    assert!(matches!(rig.ask(2).await.refusal(), Refusal::Busy(why) if why.contains("the first for 6")));
    assert_eq!(upstream.asked().len(), 1, "nobody is asked in vain");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_upstreams_fail_with_is_the_roots_to_judge_and_puts_out_three_keys_at_most() {
    let upstream = Upstream::start(|_, _| Reply::Status(500, None)).await;
    let (mut rig, _keys) = Rig::keys(&upstream, "", &[(FIRST, ""), (SECOND, ""), ("three", ""), ("four", "")]);
    assert!(matches!(rig.ask(1).await.refusal(), Refusal::Engine(why) if why.contains("500")));
    assert_eq!(upstream.asked().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_upstream_finds_wrong_with_a_query_is_the_clients_to_read() {
    let upstream = Upstream::start(|_, _| Reply::Status(400, None)).await;
    let (mut rig, _keys) = Rig::keys(&upstream, "", &[(FIRST, ""), (SECOND, "")]);
    assert!(matches!(rig.ask(1).await.refusal(), Refusal::Invalid { message, .. } if message.contains("told to say 400")));
    assert_eq!((upstream.asked().len(), rig.account(0).failures), (1, 0), "the key is not at fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_is_begun_again_before_its_first_piece_and_never_after() {
    for broken in [Reply::Cut(vec![]), Reply::Error(vec![])] {
        let upstream =
            Upstream::start(move |_, before| if before == 0 { broken.clone() } else { Reply::Pieces(vec!["ok"]) }).await;
        let (mut rig, _keys) = Rig::keys(&upstream, "", &[(FIRST, ""), (SECOND, "")]);
        assert_eq!(rig.ask(1).await.text, "ok");
    }
    for broken in [Reply::Cut(vec!["a", "b"]), Reply::Error(vec!["a", "b"])] {
        let upstream = Upstream::start(move |_, _| broken.clone()).await;
        let (mut rig, _keys) = Rig::keys(&upstream, "", &[(FIRST, ""), (SECOND, "")]);
        let heard = rig.ask(1).await;
        assert_eq!(heard.text, "ab");
        assert!(matches!(heard.refusal(), Refusal::Broken(why) if why.contains("nobody can continue")), "{:?}", heard.end);
        assert_eq!(upstream.asked().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_has_begun_is_not_continued() {
    let upstream = Upstream::start(|_, _| Reply::Pieces(vec!["a"])).await;
    let (mut rig, _keys) = Rig::keys(&upstream, "", &[(FIRST, "")]);
    rig.engine.submit(Request { resume: vec![1, 2], ..request(1) });
    assert!(matches!(rig.hear(1).await[&1].refusal(), Refusal::Broken(_)));
    assert!(upstream.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_silent_or_away_costs_its_key_a_turn() {
    let silent = Upstream::start(|_, _| Reply::Held(vec![])).await;
    let well = Upstream::start(|_, _| Reply::Pieces(vec!["ok"])).await;
    let away = Upstream::start(|_, _| Reply::Pieces(vec![])).await.url();
    let upstream =
        |name: &str, url: &str| format!("[[upstream]]\nname = '{name}'\nurl = '{url}'\nmodels = ['m']\nfirst_token = '1s'\n");
    let file = [upstream("silent", &silent.url()), upstream("away", &away), upstream("well", &well.url())].concat();
    let mut rig = Rig::start(&file);
    assert_eq!(rig.ask(1).await.text, "ok");
    silent.until_left(1).await;
    let errors = [rig.account(0).error, rig.account(1).error];
    assert!(errors[0].contains("no answer within 1 s") || errors[0].contains("no first token within 1 s"), "{errors:?}");
    assert!(errors[1].contains("can't be reached"), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cancels_closes_the_upstreams_connection_and_pays_for_what_came() {
    let upstream = Upstream::start(|_, _| Reply::Held(vec!["a", "b"])).await;
    let (mut rig, _keys) = Rig::keys(&upstream, "", &[(FIRST, "tokens_per_minute = 1000")]);
    rig.submit(1);
    let mut pieces = 0;
    while pieces < 2 {
        let step = rig.steps.recv().await.unwrap();
        pieces += step.outputs.iter().filter(|output| matches!(output, Output::Tokens { .. })).count();
    }
    assert!(rig.account(0).tokens > 10, "the whole answer is reserved");
    rig.engine.cancel(SequenceId(1));
    assert!(matches!(rig.hear(1).await[&1].end, Some(Output::Cancelled { .. })));
    upstream.until_left(1).await;
    let account = eventually("the call is settled", || async { Some(rig.account(0)).filter(|one| one.running == 0) }).await;
    assert!(account.tokens < 15, "{account:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_at_once_ask_no_more_than_the_keys_may() {
    let upstream = Upstream::start(|_, _| Reply::Pieces(vec!["ok"])).await;
    let limit = "requests_per_minute = 10";
    let (mut rig, _keys) = Rig::keys(&upstream, "", &[(FIRST, limit), (SECOND, limit)]);
    (1..=100).for_each(|id| rig.submit(id));
    let heard = rig.hear(100).await;
    let answered = heard.values().filter(|heard| heard.text == "ok").count();
    let busy =
        heard.values().filter(|heard| matches!(heard.end, Some(Output::Refused { refusal: Refusal::Busy(_), .. }))).count();
    assert_eq!((answered, busy, upstream.asked().len()), (20, 80, 20));
    let of = |key: &str| upstream.asked().iter().filter(|asked| asked.key() == key).count();
    assert_eq!((of(FIRST), of(SECOND)), (10, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_stops_leaves_nobody_asking() {
    let upstream = Upstream::start(|_, _| Reply::Held(vec!["a"])).await;
    let (mut rig, _keys) = Rig::keys(&upstream, "", &[(FIRST, "")]);
    rig.submit(1);
    while !rig.steps.recv().await.unwrap().outputs.iter().any(|output| matches!(output, Output::Tokens { .. })) {}
    tokio::time::timeout(Duration::from_secs(10), rig.engine.stop()).await.unwrap();
    upstream.until_left(1).await;
}

#[tokio::test]
async fn an_upstream_over_tls_is_believed_where_its_authority_vouches_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::default(), Authority::default());
    let (good, bad) = (ours.write(folder.path(), "ours.pem"), theirs.write(folder.path(), "theirs.pem"));
    let upstream = Upstream::start_with_tls(&ours.server(&["127.0.0.1"]), |_, _| Reply::Pieces(vec!["hello"])).await;
    let file = |rest: &str| format!("[[upstream]]\nname = 'up'\nurl = '{}'\nmodels = ['m']\n{rest}\n", upstream.url());
    let ask = async |rest: &str| Rig::start(&file(rest)).ask(1).await;
    let heard = ask(&format!("ca = '{}'", good.display())).await;
    assert_eq!(heard.text, "hello", "{heard:?}");
    for rest in [String::new(), format!("ca = '{}'", bad.display())] {
        let heard = ask(&rest).await;
        assert!(matches!(heard.refusal(), Refusal::Busy(why) if why.contains("certificate")), "{rest:?}: {heard:?}");
    }
    assert_eq!(upstream.asked().len(), 1);
}

#[tokio::test]
async fn a_model_whose_keys_are_used_up_leaves_the_others_their_room() {
    let upstream = Upstream::start(|_, _| Reply::Pieces(vec!["x"])).await;
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, FIRST).unwrap();
    let url = upstream.url();
    let mut rig = Rig::start(&format!(
        "[[upstream]]\nname = 'few'\nurl = '{url}'\nmodels = ['few']\n\
         [[upstream.key]]\nfile = '{}'\nrequests_per_minute = 1\n\
         [[upstream]]\nname = 'many'\nurl = '{url}'\nmodels = ['many']\n",
        key.display()
    ));
    let ask = async |rig: &mut Rig, id: u64, model: &str| {
        rig.engine.submit(Request { model: model.to_owned(), ..request(id) });
        rig.hear(1).await.remove(&id).expect("it was heard")
    };
    assert_eq!(ask(&mut rig, 1, "few").await.text, "x");
    for id in 2..5 {
        let refused = ask(&mut rig, id, "few").await;
        assert!(matches!(refused.refusal(), Refusal::Busy(_)), "{refused:?}");
        assert!(rig.slots.is_none_or(|slots| slots > 0), "{:?}", rig.slots);
        assert_eq!(ask(&mut rig, 10 + id, "many").await.text, "x");
    }
}
