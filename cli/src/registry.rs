//! `banyan registry serve`: the embedded registry on its own, where no etcd is at hand.

use std::path::PathBuf;

use banyan_etcd::embedded::Server;

use banyan_proto::Role;

use crate::{
    args,
    exit::Failure,
    listen, output,
    stop::Stop,
    supervisor,
    tls::{ListenArgs, Listening, TlsArgs},
};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Serves the part of the etcd v3 API that Banyan and etcdctl use, until Ctrl-C.
    Serve(Args),
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to listen.
    #[arg(long, env = "BANYAN_REGISTRY_LISTEN", value_name = "HOST:PORT", default_value = listen::REGISTRY, value_parser = args::address)]
    listen: String,
    /// Keeps keys and the revision in this file over restarts; without it they are gone at the end.
    #[arg(long, env = "BANYAN_REGISTRY_FILE", value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    listening: ListenArgs,
}

pub(crate) async fn run(args: Args, stop: Stop) -> Result<(), Failure> {
    let listener = listen::bind("the registry", "--listen", &args.listen).await?;
    let address = listener.local_addr().map_err(anyhow::Error::new)?;
    let listening = Listening { what: "the registry", address, role: Role::Registry, name: None, cluster: None };
    let transport = args.tls.listening(&args.listening, &listening).await?;
    args.tls.keep(&transport, None);
    let scheme = if transport.identity().is_some() { "https" } else { "http" };
    let server = Server::over(transport, listener, args.file).await.map_err(anyhow::Error::new)?;
    output::print(&format!("the registry is ready\n  etcd  {scheme}://{}", server.address()))?;
    supervisor::ready(&stop);
    stop.asked().await;
    server.stop().await;
    Ok(())
}
