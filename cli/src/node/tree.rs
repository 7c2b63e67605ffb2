//! `banyan node tree`: the whole tree, drawn; every node's load.

use std::time::Duration;

use banyan_proto::v1::TreeView;

use crate::{
    args::RegistryArgs,
    drawing::{self, Node},
    exit::{Code, Failure},
    lookout::Lookout,
    output::{self, Format},
};

/// Quicker than that nobody reads, and it costs every node an answer.
const REDRAW: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
    /// Draws it again whenever it changes, until Ctrl-C.
    #[arg(long)]
    pub(crate) watch: bool,
    /// How to print it; JSON is one array, parents before their children.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    pub(crate) output: Format,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let mut lookout = Lookout::open(&args.registry).await?;
    if !args.watch {
        let trees = look(&lookout).await?;
        return show(&trees, &lookout, args.output);
    }
    let mut ticks = tokio::time::interval(REDRAW);
    let mut shown = String::new();
    loop {
        ticks.tick().await;
        let drawn = match refreshed(&mut lookout).await {
            Ok(trees) => match args.output {
                Format::Table => drawing::trees(&trees),
                Format::Json => output::json_line(&flat(&trees))?,
            },
            // A tree that is away for a moment is what one watches for.
            Err(failure) => {
                output::note(&format!("{failure}"));
                continue;
            }
        };
        if drawn != shown {
            match args.output {
                Format::Json => output::print(&drawn)?,
                Format::Table => {
                    output::clear()?;
                    output::print_states(&drawn)?;
                }
            }
            shown = drawn;
        }
    }
}

async fn refreshed(lookout: &mut Lookout) -> Result<Vec<TreeView>, Failure> {
    lookout.refresh().await?;
    look(lookout).await
}

/// Every tree of the cluster, root by root.
async fn look(lookout: &Lookout) -> Result<Vec<TreeView>, Failure> {
    let roots = lookout.roots();
    if roots.is_empty() {
        return Err(Failure::told(Code::NotFound, "no root is registered")
            .hint("start a tree with `banyan up`, or a root alone with `banyan node run root`"));
    }
    futures::future::try_join_all(roots.into_iter().map(|root| lookout.view(root))).await
}

fn flat(trees: &[TreeView]) -> Vec<Node> {
    trees.iter().flat_map(drawing::nodes).collect()
}

fn show(trees: &[TreeView], lookout: &Lookout, format: Format) -> Result<(), Failure> {
    let nodes = flat(trees);
    match format {
        Format::Json => output::print_json(&nodes)?,
        Format::Table => output::print_states(&drawing::trees(trees))?,
    }
    let registered = lookout.members.iter().map(|member| member.name.as_str());
    let missing: Vec<&str> = registered.filter(|name| !nodes.iter().any(|node| node.name == *name)).collect();
    if !missing.is_empty() {
        output::note(&format!("registered, but not attached at the moment: {}", missing.join(", ")));
    }
    Ok(())
}
