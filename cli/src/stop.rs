//! Ctrl-C and SIGTERM: the first asks for a clean end, the second ends the process at once.

use std::future::Future;

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::exit::{Code, Failure};

/// Says when to stop.
#[derive(Clone)]
pub(crate) struct Stop {
    asked: watch::Receiver<bool>,
}

impl Stop {
    /// From here on signals no longer kill the process.
    pub(crate) fn on_signals() -> Result<Stop, Failure> {
        let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for Ctrl-C")?;
        let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        let (ask, asked) = watch::channel(false);
        tokio::spawn(async move {
            for asked_before in [false, true] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if asked_before {
                    std::process::exit(Code::Interrupted as i32);
                }
                ask.send_replace(true);
            }
        });
        Ok(Stop { asked })
    }

    /// Ends once somebody asked to stop.
    pub(crate) async fn asked(&self) {
        // The sender lives as long as the runtime, so an error means the end as well.
        let _ = self.asked.clone().wait_for(|asked| *asked).await;
    }

    /// The outcome of `work`, unless somebody asks to stop before.
    pub(crate) async fn unless<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            outcome = work => outcome,
            () = self.asked() => Err(Failure::interrupted()),
        }
    }
}
