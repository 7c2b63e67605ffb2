//! Ctrl-C and SIGTERM: the first asks for a clean end, the second ends the process at once.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::exit::{Code, Failure};

/// Nobody presses Ctrl-C twice that quickly; timeout(1) and supervisors signal a process and then its group, and mean it once.
const ECHO: Duration = Duration::from_millis(500);

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
            let mut signals = Signals::default();
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                match signals.heard(Instant::now()) {
                    Wish::Stop => {
                        ask.send_replace(true);
                    }
                    Wish::Echo => {}
                    Wish::Quit => std::process::exit(Code::Interrupted as i32),
                }
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

/// What a signal means.
#[derive(Debug, PartialEq)]
enum Wish {
    /// A clean end.
    Stop,
    /// The same, said once more.
    Echo,
    /// The end at once.
    Quit,
}

/// The signals so far.
#[derive(Default)]
struct Signals {
    first: Option<Instant>,
}

impl Signals {
    fn heard(&mut self, now: Instant) -> Wish {
        match self.first {
            None => {
                self.first = Some(now);
                Wish::Stop
            }
            Some(first) if now.duration_since(first) < ECHO => Wish::Echo,
            Some(_) => Wish::Quit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_at_once_are_one_wish_and_a_later_one_ends_the_process() {
        let (mut signals, begun) = (Signals::default(), Instant::now());
        let mut heard = |ms| signals.heard(begun + Duration::from_millis(ms));
        assert_eq!([heard(0), heard(1), heard(499), heard(500)], [Wish::Stop, Wish::Echo, Wish::Echo, Wish::Quit]);
    }
}
