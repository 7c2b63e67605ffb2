//! Several engines with a model each, behind one handle: who gets a request, and all steps through one channel.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::task::Poll;

use tokio::sync::mpsc;

use crate::engine::Info;
use crate::runner::STEPS_WAITING;
use crate::scheduler::Stats;
use crate::{Account, Engine, Request, SequenceId, StartError, Step};

/// The engines, and what they serve together.
#[derive(Debug)]
pub(crate) struct Several {
    info: Info,
    engines: Vec<Engine>,
}

/// Puts engines together. As many sequences run as with the model that batches least: together they are no faster than alone.
pub(crate) fn gather(engines: Vec<(Engine, mpsc::Receiver<Step>)>) -> Result<(Several, mpsc::Receiver<Step>), StartError> {
    let (engines, steps): (Vec<Engine>, Vec<mpsc::Receiver<Step>>) = engines.into_iter().unzip();
    let infos = || engines.iter().map(Engine::info);
    let mut seen = BTreeSet::new();
    let twice = infos().flat_map(|info| &info.models).find(|served| !seen.insert(served.model.as_str()));
    if let Some(served) = twice {
        return Err(StartError::Option(format!("two models are named {}: give each --model once", served.model)));
    }
    let Some(batch_max) = infos().map(|info| info.batch_max).min() else {
        return Err(StartError::Option("a node needs at least one model: name one with --model".to_owned()));
    };
    let info = Info {
        models: infos().flat_map(|info| info.models.clone()).collect(),
        device: engines[0].info().device.clone(),
        batch_max,
        queues: infos().all(|info| info.queues),
    };
    let (to, together) = mpsc::channel(STEPS_WAITING);
    tokio::spawn(pass_on(steps, to));
    Ok((Several { info, engines }, together))
}

/// Ends when one of them does: a node is as good as all of its models.
async fn pass_on(mut steps: Vec<mpsc::Receiver<Step>>, to: mpsc::Sender<Step>) {
    let mut turn = 0;
    loop {
        let next = poll_fn(|context| {
            for offset in 0..steps.len() {
                let index = (turn + offset) % steps.len();
                if let Poll::Ready(step) = steps[index].poll_recv(context) {
                    turn = index + 1;
                    return Poll::Ready(step);
                }
            }
            Poll::Pending
        });
        let Some(step) = next.await else { return };
        if to.send(step).await.is_err() {
            return;
        }
    }
}

impl Several {
    pub(crate) fn info(&self) -> &Info {
        &self.info
    }

    pub(crate) fn stats(&self) -> Stats {
        self.engines.iter().map(Engine::stats).fold(Stats::default(), |all, one| Stats {
            pages: all.pages + one.pages,
            pages_held: all.pages_held + one.pages_held,
            pages_cached: all.pages_cached + one.pages_cached,
            pages_evicted: all.pages_evicted + one.pages_evicted,
            tokens_looked_up: all.tokens_looked_up + one.tokens_looked_up,
            tokens_reused: all.tokens_reused + one.tokens_reused,
            preemptions: all.preemptions + one.preemptions,
            tokens_drafted: all.tokens_drafted + one.tokens_drafted,
            tokens_accepted: all.tokens_accepted + one.tokens_accepted,
        })
    }

    pub(crate) fn accounts(&self) -> Vec<Account> {
        self.engines.iter().flat_map(Engine::accounts).collect()
    }

    /// The caller asks for models that are served only.
    pub(crate) fn submit(&self, request: Request) {
        let serves = |engine: &&Engine| engine.info().served(&request.model).is_some();
        if let Some(engine) = self.engines.iter().find(serves) {
            engine.submit(request);
        }
    }

    pub(crate) fn cancel(&self, id: SequenceId) {
        // Whoever does not know it ignores it.
        self.engines.iter().for_each(|engine| engine.cancel(id));
    }

    pub(crate) async fn stop(&self) {
        for engine in &self.engines {
            engine.stop().await;
        }
    }
}
