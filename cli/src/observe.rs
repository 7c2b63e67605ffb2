//! What a process shows of itself: its metrics, and what it writes to its log.

use std::io::{self, IsTerminal as _};

use banyan_observe::{Metrics, Server, Tracer};
use banyan_proto::VERSION;
use tracing_subscriber::{EnvFilter, fmt::SubscriberBuilder};

use crate::{
    args,
    exit::{Code, Failure},
    listen, output,
};

/// Of every command.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// What to log to standard error, in tracing's filter syntax: `debug`, or `info,banyan_node=trace`. Processes that serve log
    /// `info` by default, other commands `warn`.
    #[arg(long = "log", env = "BANYAN_LOG", value_name = "FILTER", global = true)]
    log_filter: Option<String>,
    /// As text for people, or as JSON for programs: an object a line.
    #[arg(long, env = "BANYAN_LOG_FORMAT", value_enum, value_name = "FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogArgs {
    /// Sends log lines to standard error, from `level` up unless told otherwise.
    pub(crate) fn start(&self, level: &str) -> Result<(), Failure> {
        let filter = self.log_filter.as_deref().unwrap_or(level);
        let filter = EnvFilter::try_new(filter).map_err(|error| {
            Failure::new(Code::Usage, anyhow::Error::new(error).context(format!("`{filter}` is no log filter")))
                .hint("`--log debug` shows more, `--log info,banyan_node=trace` more of one part")
        })?;
        let log: SubscriberBuilder<_, _, _, fn() -> io::Stderr> =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr as fn() -> io::Stderr);
        match self.log_format {
            LogFormat::Text => log.with_ansi(io::stderr().is_terminal() && output::colours_wanted()).with_target(false).init(),
            LogFormat::Json => log.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
        }
        Ok(())
    }
}

/// Of what serves.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ObserveArgs {
    /// Serves `GET /metrics` for Prometheus there: plain HTTP without keys, so an address that only those reach who watch over the
    /// process.
    #[arg(long, env = "BANYAN_METRICS", value_name = "HOST:PORT", value_parser = args::address)]
    metrics: Option<String>,
    /// Sends traces to the OpenTelemetry receiver there, over gRPC: `http://127.0.0.1:4317`. What OpenTelemetry's other environment
    /// variables say holds, such as OTEL_TRACES_SAMPLER.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp: Option<String>,
}

/// The metrics of this process, and where they are served.
#[derive(Default)]
pub(crate) struct Observed {
    pub(crate) metrics: Metrics,
    pub(crate) tracer: Tracer,
    server: Option<Server>,
}

impl ObserveArgs {
    /// Takes the address, and serves there. `service` is what traces call the process, `instance` which one of them it is.
    pub(crate) async fn start(&self, service: &str, instance: &str) -> Result<Observed, Failure> {
        let tracer = match self.otlp.as_deref().filter(|url| !url.is_empty()) {
            Some(url) => self.trace(url, service, instance)?,
            None => Tracer::default(),
        };
        let metrics = Metrics::default();
        let server = match &self.metrics {
            None => None,
            Some(address) => {
                let listener = listen::bind("the metrics", "--metrics", address).await?;
                Some(Server::start(metrics.clone(), listener).map_err(anyhow::Error::new)?)
            }
        };
        Ok(Observed { metrics, tracer, server })
    }

    fn trace(&self, url: &str, service: &str, instance: &str) -> Result<Tracer, Failure> {
        let protocol = std::env::var("OTEL_EXPORTER_OTLP_PROTOCOL").unwrap_or_default();
        if !["", "grpc"].contains(&protocol.as_str()) {
            return Err(Failure::told(Code::Usage, format!("traces are not sent by OTEL_EXPORTER_OTLP_PROTOCOL={protocol}"))
                .hint("they are sent over gRPC: name the receiver's port for that, usually 4317, and set `grpc`"));
        }
        Tracer::to(url, service, instance, VERSION).map_err(|error| {
            Failure::new(Code::Usage, anyhow::Error::new(error).context(format!("traces can't be sent to {url}")))
                .hint("`--otlp http://127.0.0.1:4317` names a receiver on this machine")
        })
    }
}

impl Observed {
    /// Sends what was not sent yet.
    pub(crate) async fn finish(self) {
        let tracer = self.tracer;
        // It waits, on a thread of its own.
        let _ = tokio::task::spawn_blocking(move || tracer.end()).await;
    }

    /// For whoever starts the process: where to look, as a line below the others.
    pub(crate) fn told(&self) -> String {
        self.server.as_ref().map(|server| format!("\n  metrics   http://{}/metrics", server.address())).unwrap_or_default()
    }
}
