//! Looking in: what a node answers about itself, and how a question reaches the node that it is meant for.

use std::{sync::Arc, time::Duration};

use banyan_etcd::{Registration, View};
use banyan_proto::{NodeName, Transport, VERSION, v1};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    core::{Handle, Input},
    standby, translate,
};

/// What the whole tree gets to answer a question …
const PATIENCE: Duration = Duration::from_millis(2000);
/// … and how much less each level below the root waits, so that a silent leaf is reported by its parent and not by the
/// root as a silent subtree.
const PATIENCE_PER_LEVEL: Duration = Duration::from_millis(150);
const PATIENCE_MIN: Duration = Duration::from_millis(300);
/// Nobody waits longer than a day for a node to leave.
const DEADLINE_MAX_MS: u64 = 24 * 3600 * 1000;

/// What doesn't change while the node lives.
pub(crate) struct Facts {
    pub(crate) name: NodeName,
    pub(crate) address: String,
    pub(crate) tree: NodeName,
    pub(crate) cluster: NodeName,
    pub(crate) registry: String,
    pub(crate) incarnation: u64,
    pub(crate) root: bool,
    pub(crate) device: String,
    pub(crate) models: Vec<String>,
    pub(crate) fingerprint: String,
    pub(crate) busy_at: u32,
    pub(crate) batch_max: u32,
    pub(crate) routing: String,
}

/// Answers questions about the node and those below it.
pub(crate) struct Inspector {
    pub(crate) facts: Facts,
    pub(crate) core: Handle,
    /// `None` once the node has left the registry.
    pub(crate) registration: Arc<Mutex<Option<Registration>>>,
    pub(crate) registered: watch::Receiver<bool>,
    /// The wanted parent; roots have none.
    pub(crate) wanted: Option<watch::Sender<NodeName>>,
    /// What the registry knows.
    pub(crate) view: watch::Receiver<Arc<View>>,
    /// What `grpc.health.v1` says.
    pub(crate) health: HealthReporter,
    /// How standbys are dialled.
    pub(crate) transport: Transport,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// No node of that name here or below.
    NotFound(String),
    /// The node can't do that.
    Failed(String),
    /// The node is stopping.
    Stopped,
}

impl Inspector {
    /// Answers an inspection that came down the link.
    pub(crate) async fn answer(&self, inspection: v1::Inspection) -> v1::Inspected {
        use v1::{inspected::Kind as Answer, inspection::Kind};
        let result = match inspection.kind {
            // `view` of a link's far end comes with no target: the node itself and everything below it.
            Some(Kind::Status(target)) => self.status(&target.name).await.map(Answer::Status),
            Some(Kind::View(target)) => self.view(&target.name).await.map(Answer::View),
            Some(Kind::Log(request)) => self.log(&request).await.map(Answer::Log),
            Some(Kind::Move(request)) => self.move_to(&request).await.map(Answer::Moved),
            Some(Kind::Drain(request)) => self.drain(&request).await.map(Answer::Draining),
            None => Err(Unanswered::Failed("this version of the node does not know the question".to_owned())),
        };
        let kind = match result {
            Ok(answer) => answer,
            Err(Unanswered::NotFound(_)) => Answer::NotFound(v1::NotFound {}),
            Err(Unanswered::Failed(error)) => Answer::Error(error),
            Err(Unanswered::Stopped) => Answer::Error("the node is stopping".to_owned()),
        };
        v1::Inspected { number: inspection.number, kind: Some(kind) }
    }

    pub(crate) async fn status(&self, name: &str) -> Result<v1::NodeStatus, Unanswered> {
        if self.is_us(name) {
            return self.own_status().await;
        }
        let below = v1::inspection::Kind::Status(v1::Target { name: name.to_owned() });
        match self.ask_below(name, below).await? {
            v1::inspected::Kind::Status(status) => Ok(status),
            _ => Err(unexpected()),
        }
    }

    pub(crate) async fn view(&self, name: &str) -> Result<v1::TreeView, Unanswered> {
        if !self.is_us(name) {
            let below = v1::inspection::Kind::View(v1::Target { name: name.to_owned() });
            return match self.ask_below(name, below).await? {
                v1::inspected::Kind::View(view) => Ok(view),
                _ => Err(unexpected()),
            };
        }
        let status = self.own_status().await?;
        let patience = patience(status.ancestry.len());
        let everything = v1::inspection::Kind::View(v1::Target { name: String::new() });
        let waiting = self
            .core
            .request(|reply| Input::AskChildren { inspection: everything, reply })
            .await
            .map_err(|_| Unanswered::Stopped)?;
        let answers = waiting.into_iter().map(async |(name, answer)| {
            match timeout(patience, answer).await.ok().and_then(Result::ok).and_then(|inspected| inspected.kind) {
                Some(v1::inspected::Kind::View(mut view)) => {
                    // It may say what it likes of itself, but not that it is another one.
                    view.status.get_or_insert_default().name = name.to_string();
                    view
                }
                _ => silent(&name),
            }
        });
        let mut children = futures::future::join_all(answers).await;
        children.sort_by(|a, b| name_of(a).cmp(name_of(b)));
        Ok(v1::TreeView { status: Some(status), children, silent: false })
    }

    pub(crate) async fn log(&self, request: &v1::LogRequest) -> Result<v1::Decisions, Unanswered> {
        if self.is_us(&request.name) {
            let last = request.last;
            let (decisions, _) = self.core.request(|reply| Input::Log { last, reply }).await.map_err(|_| Unanswered::Stopped)?;
            return Ok(v1::Decisions { decisions });
        }
        match self.ask_below(&request.name, v1::inspection::Kind::Log(request.clone())).await? {
            v1::inspected::Kind::Log(decisions) => Ok(decisions),
            _ => Err(unexpected()),
        }
    }

    pub(crate) async fn move_to(&self, request: &v1::MoveRequest) -> Result<v1::Moved, Unanswered> {
        if !self.is_us(&request.name) {
            return match self.ask_below(&request.name, v1::inspection::Kind::Move(request.clone())).await? {
                v1::inspected::Kind::Moved(moved) => Ok(moved),
                _ => Err(unexpected()),
            };
        }
        let parent: NodeName =
            request.parent.parse().map_err(|error: banyan_proto::NameError| Unanswered::Failed(error.to_string()))?;
        let Some(wanted) = &self.wanted else {
            return Err(Unanswered::Failed("a root has no parent, so it can't be moved".to_owned()));
        };
        let registration = self.registration.lock().await;
        let Some(registration) = registration.as_ref() else { return Err(Unanswered::Stopped) };
        registration.move_to(parent.clone()).await.map_err(|error| Unanswered::Failed(with_causes(&error)))?;
        wanted.send_replace(parent.clone());
        // The link follows; nobody depends on when.
        let _ = self.core.tell(Input::Note(format!("moved to {parent}"))).await;
        Ok(v1::Moved { parent: parent.to_string() })
    }

    /// Lets a node leave: this one, or one below.
    pub(crate) async fn drain(&self, request: &v1::DrainRequest) -> Result<v1::Draining, Unanswered> {
        if self.is_us(&request.name) {
            return self.drain_here(Duration::from_millis(request.deadline_ms.min(DEADLINE_MAX_MS))).await;
        }
        match self.ask_below(&request.name, v1::inspection::Kind::Drain(request.clone())).await? {
            v1::inspected::Kind::Draining(draining) => Ok(draining),
            _ => Err(unexpected()),
        }
    }

    /// Begins to leave. What was begun is finished by the node's task. A root with a standby has nothing to finish: nodes go on with
    /// what they run, and APIs ask the next root behind what they have.
    pub(crate) async fn drain_here(&self, deadline: Duration) -> Result<v1::Draining, Unanswered> {
        self.health.set_service_status("", ServingStatus::NotServing).await;
        let deadline = if self.hand_over().await? { Duration::ZERO } else { deadline };
        let draining = self.core.drain(deadline).await.map_err(|_| Unanswered::Stopped)?;
        let (core, registration) = (self.core.clone(), self.registration.clone());
        tokio::spawn(async move {
            core.ended().await;
            // The name is given back last; whoever stops the node meanwhile waits for the lock, and so for that.
            let mut registration = registration.lock().await;
            if let Some(registration) = registration.take() {
                registration.leave().await;
            }
        });
        tracing::info!(node = %self.facts.name, running = draining.running, deadline_s = deadline.as_secs(), "about to leave");
        Ok(draining)
    }

    /// Gives the tree to a standby that waits for it: first this root says no more, then its place is free. False when there is
    /// nobody to give it to, or no reign.
    async fn hand_over(&self) -> Result<bool, Unanswered> {
        if !self.facts.root {
            return Ok(false);
        }
        let view = self.view.borrow().clone();
        let Some(successor) = standby::successor(&view, &self.facts.tree, &self.facts.name, &self.transport).await else {
            return Ok(false);
        };
        let Some(registration) = self.registration.lock().await.take() else { return Ok(false) };
        tracing::info!(node = %self.facts.name, %successor, "hands its reign over");
        self.core.tell(Input::StepDown).await.map_err(|_| Unanswered::Stopped)?;
        registration.leave().await;
        Ok(true)
    }

    /// The way of a query; only a root knows.
    pub(crate) async fn why(&self, id: String) -> Result<v1::Way, Unanswered> {
        let shown = id.clone();
        match self.core.request(|reply| Input::Why { id, reply }).await.map_err(|_| Unanswered::Stopped)? {
            Some(crate::core::WhyFound::Way(way)) => Ok(translate::way(&way)),
            Some(crate::core::WhyFound::Nothing) => {
                Err(Unanswered::NotFound(format!("no query {shown} among those that this root remembers")))
            }
            Some(crate::core::WhyFound::Ambiguous) => {
                Err(Unanswered::Failed(format!("more than one query begins with {shown}: give more of the id")))
            }
            None => Err(Unanswered::Failed(format!("{} is no root, and only a root knows the ways of queries", self.facts.name))),
        }
    }

    /// Whether the node itself is meant.
    pub(crate) fn is_us(&self, name: &str) -> bool {
        name.is_empty() || name == self.facts.name.as_str()
    }

    async fn own_status(&self) -> Result<v1::NodeStatus, Unanswered> {
        let now = self.core.request(Input::Snapshot).await.map_err(|_| Unanswered::Stopped)?;
        let facts = &self.facts;
        let state = match () {
            () if now.draining => "draining",
            () if facts.root && now.epoch == 0 => "standby",
            () if facts.root => "ready",
            () if !now.connected || !now.rooted => "detached",
            () if now.has_room => "ready",
            () => "busy",
        };
        let parent = self.wanted.as_ref().map(|wanted| wanted.borrow().to_string()).unwrap_or_default();
        Ok(v1::NodeStatus {
            name: facts.name.to_string(),
            registry: facts.registry.clone(),
            address: facts.address.clone(),
            parent,
            attached: now.attached.unwrap_or_default(),
            role: match facts.root {
                true if now.epoch == 0 => "standby",
                true => "root",
                false => "node",
            }
            .to_owned(),
            state: state.to_owned(),
            incarnation: facts.incarnation,
            version: VERSION.to_owned(),
            device: facts.device.clone(),
            models: facts.models.clone(),
            fingerprint: facts.fingerprint.clone(),
            busy_at: facts.busy_at,
            batch_max: facts.batch_max,
            running: now.running,
            queued: now.queued,
            room: now.room,
            children: now.children,
            ancestry: now.ancestry,
            registered: *self.registered.borrow(),
            uptime_ms: now.uptime.as_millis() as u64,
            tokens: now.tokens,
            waiting: now.waiting,
            live: now.live,
            epoch: now.epoch,
            routing: facts.routing.clone(),
            cluster: facts.cluster.to_string(),
            tree: facts.tree.to_string(),
            kv: now.kv,
            accounts: now.accounts,
            delivers_through: now.through.unwrap_or_default(),
            loads: now.loads,
        })
    }

    /// Asks all children; whoever is, or has below it, the node that is meant answers.
    async fn ask_below(&self, name: &str, inspection: v1::inspection::Kind) -> Result<v1::inspected::Kind, Unanswered> {
        let depth = self.core.request(Input::Snapshot).await.map_err(|_| Unanswered::Stopped)?.ancestry.len();
        let waiting =
            self.core.request(|reply| Input::AskChildren { inspection, reply }).await.map_err(|_| Unanswered::Stopped)?;
        let answers = waiting.into_iter().map(async |(_, answer)| timeout(patience(depth), answer).await.ok()?.ok()?.kind);
        let mut answers: futures::stream::FuturesUnordered<_> = answers.collect();
        while let Some(answer) = futures::StreamExt::next(&mut answers).await {
            match answer {
                Some(v1::inspected::Kind::NotFound(_)) | None => {}
                Some(v1::inspected::Kind::Error(error)) => return Err(Unanswered::Failed(error)),
                Some(found) => return Ok(found),
            }
        }
        Err(Unanswered::NotFound(format!("no node {name} at {} or below it", self.facts.name)))
    }
}

impl From<Unanswered> for tonic::Status {
    fn from(unanswered: Unanswered) -> tonic::Status {
        match unanswered {
            Unanswered::NotFound(what) => tonic::Status::not_found(what),
            Unanswered::Failed(why) => tonic::Status::failed_precondition(why),
            Unanswered::Stopped => tonic::Status::unavailable("the node is stopping"),
        }
    }
}

fn patience(depth: usize) -> Duration {
    PATIENCE.saturating_sub(PATIENCE_PER_LEVEL * depth as u32).max(PATIENCE_MIN)
}

fn unexpected() -> Unanswered {
    Unanswered::Failed("a node below answered something else than it was asked".to_owned())
}

fn silent(name: &NodeName) -> v1::TreeView {
    let status = v1::NodeStatus { name: name.to_string(), state: "silent".to_owned(), ..Default::default() };
    v1::TreeView { status: Some(status), children: Vec::new(), silent: true }
}

fn name_of(view: &v1::TreeView) -> &str {
    view.status.as_ref().map_or("", |status| &status.name)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
