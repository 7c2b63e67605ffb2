//! `banyan api run`: the HTTP API and the page, for a tree that runs elsewhere.

use banyan_api::Api;

use crate::{
    args::{self, RegistryArgs},
    exit::Failure,
    listen, output,
    stop::Stop,
};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Serves the API and the chat page until Ctrl-C.
    Run(Args),
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Where to serve HTTP; 0.0.0.0 lets other machines in.
    #[arg(long, env = "BANYAN_LISTEN", value_name = "HOST:PORT", default_value = listen::API, value_parser = args::address)]
    listen: String,
}

pub(crate) async fn run(args: Args, stop: Stop) -> Result<(), Failure> {
    let listener = listen::bind("the API", "--listen", &args.listen).await?;
    let registry = stop.unless(args.registry.connect()).await?;
    let api = Api::start(banyan_api::Config::default(), registry, listener).await.map_err(anyhow::Error::new)?;
    output::print(&format!("the API is ready\n  page  http://{0}/\n  API   http://{0}/v1", api.address()))?;
    stop.asked().await;
    api.stop().await;
    Ok(())
}
