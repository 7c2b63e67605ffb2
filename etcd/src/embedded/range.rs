//! What a Range request answers, in etcd's order: read, filter, sort, cut.

use std::{cmp::Ordering, sync::Arc};

use etcd_client::{
    SortOrder, SortTarget,
    proto::{PbKeyValue, PbRangeRequest, PbRangeResponse, PbResponseHeader},
};

use super::{keyspace::Keyspace, refusal::Refusal, span::Span};

pub(super) fn range(keyspace: &Keyspace, request: &PbRangeRequest) -> Result<PbRangeResponse, Refusal> {
    let span = Span::new(&request.key, &request.range_end);
    let mut found: Vec<&Arc<PbKeyValue>> = keyspace.read(&span, request.revision)?.collect();
    let count = i64::try_from(found.len()).unwrap_or(i64::MAX);
    let header = Some(PbResponseHeader { revision: keyspace.revision(), ..PbResponseHeader::default() });
    let counted = PbRangeResponse { header, kvs: Vec::new(), more: false, count };
    if request.count_only {
        return Ok(counted);
    }

    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
    let order = SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None);
    if order == SortOrder::None && !is_filtered(request) {
        // etcd reads one more than it returns, and only then sorts by a target that came without an order.
        found.truncate(limit.saturating_add(1));
    }
    found.retain(|kv| passes(request, kv));
    let by = |a: &&Arc<PbKeyValue>, b: &&Arc<PbKeyValue>| compare(target, a, b);
    match order {
        SortOrder::None if target == SortTarget::Key => {}
        SortOrder::None | SortOrder::Ascend => found.sort_by(by),
        SortOrder::Descend => found.sort_by(|a, b| by(b, a)),
    }
    let more = found.len() > limit;
    found.truncate(limit);
    let shown = |kv: &Arc<PbKeyValue>| {
        if !request.keys_only {
            return (**kv).clone();
        }
        let PbKeyValue { key, create_revision, mod_revision, version, lease, .. } = &**kv;
        let (create_revision, mod_revision, version, lease) = (*create_revision, *mod_revision, *version, *lease);
        PbKeyValue { key: key.clone(), create_revision, mod_revision, version, lease, value: Vec::new() }
    };
    Ok(PbRangeResponse { kvs: found.into_iter().map(shown).collect(), more, ..counted })
}

fn is_filtered(request: &PbRangeRequest) -> bool {
    let bounds = [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    bounds.iter().any(|bound| *bound != 0)
}

/// Zero is no bound.
fn passes(request: &PbRangeRequest, kv: &PbKeyValue) -> bool {
    let within = |revision: i64, least: i64, most: i64| (least == 0 || revision >= least) && (most == 0 || revision <= most);
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

fn compare(target: SortTarget, a: &PbKeyValue, b: &PbKeyValue) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    }
}
