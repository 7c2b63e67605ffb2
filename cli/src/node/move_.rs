//! `banyan node move`: gives a live node another parent.

use banyan_proto::{NodeName, v1::MoveRequest};

use crate::{
    args::RegistryArgs,
    exit::{Code, Failure},
    lookout::{Lookout, within},
    node::run::check_parent,
    output::{self, Format},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which node.
    name: NodeName,
    /// Its parent from now on.
    #[arg(long, value_name = "NAME")]
    parent: NodeName,
    #[command(flatten)]
    registry: RegistryArgs,
    /// How to print the outcome.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    check_parent(&args.name, &args.parent)?;
    let lookout = Lookout::open(&args.registry).await?;
    let member = lookout.member(&args.name)?;
    lookout.member(&args.parent)?;
    if member.parent.is_none() {
        return Err(Failure::told(Code::Conflict, format!("`{}` is a root, and roots have no parent", args.name)).hint(format!(
            "stop it, and start it below another node: `banyan node run {} --parent {}`",
            args.name, args.parent
        )));
    }
    let (mut client, _) = lookout.reach(&args.name).await?;
    let request = MoveRequest { name: args.name.to_string(), parent: args.parent.to_string() };
    let moved = within(client.r#move(request)).await.map_err(|failure| {
        failure
            .context(format!("`{}` can't become a child of `{}`", args.name, args.parent))
            .hint("`banyan node tree` shows who hangs below whom")
    })?;
    match args.output {
        Format::Json => output::print_json(&serde_json::json!({ "name": args.name.as_str(), "parent": moved.parent })),
        Format::Table => output::print(&format!("{} is a child of {} now", args.name, moved.parent)),
    }
}
