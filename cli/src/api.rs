//! `banyan api run`: the HTTP API and the page, for a tree that runs elsewhere.

use std::{path::PathBuf, time::Duration};

use banyan_api::{Api, Https, Limits};
use banyan_proto::Role;

use crate::{
    args::{self, AliasArgs, RegistryArgs},
    exit::{Code, Failure},
    listen,
    observe::ObserveArgs,
    output,
    stop::Stop,
    store::StoreArgs,
    supervisor,
};

/// Of a request: what the tree's messages hold, with what else they carry.
const BODY_BYTES_MAX: u64 = 6 << 20;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Serves the API and the chat page until Ctrl-C.
    Run(Args),
}

/// What an API is told wherever it runs, in a process of its own or with a whole tree.
#[derive(clap::Args)]
pub(crate) struct ServingArgs {
    #[command(flatten)]
    pub(crate) aliases: AliasArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Serves anybody who reaches it, beyond this machine too, as long as there is no key.
    #[arg(long, env = "BANYAN_OPEN")]
    pub(crate) open: bool,
    /// Keeps what was asked and answered in the request log too, for whoever may read the store. Off unless somebody says so.
    #[arg(long, env = "BANYAN_LOG_TEXTS")]
    pub(crate) log_texts: bool,
    /// How long nobody may say anything in a chat over a WebSocket.
    #[arg(long, env = "BANYAN_CHAT_IDLE", value_name = "TIME", default_value = "15m", value_parser = args::duration)]
    pub(crate) chat_idle: Duration,
    /// Serves HTTPS, with this certificate and those between it and its authority (PEM).
    #[arg(long, env = "BANYAN_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, env = "BANYAN_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl ServingArgs {
    /// The certificate, where there is one.
    pub(crate) fn https(&self) -> Result<Option<Https>, Failure> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let read = Https::read(certificate, key);
                Ok(Some(read.map_err(|error| anyhow::Error::new(error).context("failed to read the API's certificate"))?))
            }
            _ => Ok(None),
        }
    }
}

/// What URLs of the API begin with.
pub(crate) fn scheme(https: Option<&Https>) -> &'static str {
    if https.is_some() { "https" } else { "http" }
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    pub(crate) serving: ServingArgs,
    #[command(flatten)]
    observe: ObserveArgs,
    /// What this API calls itself in answers; its address by default.
    #[arg(long, env = "BANYAN_REPLICA", value_name = "NAME")]
    replica: Option<String>,
    /// Where to serve HTTP; 0.0.0.0 lets other machines in.
    #[arg(long, env = "BANYAN_LISTEN", value_name = "HOST:PORT", default_value = listen::API, value_parser = args::address)]
    pub(crate) listen: String,
    /// A public name, where a proxy on this machine stands before an API that listens on loopback.
    #[arg(long = "host", env = "BANYAN_HOSTS", value_name = "NAME", value_delimiter = ',')]
    hosts: Vec<String>,
    /// Connections at once; more wait in the kernel.
    #[arg(long, env = "BANYAN_CONNECTIONS", value_name = "N", default_value = "8192", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// The largest request; at most 6 MiB, so that the tree's messages hold it.
    #[arg(long, env = "BANYAN_BODY_BYTES", value_name = "SIZE", default_value = "4MiB", value_parser = args::size)]
    body_bytes: u64,
    /// All requests under way, together; they take about three times as much memory.
    #[arg(long, env = "BANYAN_BODIES_BYTES", value_name = "SIZE", default_value = "256MiB", value_parser = args::size)]
    bodies_bytes: u64,
    /// How long streams may go on when the API is told to stop; then they are closed. Shorter than the 30 s after which Kubernetes
    /// kills.
    #[arg(long, env = "BANYAN_DRAIN", value_name = "TIME", default_value = "25s", value_parser = args::duration)]
    drain: Duration,
}

pub(crate) async fn run(args: Args, stop: Stop) -> Result<(), Failure> {
    let aliases = args.serving.aliases.read()?;
    let listener = listen::bind("the API", "--listen", &args.listen).await?;
    let observed = args.observe.start("banyan-api", args.replica.as_deref().unwrap_or(&args.listen)).await?;
    let https = args.serving.https()?;
    let transport = args.registry.tls.transport_of(Role::Api)?;
    let registry = stop.unless(args.registry.connect_patiently()).await?;
    args.registry.tls.keep(&transport, Some(registry.clone()));
    if args.body_bytes > BODY_BYTES_MAX || args.bodies_bytes < args.body_bytes {
        return Err(Failure::told(Code::Usage, "one request takes at most 6MiB, and all together no less than one")
            .hint("--body-bytes 4MiB --bodies-bytes 256MiB is the default"));
    }
    let bytes = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
    let limits = Limits {
        connections: args.connections as usize,
        body_bytes: bytes(args.body_bytes),
        bodies_bytes: bytes(args.bodies_bytes),
        drain: args.drain,
        chat_idle: args.serving.chat_idle,
        ..Limits::default()
    };
    let store = Some(stop.unless(args.serving.store.open()).await?);
    let config = banyan_api::Config {
        hosts: args.hosts,
        store,
        open: args.serving.open,
        replica: args.replica,
        log_texts: args.serving.log_texts,
        aliases,
        limits,
        metrics: observed.metrics.clone(),
        tracer: observed.tracer.clone(),
        transport,
        https: https.clone(),
    };
    let api = Api::start(config, registry, listener).await?;
    let scheme = scheme(https.as_ref());
    let (address, told) = (api.address(), observed.told());
    output::print(&format!("the API is ready\n  page  {scheme}://{address}/\n  API   {scheme}://{address}/v1{told}"))?;
    supervisor::ready(&stop);
    stop.asked().await;
    api.stop().await;
    observed.finish().await;
    Ok(())
}
