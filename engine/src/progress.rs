//! What a person sees while a model is fetched: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where news of a fetch goes.
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
        let bar = match &self.0 {
            Kind::Lines(_) => ProgressBar::hidden(),
            Kind::Terminal => {
                let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
                    .expect("a template that indicatif knows");
                let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr_with_hz(8)).with_style(style);
                bar.enable_steady_tick(Duration::from_secs(1));
                bar.with_message(file.to_string())
            }
        };
        Transfer { progress: self, bar, file: file.to_string(), size, told: 0 }
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
