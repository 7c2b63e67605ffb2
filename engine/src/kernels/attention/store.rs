//! The new rows' keys and values on their way into the pages.

use std::marker::PhantomData;
use std::ops::Range;

use super::{Layer, PAGE};
use crate::kernels::kv_pages::{CHUNK, Stored, padded};
use crate::kernels::simd::{Op, Simd};
use crate::kernels::{Isa, Pool, part, tasks_for};

/// Numbers that one thread stores sooner than it wakes another.
const ALONE: usize = 8_192;

/// Stores all segments' rows.
pub(super) fn store<E: Stored>(layer: &Layer<'_>, isa: Isa, pool: &Pool) {
    // Within a page, because only there do neighbours in the sequence stand together.
    let mut pieces: Vec<(usize, Range<usize>)> = Vec::with_capacity(layer.segments.len());
    for (number, segment) in layer.segments.iter().enumerate() {
        let mut row = 0;
        while row < segment.rows {
            let end = segment.rows.min(row + PAGE - (segment.position + row) % PAGE);
            pieces.push((number, row..end));
            row = end;
        }
    }
    let numbers: usize = layer.segments.iter().map(|segment| segment.rows * layer.kv_heads * layer.head_dim).sum();
    let tasks = if numbers < ALONE { 1.min(pieces.len()) } else { tasks_for(pool, pieces.len()) };
    pool.run(tasks, &|task| {
        let pieces = &pieces[part(pieces.len(), task, tasks)];
        isa.run(Pieces::<E> { layer, pieces, stored: PhantomData });
    });
}

struct Pieces<'a, E> {
    layer: &'a Layer<'a>,
    /// A segment, and rows of it that are in one page. This task alone writes there.
    pieces: &'a [(usize, Range<usize>)],
    stored: PhantomData<E>,
}

impl<E: Stored> Op for Pieces<'_, E> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let Layer { kv_heads, head_dim, head, .. } = *self.layer;
        for (number, rows) in self.pieces {
            let segment = &self.layer.segments[*number];
            let position = segment.position + rows.start;
            let slot = position % PAGE;
            for kv_head in 0..kv_heads {
                let page = self.layer.head(segment, kv_head).page(position / PAGE).cast_mut();
                let row =
                    |row: usize, which: usize| self.layer.row(segment.row + row, self.layer.heads + which * kv_heads + kv_head);
                // SAFETY: `Attention::run` has seen that the page lies within the memory; a head's parts are as long as its
                // layout says, this task alone writes these slots of them, and nobody reads any before all are written.
                unsafe {
                    let mut inverse = [[0.0; PAGE]; 2];
                    for (which, scales) in [head.key_scales, head.value_scales].into_iter().enumerate() {
                        for (i, at) in rows.clone().enumerate() {
                            let (scale, inverse_scale) = E::scale(simd, row(at, which));
                            inverse[which][i] = inverse_scale;
                            if E::SCALED {
                                page.add(scales).cast::<f32>().add(slot + i).write(scale);
                            }
                        }
                    }
                    let (keys, values) = (page.cast::<E>(), page.add(head.values).cast::<E>());
                    for first in (0..head_dim).step_by(CHUNK) {
                        let here = first..head_dim.min(first + CHUNK);
                        let mut chunk = [[E::default(); CHUNK]; PAGE];
                        for (i, at) in rows.clone().enumerate() {
                            E::convert(simd, &row(at, 0)[here.clone()], inverse[0][i], &mut chunk[i]);
                            let to = values.add((slot + i) * padded(head_dim) + first).cast::<[E; CHUNK]>();
                            E::convert(simd, &row(at, 1)[here.clone()], inverse[1][i], &mut *to);
                        }
                        for (d, at) in here.enumerate() {
                            let to = keys.add(at * PAGE + slot);
                            if rows.len() == PAGE {
                                // A whole page is worth a loop without conditions.
                                to.cast::<[E; PAGE]>().write_unaligned(std::array::from_fn(|i| chunk[i][d]));
                            } else {
                                for (i, chunk) in chunk.iter().enumerate().take(rows.len()) {
                                    to.add(i).write(chunk[d]);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
