//! Rotary position embedding (Su et al., arXiv:2104.09864) of queries and keys, and the norm that some models put before it.

use super::norm::root_mean_square_inverse;
use super::pointwise::{each_row, load_some, store_some};
use super::simd::{Op, Simd};
use super::{Isa, Pool};
use crate::profile::{self, Arithmetic, Part, Work};

/// What happens to a step's queries and keys before attention.
pub(crate) struct Rotary<'a> {
    /// Of queries.
    pub(crate) heads: usize,
    /// Of keys and values.
    pub(crate) kv_heads: usize,
    /// Even.
    pub(crate) head_dim: usize,
    /// Weights of the norms of each head of queries and of keys, `[head_dim]` each, and epsilon.
    pub(crate) norms: Option<(&'a [f32], &'a [f32], f32)>,
    /// For each row the cosines of its position's angles, then the sines: `[head_dim / 2]` each.
    pub(crate) turns: &'a [&'a [f32]],
}

impl Rotary<'_> {
    /// Turns `qkv` (`[rows, heads + 2 * kv_heads, head_dim]`: queries, keys, values) in place: dimension `i` of a head with
    /// dimension `head_dim / 2 + i`.
    pub(crate) fn run(&self, isa: Isa, pool: &Pool, qkv: &mut [f32]) {
        let dim = self.head_dim;
        let width = (self.heads + 2 * self.kv_heads) * dim;
        assert!(width > 0 && dim.is_multiple_of(2) && qkv.len() == self.turns.len() * width, "rows of q, k and v");
        assert!(self.turns.iter().all(|turns| turns.len() == dim), "a cosine and a sine for each pair");
        assert!(self.norms.is_none_or(|(q, k, _)| q.len() == dim && k.len() == dim), "norms of a head's width");
        let _span = profile::span(|| {
            let turned = self.turns.len() * (self.heads + self.kv_heads) * dim;
            let operations = (3 + 4 * usize::from(self.norms.is_some())) * turned;
            let work = Work { bytes: (8 * turned) as u64, operations: operations as u64, arithmetic: Arithmetic::F32 };
            (Part::Turn, work)
        });
        each_row(isa, pool, qkv, width, |row, qkv| Row { rotary: self, turns: self.turns[row], qkv });
    }
}

struct Row<'a, 'b> {
    rotary: &'a Rotary<'a>,
    turns: &'a [f32],
    qkv: &'b mut [f32],
}

impl Op for Row<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let Rotary { heads, kv_heads, head_dim, norms, .. } = *self.rotary;
        let (cosines, sines) = self.turns.split_at(head_dim / 2);
        // The values stay as they are.
        for (number, head) in self.qkv.chunks_exact_mut(head_dim).enumerate().take(heads + kv_heads) {
            if let Some((queries, keys, epsilon)) = norms {
                let scale = simd.splat(root_mean_square_inverse(simd, head, epsilon));
                let weight = if number < heads { queries } else { keys };
                for (x, weight) in head.chunks_mut(S::LANES).zip(weight.chunks(S::LANES)) {
                    store_some(simd, x, simd.mul(load_some(simd, weight), simd.mul(load_some(simd, x), scale)));
                }
            }
            let (first, second) = head.split_at_mut(head_dim / 2);
            let pairs = first.chunks_mut(S::LANES).zip(second.chunks_mut(S::LANES));
            for ((a, b), (cos, sin)) in pairs.zip(cosines.chunks(S::LANES).zip(sines.chunks(S::LANES))) {
                let (x, y) = (load_some(simd, a), load_some(simd, b));
                let (cos, sin) = (load_some(simd, cos), load_some(simd, sin));
                store_some(simd, a, simd.sub(simd.mul(x, cos), simd.mul(y, sin)));
                store_some(simd, b, simd.add(simd.mul(y, cos), simd.mul(x, sin)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::matmul::tests::noise;

    /// One row, from the definition.
    fn plain(qkv: &[f32], rotary: &Rotary<'_>, turns: &[f32]) -> Vec<f64> {
        let dim = rotary.head_dim;
        let mut out: Vec<f64> = qkv.iter().map(|x| f64::from(*x)).collect();
        for (number, head) in out.chunks_exact_mut(dim).enumerate().take(rotary.heads + rotary.kv_heads) {
            if let Some((q, k, epsilon)) = rotary.norms {
                let weight = if number < rotary.heads { q } else { k };
                let square = head.iter().map(|x| x * x).sum::<f64>() / dim as f64;
                for (x, weight) in head.iter_mut().zip(weight) {
                    *x *= f64::from(*weight) / (square + f64::from(epsilon)).sqrt();
                }
            }
            for i in 0..dim / 2 {
                let (a, b) = (head[i], head[dim / 2 + i]);
                let (cos, sin) = (f64::from(turns[i]), f64::from(turns[dim / 2 + i]));
                (head[i], head[dim / 2 + i]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
        out
    }

    #[test]
    fn it_agrees_with_the_definition_and_a_row_does_not_depend_on_its_neighbours() {
        let pool = Pool::new(3).unwrap();
        for isa in Isa::all() {
            for (heads, kv_heads, dim) in [(1, 1, 2), (3, 1, 6), (4, 2, 16), (6, 3, 36), (2, 1, 64), (1, 1, 130)] {
                let (width, rows) = ((heads + 2 * kv_heads) * dim, 11);
                let (qkv, q, k) = (noise(dim, rows * width), noise(3, dim), noise(4, dim));
                let angles: Vec<Vec<f32>> = (0..rows)
                    .map(|row| {
                        let angle = |i: usize| row as f32 * 0.7 + i as f32;
                        (0..dim / 2).map(|i| angle(i).cos()).chain((0..dim / 2).map(|i| angle(i).sin())).collect()
                    })
                    .collect();
                let turns: Vec<&[f32]> = angles.iter().map(Vec::as_slice).collect();
                for norms in [None, Some((&q[..], &k[..], 1e-6))] {
                    let rotary = Rotary { heads, kv_heads, head_dim: dim, norms, turns: &turns };
                    let mut all = qkv.clone();
                    rotary.run(isa, &pool, &mut all);
                    for (row, got) in all.chunks(width).enumerate() {
                        let own = &qkv[row * width..(row + 1) * width];
                        for (got, want) in got.iter().zip(plain(own, &rotary, turns[row])) {
                            assert!((f64::from(*got) - want).abs() < 1e-5, "{isa} {heads}/{kv_heads}×{dim}: {got} and {want}");
                        }
                        let mut alone = own.to_vec();
                        Rotary { turns: &turns[row..=row], ..rotary }.run(isa, &pool, &mut alone);
                        assert_eq!(alone, got);
                    }
                }
            }
        }
    }
}
