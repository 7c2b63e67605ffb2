//! Trees to be.

use banyan_engine::fake;

use super::node::Plan;
use crate::random::Random;

/// A root, and `nodes` below it in full levels of `fan_out` children each.
pub fn balanced(nodes: usize, fan_out: usize, engine: &fake::Options) -> Vec<Plan> {
    plans(nodes, |node| (node - 1) / fan_out, |_| engine.clone())
}

/// A root, and nodes below whomever chance picks among those that came before; engines by number.
pub fn scattered(nodes: usize, random: &mut Random, engine: impl Fn(usize) -> fake::Options) -> Vec<Plan> {
    plans(nodes, |node| random.below(node), engine)
}

fn plans(nodes: usize, mut parent: impl FnMut(usize) -> usize, engine: impl Fn(usize) -> fake::Options) -> Vec<Plan> {
    let root = Plan { name: "root".parse().expect("a valid name"), parent: None, engine: None, busy_at: None };
    let plan = |node: usize| Plan {
        name: format!("n{node}").parse().expect("a valid name"),
        parent: Some(parent(node)),
        engine: Some(engine(node)),
        busy_at: None,
    };
    std::iter::once(root).chain((1..=nodes).map(plan)).collect()
}
