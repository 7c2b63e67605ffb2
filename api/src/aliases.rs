//! Names that stand for models: which models a query is tried with, one after the other. Pure: the registry's view comes in.
//!
//! A file of aliases is a table: `fast = ["gpt2", "gpt2-large", "provider/big"]` takes the first that has a place,
//! `chat = { old = 90, new = 10 }` divides queries by weights, and `best = "gpt2-xl"` is another name. An alias may name others.

use std::collections::{BTreeMap, BTreeSet};

use banyan_etcd::{Policy, View};
use serde::Deserialize;

/// More models in a row are no way to serve anybody in time.
const CHAIN_MAX: usize = 16;
/// Of weights and the like in one file: somebody's mistake beyond.
const ALIASES_MAX: usize = 1024;
/// Sums of weights stay within 64 bits.
const WEIGHT_MAX: u32 = 1_000_000;

/// Which names somebody may ask for.
pub(crate) type Allowed<'a> = &'a (dyn Fn(&str) -> bool + 'a);

/// Names that stand for models.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Aliases(BTreeMap<String, Alias>);

/// What one name stands for.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum Alias {
    One(String),
    /// The first that can serve.
    Chain(Vec<String>),
    /// One of them, as often as its weight is of their sum.
    Weighted(BTreeMap<String, u32>),
}

/// Why a file of aliases is of no use.
#[derive(Debug, thiserror::Error)]
pub enum AliasError {
    /// It is not the TOML that it should be.
    #[error(
        "the aliases are not as they should be: fast = [\"gpt2\", \"gpt2-large\"] under [aliases], or chat = {{ old = 90, new = 10 }}"
    )]
    Parse(#[from] toml::de::Error),
    /// What it says makes no sense.
    #[error("{0}")]
    Invalid(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    aliases: BTreeMap<String, Alias>,
}

impl Aliases {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// When it is none, or an alias stands for nothing or for itself.
    pub fn parse(text: &str) -> Result<Aliases, AliasError> {
        Aliases(toml::from_str::<File>(text)?.aliases).checked()
    }

    /// Reads what stands under `[aliases]`.
    ///
    /// # Errors
    /// As [`Aliases::parse`].
    pub fn of(table: toml::Table) -> Result<Aliases, AliasError> {
        Aliases(table.try_into()?).checked()
    }

    fn checked(self) -> Result<Aliases, AliasError> {
        let aliases = self;
        let invalid = |message| Err(AliasError::Invalid(message));
        if aliases.0.len() > ALIASES_MAX {
            return invalid(format!("there are more than {ALIASES_MAX} aliases"));
        }
        for (name, alias) in &aliases.0 {
            let targets = alias.targets();
            if name.is_empty() || targets.is_empty() || targets.contains(&"") {
                return invalid(format!("the alias {name:?} stands for nothing: name at least one model"));
            }
            if let Alias::Weighted(weights) = alias
                && (weights.values().all(|weight| *weight == 0) || weights.values().any(|weight| *weight > WEIGHT_MAX))
            {
                return invalid(format!("the weights of {name:?} go up to {WEIGHT_MAX}, and one is more than 0"));
            }
            if aliases.reaches(name, name, &mut BTreeSet::new()) {
                return invalid(format!("the alias {name:?} stands for itself by way of another: let it name models"));
            }
        }
        Ok(aliases)
    }

    /// Whether a name comes back to `wanted` by way of others. An alias that names itself means the model of that name.
    fn reaches<'a>(&'a self, from: &'a str, wanted: &str, seen: &mut BTreeSet<&'a str>) -> bool {
        let Some(alias) = self.0.get(from) else { return false };
        let others = alias.targets().into_iter().filter(|target| *target != from);
        others.into_iter().any(|target| target == wanted || (seen.insert(target) && self.reaches(target, wanted, seen)))
    }

    /// The names, and the models that they stand for, however queries are divided.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        self.0.keys().map(|name| {
            let mut models = Vec::new();
            self.models(name, &mut models);
            (name.as_str(), models)
        })
    }

    fn models<'a>(&'a self, name: &'a str, models: &mut Vec<&'a str>) {
        for target in self.0.get(name).map(Alias::targets).unwrap_or_default() {
            if target != name && self.0.contains_key(target) {
                self.models(target, models);
            } else if !models.contains(&target) {
                models.push(target);
            }
        }
    }

    /// Whether somebody may ask for a name: for itself, or for some of what it stands for.
    pub(crate) fn may(&self, name: &str, allowed: Allowed) -> bool {
        let any = |alias: &Alias| alias.targets().into_iter().any(|target| target != name && self.may(target, allowed));
        allowed(name) || self.0.get(name).is_some_and(any)
    }

    /// The models to try for a name, in that order: at least one. `key` decides between weights, always alike. Who may ask for the
    /// name gets all that it stands for; who may not gets of that what it may ask for by another name.
    pub(crate) fn chain(&self, view: &View, name: &str, key: u64, allowed: Allowed) -> Vec<String> {
        let mut models = Vec::new();
        self.expand(name, key, allowed, &mut models);
        if models.is_empty() {
            // Nobody serves what is an alias only.
            models.push(name);
        }
        let mut chain: Vec<String> = Vec::new();
        for model in models.into_iter().flat_map(|model| with_stand_ins(view, model)) {
            if chain.len() < CHAIN_MAX && !chain.contains(&model) {
                chain.push(model);
            }
        }
        chain
    }

    fn expand<'a>(&'a self, name: &'a str, key: u64, allowed: Allowed, models: &mut Vec<&'a str>) {
        let allowed = if allowed(name) { &|_: &str| true } else { allowed };
        // One that stands for itself among others means the model, which is asked for by this name.
        let may = |target: &str| if target == name { allowed(name) } else { self.may(target, allowed) };
        let targets = match self.0.get(name) {
            None => vec![name],
            Some(Alias::Weighted(weights)) => {
                let weights = weights.iter().map(|(target, weight)| (target.as_str(), *weight));
                drawn(&weights.filter(|(target, _)| may(target)).collect::<Vec<_>>(), key).into_iter().collect()
            }
            Some(alias) => alias.targets(),
        };
        for target in targets.into_iter().filter(|target| may(target)) {
            if target != name && self.0.contains_key(target) {
                self.expand(target, key, allowed, models);
            } else {
                models.push(target);
            }
        }
    }
}

impl Alias {
    fn targets(&self) -> Vec<&str> {
        match self {
            Alias::One(model) => vec![model],
            Alias::Chain(models) => models.iter().map(String::as_str).collect(),
            Alias::Weighted(weights) => weights.keys().map(String::as_str).collect(),
        }
    }
}

/// The target that a key falls to; none of none.
fn drawn<'a>(weights: &[(&'a str, u32)], key: u64) -> Option<&'a str> {
    let sum: u64 = weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
    // Ids that follow each other are spread (the finalizer of MurmurHash3).
    let mut bits = key;
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let mut left = (bits ^ (bits >> 33)) % sum.max(1);
    for (target, weight) in weights {
        match left.checked_sub(u64::from(*weight)) {
            Some(rest) => left = rest,
            None => return Some(target),
        }
    }
    weights.first().map(|(target, _)| *target)
}

/// A model, and the providers' that stand in for it, before or behind it as their operators want.
fn with_stand_ins(view: &View, model: &str) -> Vec<String> {
    let all = || view.members.values().flat_map(|member| &member.models);
    let standing = |policy: Policy| {
        let of = move |known: &&banyan_etcd::Model| {
            known.stands_in.as_ref().is_some_and(|stands| stands.model == model && stands.policy == policy)
        };
        all().filter(of).map(|known| known.id.clone())
    };
    let own = all().any(|known| known.id == model);
    let mut chain: Vec<String> = standing(Policy::Always).collect();
    let spill: Vec<String> = standing(Policy::Spill).collect();
    // Where nobody of one's own serves it there is nobody to wait for.
    if own || chain.is_empty() && spill.is_empty() {
        chain.push(model.to_owned());
    }
    chain.extend(spill);
    chain
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use banyan_etcd::{Member, Model, Role, StandIn};
    use banyan_proto::NodeName;
    use proptest::prelude::*;

    use super::*;

    fn view(models: &[(&str, Option<Policy>)]) -> Arc<View> {
        let mut view = View::default();
        for (number, (id, policy)) in models.iter().enumerate() {
            let name: NodeName = format!("n{number}").parse().unwrap();
            let stands_in = policy.map(|policy| StandIn { model: id.trim_start_matches("provider/").to_owned(), policy });
            let model = Model { id: (*id).to_owned(), context: 1, chat: true, created: 0, stands_in };
            let member = Member {
                name: name.clone(),
                parent: None,
                address: "127.0.0.1:1".into(),
                role: Role::Node,
                tree: "main".parse().unwrap(),
                incarnation: 1,
                version: String::new(),
                models: vec![model],
                device: String::new(),
                started_at: 0,
            };
            view.members.insert(name, member);
        }
        Arc::new(view)
    }

    fn aliases(text: &str) -> Result<Aliases, String> {
        Aliases::parse(&format!("[aliases]\n{text}")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_chain_is_tried_in_its_order_and_others_are_themselves() {
        let aliases = aliases("fast = ['gpt2', 'large', 'gpt2']\nbest = 'large'\nall = ['fast', 'best', 'huge']").unwrap();
        let view = view(&[]);
        assert_eq!(aliases.chain(&view, "fast", 0, &|_| true), ["gpt2", "large"]);
        assert_eq!(aliases.chain(&view, "best", 0, &|_| true), ["large"]);
        assert_eq!(aliases.chain(&view, "all", 0, &|_| true), ["gpt2", "large", "huge"]);
        assert_eq!(aliases.chain(&view, "other", 0, &|_| true), ["other"]);
        assert_eq!(
            aliases.iter().map(|(name, models)| (name, models.len())).collect::<Vec<_>>(),
            [("all", 3), ("best", 1), ("fast", 2)]
        );
    }

    #[test]
    fn weights_divide_queries_and_a_key_falls_always_alike() {
        let aliases = aliases("chat = { old = 90, new = 10 }\ngpt2 = { gpt2 = 1, new = 0 }").unwrap();
        let view = view(&[]);
        let new = (0..10_000).filter(|key| aliases.chain(&view, "chat", *key, &|_| true) == ["new"]).count();
        assert!((900..1100).contains(&new), "{new} of 10000");
        assert_eq!(aliases.chain(&view, "chat", 7, &|_| true), aliases.chain(&view, "chat", 7, &|_| true));
        assert!(
            (0..100).all(|key| aliases.chain(&view, "gpt2", key, &|_| true) == ["gpt2"]),
            "an alias may name the model of its name"
        );
    }

    #[test]
    fn who_may_ask_for_some_models_gets_those_of_an_alias() {
        let aliases = aliases(
            "fast = ['gpt2', 'large']\nall = ['fast', 'best', 'huge']\nbest = 'large'\nchat = { old = 90, new = 10 }\n\
             gpt2 = ['gpt2', 'huge']",
        );
        let aliases = aliases.unwrap();
        let view = view(&[("gpt2", None), ("provider/gpt2", Some(Policy::Spill))]);
        let chain = |name: &str, key: &str| {
            let allowed = |asked: &str| asked == key;
            aliases.may(name, &allowed).then(|| aliases.chain(&view, name, 0, &allowed).join(" "))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(chain("fast", "large"), some("large"));
        assert_eq!(chain("all", "large"), some("large"));
        assert_eq!(chain("all", "fast"), some("gpt2 provider/gpt2 huge large"), "a name brings what it stands for");
        assert_eq!(chain("gpt2", "gpt2"), some("gpt2 provider/gpt2 huge"));
        assert_eq!(chain("gpt2", "huge"), some("huge"), "not the model of that name");
        assert_eq!(chain("chat", "new"), some("new"), "whatever the weights say");
        assert_eq!(chain("large", "fast"), None, "only by that name");
        assert_eq!((chain("fast", "other"), chain("nothing", "gpt2")), (None, None));
    }

    #[test]
    fn providers_stand_in_as_their_policy_says() {
        let none = Aliases::default();
        let chain = |view: &View, name: &str| none.chain(view, name, 0, &|_| true);
        let spill = view(&[("m", None), ("provider/m", Some(Policy::Spill)), ("provider/x", Some(Policy::Spill))]);
        assert_eq!(chain(&spill, "m"), ["m", "provider/m"]);
        assert_eq!(chain(&spill, "x"), ["provider/x"], "nobody else has it");
        assert_eq!(chain(&spill, "provider/m"), ["provider/m"], "asked for by name");
        let always = view(&[("m", None), ("provider/m", Some(Policy::Always))]);
        assert_eq!(chain(&always, "m"), ["provider/m", "m"]);
        let never = view(&[("m", None), ("provider/m", Some(Policy::Never)), ("provider/x", Some(Policy::Never))]);
        assert_eq!((chain(&never, "m"), chain(&never, "x")), (vec!["m".to_owned()], vec!["x".to_owned()]));
    }

    #[test]
    fn what_makes_no_sense_says_what_would() {
        for (told, text) in [
            ("fast = [", "fast = 3"),
            ("stands for nothing", "fast = []"),
            ("stands for nothing", "fast = ''"),
            ("one is more than 0", "chat = { a = 0 }"),
            ("one is more than 0", "chat = { a = 1000001 }"),
            ("stands for itself", "a = ['b']\nb = { c = 1 }\nc = 'a'"),
        ] {
            let error = aliases(text).unwrap_err();
            assert!(error.contains(told), "{told}: {error}");
        }
        assert!(Aliases::parse("[alias]\na = 'b'").is_err(), "a table that nobody knows");
    }

    proptest! {
        /// Whatever stands in a file that is accepted: every name leads to at least one model, and none for ever.
        #[test]
        fn every_name_leads_to_models(
            targets in proptest::collection::btree_map("[a-f]", proptest::collection::vec("[a-h]", 1..4), 0..6),
            key in any::<u64>(),
            allowed in proptest::collection::btree_set("[a-h]", 0..4),
        ) {
            let lines: Vec<String> = targets.iter().map(|(name, targets)| format!("{name} = {targets:?}")).collect();
            if let Ok(aliases) = aliases(&lines.join("\n")) {
                let view = view(&[]);
                for name in ["a", "b", "c", "d", "e", "f", "g"] {
                    let chain = aliases.chain(&view, name, key, &|_| true);
                    prop_assert!(!chain.is_empty());
                    let is_model = |model: &str| targets.get(model).is_none_or(|targets| targets.iter().any(|target| target == model));
                    prop_assert!(chain.iter().all(|model| is_model(model)), "{:?}", chain);
                    // Whoever may ask for models gets those only, and some wherever there are some.
                    let models = |asked: &str| allowed.contains(asked) && !targets.contains_key(asked);
                    let theirs = aliases.chain(&view, name, key, &models);
                    prop_assert!(!aliases.may(name, &models) || theirs.iter().all(|model| models(model)), "{:?}", theirs);
                }
            }
        }
    }
}
