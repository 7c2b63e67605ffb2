//! Causal attention of ragged sequences over paged K and V.
//!
//! First the rows' keys and values go to their pages; then every query reads all that it sees from there, its own included, as
//! it is stored. Owns which task does what: heads of queries that share a head of keys and neighbours in the sequence are
//! computed together ([`tile`]), and tasks are cut so that all threads have as much to do.

mod keys;
mod plan;
mod store;
mod tile;

use std::cell::RefCell;
use std::marker::PhantomData;

use super::kv_pages::{HeadLayout, KvPages, PAGE, Stored};
use super::{Isa, Pool, Shared};
use crate::KvDtype;
use crate::profile::{self, Arithmetic, Work};
use keys::{Head, Keys};
use plan::{Plan, Queries, Unit};
use tile::{Merge, Output, Scratch, Tile, Widest, part_floats};

/// A sequence's rows in a step.
#[derive(Clone, Copy)]
pub(crate) struct Segment<'a> {
    /// The first of its rows.
    pub(crate) row: usize,
    /// How many rows.
    pub(crate) rows: usize,
    /// The position of the first row in the sequence; all before it are in the pages.
    pub(crate) position: usize,
    /// The sequence's pages: position `p` is in `pages[p / PAGE]`.
    pub(crate) pages: &'a [u32],
}

/// One layer's attention.
pub(crate) struct Attention<'a> {
    pub(crate) heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` heads of queries (grouped-query attention, arXiv:2305.13245).
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Times a query, before anything else.
    pub(crate) scale: f32,
    /// `[rows, heads + 2 * kv_heads, head_dim]`: queries, keys, values.
    pub(crate) qkv: &'a [f32],
    /// Each row in at most one; rows in none get zeroes.
    pub(crate) segments: &'a [Segment<'a>],
    /// No two segments share a page that either writes.
    pub(crate) pages: &'a mut KvPages,
    /// Which layer of the pages is meant.
    pub(crate) layer: usize,
}

impl Attention<'_> {
    /// Stores the rows' keys and values, then attends: `[rows, heads, head_dim]`.
    pub(crate) fn run(self, isa: Isa, pool: &Pool) -> Vec<f32> {
        let (isa, layout) = (isa.for_floats(), self.pages.layout());
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "each head of keys serves as many of queries");
        assert!((layout.kv_heads, layout.head_dim) == (self.kv_heads, self.head_dim), "pages for these heads");
        assert!(self.layer < layout.layers, "pages for this layer");
        let row_width = (self.heads + 2 * self.kv_heads) * self.head_dim;
        assert!(row_width > 0 && self.qkv.len().is_multiple_of(row_width), "rows of q, k and v");
        let rows = self.qkv.len() / row_width;
        for segment in self.segments {
            assert!(segment.row + segment.rows <= rows, "a segment's rows are there");
            let needed = (segment.position + segment.rows).div_ceil(PAGE);
            assert!(segment.pages.len() >= needed, "a segment's pages are there");
            let in_memory = |page: &u32| (*page as usize + 1) * layout.page_bytes() <= self.pages.bytes();
            assert!(segment.pages[..needed].iter().all(in_memory), "pages lie within the memory");
        }
        let _span = profile::span(|| (profile::Part::Attention, self.work(rows)));
        match layout.dtype {
            KvDtype::Auto | KvDtype::F32 => self.run_as::<f32>(isa, pool, rows),
            KvDtype::F16 => self.run_as::<half::f16>(isa, pool, rows),
            KvDtype::Q8 => self.run_as::<i8>(isa, pool, rows),
        }
    }

    /// What it reads and computes at least.
    fn work(&self, rows: usize) -> Work {
        let layout = self.pages.layout();
        let keys: usize = self.segments.iter().map(|segment| segment.position + segment.rows).sum();
        // A row sees the keys up to its own position.
        let seen = |segment: &Segment<'_>| segment.rows * (2 * segment.position + segment.rows + 1) / 2;
        let operations = self.segments.iter().map(seen).sum::<usize>() * 4 * self.heads * self.head_dim;
        let kv = keys * layout.page_bytes() / layout.layers / PAGE;
        let bytes = kv + size_of_val(self.qkv) + rows * self.heads * self.head_dim * size_of::<f32>();
        Work { bytes: bytes as u64, operations: operations as u64, arithmetic: Arithmetic::F32 }
    }

    fn run_as<E: Stored>(self, isa: Isa, pool: &Pool, rows: usize) -> Vec<f32> {
        let layout = self.pages.layout();
        let layer = Layer {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.scale,
            qkv: self.qkv,
            segments: self.segments,
            first: layout.layer(self.layer),
            page_bytes: layout.page_bytes(),
            head: layout.head(),
            memory: Shared(self.pages.as_mut_ptr()),
        };
        store::store::<E>(&layer, isa, pool);
        let widest = isa.run(Widest);
        let queries: Vec<Queries> = self.segments.iter().map(|segment| layer.queries(segment, widest)).collect();
        let plan = Plan::new(&queries, self.kv_heads, pool.threads());
        let numbers = rows * self.heads * self.head_dim;
        let mut out: Vec<f32> = Vec::with_capacity(numbers);
        let next = |row: usize, segment: &Segment<'_>| (segment.row == row).then_some(row + segment.rows);
        if self.segments.iter().try_fold(0, next) != Some(rows) || !plan.merges.is_empty() {
            // Not every row is in a segment, or not every one is written by a task.
            out.resize(numbers, 0.0);
        }
        let mut parts = vec![0.0; plan.parts * part_floats(self.head_dim)];
        let to = [Shared(out.as_mut_ptr()), Shared(parts.as_mut_ptr())];
        pool.run(plan.tasks.len(), &|task| {
            let units = &plan.units[plan.tasks[task].clone()];
            SCRATCH.with_borrow_mut(|scratch| {
                for (number, unit) in units.iter().enumerate() {
                    layer.attend::<E>(isa, unit, units.get(number + 1).unwrap_or(unit), widest, to, scratch);
                }
            });
        });
        // SAFETY: either all were zeroes, or the segments have every row and the tasks have written all that segments have.
        unsafe { out.set_len(numbers) };
        for unit in &plan.merges {
            layer.merge(isa, unit, widest, &parts, &mut out);
        }
        out
    }
}

thread_local! {
    /// Tasks are short, and each thread's compute in the same memory one after the other.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What all tasks of a layer's attention look at.
struct Layer<'a> {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    qkv: &'a [f32],
    segments: &'a [Segment<'a>],
    /// Where the layer begins in a page.
    first: usize,
    page_bytes: usize,
    head: HeadLayout,
    /// The pages. Storing, each task writes its own slots; attending, all read.
    memory: Shared<u8>,
}

impl<'a> Layer<'a> {
    /// One of a row's `heads + 2 * kv_heads` heads.
    fn row(&self, row: usize, head: usize) -> &'a [f32] {
        let at = (row * (self.heads + 2 * self.kv_heads) + head) * self.head_dim;
        &self.qkv[at..at + self.head_dim]
    }

    fn head(&self, segment: &Segment<'a>, kv_head: usize) -> Head<'a> {
        let first = self.memory.get().wrapping_add(self.first + kv_head * self.head.bytes);
        Head { memory: Shared(first), page_bytes: self.page_bytes, layout: self.head, pages: segment.pages }
    }

    fn queries(&self, segment: &Segment<'_>, widest: usize) -> Queries {
        Queries { rows: segment.rows, position: segment.position, group: self.heads / self.kv_heads, widest }
    }

    /// Computes a unit; `next` is the one after it.
    fn attend<E: Stored>(&self, isa: Isa, unit: &Unit, next: &Unit, widest: usize, to: [Shared<f32>; 2], scratch: &mut Scratch) {
        let queries = self.queries(&self.segments[unit.segment], widest);
        for tile in unit.tiles.clone() {
            let next = if tile + 1 < unit.tiles.end { unit } else { next };
            match queries.tile(tile).len() {
                1 => self.tile::<E, 1>(isa, unit, &queries, tile, next, to, scratch),
                2 => self.tile::<E, 2>(isa, unit, &queries, tile, next, to, scratch),
                3..=4 => self.tile::<E, 4>(isa, unit, &queries, tile, next, to, scratch),
                _ => self.tile::<E, 8>(isa, unit, &queries, tile, next, to, scratch),
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the inside of `attend`, for a number of queries")]
    fn tile<E: Stored, const N: usize>(
        &self,
        isa: Isa,
        unit: &Unit,
        queries: &Queries,
        tile: usize,
        next: &Unit,
        [out, parts]: [Shared<f32>; 2],
        scratch: &mut Scratch,
    ) {
        let segment = &self.segments[unit.segment];
        let mine = queries.tile(tile);
        // The last one again where the tile has less than `N`.
        let all: [usize; N] = std::array::from_fn(|i| (mine.start + i).min(mine.end - 1));
        let place = |query: usize| (segment.row + query / queries.group, unit.kv_head * queries.group + query % queries.group);
        let (blocks, output) = match &unit.split {
            None => {
                let output = |i: usize| {
                    let (row, head) = place(all[i]);
                    let at = (row * self.heads + head) * self.head_dim;
                    if i < mine.len() { Shared(out.get().wrapping_add(at)) } else { Shared(std::ptr::null_mut()) }
                };
                (0..queries.blocks(tile), Output::Whole(std::array::from_fn(output)))
            }
            Some((blocks, at)) => {
                (blocks.clone(), Output::Parts(Shared(parts.get().wrapping_add(at * part_floats(self.head_dim))), mine.len()))
            }
        };
        isa.run(Tile::<E, N> {
            keys: Keys {
                head: self.head(segment, unit.kv_head),
                head_dim: self.head_dim,
                next: self.head(&self.segments[next.segment], next.kv_head),
                stored: PhantomData,
            },
            scale: self.scale,
            queries: all.map(|query| {
                let (row, head) = place(query);
                self.row(row, head)
            }),
            sees: all.map(|query| queries.sees(query)),
            blocks,
            output,
            scratch,
        });
    }

    /// Puts a tile's parts together.
    fn merge(&self, isa: Isa, unit: &Unit, widest: usize, parts: &[f32], out: &mut [f32]) {
        let segment = &self.segments[unit.segment];
        let queries = self.queries(segment, widest);
        let Some((blocks, at)) = unit.split.clone() else { return };
        for tile in unit.tiles.clone() {
            let mine = queries.tile(tile);
            let (floats, stride) = (part_floats(self.head_dim), mine.len() * part_floats(self.head_dim));
            let parts = &parts[at * floats..][..blocks.len() * stride];
            for (i, query) in mine.enumerate() {
                let head = unit.kv_head * queries.group + query % queries.group;
                let to = ((segment.row + query / queries.group) * self.heads + head) * self.head_dim;
                isa.run(Merge { parts: &parts[i * floats..], stride, output: &mut out[to..to + self.head_dim] });
            }
        }
    }
}

#[cfg(test)]
mod tests;
