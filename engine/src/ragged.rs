//! Attention of ragged sequences over paged K and V with candle's operations: for GPUs, and as the kernels' reference.
//!
//! Owns how sequences of different lengths share a launch. What the numbers mean is the models', where pages come from the
//! scheduler's. A GPU pays for launches more than for arithmetic, so the sequences that decode are computed together in groups
//! of nearly equal lengths: a step costs a few launches a layer, and a key that is only padding costs at most one in
//! [`WASTE_OF`].

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use crate::kernels::Segment;
use crate::kv::PAGE_TOKENS;
use crate::ops::Heads;

/// In a group, the shortest sequence lacks at most one key in so many of the longest one's.
const WASTE_OF: usize = 4;
/// Below this many keys a group's padding costs less than another group's launches.
const KEYS_SMALL: usize = 128;

/// K and V of all layers, and how the rows of the step under way lie in them.
pub(crate) struct Ragged {
    /// K and V as `[pages * PAGE_TOKENS, kv_heads * head_dim]` each.
    layers: Vec<(Tensor, Tensor)>,
    step: Option<Step>,
}

/// What all layers of a step have in common, on the device.
struct Step {
    /// Where each row's K and V go: `[rows, kv_heads * head_dim]`, the same slot along a row.
    slots: Tensor,
    groups: Vec<Group>,
    /// Where each row of the step stands in the groups' rows, one group after the other.
    order: Tensor,
}

/// Sequences that are computed together: as many rows each.
struct Group {
    sequences: usize,
    /// Of each sequence.
    rows: usize,
    /// Keys of the longest.
    keys: usize,
    /// Rows of the step, sequence by sequence: `[sequences * rows]`.
    from: Tensor,
    /// Slots of the keys, those that are missing being any: `[sequences * keys]`.
    slots: Tensor,
    /// 0 where a row sees a key, else -∞: `[sequences, 1, 1, rows, keys]`.
    mask: Tensor,
}

impl Ragged {
    /// Room for `slots` positions in each of `layers`, `width` numbers of K and of V each.
    pub(crate) fn new(layers: usize, slots: usize, width: usize, dtype: DType, device: &Device) -> Result<Ragged> {
        let layer = |_| Ok((Tensor::zeros((slots, width), dtype, device)?, Tensor::zeros((slots, width), dtype, device)?));
        Ok(Ragged { layers: (0..layers).map(layer).collect::<Result<_>>()?, step: None })
    }

    /// Stores keys and values of `qkv` (`[rows, (heads.queries + 2 * heads.kv) * heads.dim]`) in a layer, and attends
    /// causally: `[rows, heads.queries * heads.dim]`. Every row is in one segment, in order; the segments of the layers behind
    /// the first are those of the first.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        qkv: &Tensor,
        heads: Heads,
        scale: f32,
        segments: &[Segment<'_>],
    ) -> Result<Tensor> {
        let (queries, kv) = (heads.queries * heads.dim, heads.kv * heads.dim);
        if layer == 0 || self.step.is_none() {
            self.step = Some(Step::new(segments, kv, qkv.device())?);
        }
        let (Some(step), (keys, values)) = (&self.step, &self.layers[layer]) else {
            candle_core::bail!("a step was just made");
        };
        keys.scatter_set(&step.slots, &qkv.narrow(1, queries, kv)?.contiguous()?, 0)?;
        values.scatter_set(&step.slots, &qkv.narrow(1, queries + kv, kv)?.contiguous()?, 0)?;
        let asking = qkv.narrow(1, 0, queries)?.contiguous()?;
        let parts = step.groups.iter().map(|group| group.attend(&asking, heads, scale, keys, values));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)?.index_select(&step.order, 0)
    }
}

/// A position's slot.
fn slot(segment: &Segment<'_>, position: usize) -> u32 {
    segment.pages[position / PAGE_TOKENS as usize] * PAGE_TOKENS + (position % PAGE_TOKENS as usize) as u32
}

impl Step {
    fn new(segments: &[Segment<'_>], width: usize, device: &Device) -> Result<Step> {
        let rows: Vec<u32> =
            segments.iter().flat_map(|segment| (0..segment.rows).map(|row| slot(segment, segment.position + row))).collect();
        let slots = Tensor::new(rows.as_slice(), device)?.reshape((rows.len(), 1))?;
        let slots = slots.broadcast_as((rows.len(), width))?.contiguous()?;
        let grouped = grouped(segments);
        let mut order = vec![0u32; rows.len()];
        let in_groups = grouped.iter().flatten().flat_map(|segment| segment.row..segment.row + segment.rows);
        for (place, row) in in_groups.enumerate() {
            order[row] = place as u32;
        }
        let groups = grouped.iter().map(|group| Group::new(group, device)).collect::<Result<_>>()?;
        Ok(Step { slots, groups, order: Tensor::new(order, device)? })
    }
}

/// Segments that are computed together: those of one row by their lengths, and every longer one by itself.
fn grouped<'a, 'b>(segments: &'b [Segment<'a>]) -> Vec<Vec<&'b Segment<'a>>> {
    let (mut single, longer): (Vec<&Segment<'_>>, Vec<&Segment<'_>>) = segments.iter().partition(|segment| segment.rows == 1);
    // The longest first, so that a group's first one says what the others may lack.
    single.sort_by_key(|segment| std::cmp::Reverse(segment.position));
    let mut groups: Vec<Vec<&Segment<'_>>> = Vec::new();
    for segment in single {
        match groups.last_mut() {
            Some(group) if fits(group[0].position + 1, segment.position + 1) => group.push(segment),
            _ => groups.push(vec![segment]),
        }
    }
    groups.extend(longer.into_iter().map(|segment| vec![segment]));
    groups
}

fn fits(longest: usize, keys: usize) -> bool {
    longest <= KEYS_SMALL || (longest - keys) * WASTE_OF <= longest
}

impl Group {
    fn new(segments: &[&Segment<'_>], device: &Device) -> Result<Group> {
        let (sequences, rows) = (segments.len(), segments[0].rows);
        let keys = segments.iter().map(|segment| segment.position + rows).max().unwrap_or(0);
        let (mut from, mut slots, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        for segment in segments {
            from.extend((segment.row..segment.row + rows).map(|row| row as u32));
            let last = segment.position + rows - 1;
            slots.extend((0..keys).map(|key| slot(segment, key.min(last))));
            for position in segment.position..segment.position + rows {
                mask.extend((0..keys).map(|key| if key <= position { 0.0f32 } else { f32::NEG_INFINITY }));
            }
        }
        Ok(Group {
            sequences,
            rows,
            keys,
            from: Tensor::new(from, device)?,
            slots: Tensor::new(slots, device)?,
            mask: Tensor::from_vec(mask, (sequences, 1, 1, rows, keys), device)?,
        })
    }

    /// `[sequences * rows, queries * dim]`.
    fn attend(&self, asking: &Tensor, heads: Heads, scale: f32, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let Group { sequences, rows, keys: length, .. } = *self;
        let Heads { queries, kv, dim } = heads;
        let shared = queries / kv;
        // The heads that share keys are rows of one product. Scaled before it, because f16 ends at 65,504.
        let asking = (asking * f64::from(scale))?.index_select(&self.from, 0)?.reshape((sequences, rows, kv, shared, dim))?;
        let asking = asking.permute((0, 2, 3, 1, 4))?.contiguous()?.reshape((sequences * kv, shared * rows, dim))?;
        let seen = keys.index_select(&self.slots, 0)?.reshape((sequences, length, kv, dim))?;
        let seen = seen.permute((0, 2, 3, 1))?.contiguous()?.reshape((sequences * kv, dim, length))?;
        // Scores and weights in f32, whatever the model computes in: sums of thousands of small numbers.
        let scores = asking.matmul(&seen)?.to_dtype(DType::F32)?;
        let scores = scores.reshape((sequences, kv, shared, rows, length))?.broadcast_add(&self.mask)?;
        let weights = softmax_last_dim(&scores)?.to_dtype(values.dtype())?;
        let weights = weights.reshape((sequences * kv, shared * rows, length))?;
        let told = values.index_select(&self.slots, 0)?.reshape((sequences, length, kv, dim))?;
        let told = told.transpose(1, 2)?.contiguous()?.reshape((sequences * kv, length, dim))?;
        let out = weights.matmul(&told)?.reshape((sequences, kv, shared, rows, dim))?;
        out.permute((0, 3, 1, 2, 4))?.contiguous()?.reshape((sequences * rows, queries * dim))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADS: Heads = Heads { queries: 4, kv: 2, dim: 3 };
    const WIDTH: usize = (4 + 2 * 2) * 3;

    fn noise(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| ((seed * 7919 + i * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// The last row's attention, from the definition.
    fn plain(rows: &[Vec<f32>], scale: f32) -> Vec<f32> {
        let Heads { queries, kv, dim } = HEADS;
        let asking = rows.last().unwrap();
        let mut out = Vec::new();
        for head in 0..queries {
            let key = queries * dim + head / (queries / kv) * dim;
            let value = key + kv * dim;
            let dot = |row: &Vec<f32>| (0..dim).map(|d| f64::from(asking[head * dim + d] * row[key + d])).sum::<f64>();
            let weights: Vec<f64> = rows.iter().map(|row| (dot(row) * f64::from(scale)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..dim).map(|d| {
                (rows.iter().zip(&weights).map(|(row, weight)| f64::from(row[value + d]) * weight).sum::<f64>() / sum) as f32
            }));
        }
        out
    }

    /// Sequences of these lengths, computed in these chunks (the last of them in one step), agree with the definition.
    fn agrees(sequences: &[Vec<usize>]) {
        let pages_each = 40;
        let slots = sequences.len() * pages_each * PAGE_TOKENS as usize;
        let mut ragged = Ragged::new(1, slots, HEADS.kv * HEADS.dim, DType::F32, &Device::Cpu).unwrap();
        // Pages of different sequences lie among each other.
        let pages = |s: usize| (0..pages_each).map(|page| (page * sequences.len() + s) as u32).collect::<Vec<_>>();
        let pages: Vec<Vec<u32>> = (0..sequences.len()).map(pages).collect();
        let rows: Vec<Vec<Vec<f32>>> = sequences
            .iter()
            .enumerate()
            .map(|(s, chunks)| (0..chunks.iter().sum()).map(|p| noise(s * 1000 + p, WIDTH)).collect())
            .collect();
        let mut run = |parts: &[(usize, usize, usize)]| {
            let (mut segments, mut data, mut row) = (Vec::new(), Vec::new(), 0);
            for &(s, position, count) in parts {
                segments.push(Segment { row, rows: count, position, pages: &pages[s] });
                data.extend(rows[s][position..position + count].iter().flatten().copied());
                row += count;
            }
            let qkv = Tensor::from_vec(data, (row, WIDTH), &Device::Cpu).unwrap();
            let out = ragged.attend(0, &qkv, HEADS, 0.5, &segments).unwrap().to_vec2::<f32>().unwrap();
            let mut out = out.iter();
            for &(s, position, count) in parts {
                for p in position..position + count {
                    for (got, want) in out.next().unwrap().iter().zip(plain(&rows[s][..=p], 0.5)) {
                        assert!((got - want).abs() < 1e-5, "{got} and {want} at {p} of {s}");
                    }
                }
            }
        };
        for (s, chunks) in sequences.iter().enumerate() {
            let mut position = 0;
            for &chunk in &chunks[..chunks.len() - 1] {
                run(&[(s, position, chunk)]);
                position += chunk;
            }
        }
        let last: Vec<_> = sequences
            .iter()
            .enumerate()
            .map(|(s, chunks)| {
                let count = chunks[chunks.len() - 1];
                (s, chunks.iter().sum::<usize>() - count, count)
            })
            .collect();
        run(&last);
    }

    #[test]
    fn decoding_and_prefilling_sequences_share_a_step() {
        agrees(&[vec![1], vec![30, 1], vec![5, 17], vec![200, 1], vec![210, 1], vec![400, 1], vec![3, 1], vec![33]]);
    }

    #[test]
    fn groups_hold_sequences_of_nearly_equal_lengths_and_every_segment_once() {
        let lengths = [1usize, 900, 50, 1000, 700, 120, 760, 300];
        let segments: Vec<_> = lengths
            .iter()
            .enumerate()
            .map(|(row, length)| Segment { row, rows: 1, position: length - 1, pages: &[] })
            .chain([Segment { row: 8, rows: 4, position: 0, pages: &[] }])
            .collect();
        let groups: Vec<Vec<usize>> =
            grouped(&segments).iter().map(|group| group.iter().map(|s| s.position + s.rows).collect()).collect();
        assert_eq!(groups, [vec![1000, 900, 760], vec![700], vec![300], vec![120, 50, 1], vec![4]]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_mixture_agrees_with_the_definition(
            sequences in prop::collection::vec(prop::collection::vec(1usize..40, 1..4), 1..6)
        ) {
            agrees(&sequences);
        }
    }
}
