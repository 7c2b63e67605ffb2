//! Random harm under load, and the whole history of what every client saw.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, SystemTime},
};

use banyan_tests::{
    Forest,
    clients::Clients,
    etcds::Etcds,
    forest::{node, root},
    history::{check, pauses, percentile, recoveries},
    nemesis::{Cast, Harm, Nemesis},
    proxy::Weather,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::long;

/// How long a query may take, whatever happens to it.
const DEADLINE: Duration = Duration::from_secs(120);
/// What CI can spare.
const SHORT: Duration = Duration::from_secs(60);
const CLIENTS: u64 = 16;
/// Between harm to a root and harm to an API, or to the registry that it takes to follow a root.
const CALM: Duration = Duration::from_secs(8);

/// What undoes harm.
enum Cure {
    Start(String),
    Resume(String),
    Calm(String),
    Register(String),
    StartMember(usize),
    ResumeMembers,
    StartApi(usize),
}

struct Play {
    forest: Forest,
    etcds: Etcds,
    /// What is to be undone, and when.
    cures: Vec<(Instant, Cure)>,
    done: BTreeMap<&'static str, u64>,
    skipped: u64,
    /// Nodes that were lost, and when, by what befell them.
    losses: BTreeMap<&'static str, Vec<(Instant, String)>>,
    /// Roots that were lost, and when; likewise APIs.
    roots: BTreeMap<&'static str, Vec<Instant>>,
    /// When harm was last done to a root, an API, or the whole registry: those together may lose what is promised of each.
    root_at: Option<Instant>,
    api_at: Option<Instant>,
    registry_at: Option<Instant>,
    log: Vec<String>,
}

impl Play {
    async fn harm(&mut self, harm: Harm, begun: Instant) {
        if !self.may(&harm).await {
            self.skipped += 1;
            return;
        }
        self.log.push(format!("{:?} {harm}", begun.elapsed()));
        let kind = harm.kind();
        *self.done.entry(kind).or_default() += 1;
        if let Some(victim) = harm.victim() {
            self.losses.entry(harm.kind()).or_default().push((Instant::now(), victim.to_owned()));
        }
        let now = Instant::now();
        let later = |time: Duration| now + time;
        match harm {
            Harm::KillRoot(time) | Harm::EndRoot(time) | Harm::PauseRoot(time) => {
                let Some(root) = self.forest.reigning().await else { return };
                self.roots.entry(kind).or_default().push(Instant::now());
                self.root_at = Some(later(time));
                match harm {
                    Harm::KillRoot(_) => self.forest.kill(&root).await,
                    Harm::EndRoot(_) => {
                        let ended = self.forest.end(&root).await;
                        assert_eq!(ended.code, 0, "{root}: {}", ended.err);
                    }
                    _ => self.forest.pause(&root).await,
                }
                let cure = if matches!(harm, Harm::PauseRoot(_)) { Cure::Resume(root) } else { Cure::Start(root) };
                self.cures.push((later(time), cure));
            }
            Harm::KillApi(api, time) => {
                self.forest.kill_api(api).await;
                self.api_at = Some(later(time));
                self.cures.push((later(time), Cure::StartApi(api)));
            }
            Harm::EndApi(api, time) => {
                let ended = self.forest.end_api(api).await;
                assert_eq!(ended.code, 0, "the API: {}", ended.err);
                self.api_at = Some(later(time));
                self.cures.push((later(time), Cure::StartApi(api)));
            }
            Harm::Kill(node, time) => {
                self.forest.kill(&node).await;
                self.cures.push((later(time), Cure::Start(node)));
            }
            Harm::End(node, time) => {
                let ended = self.forest.end(&node).await;
                assert_eq!(ended.code, 0, "{node}: {}", ended.err);
                self.cures.push((later(time), Cure::Start(node)));
            }
            Harm::Pause(node, time) => {
                self.forest.pause(&node).await;
                self.cures.push((later(time), Cure::Resume(node)));
            }
            Harm::Cut(node) => self.forest.proxy(&node).cut(),
            Harm::Forsake(node) => self.forest.proxy(&node).forsake(),
            Harm::Hold(node, time) => {
                self.forest.proxy(&node).set(Weather::partition());
                self.cures.push((later(time), Cure::Calm(node)));
            }
            Harm::Delay(node, time, by) => {
                self.forest.proxy(&node).set(Weather::delay(by));
                self.cures.push((later(time), Cure::Calm(node)));
            }
            Harm::Unregistered(node, time) => {
                self.forest.registry_proxy(&node).set(Weather::partition());
                self.cures.push((later(time), Cure::Register(node)));
            }
            Harm::Revoke(node) => {
                self.etcds.revoke_lease_of(&format!("/banyan/faults/nodes/{node}")).await;
            }
            Harm::KillMember(member, time) => {
                self.etcds.kill_member(member).await;
                self.cures.push((later(time), Cure::StartMember(member)));
            }
            Harm::PauseMembers(time) => {
                self.registry_at = Some(later(time));
                for member in 0..self.etcds.count() {
                    self.etcds.signal_member(member, "STOP").await;
                }
                self.cures.push((later(time), Cure::ResumeMembers));
            }
            Harm::KillMembers(time) => {
                self.registry_at = Some(later(time));
                for member in 0..self.etcds.count() {
                    self.etcds.kill_member(member).await;
                    self.cures.push((later(time), Cure::StartMember(member)));
                }
            }
            Harm::Compact => {
                self.etcds.compact().await;
            }
        }
    }

    /// Whether harm can be done now: to who is there, while enough others are, and one at a time to the registry.
    async fn may(&self, harm: &Harm) -> bool {
        let registry_is_ill = || self.cures.iter().any(|(_, cure)| matches!(cure, Cure::StartMember(_) | Cure::ResumeMembers));
        match harm {
            Harm::Kill(node, _) | Harm::End(node, _) | Harm::Pause(node, _) => {
                let mut ready = 0;
                for name in self.forest.living() {
                    ready += usize::from(self.is_ready(&name).await);
                }
                // The root, and two that could go on with what this one has; a standby is not ready.
                ready > 3 && self.is_ready(node).await
            }
            Harm::KillRoot(_) | Harm::EndRoot(_) | Harm::PauseRoot(_) => {
                let mut roots = 0;
                for name in ["root", "spare"] {
                    roots += usize::from(self.forest.living().contains(name) && self.is_registered(name).await);
                }
                roots == 2 && !registry_is_ill() && calm([self.root_at, self.api_at, self.registry_at])
            }
            Harm::KillApi(..) | Harm::EndApi(..) => {
                let away = self.cures.iter().any(|(_, cure)| matches!(cure, Cure::StartApi(_)));
                !away && calm([self.root_at, self.api_at, None])
            }
            // Without a registry nobody can take a root's place.
            Harm::PauseMembers(_) | Harm::KillMembers(_) if !calm([self.root_at, None, None]) => false,
            Harm::Revoke(node) => !registry_is_ill() && self.is_registered(node).await,
            Harm::KillMember(..) | Harm::PauseMembers(_) | Harm::KillMembers(_) | Harm::Compact => !registry_is_ill(),
            Harm::Hold(node, _) | Harm::Delay(node, ..) => {
                !self.cures.iter().any(|(_, cure)| matches!(cure, Cure::Calm(other) if other == node))
            }
            Harm::Unregistered(node, _) => {
                !self.cures.iter().any(|(_, cure)| matches!(cure, Cure::Register(other) if other == node))
            }
            Harm::Cut(_) | Harm::Forsake(_) => true,
        }
    }

    async fn is_ready(&self, name: &str) -> bool {
        self.forest.living().contains(name)
            && self.forest.status(name, "").await.is_some_and(|node| node.state == "ready" || node.state == "busy")
    }

    async fn is_registered(&self, name: &str) -> bool {
        let read = self.etcds.etcdctl(&["get", &format!("/banyan/faults/nodes/{name}"), "--keys-only"]).await;
        !read.out.trim().is_empty()
    }

    async fn undo(&mut self, cure: Cure) {
        match cure {
            Cure::Start(node) => self.forest.start_again(&node),
            Cure::Resume(node) => self.forest.resume(&node).await,
            Cure::Calm(node) => self.forest.proxy(&node).clear(),
            Cure::Register(node) => self.forest.registry_proxy(&node).clear(),
            Cure::StartApi(api) => self.forest.start_api_again(api),
            Cure::StartMember(member) => self.etcds.start_member(member),
            Cure::ResumeMembers => {
                for member in 0..self.etcds.count() {
                    self.etcds.signal_member(member, "CONT").await;
                }
            }
        }
    }

    /// Undoes what is due until `then`, and starts again what could not start for want of a registry, as whoever supervises
    /// processes would.
    async fn pass_until(&mut self, then: Instant) {
        loop {
            let next = self.cures.iter().map(|(at, _)| *at).min().filter(|at| *at <= then);
            let Some(at) = next else { break };
            sleep_until(at).await;
            let due = self.cures.iter().position(|(other, _)| *other == at).expect("it is among them");
            let (_, cure) = self.cures.swap_remove(due);
            self.undo(cure).await;
        }
        sleep_until(then).await;
        self.supervise().await;
    }

    async fn supervise(&mut self) {
        for name in self.forest.living() {
            if self.forest.fell(&name).await {
                self.log.push(format!("{name} could not start, and is started again"));
                self.forest.start_again(&name);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_every_client_gets_its_answer() {
    let seed = std::env::var("BANYAN_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    // CI always plays the same, which has a bit of everything in its minute; who looks for news looks at another each time.
    let seed = seed.unwrap_or_else(|| long().map_or(60, |_| now_s()));
    let time = long().unwrap_or(SHORT);
    let etcds = Etcds::start(3).await;
    let mut forest = Forest::over(&etcds.urls(), "faults").await;
    forest.plant([root("root").flags("--standby")]).await;
    forest.until("root", "it reigns", |root| root.state == "ready").await;
    forest.plant([root("spare").flags("--standby")]).await;
    forest
        .plant([
            node("a", "root").proxied(),
            node("b", "root").proxied(),
            node("c", "a").registry_proxied(),
            node("d", "b"),
            node("e", "c").registry_proxied(),
            node("f", "root"),
        ])
        .await;
    let apis = vec![forest.api().await, forest.api().await];
    forest.remember().await;
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let cast = Cast {
        nodes: names(&["a", "b", "c", "d", "e", "f"]),
        proxied: names(&["a", "b"]),
        registry_proxied: names(&["c", "e"]),
        members: etcds.count(),
        apis: apis.len(),
    };

    let clients = Clients::start_among(apis, seed, CLIENTS, Duration::from_millis(200)).await;
    let begun = Instant::now();
    let mut play = Play {
        forest,
        etcds,
        cures: Vec::new(),
        done: BTreeMap::new(),
        skipped: 0,
        losses: BTreeMap::new(),
        roots: BTreeMap::new(),
        root_at: None,
        api_at: None,
        registry_at: None,
        log: Vec::new(),
    };
    for (pause, harm) in Nemesis::new(cast, seed) {
        if begun.elapsed() + pause > time {
            break;
        }
        play.pass_until(Instant::now() + pause).await;
        play.harm(harm, begun).await;
    }
    let last = play.cures.iter().map(|(at, _)| *at).max().unwrap_or_else(Instant::now);
    play.pass_until(last).await;
    let stories = clients.finish().await;
    let calm = Instant::now();
    while calm.elapsed() < DEADLINE && play.forest.is_not_whole().await.is_some() {
        play.supervise().await;
        sleep(Duration::from_millis(200)).await;
    }
    play.forest.whole().await;

    let verdict = check(&stories, DEADLINE);
    let recoveries: BTreeMap<&str, Value> =
        play.losses.iter().map(|(kind, losses)| (*kind, waits(&recoveries(&stories, losses)))).collect();
    let pauses_of_roots: BTreeMap<&str, Value> =
        play.roots.iter().map(|(kind, losses)| (*kind, waits(&pauses(&stories, losses)))).collect();
    let figures = json!({
        "seed": seed, "seconds": begun.elapsed().as_secs(), "clients": CLIENTS,
        "faults": play.done, "faults_injected": play.done.values().sum::<u64>(), "faults_not_possible": play.skipped,
        "queries": verdict.queries, "finished": verdict.finished, "left": verdict.left, "refused": verdict.refused,
        "lost": verdict.lost, "wrong": verdict.complaints.len(),
        "next_token_after_loss_of_the_node": recoveries, "next_token_after_loss_of_the_root": pauses_of_roots, "whole_again_after_s": calm.elapsed().as_secs(),
    });
    report(&figures);
    assert!(
        verdict.complaints.is_empty() && verdict.refused == 0,
        "seed {seed} (BANYAN_TEST_SEED={seed} plays it again): {figures:#}\n{:#?}\n{}",
        verdict.complaints,
        play.log.join("\n")
    );
    assert!(verdict.finished > 100, "hardly anything was asked: {figures:#}");
}

fn waits(waits: &[Duration]) -> Value {
    let ms = |share| percentile(waits, share).map(|wait| wait.as_millis() as u64);
    json!({ "answers": waits.len(), "p50_ms": ms(0.5), "p99_ms": ms(0.99), "max_ms": ms(1.0) })
}

/// Whether all of that was undone long enough ago that its traces are gone: answers were taken up again, and a root reigns.
fn calm(times: [Option<Instant>; 3]) -> bool {
    times.into_iter().flatten().all(|at| Instant::now() > at + CALM)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Leaves the figures beside the build, where `./test` finds them.
fn report(figures: &Value) {
    println!("{figures:#}");
    let own = std::env::current_exe().expect("a process knows its own path");
    let target = own.ancestors().nth(3).expect("test binaries lie in target/<profile>/deps");
    fs::write(target.join("nemesis.json"), format!("{figures:#}\n")).expect("the target folder can be written to");
}
