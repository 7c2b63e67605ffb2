//! The models that the tree serves, as the registry knows them. Whether a query can be served is the root's to say.

use std::collections::BTreeMap;

use banyan_etcd::{Model, Policy, View};
use banyan_proto::NodeName;

use crate::Aliases;

/// One model, over all nodes that serve it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) id: String,
    /// Tokens; the smallest among its nodes, so that what fits here fits anywhere.
    pub(crate) context: u32,
    /// Whether it has a chat template of its own; the others complete text.
    pub(crate) chat: bool,
    /// Unix time in seconds; the earliest.
    pub(crate) created: u64,
    /// Who serves it, by name.
    pub(crate) nodes: Vec<NodeName>,
    /// Of an alias: the models that it stands for.
    pub(crate) stands_for: Vec<String>,
}

/// All models, by name.
pub(crate) fn offers(view: &View) -> Vec<Offer> {
    let mut offers: BTreeMap<&str, Offer> = BTreeMap::new();
    for member in view.members.values() {
        for model in &member.models {
            let offer = offers.entry(&model.id).or_insert_with(|| Offer {
                id: model.id.clone(),
                context: model.context,
                chat: model.chat,
                created: model.created,
                nodes: Vec::new(),
                stands_for: Vec::new(),
            });
            offer.context = offer.context.min(model.context);
            offer.chat |= model.chat;
            offer.created = offer.created.min(model.created);
            offer.nodes.push(member.name.clone());
        }
    }
    offers.into_values().collect()
}

/// All names that can be asked for: models, those that only a provider has, and aliases.
pub(crate) fn with_aliases(view: &View, aliases: &Aliases) -> Vec<Offer> {
    let mut named: BTreeMap<String, Offer> = offers(view).into_iter().map(|offer| (offer.id.clone(), offer)).collect();
    for (model, stands) in models(view).filter_map(|model| Some((model, model.stands_in.as_ref()?))) {
        if stands.policy != Policy::Never && !named.contains_key(&stands.model) {
            let Some(offer) = named.get(&model.id).cloned() else { continue };
            let stands_for = vec![model.id.clone()];
            named.insert(stands.model.clone(), Offer { id: stands.model.clone(), stands_for, ..offer });
        }
    }
    for (name, targets) in aliases.iter() {
        let offers: Vec<&Offer> = targets.iter().filter_map(|target| named.get(*target)).collect();
        // An alias of which nothing is served can't be asked for.
        let Some(context) = offers.iter().map(|offer| offer.context).min() else { continue };
        let mut nodes: Vec<NodeName> = offers.iter().flat_map(|offer| offer.nodes.iter().cloned()).collect();
        nodes.sort();
        nodes.dedup();
        let offer = Offer {
            id: name.to_owned(),
            context,
            chat: offers.iter().any(|offer| offer.chat),
            created: offers.iter().map(|offer| offer.created).max().unwrap_or_default(),
            nodes,
            stands_for: targets.into_iter().map(str::to_owned).collect(),
        };
        named.insert(name.to_owned(), offer);
    }
    named.into_values().collect()
}

/// The model that those get who don't say which: of those that they may have, one that costs nothing where there is one.
pub(crate) fn first(view: &View, may: impl Fn(&str) -> bool) -> Option<&str> {
    models(view)
        .filter(|model| may(&model.id))
        .map(|model| (model.stands_in.is_some(), model.id.as_str()))
        .min()
        .map(|(_, id)| id)
}

/// Tokens that fit into a model's context, when the registry knows the model.
pub(crate) fn context(view: &View, model: &str) -> Option<u32> {
    let named = |known: &&Model| known.id == model;
    let stands_in = |known: &&Model| known.stands_in.as_ref().is_some_and(|stands| stands.model == model);
    let own = models(view).filter(named).map(|known| known.context).min();
    own.or_else(|| models(view).filter(stands_in).map(|known| known.context).min())
}

fn models(view: &View) -> impl Iterator<Item = &Model> {
    view.members.values().flat_map(|member| &member.models)
}

/// Whether a tree has a node that serves the model.
pub(crate) fn serves(view: &View, tree: &NodeName, model: &str) -> bool {
    view.members.values().any(|member| member.tree == *tree && member.models.iter().any(|known| known.id == model))
}
