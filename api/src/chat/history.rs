//! What was said in a conversation: in the store, and as much of it here as is sent along.

use banyan_store::{Error as StoreError, NewMessage};
use serde_json::{Value, json};
use tracing::warn;

use super::turn::Whole;
use crate::{caller::Caller, routes::Context};

/// Messages that are sent along: more than any context holds that people fill by talking.
const MESSAGES_MAX: u32 = 400;

/// A conversation's.
pub(super) struct History {
    /// `None`: it could not be found out.
    id: Option<String>,
    messages: Vec<Said>,
    /// How many there are in all.
    count: i64,
    /// What is the matter with the store.
    trouble: Option<&'static str>,
}

struct Said {
    role: &'static str,
    content: String,
    /// In the store.
    kept: bool,
    model: String,
    node: String,
}

impl History {
    /// Reads what there is. Without the store it is empty, and goes on all the same.
    pub(super) async fn open(context: &Context, caller: &Caller, client_id: &str) -> History {
        let mut history = History { id: None, messages: Vec::new(), count: 0, trouble: None };
        let Some(store) = &context.store else {
            history.trouble = Some("off");
            return history;
        };
        let read = async {
            let conversation = store.conversation_of(&caller.owner, client_id).await?;
            let messages = store.messages(&caller.owner, &conversation.id, MESSAGES_MAX).await?;
            Ok((conversation, messages))
        };
        match read.await {
            Ok((conversation, messages)) => {
                (history.id, history.count) = (Some(conversation.id), conversation.messages);
                history.messages = branch(messages);
            }
            Err(error) => history.troubled(&error),
        }
        history
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    pub(super) fn len(&self) -> i64 {
        self.count
    }

    /// Whether somebody waits for an answer.
    pub(super) fn is_unanswered(&self) -> bool {
        self.messages.last().is_some_and(|said| said.role == "user")
    }

    /// For the client: kept, or why not.
    pub(super) fn state(&self) -> &'static str {
        self.trouble.unwrap_or("kept")
    }

    /// All that is sent along.
    pub(super) fn messages(&self) -> Vec<Value> {
        self.messages.iter().map(|said| json!({ "role": said.role, "content": said.content })).collect()
    }

    /// Somebody says something.
    pub(super) async fn hear(&mut self, context: &Context, caller: &Caller, content: String) {
        self.add(context, caller, Said { role: "user", content, kept: false, model: String::new(), node: String::new() }).await;
    }

    /// It was answered.
    pub(super) async fn answer(&mut self, context: &Context, caller: &Caller, whole: &Whole) {
        let (model, node) = (whole.model.clone(), whole.node.clone().unwrap_or_default());
        self.add(context, caller, Said { role: "assistant", content: whole.text.clone(), kept: false, model, node }).await;
    }

    /// Keeps it, and with it what could not be kept before.
    async fn add(&mut self, context: &Context, caller: &Caller, said: Said) {
        self.messages.push(said);
        self.count += 1;
        let beyond = self.messages.len().saturating_sub(MESSAGES_MAX as usize);
        self.messages.drain(..beyond);
        let (Some(store), Some(id)) = (&context.store, &self.id) else { return };
        let new = |said: &Said| NewMessage {
            role: said.role.to_owned(),
            content: said.content.clone(),
            model: said.model.clone(),
            node: said.node.clone(),
        };
        let new = self.messages.iter().filter(|said| !said.kept).map(new).collect();
        match store.append(&caller.owner, id, new).await {
            Ok(conversation) => {
                self.messages.iter_mut().for_each(|said| said.kept = true);
                (self.count, self.trouble) = (conversation.messages, None);
            }
            Err(error) => self.troubled(&error),
        }
    }

    fn troubled(&mut self, error: &StoreError) {
        warn!(error = error as &dyn std::error::Error, "a conversation is not kept");
        self.trouble = Some(match error {
            StoreError::ReadOnly(_) => "read_only",
            StoreError::Conflict(_) => "full",
            StoreError::Missing(_) => "deleted",
            _ => "unavailable",
        });
    }
}

/// Those that lead to the last one: a page's conversation has others beside them.
fn branch(messages: Vec<banyan_store::Message>) -> Vec<Said> {
    let mut wanted = messages.last().map(|last| last.id.clone());
    let mut found: Vec<Said> = Vec::new();
    for message in messages.into_iter().rev() {
        if wanted.as_ref() == Some(&message.id) {
            wanted.clone_from(&message.parent);
            found.push(Said::read(message));
        }
    }
    found.reverse();
    found
}

impl Said {
    fn read(message: banyan_store::Message) -> Said {
        let role = match &*message.role {
            "user" => "user",
            "system" => "system",
            _ => "assistant",
        };
        Said { role, content: message.content, kept: true, model: message.model, node: message.node }
    }
}
