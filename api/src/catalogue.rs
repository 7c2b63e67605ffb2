//! The models that the tree serves, as the registry knows them. Whether a query can be served is the root's to say.

use std::collections::BTreeMap;

use banyan_etcd::View;
use banyan_proto::NodeName;

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
            });
            offer.context = offer.context.min(model.context);
            offer.chat |= model.chat;
            offer.created = offer.created.min(model.created);
            offer.nodes.push(member.name.clone());
        }
    }
    offers.into_values().collect()
}

/// The model that those get who don't say which.
pub(crate) fn first(view: &View) -> Option<&str> {
    view.members.values().flat_map(|member| &member.models).map(|model| model.id.as_str()).min()
}

/// Tokens that fit into a model's context, when the registry knows the model.
pub(crate) fn context(view: &View, model: &str) -> Option<u32> {
    view.members.values().flat_map(|member| &member.models).filter(|known| known.id == model).map(|known| known.context).min()
}

/// Whether a tree has a node that serves the model.
pub(crate) fn serves(view: &View, tree: &NodeName, model: &str) -> bool {
    view.members.values().any(|member| member.tree == *tree && member.models.iter().any(|known| known.id == model))
}
