//! `banyan node drain`: lets a node finish or hand over what it has, and leave.

use std::time::Duration;

use banyan_proto::{NodeName, v1::DrainRequest};
use tokio::time::{Instant, sleep};

use crate::{
    args::{self, RegistryArgs},
    exit::{Code, Failure},
    lookout::{Lookout, within},
    output::{self, Format},
};

/// What comes behind the deadline: letting go of links, and giving the name back.
const MARGIN: Duration = Duration::from_secs(15);
/// How often to look whether its name is gone.
const LOOK: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which node; in a container's own environment, itself.
    #[arg(env = "BANYAN_NAME")]
    name: NodeName,
    /// How long running queries may take to finish; then others go on with them.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = args::duration)]
    deadline: Duration,
    #[command(flatten)]
    registry: RegistryArgs,
    /// How to print the outcome.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let mut lookout = Lookout::open(&args.registry).await?;
    let incarnation = lookout.member(&args.name)?.incarnation;
    let (mut client, _) = lookout.reach(&args.name).await?;
    let request = DrainRequest { name: args.name.to_string(), deadline_ms: args.deadline.as_millis() as u64 };
    let begun = Instant::now();
    let draining = within(client.drain(request)).await?;
    output::note(&format!(
        "`{}` takes nothing more; running: {}, which may finish within {:?}; queued and handed back: {}; children that go \
         elsewhere: {}",
        args.name, draining.running, args.deadline, draining.queued, draining.children
    ));
    // It gives its name back as the last thing that it does.
    while lookout.members.iter().any(|member| member.name == args.name && member.incarnation == incarnation) {
        if begun.elapsed() > args.deadline + MARGIN {
            return Err(Failure::told(Code::TimedOut, format!("`{}` has not left within {:?}", args.name, begun.elapsed()))
                .hint(format!("`banyan node log {}` shows what it waits for", args.name)));
        }
        sleep(LOOK).await;
        lookout.refresh().await?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    match args.output {
        Format::Json => output::print_json(&serde_json::json!({ "name": args.name.as_str(), "left_after_s": seconds })),
        Format::Table => output::print(&format!("{} has left after {seconds:.1} s", args.name)),
    }
}
