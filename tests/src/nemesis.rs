//! Random harm, decided by a seed: what is done to whom, and for how long. Pure; whoever owns the processes does it.

use std::{fmt, time::Duration};

use crate::random::Random;

/// Something bad. Whatever lasts is undone after its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Harm {
    /// A node's process is killed, and started again.
    Kill(String, Duration),
    /// A node's process is told to end, and started again.
    End(String, Duration),
    /// A node's process is stopped.
    Pause(String, Duration),
    /// The root that reigns is killed, and started again.
    KillRoot(Duration),
    /// The root that reigns is told to end, and started again.
    EndRoot(Duration),
    /// The root that reigns is stopped.
    PauseRoot(Duration),
    /// An API is killed, and started again.
    KillApi(usize, Duration),
    /// An API is told to end, and started again.
    EndApi(usize, Duration),
    /// All connections to a node are cut.
    Cut(String),
    /// All connections to a node go silent for good; new ones work.
    Forsake(String),
    /// Nothing comes through to a node, or from it to those who dialled it.
    Hold(String, Duration),
    /// Everything to a node and back comes later, by the second duration.
    Delay(String, Duration, Duration),
    /// A node can't reach the registry.
    Unregistered(String, Duration),
    /// A node's lease is revoked.
    Revoke(String),
    /// A member of the registry is killed, and started again.
    KillMember(usize, Duration),
    /// All members of the registry are stopped.
    PauseMembers(Duration),
    /// All members of the registry are killed, and started again.
    KillMembers(Duration),
    /// The registry forgets its history.
    Compact,
}

impl Harm {
    /// What kind it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Harm::Kill(..) => "node killed",
            Harm::End(..) => "node told to end",
            Harm::Pause(..) => "node stopped",
            Harm::KillRoot(_) => "root killed",
            Harm::EndRoot(_) => "root told to end",
            Harm::PauseRoot(_) => "root stopped",
            Harm::KillApi(..) => "API killed",
            Harm::EndApi(..) => "API told to end",
            Harm::Cut(_) => "links cut",
            Harm::Forsake(_) => "links silent for good",
            Harm::Hold(..) => "links held",
            Harm::Delay(..) => "links delayed",
            Harm::Unregistered(..) => "node cut off from etcd",
            Harm::Revoke(_) => "lease revoked",
            Harm::KillMember(..) => "etcd member killed",
            Harm::PauseMembers(_) => "all of etcd stopped",
            Harm::KillMembers(_) => "all of etcd killed",
            Harm::Compact => "history compacted",
        }
    }

    /// Whose process is lost, for a while or for good.
    pub fn victim(&self) -> Option<&str> {
        match self {
            Harm::Kill(node, _) | Harm::End(node, _) | Harm::Pause(node, _) => Some(node),
            _ => None,
        }
    }
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Whom harm may befall.
#[derive(Clone, Debug)]
pub struct Cast {
    /// Nodes whose processes may be lost.
    pub nodes: Vec<String>,
    /// Nodes with a proxy in front of them.
    pub proxied: Vec<String>,
    /// Nodes with a proxy between them and the registry.
    pub registry_proxied: Vec<String>,
    /// Members of the registry.
    pub members: usize,
    /// APIs; with fewer than two, they and the root are spared.
    pub apis: usize,
}

/// An endless sequence of harm, each with the pause before it.
#[derive(Clone, Debug)]
pub struct Nemesis {
    cast: Cast,
    random: Random,
}

impl Nemesis {
    /// That of `seed`.
    pub fn new(cast: Cast, seed: u64) -> Nemesis {
        Nemesis { cast, random: Random::new(seed) }
    }

    fn ms(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.random.within(least..most))
    }

    fn node(&mut self) -> String {
        self.random.one_of(&self.cast.nodes).clone()
    }

    fn api(&mut self) -> usize {
        self.random.below(self.cast.apis)
    }

    fn proxied(&mut self) -> String {
        self.random.one_of(&self.cast.proxied).clone()
    }
}

impl Iterator for Nemesis {
    type Item = (Duration, Harm);

    fn next(&mut self) -> Option<(Duration, Harm)> {
        // A query that loses its node twice at the same token is poison for all that anybody knows, so losses keep apart.
        let pause = self.ms(1500, 4000);
        let kinds = if self.cast.apis > 1 { 26 } else { 20 };
        let harm = match self.random.within(0..kinds) {
            0..=4 => Harm::Kill(self.node(), self.ms(0, 3000)),
            5..=6 => Harm::End(self.node(), self.ms(0, 2000)),
            7..=9 => Harm::Pause(self.node(), self.ms(500, 6000)),
            10 => Harm::Cut(self.proxied()),
            11 => Harm::Forsake(self.proxied()),
            12 => Harm::Hold(self.proxied(), self.ms(500, 5000)),
            13 => Harm::Delay(self.proxied(), self.ms(2000, 6000), self.ms(20, 400)),
            14 => {
                let node = self.random.one_of(&self.cast.registry_proxied).clone();
                Harm::Unregistered(node, self.ms(1000, 15_000))
            }
            15 => Harm::Revoke(self.node()),
            16 => Harm::KillMember(self.random.within(0..self.cast.members as u64) as usize, self.ms(500, 5000)),
            17 => Harm::PauseMembers(self.ms(1000, 14_000)),
            18 => Harm::KillMembers(self.ms(500, 5000)),
            19 => Harm::Compact,
            20 => Harm::KillRoot(self.ms(0, 3000)),
            21 => Harm::EndRoot(self.ms(0, 2000)),
            22 => Harm::PauseRoot(self.ms(500, 8000)),
            23 | 24 => Harm::KillApi(self.api(), self.ms(0, 3000)),
            _ => Harm::EndApi(self.api(), self.ms(0, 2000)),
        };
        Some((pause, harm))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_decides_what_happens_and_everything_does() {
        let one = || vec!["a".to_owned(), "b".to_owned()];
        let cast = || Cast { nodes: one(), proxied: one(), registry_proxied: one(), members: 3, apis: 2 };
        let plan = |seed| Nemesis::new(cast(), seed).take(400).collect::<Vec<_>>();
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
        let kinds: BTreeSet<&str> = plan(1).iter().map(|(_, harm)| harm.kind()).collect();
        assert_eq!(kinds.len(), 18, "{kinds:?}");
    }
}
