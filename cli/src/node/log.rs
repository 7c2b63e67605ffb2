//! `banyan node log`: what a node is, what it does, and what it decided.

use std::num::NonZeroU32;

use banyan_proto::{
    NodeName,
    v1::{Decision, LogRequest},
};
use futures::TryStreamExt as _;

use crate::{
    args::RegistryArgs,
    drawing::{self, Node},
    exit::{Code, Failure},
    lookout::Lookout,
    node::tree,
    output::{self, Format},
    terminal,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Whose; without it the whole tree is shown.
    #[arg(required_if_eq("follow", "true"))]
    name: Option<NodeName>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Goes on with the decisions that follow, until Ctrl-C.
    #[arg(long)]
    follow: bool,
    /// How many of the last decisions to show.
    #[arg(long, value_name = "N", default_value = "20")]
    last: NonZeroU32,
    /// How to print it; with --follow, JSON is one value a line: first the node, then its decisions.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let Some(name) = args.name else {
        return tree::run(tree::Args { registry: args.registry, watch: false, output: args.output }).await;
    };
    let lookout = Lookout::open(&args.registry).await?;
    let (mut client, status) = lookout.reach(&name).await?;
    let request = LogRequest { name: name.to_string(), last: args.last.get(), follow: args.follow };
    let mut decisions = client.log(request).await?.into_inner();
    match (args.output, args.follow) {
        (Format::Table, _) => {
            let card = drawing::card(&status);
            output::print_states(&card)?;
            output::print("\nlast decisions")?;
            let mut any = false;
            while let Some(decision) = decisions.try_next().await? {
                output::print(&line(&decision))?;
                any = true;
            }
            if !any {
                output::print("  none yet")?;
            }
        }
        (Format::Json, false) => {
            let told: Vec<Decision> = decisions.try_collect().await?;
            let mut node = serde_json::to_value(Node::new(&status)).map_err(anyhow::Error::new)?;
            node["decisions"] = told.iter().map(drawing::decision).collect();
            output::print_json(&node)?;
        }
        (Format::Json, true) => {
            output::print_json_line(&Node::new(&status))?;
            while let Some(decision) = decisions.try_next().await? {
                output::print_json_line(&drawing::decision(&decision))?;
            }
        }
    }
    if args.follow {
        // A stream that is followed has no end but the node's own.
        return Err(Failure::told(Code::Unavailable, format!("node `{name}` has gone")));
    }
    Ok(())
}

fn line(decision: &Decision) -> String {
    format!("  {}  #{:<5} {}", output::time_of_day(decision.at_ms), decision.number, terminal::line(&decision.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_a_line_with_its_time_and_number() {
        let decision = Decision { number: 7, at_ms: 3_723_004, text: "ran q1".into(), json: String::new() };
        assert_eq!(line(&decision), "  01:02:03.004Z  #7     ran q1");
    }

    #[test]
    fn no_decision_forges_another() {
        let text = "ran q1\n  01:02:03.005Z  #8     ran q2\x1b[2K".to_owned();
        let told = line(&Decision { text, ..Decision::default() });
        assert!(!told.contains(['\n', '\x1b']), "{told:?}");
    }
}
