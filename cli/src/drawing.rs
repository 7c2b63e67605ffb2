//! How a tree and its nodes look on a terminal and in JSON.

use banyan_proto::v1::{Account, ChildStatus, Load, NodeStatus, TreeView};
use serde::Serialize;
use serde_json::Value;

use crate::output::table;

/// A node as `-o json` shows it.
#[derive(Debug, Serialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// The wanted parent; `null` for a root.
    pub(crate) parent: Option<String>,
    /// Whom it is attached to at the moment.
    pub(crate) attached: Option<String>,
    pub(crate) children: Vec<String>,
    pub(crate) address: String,
    pub(crate) registry: Vec<String>,
    pub(crate) registered: bool,
    pub(crate) role: String,
    pub(crate) state: String,
    pub(crate) running: u32,
    pub(crate) queued: u32,
    /// Roots only: queries that wait for room in the tree.
    pub(crate) waiting: u32,
    pub(crate) live: u32,
    pub(crate) busy_at: u32,
    pub(crate) batch_max: u32,
    pub(crate) room: u32,
    pub(crate) models: Vec<String>,
    pub(crate) device: String,
    pub(crate) fingerprint: String,
    pub(crate) routing: String,
    pub(crate) cluster: String,
    pub(crate) tree: String,
    pub(crate) ancestry: Vec<String>,
    /// The parent over which its answers go while the straight way to the root is cut.
    pub(crate) delivers_through: Option<String>,
    pub(crate) incarnation: u64,
    pub(crate) epoch: u64,
    pub(crate) version: String,
    pub(crate) uptime_ms: u64,
    pub(crate) tokens: u64,
    /// `null` where nothing is inferred.
    pub(crate) kv: Option<Kv>,
    /// Of a provider.
    pub(crate) keys: Vec<Key>,
    pub(crate) loads: Vec<ModelLoad>,
}

/// What a subtree can take of the models that share an engine, and at a root what waits for them.
#[derive(Debug, Serialize)]
pub(crate) struct ModelLoad {
    models: Vec<String>,
    slots: u32,
    room: u32,
    waiting: u32,
}

impl ModelLoad {
    fn new(load: &Load) -> ModelLoad {
        let capacity = load.capacity.clone().unwrap_or_default();
        ModelLoad { models: capacity.models, slots: capacity.slots, room: capacity.room, waiting: load.waiting }
    }
}

/// A key that a provider spends from. Limits are `null` where there are none.
#[derive(Debug, Serialize)]
pub(crate) struct Key {
    upstream: String,
    /// Masked.
    key: String,
    running: u32,
    requests: u64,
    requests_per_minute: Option<u64>,
    tokens: u64,
    tokens_per_minute: Option<u64>,
    reset_ms: u64,
    spent_tokens: u64,
    budget_tokens: Option<u64>,
    budget_reset_ms: u64,
    failures: u32,
    cooling_ms: u64,
    error: Option<String>,
}

impl Key {
    fn new(account: &Account) -> Key {
        let limit = |limit: u64| (limit > 0).then_some(limit);
        Key {
            upstream: account.upstream.clone(),
            key: account.key.clone(),
            running: account.running,
            requests: account.requests,
            requests_per_minute: limit(account.requests_max),
            tokens: account.tokens,
            tokens_per_minute: limit(account.tokens_max),
            reset_ms: account.reset_ms,
            spent_tokens: account.spent,
            budget_tokens: limit(account.budget),
            budget_reset_ms: account.budget_reset_ms,
            failures: account.failures,
            cooling_ms: account.cooling_ms,
            error: Some(account.error.clone()).filter(|error| !error.is_empty()),
        }
    }
}

/// How a node's engine uses its KV memory.
#[derive(Debug, Serialize)]
pub(crate) struct Kv {
    pages: u32,
    pages_held: u32,
    pages_cached: u32,
    pages_evicted: u64,
    tokens_looked_up: u64,
    tokens_reused: u64,
    preemptions: u64,
    tokens_drafted: u64,
    tokens_accepted: u64,
}

impl Node {
    pub(crate) fn new(status: &NodeStatus) -> Node {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Node {
            name: status.name.clone(),
            parent: some(&status.parent),
            attached: some(&status.attached),
            children: status.children.iter().map(|child| child.name.clone()).collect(),
            address: status.address.clone(),
            registry: status.registry.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect(),
            registered: status.registered,
            role: status.role.clone(),
            state: status.state.clone(),
            running: status.running,
            queued: status.queued,
            waiting: status.waiting,
            live: status.live,
            busy_at: status.busy_at,
            batch_max: status.batch_max,
            room: status.room,
            models: status.models.clone(),
            device: status.device.clone(),
            fingerprint: status.fingerprint.clone(),
            routing: status.routing.clone(),
            cluster: status.cluster.clone(),
            tree: status.tree.clone(),
            ancestry: status.ancestry.clone(),
            delivers_through: some(&status.delivers_through),
            incarnation: status.incarnation,
            epoch: status.epoch,
            version: status.version.clone(),
            uptime_ms: status.uptime_ms,
            tokens: status.tokens,
            kv: status.kv.as_ref().map(|kv| Kv {
                pages: kv.pages,
                pages_held: kv.pages_held,
                pages_cached: kv.pages_cached,
                pages_evicted: kv.pages_evicted,
                tokens_looked_up: kv.tokens_looked_up,
                tokens_reused: kv.tokens_reused,
                preemptions: kv.preemptions,
                tokens_drafted: kv.tokens_drafted,
                tokens_accepted: kv.tokens_accepted,
            }),
            keys: status.accounts.iter().map(Key::new).collect(),
            loads: status.loads.iter().map(ModelLoad::new).collect(),
        }
    }
}

/// Every node of the tree, parents before their children.
pub(crate) fn nodes(tree: &TreeView) -> Vec<Node> {
    let mut found = Vec::new();
    let mut ahead = vec![tree];
    while let Some(view) = ahead.pop() {
        let mut node = Node::new(&view.status.clone().unwrap_or_default());
        if view.silent {
            "silent".clone_into(&mut node.state);
        }
        found.push(node);
        ahead.extend(view.children.iter().rev());
    }
    found
}

/// The trees with every node's load, in aligned columns.
pub(crate) fn trees(trees: &[TreeView]) -> String {
    let mut rows = vec![["NODE", "STATE", "RUNNING", "QUEUED", "MODELS", "ADDRESS"].map(str::to_owned).to_vec()];
    for tree in trees {
        branch(tree, "", "", &mut rows);
    }
    table(&rows)
}

/// One row for the node, drawn behind `stem`, and those of its children behind `rest`.
fn branch(view: &TreeView, stem: &str, rest: &str, rows: &mut Vec<Vec<String>>) {
    let status = view.status.clone().unwrap_or_default();
    let root = status.role == "root";
    let state = if view.silent { "silent" } else { &status.state };
    let (running, queued) = match () {
        // Nothing is known of its load.
        () if view.silent => ("-".to_owned(), "-".to_owned()),
        () if root => ("-".to_owned(), format!("{} waiting", status.waiting)),
        () => (format!("{}/{}", status.running, status.batch_max), status.queued.to_string()),
    };
    rows.push(vec![
        format!("{stem}{}", status.name),
        state.to_owned(),
        running,
        queued,
        if status.models.is_empty() { "-".to_owned() } else { status.models.join(",") },
        status.address.clone(),
    ]);
    for (place, child) in view.children.iter().enumerate() {
        let (stem, rest) = if place + 1 == view.children.len() {
            (format!("{rest}└── "), format!("{rest}    "))
        } else {
            (format!("{rest}├── "), format!("{rest}│   "))
        };
        branch(child, &stem, &rest, rows);
    }
}

/// All that is known of one node, a line for each fact.
pub(crate) fn card(status: &NodeStatus) -> String {
    let or = |text: &str, otherwise: &str| if text.is_empty() { otherwise.to_owned() } else { text.to_owned() };
    let root = status.role == "root";
    let mut rows: Vec<(&str, String)> = vec![
        ("name", format!("{} ({} of tree {}, cluster {})", status.name, status.role, status.tree, status.cluster)),
        ("registry", format!("{}{}", status.registry, if status.registered { "" } else { " (not registered at the moment)" })),
        ("address", status.address.clone()),
    ];
    if !root {
        let elsewhere = status.attached != status.parent;
        let attached = match status.attached.as_str() {
            "" => " (not attached at the moment)".to_owned(),
            other if elsewhere => format!(" (attached to {other} at the moment)"),
            _ => String::new(),
        };
        rows.push(("parent", format!("{}{attached}", status.parent)));
        rows.push(("way up", or(&status.ancestry.join(" → "), "none")));
        if !status.delivers_through.is_empty() {
            rows.push(("delivers", format!("through {}, the straight way to the root is cut", status.delivers_through)));
        }
    }
    let children: Vec<String> = status.children.iter().map(child).collect();
    rows.push(("children", or(&children.join(", "), "none")));
    rows.push(("state", status.state.clone()));
    if root {
        rows.push(("waiting", format!("{} of {} live", status.waiting, status.live)));
        rows.push(("epoch", status.epoch.to_string()));
    }
    rows.push(("running", if root { "0 (a root never infers)".to_owned() } else { busy(status) }));
    rows.push(("queued", status.queued.to_string()));
    rows.push(("room", format!("{} in the whole subtree", status.room)));
    if !root {
        rows.push(("models", or(&status.models.join(", "), "none")));
        rows.push(("device", or(&status.device, "none")));
        rows.push(("tokens", status.tokens.to_string()));
    }
    if let Some(kv) = &status.kv {
        let evicted = kv.pages_evicted;
        rows.push((
            "kv pages",
            format!("{} held, {} cached, of {}; {evicted} evicted", kv.pages_held, kv.pages_cached, kv.pages),
        ));
        let reused = share(kv.tokens_reused, kv.tokens_looked_up);
        rows.push(("reused", format!("{reused} tokens that queries came with")));
        rows.push(("preempted", kv.preemptions.to_string()));
        rows.push(("drafts", format!("{} tokens right", share(kv.tokens_accepted, kv.tokens_drafted))));
    }
    for account in &status.accounts {
        rows.push(("key", key(account)));
    }
    rows.push(("routing", status.routing.clone()));
    rows.push(("version", format!("{}, up {}", status.version, uptime(status.uptime_ms))));
    table(&rows.into_iter().map(|(label, fact)| vec![label.to_owned(), fact]).collect::<Vec<_>>())
}

fn child(child: &ChildStatus) -> String {
    let nodes = if child.nodes > 1 { format!("{} nodes, ", child.nodes) } else { String::new() };
    let slow = if child.one_in > 1 { format!(", slow: one turn in {}", child.one_in) } else { String::new() };
    let shut = match child.shut_ms {
        0 => String::new(),
        ms => format!(", failed too often: nothing for {:.1} s", ms as f64 / 1000.0),
    };
    format!("{} ({nodes}room {}, sent {}{slow}{shut})", child.name, child.room, child.sent)
}

/// What a key was used for, what it has left, and when it has that again.
fn key(account: &Account) -> String {
    let left = |used: u64, limit: u64, what: &str| match limit {
        0 => format!("{used} {what}"),
        _ => format!("{used} of {limit} {what}"),
    };
    let of_a_minute =
        [left(account.requests, account.requests_max, "requests"), left(account.tokens, account.tokens_max, "tokens a minute")];
    let mut facts = vec![format!("{} under way", account.running), of_a_minute.join(" and ")];
    if account.reset_ms > 0 {
        facts.push(format!("reset in {}", uptime(account.reset_ms)));
    }
    if account.budget > 0 {
        let reset = uptime(account.budget_reset_ms);
        facts.push(format!("budget {} (for {reset} more)", left(account.spent, account.budget, "tokens")));
    }
    if account.failures > 0 {
        let error = crate::terminal::line(&account.error);
        facts.push(format!("{} in a row (last: {error})", crate::output::count(account.failures as usize, "failure")));
    }
    if account.cooling_ms > 0 {
        facts.push(format!("left alone for {}", uptime(account.cooling_ms)));
    }
    format!("{} {}: {}", crate::terminal::line(&account.upstream), account.key, facts.join(", "))
}

fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => "0 of 0".to_owned(),
        _ => format!("{part} of {whole} ({:.0} %)", part as f64 / whole as f64 * 100.0),
    }
}

fn busy(status: &NodeStatus) -> String {
    format!("{} of {} (busy at {})", status.running, status.batch_max, status.busy_at)
}

fn uptime(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} days {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// A decision as `-o json` shows it: the event and the actions where they parse, the line in any case.
pub(crate) fn decision(decision: &banyan_proto::v1::Decision) -> Value {
    let detail: Value = serde_json::from_str(&decision.json).unwrap_or(Value::Null);
    serde_json::json!({
        "number": decision.number,
        "at_ms": decision.at_ms,
        "text": decision.text,
        "decision": detail,
    })
}

#[cfg(test)]
mod tests {
    use banyan_proto::v1::Kv as KvOfWire;

    use super::*;

    fn view(name: &str, parent: &str, running: u32, children: Vec<TreeView>) -> TreeView {
        let child = |view: &TreeView| {
            let status = view.status.as_ref().unwrap();
            ChildStatus { name: status.name.clone(), room: 2, nodes: 1, sent: 7, ..ChildStatus::default() }
        };
        let root = parent.is_empty();
        let status = NodeStatus {
            name: name.into(),
            parent: parent.into(),
            attached: parent.into(),
            role: if root { "root" } else { "node" }.into(),
            state: if running == 2 { "busy" } else { "ready" }.into(),
            address: "127.0.0.1:7600".into(),
            registry: "http://127.0.0.1:2379".into(),
            registered: true,
            running,
            batch_max: 2,
            busy_at: 2,
            models: if root { Vec::new() } else { vec!["tiny".into()] },
            children: children.iter().map(child).collect(),
            ancestry: if root { Vec::new() } else { vec![parent.into()] },
            device: "cpu".into(),
            tree: "main".into(),
            cluster: "default".into(),
            routing: "round-robin".into(),
            version: "0.1.0".into(),
            uptime_ms: 61_000,
            kv: (!root).then(|| KvOfWire {
                pages: 64,
                pages_held: 3,
                pages_cached: 20,
                tokens_looked_up: 300,
                tokens_reused: 200,
                ..KvOfWire::default()
            }),
            ..NodeStatus::default()
        };
        TreeView { status: Some(status), children, silent: false }
    }

    fn grove() -> TreeView {
        let mut silent = view("c", "a", 0, Vec::new());
        silent.silent = true;
        view(
            "root",
            "",
            0,
            vec![view("a", "root", 2, vec![view("b", "a", 1, Vec::new()), silent]), view("d", "root", 0, Vec::new())],
        )
    }

    #[test]
    fn a_tree_is_drawn_with_every_nodes_load() {
        let expected = "\
NODE       STATE   RUNNING  QUEUED     MODELS  ADDRESS
root       ready   -        0 waiting  -       127.0.0.1:7600
├── a      busy    2/2      0          tiny    127.0.0.1:7600
│   ├── b  ready   1/2      0          tiny    127.0.0.1:7600
│   └── c  silent  -        -          tiny    127.0.0.1:7600
└── d      ready   0/2      0          tiny    127.0.0.1:7600
";
        assert_eq!(trees(&[grove()]), expected);
    }

    #[test]
    fn json_lists_parents_before_their_children() {
        let nodes = nodes(&grove());
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["root", "a", "b", "c", "d"]);
        assert_eq!((nodes[0].parent.as_deref(), nodes[1].parent.as_deref()), (None, Some("root")));
        assert_eq!((nodes[1].children.len(), nodes[3].state.as_str()), (2, "silent"));
        let json = serde_json::to_value(&nodes[1]).unwrap();
        for key in ["name", "parent", "children", "address", "state", "running", "queued", "models"] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn a_card_shows_a_fact_a_line() {
        let expected = "\
name       a (node of tree main, cluster default)
registry   http://127.0.0.1:2379
address    127.0.0.1:7600
parent     root
way up     root
children   b (room 2, sent 7), c (room 2, sent 7)
state      busy
running    2 of 2 (busy at 2)
queued     0
room       0 in the whole subtree
models     tiny
device     cpu
tokens     0
kv pages   3 held, 20 cached, of 64; 0 evicted
reused     200 of 300 (67 %) tokens that queries came with
preempted  0
drafts     0 of 0 tokens right
routing    round-robin
version    0.1.0, up 1 min 1 s
";
        assert_eq!(card(grove().children[0].status.as_ref().unwrap()), expected);
    }

    #[test]
    fn a_card_shows_every_key_of_a_provider() {
        let mut status = view("p", "root", 0, Vec::new()).status.unwrap();
        let key = Account {
            upstream: "openai".into(),
            key: "sk-…cdef".into(),
            running: 1,
            requests: 3,
            requests_max: 500,
            tokens: 900,
            reset_ms: 42_000,
            spent: 2000,
            budget: 10_000,
            budget_reset_ms: 7_200_000,
            failures: 2,
            cooling_ms: 3_500,
            error: "429".into(),
            ..Account::default()
        };
        status.accounts = vec![key, Account { upstream: "ollama".into(), key: "none".into(), ..Account::default() }];
        let card = card(&status);
        let expected = "\
key        openai sk-…cdef: 1 under way, 3 of 500 requests and 900 tokens a minute, reset in 42 s, budget 2000 of 10000 tokens \
(for 2 h 0 min more), 2 failures in a row (last: 429), left alone for 3 s
key        ollama none: 0 under way, 0 requests and 0 tokens a minute
";
        assert!(card.contains(expected), "{card}");
    }

    #[test]
    fn a_card_says_where_a_node_hangs_while_its_parent_is_away() {
        let mut status = view("b", "a", 0, Vec::new()).status.unwrap();
        status.attached = "root".into();
        status.registered = false;
        let card = card(&status);
        assert!(card.contains("parent     a (attached to root at the moment)\n"), "{card}");
        assert!(card.contains("(not registered at the moment)\n"), "{card}");
    }
}
