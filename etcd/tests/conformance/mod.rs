//! The embedded server against a real etcd: the same requests, one after the other, and the same answers.
//!
//! Each answer becomes a line of a transcript, with revisions counted from the first put, since the servers' histories begin
//! at different revisions. What differs by nature is left out: who answers, and how events are grouped into messages.

use std::{collections::VecDeque, fmt::Debug};

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions,
    PutOptions, SortOrder, SortTarget, Txn, TxnOp, WatchFilterType, WatchOptions, WatchStream,
    proto::{PbKeyValue, PbRangeResponse, PbTxnOpResponse, PbTxnResponse},
};

use super::suite::{PATIENCE, eventually};

/// What a server said to the script of requests.
pub(crate) struct Transcript {
    client: Client,
    first: i64,
    pub(crate) lines: Vec<String>,
}

/// Runs the whole script.
pub(crate) async fn transcript(url: &str) -> Vec<String> {
    let mut client = Client::connect([url], None).await.expect("a URL is a URL");
    let first = {
        let put = eventually("the server answers", || async { client.clone().put("first", "1", None).await.ok() }).await;
        put.0.header.expect("an answer has a header").revision
    };
    client.delete("first", None).await.expect("it can be deleted");
    let mut transcript = Transcript { client, first, lines: Vec::new() };
    transcript.puts_and_ranges().await;
    transcript.deletions().await;
    transcript.compares().await;
    transcript.transactions().await;
    transcript.leases().await;
    transcript.watches().await;
    transcript.compactions().await;
    transcript.lines
}

impl Transcript {
    fn say(&mut self, what: &str, answer: impl Debug) {
        self.lines.push(format!("{what}: {answer:?}"));
    }

    fn revision(&self, revision: i64) -> String {
        if revision == 0 { "-".into() } else { format!("r{}", revision - self.first) }
    }

    fn kv(&self, kv: &PbKeyValue) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (created, changed) = (self.revision(kv.create_revision), self.revision(kv.mod_revision));
        format!("{}={} {created} {changed} v{} l{}", text(&kv.key), text(&kv.value), kv.version, kv.lease)
    }

    fn kvs<'a>(&self, kvs: impl IntoIterator<Item = &'a PbKeyValue>) -> Vec<String> {
        kvs.into_iter().map(|kv| self.kv(kv)).collect()
    }

    fn range(&self, range: &PbRangeResponse) -> String {
        let revision = self.revision(range.header.as_ref().map_or(0, |header| header.revision));
        format!("{revision} {:?} more {} count {}", self.kvs(&range.kvs), range.more, range.count)
    }

    fn txn(&self, txn: &PbTxnResponse) -> String {
        let header = |header: &Option<_>| {
            let header: &Option<etcd_client::proto::PbResponseHeader> = header;
            self.revision(header.as_ref().map_or(0, |header| header.revision))
        };
        let answers = txn.responses.iter().map(|response| match &response.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => format!("range {}", self.range(range)),
            Some(PbTxnOpResponse::ResponsePut(put)) => format!("put {} {:?}", header(&put.header), self.kvs(&put.prev_kv)),
            Some(PbTxnOpResponse::ResponseDeleteRange(delete)) => {
                format!("delete {} {} {:?}", header(&delete.header), delete.deleted, self.kvs(&delete.prev_kvs))
            }
            other => format!("{other:?}"),
        });
        format!("{} {} {:?}", header(&txn.header), txn.succeeded, answers.collect::<Vec<_>>())
    }

    async fn get(&mut self, key: &str, options: GetOptions) {
        let what = format!("get {key:?} {options:?}");
        let answer = self.client.get(key, Some(options)).await.map(|got| self.range(&got.0)).map_err(refusal);
        // Revisions in the request differ; the steps are in order anyway.
        let what: String = what.chars().filter(|character| !character.is_ascii_digit()).collect();
        self.say(&what, answer);
    }

    async fn put(&mut self, key: &str, value: &str, options: PutOptions) {
        let answer = self.client.put(key, value, Some(options)).await;
        let shown = answer.map(|put| (self.revision(put.0.header.map_or(0, |header| header.revision)), self.kvs(&put.0.prev_kv)));
        self.say(&format!("put {key}={value}"), shown.map_err(refusal));
    }

    async fn delete(&mut self, key: &str, options: DeleteOptions) {
        let answer = self.client.delete(key, Some(options)).await.map(|deleted| {
            let revision = self.revision(deleted.0.header.as_ref().map_or(0, |header| header.revision));
            (revision, deleted.0.deleted, self.kvs(&deleted.0.prev_kvs))
        });
        self.say(&format!("delete {key}"), answer.map_err(refusal));
    }

    async fn transact(&mut self, what: &str, txn: Txn) {
        let answer = self.client.txn(txn).await.map(|answer| self.txn(&answer.0)).map_err(refusal);
        self.say(what, answer);
    }

    async fn now(&mut self) -> i64 {
        let got = self.client.get("now", None).await.expect("it can be read");
        got.0.header.expect("an answer has a header").revision
    }

    async fn puts_and_ranges(&mut self) {
        for (key, value) in [("k/a", "3"), ("k/b", "1"), ("k/c", "2"), ("k/b", "4"), ("l", "5")] {
            self.put(key, value, PutOptions::new().with_prev_key()).await;
        }
        self.put("k/b", "", PutOptions::new().with_ignore_value().with_prev_key()).await;
        self.put("k/b", "x", PutOptions::new().with_ignore_value()).await;
        self.put("none", "", PutOptions::new().with_ignore_value()).await;
        self.put("none", "", PutOptions::new().with_ignore_lease()).await;
        self.put("k/b", "5", PutOptions::new().with_ignore_lease()).await;
        self.put("k/b", "5", PutOptions::new().with_ignore_lease().with_lease(5)).await;
        self.put("k/b", "5", PutOptions::new().with_lease(999)).await;
        self.put("", "5", PutOptions::new()).await;
        self.put("huge", &"x".repeat(1_600_000), PutOptions::new()).await;
        self.lines.last_mut().expect("a line was said").retain(|character| character != 'x');

        let prefix = || GetOptions::new().with_prefix();
        self.get("k/a", GetOptions::new()).await;
        self.get("none", GetOptions::new()).await;
        self.get("k/", prefix()).await;
        self.get("", GetOptions::new().with_all_keys()).await;
        self.get("k/b", GetOptions::new().with_from_key()).await;
        self.get("k/b", GetOptions::new().with_range("k/a")).await;
        self.get("k/", prefix().with_keys_only()).await;
        self.get("k/", prefix().with_count_only()).await;
        self.get("k/", prefix().with_count_only().with_limit(1)).await;
        self.get("k/", prefix().with_serializable()).await;
        for limit in [-1, 0, 1, 3, 4] {
            self.get("k/", prefix().with_limit(limit)).await;
        }
        use SortTarget::{Create, Key, Mod, Value, Version};
        for target in [Key, Version, Create, Mod, Value] {
            for order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
                self.get("k/", prefix().with_sort(target, order)).await;
                self.get("k/", prefix().with_sort(target, order).with_limit(2)).await;
            }
        }
        let now = self.now().await;
        for revision in [now - 1, now - 3, now - 5, now, now + 1] {
            self.get("k/", prefix().with_revision(revision)).await;
        }
        for revision in [now - 3, now - 5] {
            self.get("k/", prefix().with_min_mod_revision(revision)).await;
            self.get("k/", prefix().with_max_mod_revision(revision).with_limit(1)).await;
            self.get("k/", prefix().with_min_create_revision(revision).with_limit(1)).await;
            self.get("k/", prefix().with_max_create_revision(revision).with_count_only()).await;
        }
    }

    async fn deletions(&mut self) {
        for key in ["d/a", "d/b", "d/c", "e"] {
            self.put(key, "1", PutOptions::new()).await;
        }
        self.delete("d/a", DeleteOptions::new().with_prev_key()).await;
        self.delete("d/a", DeleteOptions::new().with_prev_key()).await;
        self.delete("d/", DeleteOptions::new().with_prefix().with_prev_key()).await;
        self.delete("d/", DeleteOptions::new().with_prefix()).await;
        self.delete("e", DeleteOptions::new().with_range("d")).await;
        self.put("d/a", "again", PutOptions::new()).await;
        self.get("d/", GetOptions::new().with_prefix()).await;
    }

    async fn compares(&mut self) {
        self.put("c", "5", PutOptions::new()).await;
        self.put("c", "5", PutOptions::new()).await;
        let now = self.now().await;
        for op in [CompareOp::Equal, CompareOp::NotEqual, CompareOp::Greater, CompareOp::Less] {
            for key in ["c", "missing"] {
                let compares = [
                    Compare::version(key, op, 2),
                    Compare::version(key, op, 0),
                    Compare::create_revision(key, op, now - 1),
                    Compare::create_revision(key, op, 0),
                    Compare::mod_revision(key, op, now),
                    Compare::mod_revision(key, op, now - 1),
                    Compare::value(key, op, "5"),
                    Compare::value(key, op, "6"),
                    Compare::value(key, op, ""),
                    Compare::lease(key, op, 0),
                    Compare::lease(key, op, 7),
                    Compare::version("k/", op, 1).with_prefix(),
                    Compare::version("none/", op, 0).with_prefix(),
                ];
                for (number, compare) in compares.into_iter().enumerate() {
                    self.transact(&format!("{op:?} {key} {number}"), Txn::new().when([compare])).await;
                }
            }
        }
        let both = [Compare::version("c", CompareOp::Equal, 2), Compare::version("missing", CompareOp::Equal, 1)];
        self.transact("both", Txn::new().when(both)).await;
        self.transact("no key", Txn::new().when([Compare::version("", CompareOp::Equal, 1)])).await;
    }

    async fn transactions(&mut self) {
        let (put, get) = (|key: &str| TxnOp::put(key, "t", None), |key: &str| TxnOp::get(key, None));
        let delete = |key: &str| TxnOp::delete(key, Some(DeleteOptions::new().with_prev_key()));
        let delete_all = |key: &str| TxnOp::delete(key, Some(DeleteOptions::new().with_prefix()));
        let never = || [Compare::version("c", CompareOp::Equal, 99)];
        self.transact("nothing", Txn::new()).await;
        self.transact("reading", Txn::new().and_then([get("c"), get("none")])).await;
        self.transact("two puts", Txn::new().and_then([put("t/a"), put("t/b")])).await;
        self.transact("else", Txn::new().when(never()).and_then([put("t/c")]).or_else([get("t/a"), put("t/d")])).await;
        self.transact("sees its own", Txn::new().and_then([get("t/a"), put("t/a"), get("t/a"), delete("t/b"), get("t/b")])).await;
        self.transact("deletes nothing", Txn::new().and_then([delete("none")])).await;
        self.transact("deletes nothing after a put", Txn::new().and_then([put("t/e"), delete("none"), get("t/e")])).await;
        self.transact("puts twice", Txn::new().and_then([put("t/f"), put("t/f")])).await;
        self.transact("puts and deletes", Txn::new().and_then([put("t/f"), delete_all("t/")])).await;
        self.transact("deletes twice", Txn::new().and_then([delete("t/e"), delete_all("t/e")])).await;
        self.transact("too much in the other branch", Txn::new().and_then([get("c")]).or_else([put("t/f"), put("t/f")])).await;
        self.transact("many", Txn::new().and_then((0..128).map(|_| get("c")).collect::<Vec<_>>())).await;
        self.transact("too many", Txn::new().and_then((0..129).map(|_| get("c")).collect::<Vec<_>>())).await;
        self.transact("no key", Txn::new().and_then([put("t/g"), get("")])).await;
        let leased = TxnOp::put("t/i", "t", Some(PutOptions::new().with_lease(999)));
        self.transact("no lease", Txn::new().and_then([put("t/h"), leased])).await;
        let future = TxnOp::get("c", Some(GetOptions::new().with_revision(i64::MAX)));
        self.transact("the future", Txn::new().and_then([put("t/j"), future])).await;
        let valueless = TxnOp::put("none", "", Some(PutOptions::new().with_ignore_value()));
        self.transact("no value to keep", Txn::new().and_then([put("t/k"), valueless])).await;
        self.get("t/", GetOptions::new().with_prefix()).await;
    }

    async fn grant(&mut self, id: i64, ttl: i64) {
        let answer = self.client.lease_grant(ttl, Some(LeaseGrantOptions::new().with_id(id))).await;
        let shown = answer.map(|granted| (granted.id(), granted.ttl(), granted.error().to_owned()));
        self.say(&format!("grant {id} {ttl}"), shown.map_err(refusal));
    }

    async fn time_to_live(&mut self, id: i64) {
        let answer = self.client.lease_time_to_live(id, Some(LeaseTimeToLiveOptions::new().with_keys())).await;
        let shown = answer.map(|told| {
            let mut keys: Vec<_> = told.keys().iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
            keys.sort();
            // A second may pass in between.
            (told.id(), told.ttl() >= told.granted_ttl() - 3, told.ttl() < 0, told.granted_ttl(), keys)
        });
        self.say(&format!("time to live {id}"), shown.map_err(refusal));
    }

    async fn leases(&mut self) {
        for (id, ttl) in [(7, 600), (7, 600), (8, 1), (9, 0), (10, -5), (11, 9_000_000_001), (12, 9_000_000_000), (13, 600)] {
            self.grant(id, ttl).await;
        }
        let drawn = self.client.lease_grant(600, None).await.map(|granted| (granted.id() > 0, granted.ttl()));
        self.say("a drawn id", drawn.map_err(refusal));
        for key in ["lease/a", "lease/b", "lease/c"] {
            self.put(key, "1", PutOptions::new().with_lease(7)).await;
        }
        self.put("lease/b", "2", PutOptions::new().with_lease(13).with_prev_key()).await;
        self.put("lease/c", "2", PutOptions::new().with_ignore_lease()).await;
        self.put("lease/d", "1", PutOptions::new().with_lease(7)).await;
        self.put("lease/d", "2", PutOptions::new()).await;
        for id in [7, 13, 999] {
            self.time_to_live(id).await;
        }
        self.transact("of a lease", Txn::new().when([Compare::lease("lease/a", CompareOp::Equal, 7)])).await;
        let alive = self.client.lease_keep_alive(7).await.map(|(keeper, _)| keeper.id());
        self.say("keep alive", alive.map_err(refusal));
        let dead = self.client.lease_keep_alive(999).await.map(|(keeper, _)| keeper.id());
        self.say("keep nothing alive", dead.map_err(refusal));
        for id in [7, 7, 0] {
            let revoked = self.client.lease_revoke(id).await;
            let shown = revoked.map(|revoked| self.revision(revoked.0.header.map_or(0, |header| header.revision)));
            self.say(&format!("revoke {id}"), shown.map_err(refusal));
        }
        self.get("lease/", GetOptions::new().with_prefix()).await;

        // By now the short ones may or may not be over; one more is waited for, and both keys go in one revision.
        self.grant(20, 2).await;
        for key in ["short/a", "short/b"] {
            self.put(key, "1", PutOptions::new().with_lease(20)).await;
        }
        let client = self.client.clone();
        eventually("the lease is over", || async {
            let left = client.clone().get("short/", Some(GetOptions::new().with_prefix())).await.ok()?;
            left.kvs().is_empty().then_some(())
        })
        .await;
        self.time_to_live(20).await;
        self.get("none", GetOptions::new()).await;
        let listed = self.client.leases().await.map(|listed| {
            let mut ids: Vec<i64> = listed.leases().iter().map(|lease| lease.id()).filter(|id| *id < 1000).collect();
            ids.sort_unstable();
            ids
        });
        eventually("the shortest are over", || async {
            let left = client.clone().leases().await.ok()?;
            (!left.leases().iter().any(|lease| [8, 9, 10].contains(&lease.id()))).then_some(())
        })
        .await;
        self.say("long leases", listed.map(|ids| ids.contains(&12) && ids.contains(&13)).map_err(refusal));
    }

    async fn watches(&mut self) {
        let from = self.now().await + 1;
        self.put("w/a", "1", PutOptions::new()).await;
        self.put("w/a", "2", PutOptions::new()).await;
        self.put("other", "2", PutOptions::new()).await;
        self.transact("at once", Txn::new().and_then([TxnOp::put("w/b", "1", None), TxnOp::put("w/c", "1", None)])).await;
        self.delete("w/", DeleteOptions::new().with_prefix()).await;

        let options = || WatchOptions::new().with_prefix().with_start_revision(from);
        let stream = self.client.watch("w/", Some(options().with_prev_key())).await.expect("a stream");
        let mut watch = Watch { stream, events: VecDeque::new() };
        self.hear_control(&mut watch, "history").await;
        self.hear_events(&mut watch, 7).await;

        self.put("w/d", "1", PutOptions::new()).await;
        self.hear_events(&mut watch, 1).await;
        self.grant(30, 600).await;
        for key in ["w/e", "w/f"] {
            self.put(key, "1", PutOptions::new().with_lease(30)).await;
        }
        self.client.lease_revoke(30).await.expect("it can be revoked");
        self.hear_events(&mut watch, 4).await;

        // More watchers on the same stream.
        watch.stream.watch("w/", Some(options().with_filters([WatchFilterType::NoPut]))).await.expect("sent");
        self.hear_control(&mut watch, "only deletions").await;
        self.hear_events(&mut watch, 5).await;
        watch.stream.watch("w/", Some(options().with_filters([WatchFilterType::NoDelete]).with_watch_id(9))).await.expect("sent");
        self.hear_control(&mut watch, "only puts").await;
        self.hear_events(&mut watch, 7).await;
        watch.stream.watch("w/", Some(options().with_watch_id(9))).await.expect("sent");
        self.hear_control(&mut watch, "an id again").await;
        watch.stream.watch("w/b", Some(WatchOptions::new().with_range("w/a"))).await.expect("sent");
        self.hear_control(&mut watch, "an empty range").await;
        let future = self.now().await + 2;
        watch.stream.watch("later", Some(WatchOptions::new().with_start_revision(future))).await.expect("sent");
        self.hear_control(&mut watch, "the future").await;
        self.put("later", "too early", PutOptions::new()).await;
        self.put("later", "in time", PutOptions::new()).await;
        self.hear_events(&mut watch, 1).await;
        watch.stream.watch("new", None).await.expect("sent");
        self.hear_control(&mut watch, "from now on").await;
        self.put("new", "1", PutOptions::new()).await;
        self.hear_events(&mut watch, 1).await;

        watch.stream.cancel(9).await.expect("sent");
        self.hear_control(&mut watch, "cancel").await;
        watch.stream.cancel(77).await.expect("sent");
        watch.stream.cancel(0).await.expect("sent");
        self.hear_control(&mut watch, "cancel").await;
        watch.stream.request_progress().await.expect("sent");
        self.hear_control(&mut watch, "progress").await;
        self.put("w/a", "unheard", PutOptions::new()).await;
        self.put("new", "heard", PutOptions::new()).await;
        self.hear_events(&mut watch, 1).await;
    }

    async fn compactions(&mut self) {
        for value in ["1", "2", "3"] {
            self.put("x/a", value, PutOptions::new()).await;
        }
        self.put("x/b", "1", PutOptions::new()).await;
        self.delete("x/b", DeleteOptions::new()).await;
        self.put("x/b", "2", PutOptions::new()).await;
        let now = self.now().await;
        for at in [now - 2, now - 2, now - 3, now + 1, 0] {
            let answer = self.client.compact(at, None).await;
            let shown = answer.map(|done| self.revision(done.0.header.map_or(0, |header| header.revision)));
            self.say("compact", shown.map_err(refusal));
        }
        for revision in [now - 3, now - 2, now - 1, now] {
            self.get("x/", GetOptions::new().with_prefix().with_revision(revision)).await;
        }
        let past = TxnOp::get("x/a", Some(GetOptions::new().with_revision(now - 3)));
        self.transact("the past", Txn::new().and_then([TxnOp::put("x/c", "1", None), past])).await;

        let options = || WatchOptions::new().with_prefix().with_prev_key();
        let stream = self.client.watch("x/", Some(options().with_start_revision(now - 3))).await.expect("a stream");
        let mut watch = Watch { stream, events: VecDeque::new() };
        self.hear_control(&mut watch, "the past").await;
        self.hear_control(&mut watch, "compacted").await;
        watch.stream.watch("x/", Some(options().with_start_revision(now - 1))).await.expect("sent");
        self.hear_control(&mut watch, "not compacted").await;
        self.hear_events(&mut watch, 2).await;
    }

    /// The next message without events.
    async fn hear_control(&mut self, watch: &mut Watch, what: &str) {
        let message = loop {
            let message = self.hear(watch).await;
            if message.events.is_empty() {
                break message;
            }
            watch.events.extend(message.events.iter().map(|event| (message.watch_id, event.clone())));
        };
        let revision = if message.canceled { 0 } else { message.header.as_ref().map_or(0, |header| header.revision) };
        let compacted = self.revision(message.compact_revision);
        let flags = (message.created, message.canceled, compacted, message.cancel_reason.clone());
        let revision = self.revision(revision);
        self.say(&format!("watch {what}"), (message.watch_id, revision, flags));
    }

    /// The next events, in whatever messages they come.
    async fn hear_events(&mut self, watch: &mut Watch, count: usize) {
        while watch.events.len() < count {
            let message = self.hear(watch).await;
            assert!(!message.events.is_empty(), "events, not {message:?}");
            watch.events.extend(message.events.iter().map(|event| (message.watch_id, event.clone())));
        }
        for (id, event) in watch.events.drain(..) {
            let kind = if event.r#type == EventType::Delete as i32 { "deleted" } else { "put" };
            let shown = (id, kind, self.kvs(&event.kv), self.kvs(&event.prev_kv));
            self.say("event", shown);
        }
    }

    async fn hear(&self, watch: &mut Watch) -> etcd_client::proto::PbWatchResponse {
        let message = tokio::time::timeout(PATIENCE, watch.stream.message()).await;
        let message = message.unwrap_or_else(|_| panic!("silence after {:?}", self.lines.last()));
        message.expect("the stream goes on").expect("and does not end").0
    }
}

struct Watch {
    stream: WatchStream,
    events: VecDeque<(i64, etcd_client::proto::PbEvent)>,
}

fn refusal(error: Error) -> String {
    match error {
        Error::GRpcStatus(status) => format!("{:?}: {}", status.code(), status.message()),
        other => other.to_string(),
    }
}

/// Runs the script over both, and says where they first differ.
pub(crate) async fn compare(embedded: &str, etcd: &str) {
    let (ours, theirs) = tokio::join!(transcript(embedded), transcript(etcd));
    let differences: Vec<String> = ours
        .iter()
        .zip(&theirs)
        .filter(|(ours, theirs)| ours != theirs)
        .map(|(ours, theirs)| format!("  banyan {ours}\n  etcd   {theirs}"))
        .collect();
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    assert!(ours.len() == theirs.len() && ours.len() > 200, "{} and {} lines", ours.len(), theirs.len());
}
