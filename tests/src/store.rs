//! What a store has to do, whichever database is behind it: the suite that runs over SQLite and over PostgreSQL.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use banyan_store::{
    BatchStatus, Changes, Error, LineState, Message, NewBatch, NewFile, NewKey, NewLine, NewMessage, Outcome, Problem, Record,
    Settlement, Store, Target, Wanted, day_of, unix_ms,
};

/// An empty place for a store. Opened twice, it is one store of two APIs.
pub struct Place(pub Target);

impl Place {
    /// Opens it.
    ///
    /// # Panics
    /// When it can't be opened.
    pub async fn open(&self) -> Store {
        Store::open(self.0.clone()).await.unwrap_or_else(|error| panic!("{:?}: {error:?}", self.0))
    }
}

/// Makes a test of every scenario, or calls a macro with all their names.
#[macro_export]
macro_rules! store_scenarios {
    ($each:ident) => {
        $each! {
            keys_are_found_by_their_secrets_alone,
            a_revoked_or_rotated_key_is_told_from_an_unknown_one,
            of_a_hundred_callers_exactly_as_many_as_may_get_through,
            what_was_reserved_is_settled_and_summed_by_day_key_model_and_node,
            conversations_belong_to_their_owner_and_go_on_at_any_replica,
            words_are_found_however_they_are_written,
            a_history_that_clients_keep_too_branches_changes_and_is_deleted_once,
            a_link_leads_to_what_was_shared_until_it_is_revoked,
            files_come_back_as_they_went_in,
            a_batch_is_worked_on_by_one_and_no_line_ends_twice,
            batches_that_end_early_tell_every_line_why,
            what_is_old_is_forgotten,
            nothing_strange_breaks_a_statement,
        }
    };
}

fn key(name: &str) -> NewKey {
    NewKey { name: name.to_owned(), ..NewKey::default() }
}

fn said(role: &str, content: &str) -> NewMessage {
    NewMessage { role: role.to_owned(), content: content.to_owned(), ..NewMessage::default() }
}

/// See its name.
pub async fn keys_are_found_by_their_secrets_alone(place: &Place) {
    let (here, there) = (place.open().await, place.open().await);
    let before = here.keys_since(None).await.unwrap().expect("nothing is known yet");
    assert!(before.is_empty());
    let wanted =
        NewKey { models: vec!["gpt2".into()], requests_per_minute: Some(5), tokens_per_minute: Some(u32::MAX), ..key("ä key") };
    let (made, secret) = there.create_key(wanted).await.unwrap();
    let table = here.keys_since(Some(&before)).await.unwrap().expect("they have changed");
    let found = table.find(secret.reveal(), unix_ms()).expect("the other replica knows it");
    assert_eq!(**found, made);
    assert!(table.find(&secret.reveal()[1..], unix_ms()).is_none());
    assert!(here.keys_since(Some(&table)).await.unwrap().is_none(), "they have not changed again");
    assert!(matches!(here.create_key(key("ä key")).await, Err(Error::Conflict(_))), "one name, one key");
    for wrong in ["", " a", "a\nb"] {
        assert!(here.create_key(key(wrong)).await.is_err(), "{wrong:?}");
    }
    let listed = format!("{:?}", here.list_keys().await.unwrap());
    assert!(listed.contains("ä key") && !listed.contains(&secret.reveal()[20..]), "{listed}");
}

/// See its name.
pub async fn a_revoked_or_rotated_key_is_told_from_an_unknown_one(place: &Place) {
    let store = place.open().await;
    let (one, first) = store.create_key(key("one")).await.unwrap();
    let (rotated, second) = store.rotate_key("one", Duration::from_secs(60)).await.unwrap();
    assert_eq!(one.id, rotated.id);
    let table = store.keys_since(None).await.unwrap().unwrap();
    assert!(table.find(second.reveal(), unix_ms()).is_some());
    assert!(table.find(first.reveal(), unix_ms()).is_some(), "within its grace");
    assert!(table.find(first.reveal(), unix_ms() + 61_000).is_none());
    assert!(store.revoke_key(&one.id).await.unwrap().revoked_ms.is_some());
    assert!(matches!(store.revoke_key("one").await, Err(Error::Missing(_))));
    let table = store.keys_since(None).await.unwrap().unwrap();
    assert!(table.find(second.reveal(), unix_ms()).is_some_and(|key| key.revoked_ms.is_some()));
    assert!(table.find(first.reveal(), unix_ms()).is_none() && table.by_id(&one.id).is_none());
    assert!(!table.is_empty(), "revoking the last key opens nothing");
    store.create_key(key("one")).await.expect("its name is free again");
}

/// See its name.
pub async fn of_a_hundred_callers_exactly_as_many_as_may_get_through(place: &Place) {
    let (here, there) = (place.open().await, place.open().await);
    // So slow that nothing drains meanwhile.
    let limits = NewKey { requests_per_minute: Some(40), tokens_per_minute: None, ..key("limited") };
    let (key, _) = here.create_key(limits).await.unwrap();
    let begun = unix_ms();
    let callers = (0..100).map(|number| {
        let (store, key) = (if number % 2 == 0 { here.clone() } else { there.clone() }, key.clone());
        tokio::spawn(async move { store.take(&key, Wanted { requests: 1, tokens: 0 }).await.unwrap() })
    });
    let mut through = 0;
    for caller in callers.collect::<Vec<_>>() {
        match caller.await.unwrap() {
            Ok(_) => through += 1,
            Err(refused) => assert!(!refused.by_tokens && refused.retry_ms <= 1_500, "{refused:?}"),
        }
    }
    let drained = (unix_ms() - begun) * 40 / 60_000;
    assert!((40..=40 + drained).contains(&through), "{through} got through, and {drained} drained");
}

/// See its name.
pub async fn what_was_reserved_is_settled_and_summed_by_day_key_model_and_node(place: &Place) {
    let store = place.open().await;
    let limits = NewKey { tokens_per_minute: Some(600_000), ..key("counted") };
    let (key, _) = store.create_key(limits).await.unwrap();
    let key = Arc::new(key);
    for _ in 0..3 {
        store.take(&key, Wanted { requests: 1, tokens: 200_000 }).await.unwrap().unwrap();
    }
    assert!(store.take(&key, Wanted { requests: 1, tokens: 200_000 }).await.unwrap().unwrap_err().by_tokens);
    let now = unix_ms();
    let record = |node: &str, used: u32, status| Record {
        at_ms: now,
        request_id: "req-1".into(),
        query_id: "q".into(),
        key_id: key.id.clone(),
        model: "m".into(),
        node: node.into(),
        prompt_tokens: used,
        completion_tokens: 2,
        total_ms: 7,
        status,
        settlement: Some(Settlement { key: Arc::clone(&key), reserved: 200_000, used: u64::from(used) + 2 }),
        ..Record::default()
    };
    store.record(vec![record("a", 10, 200), record("a", 20, 499), record("b", 30, 200)]).await.unwrap();
    store.record(vec![record("b", 5, 200)]).await.unwrap();
    let standing = store.take(&key, Wanted { requests: 1, tokens: 0 }).await.unwrap().unwrap().tokens.unwrap();
    assert!(standing.remaining >= 600_000 - 73, "{standing:?}");
    let today = day_of(now);
    let usage = store.usage(&today, &today, Some(&key.id)).await.unwrap();
    let sums: Vec<_> = usage.iter().map(|row| (&*row.node, row.requests, row.failed, row.prompt_tokens)).collect();
    assert_eq!(sums, [("a", 2, 1, 30), ("b", 2, 0, 35)]);
    assert_eq!((&*usage[0].key, &*usage[0].day), ("counted", &*today));
    assert!(store.usage("2000-01-01", "2000-12-31", None).await.unwrap().is_empty());
    let log = store.request_log(None, 3, None).await.unwrap();
    assert_eq!(log.iter().map(|entry| entry.prompt_tokens).collect::<Vec<_>>(), [5, 30, 20]);
    assert_eq!(store.request_log(Some(log[2].number), 10, Some(&key.id)).await.unwrap().len(), 1);
}

/// See its name.
pub async fn conversations_belong_to_their_owner_and_go_on_at_any_replica(place: &Place) {
    let (here, there) = (place.open().await, place.open().await);
    let one = here.conversation_of("me", "browser").await.unwrap();
    assert_eq!(there.conversation_of("me", "browser").await.unwrap().id, one.id);
    assert_ne!(there.conversation_of("you", "browser").await.unwrap().id, one.id);
    let said = here.append("me", &one.id, vec![said("user", "Hello\nthere"), said("assistant", "Hi")]).await.unwrap();
    assert_eq!((&*said.title, said.messages), ("Hello", 2));
    let read = there.messages("me", &one.id, 10).await.unwrap();
    assert_eq!(read.iter().map(|message| &*message.content).collect::<Vec<_>>(), ["Hello\nthere", "Hi"]);
    assert_eq!(there.messages("me", &one.id, 1).await.unwrap()[0].content, "Hi");
    assert!(matches!(there.messages("you", &one.id, 10).await, Err(Error::Missing(_))));
    assert!(matches!(there.append("you", &one.id, vec![]).await, Err(Error::Missing(_))));
    assert!(matches!(there.delete_conversation("you", &one.id).await, Err(Error::Missing(_))));
    for number in 0..4 {
        here.create_conversation("me", &format!("number {number}")).await.unwrap();
    }
    let mut seen = BTreeSet::new();
    let mut after: Option<String> = None;
    loop {
        let page = there.conversations("me", after.as_deref(), 2).await.unwrap();
        seen.extend(page.conversations.iter().map(|one| one.id.clone()));
        after = page.conversations.last().map(|one| one.id.clone());
        if !page.has_more {
            break;
        }
    }
    assert_eq!(seen.len(), 5);
    assert_eq!(here.rename_conversation("me", &one.id, " New\nname").await.unwrap().title, "New");
    here.delete_conversation("me", &one.id).await.unwrap();
    assert!(matches!(there.conversation("me", &one.id).await, Err(Error::Missing(_))));
    assert_eq!(there.conversation_of("me", "browser").await.unwrap().messages, 0, "begun anew");
}

/// See its name.
pub async fn words_are_found_however_they_are_written(place: &Place) {
    let store = place.open().await;
    let one = store.create_conversation("me", "one").await.unwrap();
    let texts = ["The Banyan's roots, über-deep", "a tree_house of 42 rooms", "今天天气很好", "ROOTS again"];
    store.append("me", &one.id, texts.map(|text| said("user", text)).to_vec()).await.unwrap();
    let other = store.create_conversation("you", "other").await.unwrap();
    store.append("you", &other.id, vec![said("user", "roots of another owner")]).await.unwrap();
    for (asked, positions) in [
        ("roots", vec![3, 0]),
        ("Über", vec![0]),
        ("banyan deep", vec![0]),
        ("hous", vec![1]),
        ("42", vec![1]),
        ("天气", vec![2]),
        ("气天", vec![]),
        ("roots house", vec![]),
        ("'; DROP TABLE messages; --", vec![]),
        ("\" OR *:* & | ! ( ) NEAR", vec![]),
        (" ,.", vec![]),
    ] {
        let found = store.search("me", asked, 10).await.unwrap();
        assert_eq!(found.iter().map(|found| found.position).collect::<Vec<_>>(), positions, "{asked}");
    }
    assert!(store.search("me", "house", 10).await.unwrap()[0].excerpt.contains("tree_house of 42"));
    store.delete_conversation("me", &one.id).await.unwrap();
    assert!(store.search("me", "roots", 10).await.unwrap().is_empty());
    assert_eq!(store.search("you", "roots", 10).await.unwrap().len(), 1);
}

fn named(id: &str, parent: Option<&str>, content: &str) -> Message {
    Message {
        position: 0,
        id: id.to_owned(),
        parent: parent.map(str::to_owned),
        role: "user".to_owned(),
        content: content.to_owned(),
        model: String::new(),
        node: String::new(),
        created_ms: 5,
        extra: Some(r#"{"state":"done"}"#.to_owned()),
    }
}

/// See its name.
pub async fn a_history_that_clients_keep_too_branches_changes_and_is_deleted_once(place: &Place) {
    let (here, there) = (place.open().await, place.open().await);
    assert_eq!(here.revision("me").await.unwrap(), 0);
    let whole = Changes {
        title: Some("Trees".into()),
        updated_ms: Some(i64::MAX),
        extra: Some(r#"{"leaf":"b"}"#.into()),
        messages: vec![named("a", None, "roots"), named("b", Some("a"), "leaves"), named("c", Some("a"), "twigs")],
        ..Changes::default()
    };
    let begun = here.change_conversation("me", "talk", whole.clone()).await.unwrap();
    assert_eq!((begun.before, begun.conversation.messages, &*begun.conversation.title), (0, 3, "Trees"));
    assert!(begun.conversation.updated_ms <= unix_ms(), "no clock puts it above all others");
    let known = begun.conversation.revision;
    assert_eq!(there.revision("me").await.unwrap(), known);
    assert_eq!(there.conversation("me", "talk").await.unwrap(), begun.conversation, "found by its client's name");
    let read = there.messages("me", "talk", 10).await.unwrap();
    let shown = |messages: &[Message]| {
        messages.iter().map(|one| (one.id.clone(), one.parent.clone(), one.content.clone())).collect::<Vec<_>>()
    };
    assert_eq!(shown(&read), shown(&whole.messages));
    assert_eq!(read[0].extra.as_deref(), Some(r#"{"state":"done"}"#));

    // Two change it at once: what each said is there, and both hear that there is more than they know.
    let add = |store: &Store, id: &'static str| {
        let store = store.clone();
        let changes = Changes { known: Some(known), messages: vec![named(id, Some("b"), id)], ..Changes::default() };
        async move { store.change_conversation("me", "talk", changes).await.unwrap() }
    };
    let (one, other) = tokio::join!(add(&here, "d"), add(&there, "e"));
    assert_eq!([one.before, other.before].iter().filter(|before| **before == known).count(), 1, "{one:?} {other:?}");
    let changes = Changes {
        messages: vec![named("c", Some("b"), "birds")],
        removed: vec!["a".into(), "none".into()],
        ..Changes::default()
    };
    let changed = here.change_conversation("me", "talk", changes).await.unwrap();
    assert_eq!((changed.conversation.messages, &*changed.conversation.title), (4, "Trees"));
    assert!(there.search("me", "twigs", 5).await.unwrap().is_empty(), "nobody says so any more");
    let found = there.search("me", "birds", 5).await.unwrap();
    assert_eq!((&*found[0].message_id, found[0].client_id.as_deref()), ("c", Some("talk")));
    let appended = here.append("me", "talk", vec![said("user", "by other ways")]).await.unwrap();
    assert_eq!(appended.messages, 5);
    let last = here.messages("me", "talk", 1).await.unwrap().remove(0);
    assert!(last.parent.is_some() && last.id.starts_with('m'), "{last:?}");

    // Another owner's is another one, and what was deleted is not begun again by who has not heard.
    assert_eq!(there.change_conversation("you", "talk", Changes::default()).await.unwrap().before, 0);
    there.delete_conversation("me", "talk").await.unwrap();
    let late = Changes { known: Some(known), ..whole };
    assert!(matches!(here.change_conversation("me", "talk", late).await, Err(Error::Missing(_))));
    assert!(here.revision("me").await.unwrap() > appended.revision);
}

/// See its name.
pub async fn a_link_leads_to_what_was_shared_until_it_is_revoked(place: &Place) {
    let (here, there) = (place.open().await, place.open().await);
    here.change_conversation("me", "talk", Changes::default()).await.unwrap();
    assert_eq!(there.share_of("me", "talk").await.unwrap(), None);
    assert!(matches!(there.share("you", "talk", "{}").await, Err(Error::Missing(_))));
    let first = here.share("me", "talk", "first").await.unwrap();
    assert_eq!(there.shared(&first.id).await.unwrap(), "first");
    let again = there.share("me", "talk", "second").await.unwrap();
    assert_eq!((again.id.as_str(), here.shared(&first.id).await.unwrap().as_str()), (first.id.as_str(), "second"));
    assert_eq!(here.share_of("me", "talk").await.unwrap(), Some(again));
    assert!(matches!(there.revoke_share("you", "talk").await, Err(Error::Missing(_))));
    there.revoke_share("me", "talk").await.unwrap();
    assert!(matches!(here.shared(&first.id).await, Err(Error::Missing(_))));
    let another = here.share("me", "talk", "third").await.unwrap();
    assert_ne!(another.id, first.id, "a link that was revoked stays so");
    here.delete_conversation("me", "talk").await.unwrap();
    assert!(matches!(there.shared(&another.id).await, Err(Error::Missing(_))));
}

/// See its name.
pub async fn files_come_back_as_they_went_in(place: &Place) {
    let (here, there) = (place.open().await, place.open().await);
    let new = NewFile { owner: "me".into(), name: "a\0b.jsonl".into() };
    let begun = here.begin_file(new.clone()).await.unwrap();
    let pieces: Vec<Vec<u8>> = (0u8..3).map(|piece| (0..1000u32).map(|at| (at as u8).wrapping_mul(piece)).collect()).collect();
    for (position, piece) in pieces.iter().enumerate() {
        here.add_piece(&begun.id, position as u32, piece).await.unwrap();
    }
    assert!(matches!(there.file("me", &begun.id).await, Err(Error::Missing(_))), "nobody sees half a file");
    let whole = here.complete_file(begun, 3000).await.unwrap();
    assert_eq!(there.file("me", &whole.id).await.unwrap(), whole);
    assert_eq!(whole.name, "ab.jsonl");
    for (position, piece) in pieces.iter().enumerate() {
        assert_eq!(there.piece(&whole.id, position as u32).await.unwrap().as_ref(), Some(piece));
    }
    assert_eq!(there.piece(&whole.id, 3).await.unwrap(), None);
    assert!(matches!(there.file("you", &whole.id).await, Err(Error::Missing(_))));
    let abandoned = here.begin_file(new).await.unwrap();
    here.abandon_file(&abandoned.id).await.unwrap();
    here.abandon_file(&whole.id).await.unwrap();
    let (files, has_more) = there.files("me", None, None, 10).await.unwrap();
    assert_eq!((files, has_more), (vec![whole.clone()], false));
    there.delete_file("me", &whole.id).await.unwrap();
    assert!(here.piece(&whole.id, 0).await.unwrap().is_none());
}

async fn batch(store: &Store) -> banyan_store::Batch {
    let file = store.begin_file(NewFile { owner: "me".into(), name: "in.jsonl".into() }).await.unwrap();
    let file = store.complete_file(file, 0).await.unwrap();
    let new = NewBatch {
        owner: "me".into(),
        endpoint: "/v1/chat/completions".into(),
        completion_window: "24h".into(),
        metadata: Some("{}".into()),
        input_file_id: file.id,
        window_ms: 86_400_000,
    };
    store.create_batch(new).await.unwrap()
}

fn lines(count: u32) -> Vec<NewLine> {
    let line = |position| NewLine { position, custom_id: format!("line-{position}"), body: "{}".into() };
    (0..count).map(line).collect()
}

/// See its name.
pub async fn a_batch_is_worked_on_by_one_and_no_line_ends_twice(place: &Place) {
    let (here, there) = (place.open().await, place.open().await);
    let made = batch(&here).await;
    let (claimed, claim) = here.claim_batch("here", 60_000).await.unwrap().expect("there is one");
    assert_eq!(claimed.id, made.id);
    assert!(there.claim_batch("there", 60_000).await.unwrap().is_none(), "it is taken");
    here.add_lines(&claim, lines(5)).await.unwrap();
    here.add_lines(&claim, lines(5)).await.expect("again, as after a death");
    here.begin_batch(&claim, 5).await.unwrap();
    assert_eq!(there.waiting_lines(&made.id, 2, 2).await.unwrap().iter().map(|line| line.position).collect::<Vec<_>>(), [2, 3]);
    let ends = |position, state, text: &str| (position, state, text.to_owned());
    here.end_lines(&claim, vec![ends(0, LineState::Completed, "a"), ends(1, LineState::Failed, "ü")]).await.unwrap();
    here.end_lines(&claim, vec![ends(0, LineState::Failed, "again")]).await.unwrap();

    // It dies, and somebody else goes on.
    assert!(here.renew_claim(&claim, -1).await.unwrap().is_some());
    let (resumed, theirs) = there.claim_batch("there", 60_000).await.unwrap().expect("the claim has ended");
    assert_eq!((resumed.counts.completed, resumed.counts.failed, resumed.counts.total), (1, 1, 5));
    assert!(here.renew_claim(&claim, 60_000).await.unwrap().is_none());
    assert!(here.end_lines(&claim, vec![ends(2, LineState::Completed, "late")]).await.is_err(), "its claim is lost");
    let left = there.waiting_lines(&made.id, 0, 10).await.unwrap();
    assert_eq!(left.iter().map(|line| line.position).collect::<Vec<_>>(), [2, 3, 4]);
    let rest = left.iter().map(|line| ends(line.position, LineState::Completed, "b")).collect();
    there.end_lines(&theirs, rest).await.unwrap();
    there.end_batch(&theirs, Outcome::Completed, |_, _, _| unreachable!()).await.unwrap();
    let ended = here.batch("me", &made.id).await.unwrap();
    assert_eq!((ended.status, ended.counts.completed, ended.counts.failed), (BatchStatus::Completed, 4, 1));
    let output = here.file("me", ended.output_file_id.as_deref().unwrap()).await.unwrap();
    assert_eq!((output.bytes, output.batch_id.as_deref()), (8, Some(&*made.id)));
    let errors = here.file("me", ended.error_file_id.as_deref().unwrap()).await.unwrap();
    assert_eq!(errors.bytes, 3, "bytes, not characters");
    let answers = here.answers(&made.id, LineState::Completed, 1, 10).await.unwrap();
    assert_eq!(answers.iter().map(|(position, _)| *position).collect::<Vec<_>>(), [2, 3, 4]);
    assert!(here.claim_batch("here", 60_000).await.unwrap().is_none());
    assert!(matches!(here.cancel_batch("me", &made.id).await, Err(Error::Conflict(_))));
}

/// See its name.
pub async fn batches_that_end_early_tell_every_line_why(place: &Place) {
    let store = place.open().await;
    let made = batch(&store).await;
    assert!(matches!(store.delete_file("me", &made.input_file_id).await, Err(Error::Conflict(_))));
    let (_, claim) = store.claim_batch("a", 60_000).await.unwrap().unwrap();
    store.add_lines(&claim, lines(3)).await.unwrap();
    store.begin_batch(&claim, 3).await.unwrap();
    store.delete_file("me", &made.input_file_id).await.expect("it was read");
    assert!(matches!(store.cancel_batch("you", &made.id).await, Err(Error::Missing(_))));
    assert_eq!(store.cancel_batch("me", &made.id).await.unwrap().status, BatchStatus::Cancelling);
    assert_eq!(store.renew_claim(&claim, 60_000).await.unwrap().unwrap().status, BatchStatus::Cancelling);
    store.end_lines(&claim, vec![(1, LineState::Completed, "done".into())]).await.unwrap();
    store.end_batch(&claim, Outcome::Cancelled, |_, _, custom_id| format!("{custom_id} was cancelled")).await.unwrap();
    let ended = store.batch("me", &made.id).await.unwrap();
    assert_eq!((ended.status, ended.counts.completed, ended.counts.failed), (BatchStatus::Cancelled, 1, 2));
    let told = store.answers(&made.id, LineState::Failed, 0, 10).await.unwrap();
    assert_eq!(told, [(0, "line-0 was cancelled".to_owned()), (2, "line-2 was cancelled".to_owned())]);

    let bad = batch(&store).await;
    let (_, claim) = store.claim_batch("a", 60_000).await.unwrap().unwrap();
    let problem = Problem { code: "invalid_json".into(), message: "no JSON".into(), param: None, line: Some(1) };
    store.end_batch(&claim, Outcome::Failed(vec![problem.clone()]), |_, _, _| String::new()).await.unwrap();
    let failed = store.batch("me", &bad.id).await.unwrap();
    assert_eq!((failed.status, failed.problems, failed.output_file_id), (BatchStatus::Failed, vec![problem], None));
    let (all, has_more) = store.batches("me", None, 1).await.unwrap();
    assert_eq!((&*all[0].id, has_more), (&*bad.id, true));
    assert_eq!(store.batches("me", Some(&bad.id), 5).await.unwrap().0[0].id, made.id);
}

/// See its name.
pub async fn what_is_old_is_forgotten(place: &Place) {
    let store = place.open().await;
    let made = batch(&store).await;
    let (_, claim) = store.claim_batch("a", 60_000).await.unwrap().unwrap();
    store.add_lines(&claim, lines(1)).await.unwrap();
    store.end_lines(&claim, vec![(0, LineState::Completed, "done".into())]).await.unwrap();
    store.end_batch(&claim, Outcome::Completed, |_, _, _| String::new()).await.unwrap();
    store.record(vec![Record { at_ms: unix_ms(), ..Record::default() }]).await.unwrap();
    store.begin_file(NewFile { owner: "me".into(), name: "half".into() }).await.unwrap();
    store.sweep(unix_ms() - 60_000).await.unwrap();
    assert_eq!(store.request_log(None, 10, None).await.unwrap().len(), 1);
    assert!(store.batch("me", &made.id).await.is_ok());
    store.sweep(unix_ms() + 60_000).await.unwrap();
    assert!(store.request_log(None, 10, None).await.unwrap().is_empty());
    assert!(matches!(store.batch("me", &made.id).await, Err(Error::Missing(_))));
    assert!(store.answers(&made.id, LineState::Completed, 0, 10).await.unwrap().is_empty());
    let (files, _) = store.files("me", None, None, 10).await.unwrap();
    assert_eq!(files.len(), 1, "the upload stays, its output went with the batch: {files:?}");
}

/// See its name.
pub async fn nothing_strange_breaks_a_statement(place: &Place) {
    let store = place.open().await;
    for strange in ["'; DROP TABLE keys; --", "\0", "🌳\u{202e}", "?1 $1 {lock}", &"x".repeat(100_000)] {
        assert!(matches!(store.conversation(strange, strange).await, Err(Error::Missing(_))));
        assert!(matches!(store.file(strange, strange).await, Err(Error::Missing(_))));
        assert!(matches!(store.batch(strange, strange).await, Err(Error::Missing(_))));
        assert!(store.search(strange, strange, 5).await.unwrap().is_empty());
        let one = store.create_conversation("me", strange).await.unwrap();
        store.append("me", &one.id, vec![said("user", strange)]).await.unwrap();
        let read = store.messages("me", &one.id, 1).await.unwrap().remove(0);
        assert_eq!(read.content, strange.replace('\0', "\u{fffd}"));
    }
    store.probe().await.unwrap();
}
