//! `banyan autoscale`: watches one model's load from the root, and has a command add nodes and drains them.
//!
//! What to do the [`scaler`] decides; this looks, runs the commands and drains. It keeps nothing: nodes are its own by their names,
//! so it can be ended and started again at any time, and the nodes that its commands started go on.

mod scaler;

use std::{
    process::Stdio,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use banyan_etcd::Role;
use banyan_proto::{
    NodeName,
    v1::{DrainRequest, Load},
};
use serde::Serialize;
use tokio::{process::Command, sync::mpsc};

use self::scaler::{Action, Scaler, Seen, Settings};
use crate::{
    args::{self, RegistryArgs},
    exit::{Code, Failure},
    lookout::{Lookout, within},
    output::{self, Format},
    stop::Stop,
    supervisor,
};

/// Between two looks: a root answers at once, and no node starts quicker than in seconds.
const LOOK: Duration = Duration::from_secs(1);
/// Commands that end at the same time; more wait.
const NEWS_MAX: usize = 64;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model whose nodes are counted, added and drained.
    #[arg(long, env = "BANYAN_MODEL", value_name = "NAME")]
    model: String,
    /// Nodes at least, whoever started them; they are restored at once.
    #[arg(long, value_name = "N", default_value = "1")]
    min: u32,
    /// Nodes at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max: u32,
    /// A shell command that starts a node: BANYAN_NAME is its name, BANYAN_MODEL the model, BANYAN_WANTED how many there will be, and
    /// BANYAN_ETCD and BANYAN_CLUSTER the registry. It may end when the node is on its way, or be the node.
    #[arg(long, value_name = "COMMAND", required_unless_present = "dry_run")]
    up: Option<String>,
    /// A shell command that runs when a node has left, with the same variables: to give its machine back.
    #[arg(long, value_name = "COMMAND")]
    down: Option<String>,
    /// Does not drain nodes before the command of --down, which does, as Kubernetes does with pods that it ends.
    #[arg(long, requires = "down")]
    no_drain: bool,
    /// What the names of its nodes begin with: PREFIX-0, PREFIX-1 and so on; only these are drained, the last one first.
    #[arg(long, value_name = "PREFIX", default_value = "auto")]
    prefix: NodeName,
    /// Adds nodes above this busy part of all places.
    #[arg(long, value_name = "PART", default_value = "0.8", value_parser = part)]
    high: f64,
    /// Takes a node away where the others would stay below this part.
    #[arg(long, value_name = "PART", default_value = "0.5", value_parser = part)]
    low: f64,
    /// How long the load must be high.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = args::duration)]
    high_for: Duration,
    /// How long it must be low.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = args::duration)]
    low_for: Duration,
    /// Between two changes.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = args::duration)]
    cooldown: Duration,
    /// How long a new node may take to appear until another one is asked for in its place.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = args::duration)]
    start: Duration,
    /// How long a node that is drained may go on with what it runs.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = args::duration)]
    drain: Duration,
    /// The tree that it looks after.
    #[arg(long, env = "BANYAN_TREE", value_name = "NAME", default_value = "main")]
    tree: NodeName,
    /// Says what it would do, and does nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// How to print what it does; JSON is one object a line.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

/// What was done, and why.
#[derive(Serialize)]
struct Told<'a> {
    at_ms: u64,
    model: &'a str,
    action: &'static str,
    node: &'a str,
    nodes: u32,
    slots: u32,
    room: u32,
    waiting: u32,
    dry_run: bool,
}

/// What became of something that takes its time.
enum News {
    /// The command that was to start this node failed.
    NotStarted(String, String),
    /// This node could not be told to leave.
    Stays(String, String),
    /// The command behind a node's end failed.
    NotTidied(String, String),
}

pub(crate) async fn run(args: Args, stop: Stop) -> Result<(), Failure> {
    if args.min > args.max {
        return Err(Failure::told(Code::Usage, "--min is more than --max"));
    }
    if args.low >= args.high {
        return Err(
            Failure::told(Code::Usage, "--low must be less than --high").hint("with a gap between them, nodes don't come and go")
        );
    }
    let mut lookout = stop.unless(Lookout::open(&args.registry)).await?;
    let mut scaler = Scaler::new(Settings {
        prefix: args.prefix.to_string(),
        min: args.min,
        max: args.max,
        high: args.high,
        low: args.low,
        sustained: args.high_for,
        quiet: args.low_for,
        cooldown: args.cooldown,
        start: args.start,
    });
    let (send, mut news) = mpsc::channel(NEWS_MAX);
    supervisor::ready(&stop);
    let begun = Instant::now();
    let mut away = false;
    loop {
        tokio::select! {
            () = stop.asked() => return Ok(()),
            Some(news) = news.recv() => {
                hear(&mut scaler, begun.elapsed(), news);
                continue;
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        let seen = match look(&mut lookout, &args).await {
            Ok(seen) => seen,
            Err(failure) => {
                scaler.blind();
                if !std::mem::replace(&mut away, true) {
                    output::note(&format!("changing nothing while the tree can't be asked: {failure}"));
                }
                continue;
            }
        };
        away = false;
        let Some(action) = scaler.decide(begun.elapsed(), &seen) else { continue };
        let wanted = scaler.have(&seen);
        match &action {
            Action::Add(names) => {
                for name in names {
                    tell(&args, "add", name, wanted, &seen)?;
                    add(&args, name, wanted, &send);
                }
            }
            Action::Remove(name) => {
                tell(&args, "remove", name, wanted, &seen)?;
                remove(&args, &lookout, name, wanted, &send).await;
            }
        }
    }
}

/// The model's nodes, as the registry names them and the root counts their places.
async fn look(lookout: &mut Lookout, args: &Args) -> Result<Seen, Failure> {
    lookout.refresh().await?;
    let root = lookout.members.iter().find(|member| member.role == Role::Root && member.tree == args.tree);
    let root = root.ok_or_else(|| Failure::told(Code::NotFound, format!("the tree {} has no root", args.tree)))?;
    let (_, status) = lookout.reach(&root.name).await?;
    let (slots, room, waiting) = load(&status.loads, &args.model);
    let members = lookout.members.iter().filter(|member| member.tree == args.tree && member.role == Role::Node);
    let serving = members.filter(|member| member.models.iter().any(|model| model.id == args.model));
    Ok(Seen {
        serving: serving.map(|member| member.name.to_string()).collect(),
        taken: lookout.members.iter().map(|member| member.name.to_string()).collect(),
        slots,
        room,
        waiting,
    })
}

/// Places, free places and who waits, over all engines that serve a model.
fn load(loads: &[Load], model: &str) -> (u32, u32, u32) {
    let serve = loads.iter().filter_map(|load| Some((load.capacity.as_ref()?, load.waiting)));
    serve.filter(|(capacity, _)| capacity.models.iter().any(|served| served == model)).fold(
        (0, 0, 0),
        |sum, (capacity, waiting)| {
            // Who waits for a model that several sets of engines serve is said with each of them.
            (sum.0 + capacity.slots, sum.1 + capacity.room, sum.2.max(waiting))
        },
    )
}

fn tell(args: &Args, action: &'static str, node: &str, nodes: u32, seen: &Seen) -> Result<(), Failure> {
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let Seen { slots, room, waiting, .. } = *seen;
    match args.output {
        Format::Json => output::print_json_line(&Told {
            at_ms,
            model: &args.model,
            action,
            node,
            nodes,
            slots,
            room,
            waiting,
            dry_run: args.dry_run,
        }),
        Format::Table => output::print(&format!(
            "{}  {}{action} {node}: {} of {slots} places are busy, {waiting} wait; {} from now on",
            output::time_of_day(at_ms),
            if args.dry_run { "would " } else { "" },
            slots.saturating_sub(room),
            output::count(nodes as usize, "node"),
        )),
    }
}

fn add(args: &Args, name: &str, wanted: u32, news: &mpsc::Sender<News>) {
    let Some(up) = args.up.as_ref().filter(|_| !args.dry_run) else { return };
    let (mut command, name, news) = (shell(args, up, name, wanted), name.to_owned(), news.clone());
    // The command may be the node itself, and then it ends when the node does: the registry says which nodes there are.
    tokio::spawn(async move {
        if let Err(why) = outcome(&mut command).await {
            let _ = news.send(News::NotStarted(name, why)).await;
        }
    });
}

async fn remove(args: &Args, lookout: &Lookout, name: &str, wanted: u32, news: &mpsc::Sender<News>) {
    if args.dry_run {
        return;
    }
    if !args.no_drain
        && let Err(failure) = drain(lookout, name, args.drain).await
    {
        // The channel has place: nothing else was sent since it was read.
        let _ = news.try_send(News::Stays(name.to_owned(), failure.to_string()));
        return;
    }
    let Some(down) = &args.down else { return };
    let (mut command, name, news) = (shell(args, down, name, wanted), name.to_owned(), news.clone());
    let (registry, drained) = (args.registry.clone(), !args.no_drain);
    tokio::spawn(async move {
        if drained {
            gone(&registry, &name).await;
        }
        if let Err(why) = outcome(&mut command).await {
            let _ = news.send(News::NotTidied(name, why)).await;
        }
    });
}

async fn drain(lookout: &Lookout, name: &str, deadline: Duration) -> Result<(), Failure> {
    let node: NodeName = name.parse().map_err(anyhow::Error::new)?;
    let (mut client, _) = lookout.reach(&node).await?;
    let request = DrainRequest { name: name.to_owned(), deadline_ms: deadline.as_millis() as u64 };
    within(client.drain(request)).await.map(|_| ())
}

/// Waits until nobody has the name.
async fn gone(registry: &RegistryArgs, name: &str) {
    loop {
        if let Ok(lookout) = Lookout::open(registry).await
            && lookout.members.iter().all(|member| member.name.as_str() != name)
        {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn shell(args: &Args, line: &str, name: &str, wanted: u32) -> Command {
    // A shell that waits for a node would keep our output open for as long as that lives.
    let plain = line.chars().all(|letter| letter.is_ascii_alphanumeric() || " /._-".contains(letter));
    let line = if plain { format!("exec {line}") } else { line.to_owned() };
    let mut command = Command::new("sh");
    command
        .args(["-c", &line])
        .env("BANYAN_NAME", name)
        .env("BANYAN_MODEL", &args.model)
        .env("BANYAN_WANTED", wanted.to_string())
        .env("BANYAN_ETCD", args.registry.endpoints.join(","))
        .env("BANYAN_CLUSTER", args.registry.cluster.as_str())
        .stdin(Stdio::null())
        // Data is ours to print.
        .stdout(Stdio::from(std::io::stderr()))
        // A node that it starts outlives the one who asked for it, Ctrl-C included.
        .process_group(0);
    command
}

async fn outcome(command: &mut Command) -> Result<(), String> {
    match command.status().await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the command ended with {status}")),
        Err(error) => Err(format!("the shell does not start: {error}")),
    }
}

fn hear(scaler: &mut Scaler, now: Duration, news: News) {
    match news {
        News::NotStarted(name, why) => {
            scaler.failed(now, &name);
            output::note(&format!("{name} was to start: {why}"));
        }
        News::Stays(name, why) => {
            scaler.stays(&name);
            output::note(&format!("{name} was to leave, and stays: {why}"));
        }
        News::NotTidied(name, why) => output::note(&format!("{name} has left; its --down failed: {why}")),
    }
}

/// Reads a part of a whole.
fn part(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(part) if (0.0..=1.0).contains(&part) => Ok(part),
        _ => Err("expected a number from 0 to 1, such as 0.8".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use banyan_proto::v1::Capacity;

    use super::*;

    #[test]
    fn a_models_load_is_the_sum_over_all_engines_that_serve_it() {
        let set = |models: &[&str], slots, room, waiting| Load {
            capacity: Some(Capacity { models: models.iter().map(|model| (*model).to_owned()).collect(), room, queue: 0, slots }),
            waiting,
        };
        let loads = [set(&["a"], 4, 1, 3), set(&["a", "b"], 8, 8, 3), set(&["b"], 2, 0, 9)];
        assert_eq!(load(&loads, "a"), (12, 9, 3));
        assert_eq!(load(&loads, "b"), (10, 8, 9));
        assert_eq!(load(&loads, "c"), (0, 0, 0));
    }

    #[test]
    fn parts_lie_between_nothing_and_all() {
        assert_eq!(part("0.8"), Ok(0.8));
        assert!(["", "1.5", "-1", "NaN", "80%"].iter().all(|wrong| part(wrong).is_err()));
    }
}
