//! What a person sees while a model is fetched and loaded: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Who waits no longer than this is told nothing.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where news of a fetch and of loading goes.
pub struct Progress(Kind);

enum Kind {
    Terminal,
    Lines(Box<dyn Fn(&str) + Send + Sync>),
}

impl Progress {
    /// To standard error: bars where it is a terminal, lines elsewhere.
    pub fn stderr() -> Self {
        if std::io::stderr().is_terminal() {
            return Progress(Kind::Terminal);
        }
        // A closed standard error must not end a download.
        Progress::lines(|line| drop(writeln!(std::io::stderr(), "{line}")))
    }

    /// Lines to a function.
    pub fn lines(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Progress(Kind::Lines(Box::new(write)))
    }

    /// Nowhere.
    pub fn silent() -> Self {
        Progress::lines(|_| {})
    }

    /// Says one thing, on one line.
    pub fn note(&self, line: &str) {
        match &self.0 {
            Kind::Terminal => drop(writeln!(std::io::stderr(), "{line}")),
            Kind::Lines(write) => write(line),
        }
    }

    /// Follows one file's transfer of `size` bytes.
    pub(crate) fn transfer(&self, file: &str, size: u64) -> Transfer<'_> {
        Transfer { progress: self, bar: self.bar(file, size), file: file.to_string(), size, told: 0 }
    }

    /// Follows the loading of a model's `size` bytes.
    pub(crate) fn loading(&self, model: &str, size: u64) -> Loading<'_> {
        let (model, done, bar) = (model.to_string(), AtomicU64::new(0), OnceLock::new());
        Loading { progress: self, model, size, done, since: Instant::now(), bar }
    }

    fn bar(&self, what: &str, size: u64) -> ProgressBar {
        match &self.0 {
            Kind::Lines(_) => ProgressBar::hidden(),
            Kind::Terminal => {
                let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
                    .expect("a template that indicatif knows");
                let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr_with_hz(8)).with_style(style);
                bar.enable_steady_tick(Duration::from_secs(1));
                bar.with_message(what.to_string())
            }
        }
    }
}

/// A model on its way into memory, by several threads.
pub(crate) struct Loading<'a> {
    progress: &'a Progress,
    model: String,
    size: u64,
    done: AtomicU64,
    since: Instant,
    /// From the moment on when it takes long enough to be shown.
    bar: OnceLock<ProgressBar>,
}

impl Loading<'_> {
    /// So many bytes more are in place.
    pub(crate) fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Relaxed) + bytes;
        if self.since.elapsed() < PATIENCE {
            return;
        }
        let bar = self.bar.get_or_init(|| {
            if let Kind::Lines(write) = &self.progress.0 {
                write(&format!("loading {}: {} MB", self.model, self.size / 1_000_000));
            }
            self.progress.bar(&format!("loading {}", self.model), self.size)
        });
        bar.set_position(done.min(self.size));
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

/// One file on its way.
pub(crate) struct Transfer<'a> {
    progress: &'a Progress,
    bar: ProgressBar,
    file: String,
    size: u64,
    /// Tenths that were told.
    told: u64,
}

impl Transfer<'_> {
    /// `done` bytes are here.
    pub(crate) fn at(&mut self, done: u64) {
        self.bar.set_position(done);
        let Kind::Lines(write) = &self.progress.0 else { return };
        let tenths = (done * 10).checked_div(self.size).unwrap_or(10).min(10);
        // Small files come at once and are not worth a line.
        if self.size >= 10 << 20 && tenths > self.told {
            write(&format!("{}: {} of {} MB", self.file, done / 1_000_000, self.size / 1_000_000));
        }
        // A transfer that starts again tells its tenths again.
        self.told = tenths;
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn loading_is_told_once_and_only_where_it_takes_long() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&lines);
        let progress = Progress::lines(move |line| to.lock().unwrap().push(line.to_string()));
        let mut loading = progress.loading("gpt2", 5_000_000);
        // A clock that has been running for a minute already, and one that never comes to half a second.
        loading.since = Instant::now() + Duration::from_secs(60);
        loading.advance(1_000_000);
        assert!(lines.lock().unwrap().is_empty());
        loading.since = Instant::now().checked_sub(Duration::from_secs(60)).unwrap_or(loading.since);
        loading.advance(1_000_000);
        loading.advance(9_000_000);
        assert!(lines.lock().unwrap().iter().all(|line| line == "loading gpt2: 5 MB"));
        assert!(lines.lock().unwrap().len() <= 1);
    }
}
