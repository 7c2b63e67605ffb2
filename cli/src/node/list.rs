//! `banyan node list`: what the registry holds, and how the trees say each node fares.

use std::collections::BTreeMap;

use banyan_etcd::{Member, Role};
use serde::Serialize;

use crate::{
    args::RegistryArgs,
    drawing::{self, Node},
    exit::Failure,
    lookout::Lookout,
    output::{self, ListFormat},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    registry: RegistryArgs,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: ListFormat,
}

/// A node as the registry knows it; load and children are `null` where no tree could be asked.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    parent: Option<&'a str>,
    children: Vec<&'a str>,
    address: &'a str,
    role: &'static str,
    tree: &'a str,
    state: &'a str,
    running: Option<u32>,
    queued: Option<u32>,
    models: Vec<&'a str>,
    device: &'a str,
    incarnation: u64,
    version: &'a str,
    started_at: u64,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let lookout = Lookout::open(&args.registry).await?;
    if args.output == ListFormat::Name {
        let names: Vec<&str> = lookout.members.iter().map(|member| member.name.as_str()).collect();
        return if names.is_empty() { Ok(()) } else { output::print(&names.join("\n")) };
    }
    let seen = seen(&lookout).await;
    let listed: Vec<Listed> =
        lookout.members.iter().map(|member| list(member, &lookout.members, seen.get(member.name.as_str()))).collect();
    match args.output {
        ListFormat::Json => output::print_json(&listed),
        ListFormat::Table | ListFormat::Name => {
            if listed.is_empty() {
                output::note("no node is registered; `banyan up` starts a tree");
                return Ok(());
            }
            output::print_states(&draw(&listed))
        }
    }
}

/// What the roots that answer say of their nodes.
async fn seen(lookout: &Lookout) -> BTreeMap<String, Node> {
    let roots = lookout.roots();
    let views = futures::future::join_all(roots.iter().map(|root| lookout.view(root))).await;
    views.into_iter().flatten().flat_map(|view| drawing::nodes(&view)).map(|node| (node.name.clone(), node)).collect()
}

fn list<'a>(member: &'a Member, all: &'a [Member], seen: Option<&'a Node>) -> Listed<'a> {
    let children = all.iter().filter(|other| other.parent.as_ref() == Some(&member.name)).map(|child| child.name.as_str());
    Listed {
        name: member.name.as_str(),
        parent: member.parent.as_ref().map(|parent| parent.as_str()),
        children: children.collect(),
        address: &member.address,
        role: match member.role {
            Role::Root => "root",
            Role::Standby => "standby",
            Role::Node => "node",
        },
        tree: member.tree.as_str(),
        // Nobody is above a standby that could say how it is; that it holds its name says that it waits.
        state: seen.map_or(if member.role == Role::Standby { "standby" } else { "unknown" }, |node| &node.state),
        running: seen.map(|node| node.running),
        queued: seen.map(|node| node.queued),
        models: member.models.iter().map(|model| model.id.as_str()).collect(),
        device: &member.device,
        incarnation: member.incarnation,
        version: &member.version,
        started_at: member.started_at,
    }
}

fn draw(listed: &[Listed]) -> String {
    let mut rows = vec![["NAME", "PARENT", "TREE", "STATE", "MODELS", "DEVICE", "ADDRESS"].map(str::to_owned).to_vec()];
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    for node in listed {
        rows.push(vec![
            node.name.to_owned(),
            or_dash(node.parent.unwrap_or_default()),
            node.tree.to_owned(),
            node.state.to_owned(),
            or_dash(&node.models.join(",")),
            or_dash(node.device),
            node.address.to_owned(),
        ]);
    }
    output::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, parent: Option<&str>) -> Member {
        Member {
            name: name.parse().unwrap(),
            parent: parent.map(|parent| parent.parse().unwrap()),
            address: "127.0.0.1:7600".into(),
            role: if parent.is_none() { Role::Root } else { Role::Node },
            tree: "main".parse().unwrap(),
            incarnation: 1,
            version: "0.1.0".into(),
            models: Vec::new(),
            device: String::new(),
            started_at: 0,
        }
    }

    #[test]
    fn a_node_that_no_tree_speaks_of_is_listed_all_the_same() {
        let members = [member("root", None), member("a", Some("root"))];
        let listed: Vec<Listed> = members.iter().map(|one| list(one, &members, None)).collect();
        assert_eq!((listed[0].children.as_slice(), listed[1].parent), (["a"].as_slice(), Some("root")));
        let expected = "\
NAME  PARENT  TREE  STATE    MODELS  DEVICE  ADDRESS
root  -       main  unknown  -       -       127.0.0.1:7600
a     root    main  unknown  -       -       127.0.0.1:7600
";
        assert_eq!(draw(&listed), expected);
    }

    #[test]
    fn a_member_that_anybody_wrote_is_one_row() {
        let mut strange = member("a", Some("root"));
        strange.address = "x\u{202e}\nroot  -  main  ready\x1b[1A".into();
        strange.device = "cpu\r\n\u{9b}2J".into();
        let members = [strange];
        let listed: Vec<Listed> = members.iter().map(|one| list(one, &members, None)).collect();
        let drawn = draw(&listed);
        assert_eq!(drawn.lines().count(), 2, "{drawn:?}");
        assert!(!drawn.contains(['\x1b', '\r', '\u{9b}', '\u{202e}']), "{drawn:?}");
    }
}
