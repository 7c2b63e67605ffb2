//! Writing a member's key: one transaction that holds only if nothing it was decided on has changed.
//!
//! It reads the chain from the wanted parent to the root, and commits if the member's own key and every key of the chain are
//! as they were read. So two nodes can't share a name and a cycle can't form, even when both race.

use std::time::Instant;

use banyan_proto::NodeName;
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};

use crate::{
    CallError, Member, ReadError, RegisterError, Registry, Role, Root, backoff::Backoff, member::MemberError,
    registry::DEPTH_MAX, view::RootValue,
};

/// How many lost races are enough. Each means that somebody near us did register or move; with jittered waits of up to
/// 200 ms, so many in a row are a fault and no crowd.
const RACES_MAX: usize = 40;

/// Why a member is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// The first time: the parent has to be there.
    Arrival,
    /// After a lost lease: ancestors may be missing, as theirs may be lost too.
    Return,
    /// A new parent, which has to be there.
    Move,
    /// A standby takes its tree's free place.
    Reign,
}

/// What was written.
#[derive(Debug, Clone)]
pub(crate) struct Enrolled {
    pub(crate) member: Member,
    /// The number of a root's reign.
    pub(crate) epoch: Option<u64>,
    /// The names of the roots before a root.
    pub(crate) former: Vec<NodeName>,
    /// The registry's revision of the transaction.
    pub(crate) revision: i64,
}

/// Why one try wrote nothing, or may have written nothing.
enum Setback {
    /// Something changed between reading and writing.
    Raced,
    /// A call failed; what it asked for may have happened.
    Call(CallError),
    Refused(RegisterError),
}

/// A key as it was read.
struct Found {
    value: Vec<u8>,
    create_revision: i64,
    mod_revision: i64,
    lease: i64,
}

/// Writes `member` under `lease`, trying again after lost races and passing failures.
pub(crate) async fn enrol(
    registry: &Registry,
    member: &Member,
    former: &[NodeName],
    lease: i64,
    occasion: Occasion,
) -> Result<Enrolled, RegisterError> {
    let started = Instant::now();
    let mut backoff = Backoff::after_races();
    let mut races = 0;
    loop {
        match attempt(registry, member, former, lease, occasion).await {
            Ok(enrolled) => return Ok(enrolled),
            Err(Setback::Refused(error)) => return Err(error),
            Err(Setback::Raced) => {
                races += 1;
                if races == RACES_MAX {
                    return Err(RegisterError::Contended { name: member.name.clone() });
                }
            }
            // A commit of unknown outcome is safe to repeat: if it happened, the key is found under our own lease.
            Err(Setback::Call(error)) => {
                if !error.is_passing() || started.elapsed() >= registry.timeout() {
                    return Err(registry.unavailable(error));
                }
            }
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Whether the registry holds just this `member`, and for a root its tree, under `lease`.
pub(crate) async fn is_held(registry: &Registry, member: &Member, lease: i64) -> Result<bool, CallError> {
    let (_, found) = read(registry, &own_keys(registry, member)).await?;
    let under_lease = found.iter().all(|key| key.as_ref().is_some_and(|key| key.lease == lease));
    // A move whose answer was lost may have happened after all, or a hand have changed the value.
    let said = found.first().and_then(Option::as_ref).and_then(|key| Member::parse(&member.name, &key.value).ok());
    Ok(under_lease && said.as_ref() == Some(member))
}

/// Takes the place of a tree's root away from `root`, and its name, if both are as they were seen and `lapsed` asks for its lease
/// to have missed a renewal. False when they are not: then it lives.
pub(crate) async fn evict(registry: &Registry, tree: &NodeName, root: &Root, lapsed: bool) -> Result<bool, CallError> {
    let keys = [registry.keys().root(tree), registry.keys().node(&root.name)];
    let (_, found) = read(registry, &keys).await?;
    let [place, node] = &found[..] else { return Ok(false) };
    let seen = place.as_ref().filter(|place| {
        place.create_revision.unsigned_abs() == root.epoch
            && Root::parse(&place.value, place.create_revision).is_ok_and(|holder| holder.name == root.name)
    });
    let Some(seen) = seen else { return Ok(false) };
    if lapsed && !has_lapsed(registry, seen.lease).await? {
        return Ok(false);
    }
    let mut deletes = vec![TxnOp::delete(keys[0].as_str(), None)];
    // Its own key goes along when it is of the same life.
    if node.as_ref().is_some_and(|node| node.lease == seen.lease) {
        deletes.push(TxnOp::delete(keys[1].as_str(), None));
    }
    let unchanged = vec![same(&keys[0], Some(seen)), same(&keys[1], node.as_ref())];
    Ok(registry.call(registry.kv().txn(Txn::new().when(unchanged).and_then(deletes))).await?.succeeded())
}

/// Takes a name away from an earlier life whose lease has missed a renewal.
pub(crate) async fn evict_member(registry: &Registry, member: &Member) -> Result<bool, CallError> {
    let keys = [registry.keys().node(&member.name), registry.keys().root(&member.tree)];
    let (_, found) = read(registry, &keys).await?;
    let [node, place] = &found[..] else { return Ok(false) };
    let is_it = |key: &&Found| Member::parse(&member.name, &key.value).is_ok_and(|found| found.incarnation == member.incarnation);
    let Some(seen) = node.as_ref().filter(is_it) else { return Ok(false) };
    if !has_lapsed(registry, seen.lease).await? {
        return Ok(false);
    }
    let mut deletes = vec![TxnOp::delete(keys[0].as_str(), None)];
    if place.as_ref().is_some_and(|place| place.lease == seen.lease) {
        deletes.push(TxnOp::delete(keys[1].as_str(), None));
    }
    let unchanged = vec![same(&keys[0], Some(seen)), same(&keys[1], place.as_ref())];
    Ok(registry.call(registry.kv().txn(Txn::new().when(unchanged).and_then(deletes))).await?.succeeded())
}

/// Whether nobody has renewed a lease when it was time: a third of its time to live after the last renewal.
async fn has_lapsed(registry: &Registry, lease: i64) -> Result<bool, CallError> {
    let left = registry.call(registry.leases().time_to_live(lease, None)).await?;
    // Whole seconds, cut off: one more may be left.
    Ok(left.granted_ttl() > 0 && (left.ttl() + 1) * 3 < left.granted_ttl() * 2)
}

async fn attempt(
    registry: &Registry,
    member: &Member,
    former: &[NodeName],
    lease: i64,
    occasion: Occasion,
) -> Result<Enrolled, Setback> {
    let own = own_keys(registry, member);
    let (revision, mut found) = read(registry, &own).await?;
    let root = if found.len() > 1 { found.pop().flatten() } else { None };
    let node = found.pop().flatten();

    let ours = |key: &Found| key.lease == lease || registry.has_abandoned(key.lease);
    if let Some(key) = node.as_ref().filter(|key| !ours(key)) {
        let holder = Member::parse(&member.name, &key.value).map_err(|source| foreign(&own[0], source))?;
        return Err(Setback::Refused(RegisterError::Taken { holder: Box::new(holder) }));
    }
    if let Some(key) = root.as_ref().filter(|key| !ours(key)) {
        let holder = Root::parse(&key.value, key.create_revision).map_err(|source| foreign(&own[1], source.into()))?;
        return Err(Setback::Refused(RegisterError::TreeTaken { tree: member.tree.clone(), holder }));
    }

    let mut unchanged = vec![same(own[0].as_str(), node.as_ref())];
    let mut member = member.clone();
    member.incarnation = match occasion {
        // The revision that was read is above those that every earlier life of the name began with.
        Occasion::Arrival => revision.unsigned_abs(),
        Occasion::Move | Occasion::Reign if node.is_some() => member.incarnation,
        Occasion::Return | Occasion::Move | Occasion::Reign => revision.unsigned_abs().max(member.incarnation + 1),
    };
    let put = |key: &String, value: Vec<u8>| TxnOp::put(key.as_str(), value, Some(PutOptions::new().with_lease(lease)));
    let invalid = |source| Setback::Refused(RegisterError::Invalid { name: member.name.clone(), source });
    let mut puts = vec![put(&own[0], member.to_value().map_err(invalid)?)];
    if let Some(key) = own.get(1) {
        unchanged.push(same(key.as_str(), root.as_ref()));
        let value = RootValue { name: member.name.clone(), address: member.address.clone(), former: former.to_vec() };
        puts.push(put(key, serde_json::to_vec(&value).map_err(|source| invalid(source.into()))?));
    }
    if let Some(parent) = &member.parent {
        let (ancestors, compares) = chain(registry, &member, parent, occasion).await?;
        // Those below move along. This bound is only as exact as the listing is fresh; the cycle's is exact.
        let below = if occasion == Occasion::Move { registry.listing().read().await?.height(&member.name) } else { 0 };
        if ancestors + below > DEPTH_MAX {
            return Err(Setback::Refused(RegisterError::TooDeep { parent: parent.clone() }));
        }
        unchanged.extend(compares);
    }

    let transaction = Txn::new().when(unchanged).and_then(puts);
    let response = registry.call(registry.kv().txn(transaction)).await?;
    if !response.succeeded() {
        return Err(Setback::Raced);
    }
    let revision = response.header().map_or(0, |header| header.revision());
    // A key that was ours all along keeps its create_revision, and so the reign its number.
    let epoch = own.get(1).map(|_| root.map_or(revision, |key| key.create_revision).unsigned_abs());
    Ok(Enrolled { member, epoch, former: former.to_vec(), revision })
}

/// Reads the chain from `parent` to the root: how many there are, and the compares that say that it is still so.
async fn chain(
    registry: &Registry,
    member: &Member,
    parent: &NodeName,
    occasion: Occasion,
) -> Result<(usize, Vec<Compare>), Setback> {
    let refused = |error| Err(Setback::Refused(error));
    let (mut unchanged, mut names) = (Vec::new(), Vec::new());
    let mut next = Some(parent.clone());
    if occasion != Occasion::Return {
        // Whoever is started below a former root of the tree, which may wait for its turn now, is below the present one.
        let keys = [registry.keys().root(&member.tree), registry.keys().node(parent)];
        let (_, found) = read(registry, &keys).await?;
        let [place, named] = &found[..] else { return Err(Setback::Raced) };
        let root = place.as_ref().map(|place| Root::parse(&place.value, place.create_revision));
        let root = root.transpose().map_err(|source| foreign(&keys[0], source.into()))?;
        let is_node = |key: &Found| Member::parse(parent, &key.value).is_ok_and(|named| named.role == Role::Node);
        if let Some(root) = root.filter(|root| root.is_called(parent) && !named.as_ref().is_some_and(is_node)) {
            next = Some(root.name);
        }
    }
    while let Some(name) = next {
        names.push(name.clone());
        if name == member.name {
            return refused(RegisterError::Cycle { name, parent: parent.clone(), chain: names });
        }
        if names.len() > DEPTH_MAX {
            return refused(RegisterError::TooDeep { parent: parent.clone() });
        }
        let key = registry.keys().node(&name);
        let (_, mut found) = read(registry, std::slice::from_ref(&key)).await?;
        let found = found.pop().flatten();
        unchanged.push(same(key.as_str(), found.as_ref()));
        let Some(found) = found else {
            // Further up, an ancestor that is missing has lost its lease and comes back; that it is still missing is
            // compared too, so whoever comes first of the two is seen by the other.
            if names.len() == 1 && occasion != Occasion::Return {
                return refused(RegisterError::ParentMissing { parent: name });
            }
            break;
        };
        let ancestor = Member::parse(&name, &found.value).map_err(|source| foreign(&key, source))?;
        if names.len() == 1 && occasion != Occasion::Return && ancestor.tree != member.tree {
            return refused(RegisterError::OtherTree { parent: name, tree: ancestor.tree });
        }
        next = ancestor.parent;
    }
    Ok((names.len(), unchanged))
}

/// The keys that hold `member`: its own, and for a root its tree's.
fn own_keys(registry: &Registry, member: &Member) -> Vec<String> {
    let mut keys = vec![registry.keys().node(&member.name)];
    if member.role == Role::Root {
        keys.push(registry.keys().root(&member.tree));
    }
    keys
}

/// Reads keys at one revision.
async fn read(registry: &Registry, keys: &[String]) -> Result<(i64, Vec<Option<Found>>), CallError> {
    let gets: Vec<TxnOp> = keys.iter().map(|key| TxnOp::get(key.as_str(), None)).collect();
    let response = registry.call(registry.kv().txn(Txn::new().and_then(gets))).await?;
    let revision = response.header().map_or(0, |header| header.revision());
    let found = response.op_responses().into_iter().map(|answer| match answer {
        TxnOpResponse::Get(mut got) => got.take_kvs().pop().map(|kv| Found {
            create_revision: kv.create_revision(),
            mod_revision: kv.mod_revision(),
            lease: kv.lease(),
            value: kv.into_key_value().1,
        }),
        _ => None,
    });
    Ok((revision, found.collect()))
}

/// That a key is still as it was found. A key that does not exist has the mod_revision 0.
fn same(key: &str, found: Option<&Found>) -> Compare {
    match found {
        None => Compare::create_revision(key, CompareOp::Equal, 0),
        Some(found) => Compare::mod_revision(key, CompareOp::Equal, found.mod_revision),
    }
}

fn foreign(key: &str, source: MemberError) -> Setback {
    Setback::Refused(RegisterError::Read(ReadError::Foreign { key: key.to_owned(), source }))
}

impl From<CallError> for Setback {
    fn from(error: CallError) -> Self {
        Setback::Call(error)
    }
}
