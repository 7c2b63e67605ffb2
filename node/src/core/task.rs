//! The loop of the node's task: what wakes it, and how it ends.

use std::sync::atomic::Ordering;

use banyan_engine as engine;
use banyan_proto::QueryId;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Core, Handle, Input, TICK};
use crate::{config::Config, journal::Journal, meters::Meters};

/// Inputs that wait for the task: a burst of every peer at once. Beyond, senders wait, and so does their TCP.
const INBOX: usize = 4096;
/// Inputs handled before their results are flushed: what comes together leaves together, in one frame.
const BATCH: usize = 256;

/// What the task was woken by.
enum Woken {
    Inputs(usize),
    Step(Option<engine::Step>),
    ClientLeft(QueryId, u64),
    Tick,
    Report,
    Leave,
}

impl Core {
    /// Starts the task. `epoch` is the reign's number, for a root; `killed` ends it without a word to anybody.
    pub(crate) fn spawn(
        config: &Config,
        engine: Option<(engine::Engine, mpsc::Receiver<engine::Step>)>,
        epoch: Option<u64>,
        killed: CancellationToken,
    ) -> Handle {
        let (engine, steps) = engine.unzip();
        let (inbox, inputs) = mpsc::channel(INBOX);
        // Bounded by the live queries of the root: each leaves once.
        let (leavers, left) = mpsc::unbounded_channel();
        let mut core = Core::new(config, engine, epoch, Instant::now(), Journal::new());
        let mut meters = Meters::new(&config.metrics, &config.name);
        if core.desk.is_some() {
            meters.reigns();
        }
        core.meters = Some(meters);
        let (departed, streams) = (core.left.clone(), core.streams.clone());
        tokio::spawn(core.run(inputs, steps, left, killed));
        Handle { inbox, leavers, left: departed, streams }
    }

    async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        steps: Option<mpsc::Receiver<engine::Step>>,
        mut left: mpsc::UnboundedReceiver<(QueryId, u64)>,
        killed: CancellationToken,
    ) {
        // A root has no engine: its channel stays silent.
        let (_silent, silence) = mpsc::channel(1);
        let mut steps = steps.unwrap_or(silence);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let (report_at, leave_at) = (self.report_at, self.leave_at());
            let woken = tokio::select! {
                count = inputs.recv_many(&mut batch, BATCH) => Woken::Inputs(count),
                step = steps.recv() => Woken::Step(step),
                Some((id, serial)) = left.recv() => Woken::ClientLeft(id, serial),
                () = killed.cancelled() => return,
                _ = tick.tick(), if self.desk.is_some() || !self.children.is_empty() || self.rootless_since.is_some() => Woken::Tick,
                () = sleep_until(report_at.unwrap_or_else(Instant::now)), if report_at.is_some() => Woken::Report,
                () = sleep_until(leave_at.unwrap_or_else(Instant::now)), if leave_at.is_some() => Woken::Leave,
            };
            self.now = Instant::now();
            match woken {
                Woken::Inputs(0) => return,
                Woken::Inputs(_) => batch.drain(..).for_each(|input| self.input(input)),
                Woken::Step(Some(step)) => self.step(step),
                Woken::Step(None) => {
                    tracing::error!(node = %self.name, "the engine has ended");
                    self.shut_down(&mut inputs);
                    return;
                }
                Woken::ClientLeft(id, serial) => self.client_left(id, serial),
                Woken::Tick => self.tick(),
                Woken::Report => self.send_report(),
                // Looked at after everything.
                Woken::Leave => {}
            }
            self.flush();
            if self.leaves() {
                // Before the inbox closes, by which others see that the task has ended, and then ask why.
                self.left.store(true, Ordering::Relaxed);
                self.shut_down(&mut inputs);
                return;
            }
            if let Some(stopped) = self.stopping.take() {
                self.shut_down(&mut inputs);
                // Fails only when whoever asked has gone, and then nobody wants to know.
                let _ = stopped.send(());
                return;
            }
        }
    }

    fn shut_down(&mut self, inputs: &mut mpsc::Receiver<Input>) {
        inputs.close();
        while let Ok(input) = inputs.try_recv() {
            if let (Input::Ask(ask), Some(desk)) = (input, &mut self.desk) {
                // Never accepted, so nothing is owed but a word.
                desk.accept(*ask, 0, self.now);
            }
        }
        self.hand_over();
    }
}
