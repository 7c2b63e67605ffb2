//! Which task computes what, so that all threads have as much to do. Nothing here decides a result's bits.

use std::ops::Range;

use super::keys::BLOCK;

/// Tasks for each thread: a thread whose core is taken away for a moment holds up little.
const TASKS_PER_THREAD: usize = 4;
/// What a task costs at least, in [`Queries::cost`]: about a microsecond, beside which handing it out hardly counts.
const TASK_COST_MIN: usize = 500;
/// What loading a key costs, in queries that are computed with it.
const LOAD_COST: usize = 4;

/// The queries of one segment that share a head of keys: all heads of a group for the first row, then for the next. Tiles are
/// neighbours among them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queries {
    pub(super) rows: usize,
    /// Of the first row.
    pub(super) position: usize,
    /// Heads of queries to one of keys.
    pub(super) group: usize,
    /// Queries of a tile.
    pub(super) widest: usize,
}

impl Queries {
    pub(super) fn tiles(&self) -> usize {
        (self.rows * self.group).div_ceil(self.widest)
    }

    /// A tile's queries: query `q` is head `q % group` of row `q / group`.
    pub(super) fn tile(&self, tile: usize) -> Range<usize> {
        tile * self.widest..((tile + 1) * self.widest).min(self.rows * self.group)
    }

    /// How many keys a query sees.
    pub(super) fn sees(&self, query: usize) -> usize {
        self.position + query / self.group + 1
    }

    /// How many blocks of keys a tile sees.
    pub(super) fn blocks(&self, tile: usize) -> usize {
        self.sees(self.tile(tile).end - 1).div_ceil(BLOCK)
    }

    fn cost(&self, tile: usize) -> usize {
        let queries = self.tile(tile);
        self.sees(queries.end - 1) * (queries.len() + LOAD_COST)
    }
}

/// Some tiles of one head of keys of one segment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unit {
    pub(super) segment: usize,
    pub(super) kv_head: usize,
    pub(super) tiles: Range<usize>,
    /// Where it is one tile that others compute a part of: the blocks that are this one's, and the number of the first of its
    /// parts.
    pub(super) split: Option<(Range<usize>, usize)>,
}

/// A layer's work, cut.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) units: Vec<Unit>,
    /// The units of each task.
    pub(super) tasks: Vec<Range<usize>>,
    /// Tiles that are computed in parts, with all their blocks.
    pub(super) merges: Vec<Unit>,
    /// How many parts there are: one for each block and query of such a tile.
    pub(super) parts: usize,
}

impl Plan {
    pub(super) fn new(segments: &[Queries], kv_heads: usize, threads: usize) -> Plan {
        let total: usize =
            segments.iter().map(|queries| (0..queries.tiles()).map(|tile| queries.cost(tile)).sum::<usize>() * kv_heads).sum();
        let target = if threads == 1 { usize::MAX } else { (total / (threads * TASKS_PER_THREAD)).max(TASK_COST_MIN) };
        let mut cut = Cut { plan: Plan::default(), target, cost: 0, start: 0 };
        for (segment, queries) in segments.iter().enumerate() {
            for kv_head in 0..kv_heads {
                cut.head(segment, kv_head, queries);
            }
        }
        cut.close();
        cut.plan
    }
}

/// A plan in the making.
struct Cut {
    plan: Plan,
    target: usize,
    /// Of the task that is open.
    cost: usize,
    /// Its first unit.
    start: usize,
}

impl Cut {
    fn head(&mut self, segment: usize, kv_head: usize, queries: &Queries) {
        let unit = |tiles, split| Unit { segment, kv_head, tiles, split };
        let mut first = 0;
        for tile in 0..queries.tiles() {
            let (cost, blocks) = (queries.cost(tile), queries.blocks(tile));
            if blocks > 1 && cost / 2 > self.target {
                if first < tile {
                    self.plan.units.push(unit(first..tile, None));
                }
                let pieces = cost.div_ceil(self.target).min(blocks);
                let parts = self.plan.parts;
                for piece in 0..pieces {
                    self.close();
                    let mine = crate::kernels::part(blocks, piece, pieces);
                    let at = parts + mine.start * queries.tile(tile).len();
                    self.plan.units.push(unit(tile..tile + 1, Some((mine, at))));
                }
                self.close();
                self.plan.parts += blocks * queries.tile(tile).len();
                self.plan.merges.push(unit(tile..tile + 1, Some((0..blocks, parts))));
                first = tile + 1;
                continue;
            }
            self.cost += cost;
            if self.cost >= self.target {
                self.plan.units.push(unit(first..tile + 1, None));
                self.close();
                first = tile + 1;
            }
        }
        if first < queries.tiles() {
            self.plan.units.push(unit(first..queries.tiles(), None));
        }
    }

    /// Ends a task, where one is open.
    fn close(&mut self) {
        let end = self.plan.units.len();
        if self.start < end {
            self.plan.tasks.push(self.start..end);
        }
        (self.start, self.cost) = (end, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn queries(rows: usize, position: usize, group: usize) -> Queries {
        Queries { rows, position, group, widest: 8 }
    }

    /// Segment, head, tile, and block of keys.
    type Piece = (usize, usize, usize, usize);

    /// How often each piece comes, and each task's cost.
    fn covered(plan: &Plan, segments: &[Queries]) -> (HashMap<Piece, usize>, Vec<usize>) {
        let (mut counts, mut costs) = (HashMap::new(), Vec::new());
        for task in &plan.tasks {
            let mut cost = 0;
            for unit in &plan.units[task.clone()] {
                let queries = &segments[unit.segment];
                for tile in unit.tiles.clone() {
                    let all = queries.blocks(tile);
                    let blocks = unit.split.clone().map_or(0..all, |(blocks, _)| blocks);
                    cost += queries.cost(tile) * blocks.len() / all;
                    for block in blocks {
                        *counts.entry((unit.segment, unit.kv_head, tile, block)).or_default() += 1;
                    }
                }
            }
            costs.push(cost);
        }
        (counts, costs)
    }

    #[test]
    fn everything_is_computed_once_and_no_task_is_much_longer_than_others() {
        let decode: Vec<Queries> = (0..64).map(|i| queries(1, 90 + i, 1)).collect();
        let mixed = [queries(1, 700, 3), queries(500, 12, 3), queries(3, 4000, 3), queries(0, 9, 3)];
        for segments in [&decode[..], &mixed, &[queries(1, 8000, 4)], &[queries(512, 0, 1)], &[queries(1, 0, 1)], &[]] {
            for kv_heads in [1, 3, 12] {
                for threads in [1, 2, 16] {
                    let plan = Plan::new(segments, kv_heads, threads);
                    let (counts, costs) = covered(&plan, segments);
                    assert!(counts.values().all(|count| *count == 1));
                    let want: usize = segments.iter().map(|s| (0..s.tiles()).map(|tile| s.blocks(tile)).sum::<usize>()).sum();
                    assert_eq!(counts.len(), want * kv_heads);
                    let (total, most) = (costs.iter().sum::<usize>(), costs.iter().max().copied().unwrap_or(0));
                    assert!(most <= total / threads || most <= 2 * TASK_COST_MIN + BLOCK * 12, "{most} of {total}, {threads}");
                    let parts: usize = plan
                        .merges
                        .iter()
                        .map(|m| m.split.clone().unwrap().0.len() * segments[m.segment].tile(m.tiles.start).len())
                        .sum();
                    assert_eq!(parts, plan.parts);
                }
            }
        }
    }

    #[test]
    fn one_long_sequence_with_few_heads_of_keys_still_has_work_for_many_threads() {
        let plan = Plan::new(&[queries(1, 3999, 4)], 2, 16);
        assert!(plan.tasks.len() >= 16, "{}", plan.tasks.len());
        assert!(Plan::new(&[queries(1, 3999, 4)], 2, 1).merges.is_empty(), "one thread has nothing to merge");
    }
}
