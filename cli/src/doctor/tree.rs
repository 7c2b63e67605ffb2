//! The tree: its registry, its roots, what is registered and what hangs on, versions, clocks, and the API.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use banyan_etcd::{Member, Role};
use banyan_proto::VERSION;

use super::Finding;
use crate::{
    args::RegistryArgs,
    drawing,
    exit::Failure,
    http::{Connection, Target},
    lookout::Lookout,
    output,
};

/// Clocks that are further apart confuse whoever reads two logs; certificates allow for more.
const CLOCKS_APART_MS: u64 = 5_000;

pub(super) async fn look(registry: &RegistryArgs, url: &str) -> Vec<Finding> {
    let begun = Instant::now();
    let lookout = match Lookout::open(registry).await {
        Ok(lookout) => lookout,
        Err(failure) => {
            let endpoints = registry.endpoints.join(",");
            let text = failure.to_string().lines().next().unwrap_or_default().to_owned();
            let todo = format!("`banyan up` or `banyan registry serve` starts one; `--etcd URL` names another than {endpoints}");
            return vec![Finding::bad("registry", text, todo), api(url).await];
        }
    };
    let took = output::microseconds(begun.elapsed().as_micros() as u64);
    let found = format!("{} answers in {took}", registry.endpoints.join(","));
    let mut findings = vec![match registry.endpoints.len() {
        2 => Finding::notice("registry", found, "two members are no safer than one: run three"),
        _ => Finding::good("registry", found),
    }];
    findings.push(roots(&lookout.members));
    findings.extend(hanging(&lookout).await);
    findings.push(versions(&lookout.members));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    findings.push(clocks(&lookout.members, now));
    findings.push(api(url).await);
    findings
}

fn roots(members: &[Member]) -> Finding {
    let trees: BTreeSet<&str> = members.iter().map(|member| member.tree.as_str()).collect();
    let of = |role, tree| members.iter().filter(|member| member.role == role && member.tree.as_str() == tree).count();
    if members.iter().all(|member| member.role != Role::Root) {
        return Finding::bad("roots", "no root is registered", "`banyan node run root` starts one, `banyan up` a whole tree");
    }
    if let Some(tree) = trees.iter().find(|tree| of(Role::Root, **tree) == 0) {
        return Finding::bad(
            "roots",
            format!("the tree {tree} has no root"),
            format!("`banyan node run NAME --standby --tree {tree}` starts one"),
        );
    }
    let roots: Vec<&str> = members.iter().filter(|member| member.role == Role::Root).map(|member| member.name.as_str()).collect();
    let found = format!("{} of {}", roots.join(", "), output::count(members.len(), "member"));
    match trees.iter().find(|tree| of(Role::Standby, **tree) == 0) {
        Some(_) => Finding::notice(
            "roots",
            format!("{found}; none stands by"),
            "`banyan node run root-2 --standby` takes over when a root dies",
        ),
        None => Finding::good("roots", format!("{found}, and somebody stands by")),
    }
}

/// What is registered and does not hang on, and what has no way to compute.
async fn hanging(lookout: &Lookout) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = BTreeMap::new();
    for root in lookout.roots() {
        match lookout.view(root).await {
            Ok(view) => seen.extend(drawing::nodes(&view).into_iter().map(|node| (node.name.clone(), node))),
            Err(failure) => {
                let text = failure.to_string().lines().next().unwrap_or_default().to_owned();
                let todo = format!("see that {} can be dialed from here; `banyan node log {}` tries it", root.address, root.name);
                findings.push(Finding::bad("root", text, todo));
            }
        }
    }
    if !findings.is_empty() {
        return findings;
    }
    let nodes: Vec<&Member> = lookout.members.iter().filter(|member| member.role == Role::Node).collect();
    if nodes.is_empty() {
        findings.push(Finding::bad(
            "nodes",
            "none",
            "a root never infers: `banyan node run my-node --parent root` starts a node",
        ));
        return findings;
    }
    let lost: Vec<&str> = nodes
        .iter()
        .map(|member| member.name.as_str())
        .filter(|name| seen.get(*name).is_none_or(|node| node.state == "silent" || node.state == "detached"))
        .collect();
    findings.push(match lost.is_empty() {
        true => Finding::good("nodes", format!("all {} hang on", nodes.len())),
        false => Finding::notice(
            "nodes",
            format!("registered, and not attached: {}", lost.join(", ")),
            format!("see that their processes run and reach their parents; `banyan node log {}` says more", lost[0]),
        ),
    });
    findings
}

fn versions(members: &[Member]) -> Finding {
    let versions: BTreeSet<&str> = members.iter().map(|member| member.version.as_str()).collect();
    match versions.len() {
        0 => Finding::good("versions", format!("{VERSION} here, and nobody else")),
        1 if versions.contains(VERSION) => Finding::good("versions", format!("{VERSION} everywhere")),
        1 => Finding::notice(
            "versions",
            format!("{VERSION} here, {} in the tree", versions.first().copied().unwrap_or_default()),
            "neighbouring versions work together; bring this one to the tree's",
        ),
        _ => Finding::notice(
            "versions",
            versions.into_iter().collect::<Vec<_>>().join(", "),
            "neighbouring versions work together while you upgrade; finish it: `banyan node list -o json` says who has which",
        ),
    }
}

/// Whoever started in the future has another clock.
fn clocks(members: &[Member], now_ms: u64) -> Finding {
    match members.iter().find(|member| member.started_at > now_ms + CLOCKS_APART_MS) {
        Some(member) => Finding::notice(
            "clocks",
            format!("{} started {} s in the future", member.name, (member.started_at - now_ms) / 1000),
            "keep clocks together with NTP: `timedatectl set-ntp true`; the tree does not mind, certificates and logs do",
        ),
        None => Finding::good("clocks", "nobody started in the future"),
    }
}

async fn api(url: &str) -> Finding {
    let ready = async {
        let target = Arc::new(Target::find(url, None).await?.at(""));
        let mut connection = Connection::open(&target).await?;
        Ok::<_, Failure>(connection.get("/readyz").await?)
    };
    match ready.await {
        Ok(_) => Finding::good("API", format!("{url} is ready")),
        Err(failure) => {
            let text = failure.to_string().lines().next().unwrap_or_default().to_owned();
            match text.contains("not ready") {
                true => Finding::bad("API", text, "`banyan node tree` shows what is there"),
                false => Finding::notice("API", text, "`banyan api run` starts one; `--url URL` names another"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    fn member(name: &str, role: Role, version: &str, started_at: u64) -> Member {
        Member {
            name: name.parse().unwrap(),
            parent: None,
            address: "127.0.0.1:7600".into(),
            role,
            tree: "main".parse().unwrap(),
            incarnation: 1,
            version: version.into(),
            models: Vec::new(),
            device: String::new(),
            started_at,
        }
    }

    #[test]
    fn a_tree_without_a_root_is_bad_and_without_a_standby_a_notice() {
        assert_eq!(roots(&[]).state, State::Bad);
        let root = member("root", Role::Root, VERSION, 0);
        assert_eq!(roots(std::slice::from_ref(&root)).state, State::Notice);
        assert_eq!(roots(&[root, member("root-2", Role::Standby, VERSION, 0)]).state, State::Good);
        assert_eq!(roots(&[member("a", Role::Node, VERSION, 0)]).state, State::Bad);
    }

    #[test]
    fn versions_and_clocks_that_differ_are_named() {
        let (same, old) = (member("a", Role::Node, VERSION, 1_000), member("b", Role::Node, "0.0.9", 100_000));
        assert_eq!(versions(std::slice::from_ref(&same)).state, State::Good);
        assert!(versions(&[same.clone(), old.clone()]).found.contains("0.0.9"));
        assert_eq!(clocks(&[same.clone(), old.clone()], 100_000).state, State::Good);
        assert!(clocks(&[same, old], 50_000).found.contains("b started 50 s in the future"));
    }
}
