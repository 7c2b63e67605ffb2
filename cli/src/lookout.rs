//! Finding a node: the registry says where it is; where its address does not answer from here, the root passes the
//! question down the tree.

use std::time::Duration;

use banyan_etcd::{Member, Registry, Role};
use banyan_proto::{
    Expected, MESSAGE_BYTES_MAX, NodeName, Transport,
    v1::{NodeStatus, Target, TreeView, inspect_client::InspectClient},
};
use tonic::transport::Channel;

use crate::{
    args::RegistryArgs,
    exit::{Code, Failure},
};

/// A node that listens answers at once; one behind a NAT should not hold up the question to the root for long.
const DIAL: Duration = Duration::from_secs(1);
/// A root asks down up to 32 links, each with its own patience.
const ANSWER: Duration = Duration::from_secs(5);

/// What the registry held when the command started.
pub(crate) struct Lookout {
    registry: Registry,
    transport: Transport,
    pub(crate) members: Vec<Member>,
}

impl Lookout {
    pub(crate) async fn open(args: &RegistryArgs) -> Result<Lookout, Failure> {
        let registry = args.connect().await?;
        let members = registry.members().await?;
        Ok(Lookout { registry, transport: args.tls.transport()?, members })
    }

    /// Reads the registry again.
    pub(crate) async fn refresh(&mut self) -> Result<(), Failure> {
        self.members = self.registry.members().await?;
        Ok(())
    }

    /// The member of that name, or a failure that names those that look like it.
    pub(crate) fn member(&self, name: &NodeName) -> Result<&Member, Failure> {
        self.members
            .iter()
            .find(|member| member.name == *name)
            .ok_or_else(|| Failure::unknown("node", name.as_str(), self.members.iter().map(|member| member.name.as_str())))
    }

    /// The roots, in the order of their names.
    pub(crate) fn roots(&self) -> Vec<&Member> {
        let mut roots: Vec<&Member> = self.members.iter().filter(|member| member.role == Role::Root).collect();
        roots.sort_by(|a, b| a.name.cmp(&b.name));
        roots
    }

    /// A connection on which questions about `name` are answered, and its present status.
    pub(crate) async fn reach(&self, name: &NodeName) -> Result<(InspectClient<Channel>, NodeStatus), Failure> {
        let member = self.member(name)?;
        let direct = match ask(&self.transport, member, name).await {
            Ok(found) => return Ok(found),
            Err(failure) => failure,
        };
        // Another process may have taken its address, or it can be dialed from nowhere: the tree still knows the way.
        let root = self.roots().into_iter().find(|root| root.tree == member.tree && root.name != *name);
        let through_root = match root {
            Some(root) => ask(&self.transport, root, name).await,
            None => Err(direct),
        };
        through_root.map_err(|failure| {
            failure.context(format!("node `{name}` is registered at {}, but does not answer", member.address)).hint(format!(
                "look whether its process runs; if it died, its name is free again when its lease ends, within seconds; \
                 `banyan node run {name}` starts it again"
            ))
        })
    }

    /// The whole tree below `root`.
    pub(crate) async fn view(&self, root: &Member) -> Result<TreeView, Failure> {
        let mut client = dial(&self.transport, root).await?;
        let answer = within(client.view(Target { name: root.name.to_string() })).await;
        answer.map_err(|failure| {
            failure
                .context(format!("root `{}` does not answer at {}", root.name, root.address))
                .hint("look whether its process runs; if it died, its key goes within seconds")
        })
    }
}

async fn ask(transport: &Transport, member: &Member, name: &NodeName) -> Result<(InspectClient<Channel>, NodeStatus), Failure> {
    let mut client = dial(transport, member).await?;
    let status = within(client.status(Target { name: name.to_string() })).await?;
    if status.name != name.as_str() {
        return Err(Failure::told(Code::Unavailable, format!("{} answers as `{}`", member.address, status.name)));
    }
    Ok((client, status))
}

async fn dial(transport: &Transport, member: &Member) -> Result<InspectClient<Channel>, Failure> {
    let address = &member.address;
    let failed = |error| Failure::new(Code::Unavailable, anyhow::Error::new(error).context(format!("failed to dial {address}")));
    let endpoint = banyan_proto::dial::endpoint(address).map_err(failed)?.connect_timeout(DIAL);
    let channel = tokio::time::timeout(DIAL, transport.connect(&endpoint, Expected::member(&member.name)))
        .await
        .map_err(|_| Failure::told(Code::TimedOut, format!("failed to dial {address}: no answer within {DIAL:?}")))?
        .map_err(failed)?;
    Ok(InspectClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// The answer to a question that a node answers at once.
pub(crate) async fn within<T>(answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Failure::told(Code::TimedOut, format!("no answer within {ANSWER:?}"))),
    }
}
