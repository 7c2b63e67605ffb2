//! The suite: each is what a registry has to do, told over any server.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use banyan_etcd::{Member, MoveError, RegisterError, Registration, Registry, View};
use etcd_client::{Client, CompactionOptions, DeleteOptions};
use tokio::sync::watch;

use super::{PATIENCE, connect, connect_to, eventually, member, name, sees, server::Server};

type Views = watch::Receiver<Arc<View>>;

async fn raw(server: &Server) -> Client {
    Client::connect([server.url()], None).await.expect("a URL is a URL")
}

async fn register(registry: &Registry, text: &str, parent: Option<&str>) -> Registration {
    registry.register(member(text, parent)).await.expect("it can be registered")
}

async fn names(registry: &Registry) -> Vec<String> {
    registry.members().await.expect("it can be read").iter().map(|member| member.name.to_string()).collect()
}

async fn sees_members(views: &mut Views, wanted: &[&str]) -> Arc<View> {
    let is_so = |view: &Arc<View>| view.live && view.members.keys().map(|name| name.as_str()).eq(wanted.iter().copied());
    sees(&format!("the view shows {wanted:?}"), views, is_so).await
}

pub(crate) async fn of_fifty_racing_names_exactly_one_wins(server: &Server) {
    let registries = [connect(&server.url()).await, connect(&server.url()).await, connect(&server.url()).await];
    let _root = register(&registries[0], "root", None).await;
    let racers = (0..50).map(|number| {
        let registry = registries[number % registries.len()].clone();
        let racer = Member { address: format!("racer {number}"), ..member("a", Some("root")) };
        tokio::spawn(async move { registry.register(racer).await })
    });
    let (mut winners, mut holders) = (Vec::new(), BTreeSet::new());
    for racer in racers.collect::<Vec<_>>() {
        match racer.await.expect("no panic") {
            Ok(registration) => winners.push(registration),
            Err(RegisterError::Taken { holder }) => {
                holders.insert(holder.address);
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(holders, BTreeSet::from([winners[0].member().address]));
}

pub(crate) async fn a_tree_has_one_root(server: &Server) {
    let registry = connect(&server.url()).await;
    let first = register(&registry, "first", None).await;
    let refused = registry.register(member("second", None)).await.expect_err("the tree has a root");
    let RegisterError::TreeTaken { holder, .. } = refused else { panic!("{refused}") };
    assert_eq!((holder.name, Some(holder.epoch)), (name("first"), first.epoch()));
    assert_eq!(names(&registry).await, ["first"], "nothing of the second is left");

    let other_tree = Member { tree: name("other"), ..member("second", None) };
    let second = registry.register(other_tree).await.expect("another tree has a place for it");
    let stray = registry.register(Member { tree: name("other"), ..member("a", Some("first")) }).await.expect_err("no");
    assert!(matches!(stray, RegisterError::OtherTree { .. }), "{stray}");

    let epoch = first.epoch();
    first.leave().await;
    let third = register(&registry, "third", None).await;
    assert!(third.epoch() > epoch, "a later reign has a greater number");
    drop(second);
}

pub(crate) async fn two_moves_that_would_make_a_cycle_cant_both_succeed(server: &Server) {
    let registry = connect(&server.url()).await;
    let _root = register(&registry, "root", None).await;
    let (a, b) = (register(&registry, "a", Some("root")).await, register(&registry, "b", Some("root")).await);
    for _ in 0..10 {
        let (first, second) = tokio::join!(a.move_to(name("b")), b.move_to(name("a")));
        let (moved, refused) = match (first, second) {
            (Ok(()), Err(refused)) => (&a, refused),
            (Err(refused), Ok(())) => (&b, refused),
            other => panic!("{other:?}"),
        };
        assert!(matches!(refused, MoveError::Refused(RegisterError::Cycle { .. })), "{refused}");
        let parents = (a.member().parent, b.member().parent);
        assert!(parents == (Some(name("b")), Some(name("root"))) || parents == (Some(name("root")), Some(name("a"))));
        let told = registry.member(&moved.member().name).await.expect("it can be read").expect("it is there");
        assert_eq!(told, moved.member());
        moved.move_to(name("root")).await.expect("back to the root");
    }
    assert!(matches!(a.move_to(name("a")).await, Err(MoveError::Refused(RegisterError::Cycle { .. }))));
    assert!(matches!(_root.move_to(name("a")).await, Err(MoveError::Root(_))));
}

pub(crate) async fn a_missing_parent_is_named_and_can_be_waited_for(server: &Server) {
    let registry = connect(&server.url()).await;
    let _root = register(&registry, "root", None).await;
    let refused = registry.register(member("b", Some("a"))).await.expect_err("there is no a");
    assert!(matches!(&refused, RegisterError::ParentMissing { parent } if *parent == name("a")), "{refused}");
    assert_eq!(names(&registry).await, ["root"]);

    let waiter = registry.clone();
    let waiting = tokio::spawn(async move {
        let mut views = waiter.watch();
        sees("a appears", &mut views, |view| view.members.contains_key(&name("a"))).await;
        waiter.register(member("b", Some("a"))).await
    });
    let a = register(&registry, "a", Some("root")).await;
    let b = waiting.await.expect("no panic").expect("its parent is there");
    assert!(matches!(b.move_to(name("nobody")).await, Err(MoveError::Refused(RegisterError::ParentMissing { .. }))));
    drop(a);
}

pub(crate) async fn a_tree_is_at_most_32_deep(server: &Server) {
    let registry = connect(&server.url()).await;
    let mut chain = vec![register(&registry, "n0", None).await];
    for depth in 1..=32 {
        chain.push(register(&registry, &format!("n{depth}"), Some(&format!("n{}", depth - 1))).await);
    }
    let refused = registry.register(member("n33", Some("n32"))).await.expect_err("too deep");
    assert!(matches!(refused, RegisterError::TooDeep { .. }), "{refused}");
    let pair = (register(&registry, "top", Some("n0")).await, register(&registry, "below", Some("top")).await);
    let refused = pair.0.move_to(name("n31")).await.expect_err("what is below moves along");
    assert!(matches!(refused, MoveError::Refused(RegisterError::TooDeep { .. })), "{refused}");
    pair.0.move_to(name("n30")).await.expect("just deep enough");
}

pub(crate) async fn leaving_and_dropping_free_the_name(server: &Server) {
    let registry = connect(&server.url()).await;
    let elsewhere = connect(&server.url()).await;
    let root = register(&registry, "root", None).await;
    let a = register(&registry, "a", Some("root")).await;
    let first = a.member().incarnation;
    a.leave().await;
    assert_eq!(names(&registry).await, ["root"]);

    let a = register(&elsewhere, "a", Some("root")).await;
    assert!(a.member().incarnation > first, "a later life has a greater number");
    drop(a);
    // The revocation runs in the background, but the name is not taken by ourselves.
    let again = register(&elsewhere, "a", Some("root")).await;
    let mut views = registry.watch();
    sees_members(&mut views, &["a", "root"]).await;
    drop((again, root));
    sees_members(&mut views, &[]).await;
}

pub(crate) async fn a_lost_lease_is_had_again_under_a_new_incarnation(server: &Server) {
    let registry = connect(&server.url()).await;
    let root = register(&registry, "root", None).await;
    let a = register(&registry, "a", Some("root")).await;
    let mut views = registry.watch();
    sees_members(&mut views, &["a", "root"]).await;
    let (root_before, a_before) = (root.member(), a.member());
    let epoch = root.epoch().expect("a root has an epoch");

    let mut client = raw(server).await;
    for lease in client.leases().await.expect("they can be listed").leases() {
        client.lease_revoke(lease.id()).await.expect("it can be revoked");
    }
    let anew = |before: &Member, view: &View| {
        view.members.get(&before.name).is_some_and(|member| member.incarnation > before.incarnation)
    };
    sees("both are back", &mut views, |view| anew(&root_before, view) && anew(&a_before, view)).await;
    sees("the root knows", &mut root.registered(), |registered| *registered).await;
    sees("and a, too", &mut a.registered(), |registered| *registered).await;
    assert!(root.epoch().expect("still a root") > epoch);
    assert_eq!(registry.member(&name("a")).await.expect("it can be read"), Some(a.member()));
    assert_eq!(Member { incarnation: 0, ..a.member() }, Member { incarnation: 0, ..a_before });
}

pub(crate) async fn a_key_that_was_deleted_by_hand_comes_back(server: &Server) {
    let registry = connect(&server.url()).await;
    let root = register(&registry, "root", None).await;
    let (epoch, mut views) = (root.epoch(), registry.watch());
    sees_members(&mut views, &["root"]).await;
    let mut client = raw(server).await;
    client.delete("/banyan/", Some(DeleteOptions::new().with_prefix())).await.expect("it can be deleted");
    let root_is_back = |view: &Arc<View>| view.roots.get(&name("main")).is_some_and(|root| Some(root.epoch) > epoch);
    sees("the root's place is taken again", &mut views, root_is_back).await;
    eventually("the node's own key, too", || async { (names(&registry).await == ["root"]).then_some(()) }).await;
}

pub(crate) async fn what_others_write_under_our_keys_harms_nobody_else(server: &Server) {
    let registry = connect(&server.url()).await;
    let mut views = registry.watch();
    let _root = register(&registry, "root", None).await;
    let mut client = raw(server).await;
    for key in ["/banyan/test/nodes/a", "/banyan/test/nodes/B!", "/banyan/test/roots/other", "/banyan/test/else"] {
        client.put(key, "not Banyan's", None).await.expect("it can be put");
    }
    sees_members(&mut views, &["root"]).await;
    assert_eq!(names(&registry).await, ["root"]);
    let refused = registry.register(member("a", Some("root"))).await.expect_err("the key is not free").to_string();
    assert!(refused.contains("etcdctl del /banyan/test/nodes/a"), "{refused}");

    let neighbour = connect_to(&server.url(), "neighbour").await;
    assert_eq!(names(&neighbour).await, Vec::<String>::new());
    let _its_root = register(&neighbour, "root", None).await;
    assert_eq!(names(&registry).await, ["root"]);
}

pub(crate) async fn a_view_survives_compactions(server: &Server) {
    let registry = connect(&server.url()).await;
    let mut views = registry.watch();
    let _root = register(&registry, "root", None).await;
    sees_members(&mut views, &["root"]).await;
    let mut client = raw(server).await;
    let mut moving = Vec::new();
    for round in 0..20 {
        moving.push(register(&registry, &format!("m{round:02}"), Some("root")).await);
        let mut revision = 0;
        for _ in 0..10 {
            let put = client.put("/banyan/test/noise", "x", None).await.expect("it can be put");
            revision = put.header().expect("an answer has a header").revision();
        }
        client.compact(revision, Some(CompactionOptions::new())).await.expect("it can be compacted");
        if round % 2 == 1 {
            moving.remove(0).leave().await;
        }
    }
    let mut wanted: Vec<String> = moving.iter().map(|each| each.member().name.to_string()).collect();
    wanted.push("root".into());
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let view = sees_members(&mut views, &wanted).await;
    for each in &moving {
        assert_eq!(view.members[&each.member().name], each.member());
    }
}

pub(crate) async fn everyone_goes_on_without_the_registry_and_reconciles_when_it_is_back(server: &mut Server) {
    let registry = connect(&server.url()).await;
    let elsewhere = connect(&server.url()).await;
    let (mut views, mut views_elsewhere) = (registry.watch(), elsewhere.watch());
    let root = register(&registry, "root", None).await;
    let a = register(&elsewhere, "a", Some("root")).await;
    sees_members(&mut views, &["a", "root"]).await;
    sees_members(&mut views_elsewhere, &["a", "root"]).await;
    let before = (root.member().incarnation, a.member().incarnation, root.epoch());

    server.kill();
    let last = sees("the loss is noticed", &mut views, |view| !view.live).await;
    assert_eq!(last.members.len(), 2, "the last view is kept");
    assert!(registry.members().await.is_err());
    let unregistrable = registry.register(member("b", Some("root"))).await.expect_err("nobody answers");
    assert!(matches!(unregistrable, RegisterError::Unavailable { .. }), "{unregistrable}");

    server.start();
    let is_back = |registration: &Registration| {
        let mut registered = registration.registered();
        async move { sees("it is registered", &mut registered, |registered| *registered).await }
    };
    sees_members(&mut views, &["a", "root"]).await;
    sees_members(&mut views_elsewhere, &["a", "root"]).await;
    is_back(&root).await;
    is_back(&a).await;
    let after = (root.member().incarnation, a.member().incarnation, root.epoch());
    if server.remembers() {
        assert_eq!(after, before, "the leases outlived the restart");
    } else {
        assert!(after.0 > before.0 && after.1 > before.1 && after.2 > before.2, "{before:?}, then {after:?}");
    }
    // And it is a registry as before.
    let b = register(&registry, "b", Some("a")).await;
    sees_members(&mut views_elsewhere, &["a", "b", "root"]).await;
    b.leave().await;
    sees_members(&mut views_elsewhere, &["a", "root"]).await;
}

pub(crate) async fn a_frozen_registry_is_noticed_and_waited_for(server: &Server) {
    let registry = connect(&server.url()).await;
    let mut views = registry.watch();
    let root = register(&registry, "root", None).await;
    let a = register(&registry, "a", Some("root")).await;
    sees_members(&mut views, &["a", "root"]).await;

    server.freeze();
    let noticed = tokio::time::timeout(PATIENCE, views.wait_for(|view| !view.live)).await;
    let noticed = noticed.map(|view| view.map(|view| view.members.len()).expect("the watcher lives"));
    let mut registered = a.registered();
    let unsure = tokio::time::timeout(PATIENCE, registered.wait_for(|registered| !registered)).await.is_ok();
    server.thaw();
    assert_eq!(noticed.expect("a frozen server is noticed"), 2, "and the last view kept");
    assert!(unsure, "for longer than the lease, the registration is in doubt");

    sees_members(&mut views, &["a", "root"]).await;
    sees("a is sure again", &mut registered, |registered| *registered).await;
    sees("the root, too", &mut root.registered(), |registered| *registered).await;
    eventually("what is registered is what we say", || async {
        let told = registry.member(&name("a")).await.ok().flatten();
        (told == Some(a.member())).then_some(())
    })
    .await;
}

pub(crate) async fn an_endpoint_without_a_registry_is_an_error_in_time(server: &mut Server) {
    server.kill();
    let mut config = banyan_etcd::Config::new(vec![server.url()], name("test"));
    config.timeout = Duration::from_secs(1);
    let started = std::time::Instant::now();
    let refused = Registry::connect(config.clone()).await.expect_err("nobody is there");
    let cause = std::error::Error::source(&refused).expect("it has a cause").to_string();
    assert!(cause.contains("refused") && !cause.contains("metadata"), "{cause}");
    let refused = refused.to_string();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(refused.contains(&server.url()) && refused.contains("banyan registry serve"), "{refused}");

    config.endpoints = vec!["not a url".into()];
    let refused = Registry::connect(config.clone()).await.expect_err("no").to_string();
    assert!(refused.contains("\"not a url\"") && refused.contains("http://127.0.0.1:2379"), "{refused}");
    config.endpoints = Vec::new();
    assert!(Registry::connect(config.clone()).await.is_err());

    // One of two is enough.
    config.endpoints = vec![server.url(), "http://127.0.0.1:9".into()];
    config.timeout = Duration::from_secs(10);
    server.start();
    let registry = eventually("one of two answers", || async { Registry::connect(config.clone()).await.ok() }).await;
    let root = register(&registry, "root", None).await;
    for _ in 0..10 {
        assert_eq!(names(&registry).await, ["root"]);
    }
    root.leave().await;
}
