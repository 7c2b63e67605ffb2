use super::*;
use crate::kernels::kv_pages::KvLayout;
use crate::kernels::matmul::tests::noise;

const SCALE: f32 = 0.3;

/// Heads of queries, heads of keys and values, and how wide.
type Shape = (usize, usize, usize);

/// As what queries see a row of keys or values.
fn stored(dtype: KvDtype, row: &[f32]) -> Vec<f64> {
    let scale = row.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
    let round = |x: f32| match dtype {
        KvDtype::Auto | KvDtype::F32 => x,
        KvDtype::F16 => half::f16::from_f32(x).to_f32(),
        KvDtype::Q8 => (x / scale).round_ties_even() * scale,
    };
    row.iter().map(|x| f64::from(if scale == 0.0 { 0.0 } else { round(*x) })).collect()
}

/// Attention of one whole sequence, from the definition.
fn plain(qkv: &[f32], (heads, kv_heads, dim): Shape, dtype: KvDtype) -> Vec<f64> {
    let row_width = (heads + 2 * kv_heads) * dim;
    let row = |row: usize, head: usize| &qkv[row * row_width + head * dim..][..dim];
    let rows = qkv.len() / row_width;
    let stored = |first: usize| -> Vec<Vec<f64>> {
        (0..rows * kv_heads).map(|i| stored(dtype, row(i / kv_heads, first + i % kv_heads))).collect()
    };
    let (keys, values) = (stored(heads), stored(heads + kv_heads));
    let mut out = Vec::new();
    for at in 0..rows {
        for head in 0..heads {
            let of = |key: usize| key * kv_heads + head * kv_heads / heads;
            let query = row(at, head);
            let score =
                |key: usize| query.iter().zip(&keys[of(key)]).map(|(q, k)| f64::from(*q) * k).sum::<f64>() * f64::from(SCALE);
            let scores: Vec<f64> = (0..=at).map(score).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..dim).map(|d| (0..=at).map(|key| weights[key] * values[of(key)][d]).sum::<f64>() / sum));
        }
    }
    out
}

fn pages_for((_, kv_heads, head_dim): Shape, dtype: KvDtype, pages: u32) -> KvPages {
    let mut pages = KvPages::zeroed(KvLayout { dtype, layers: 2, kv_heads, head_dim }, pages).unwrap();
    // Others have been here, and left what is no number.
    pages.fill(0xff);
    pages
}

fn run(isa: Isa, pool: &Pool, shape: Shape, qkv: &[f32], segments: &[Segment<'_>], pages: &mut KvPages) -> Vec<f32> {
    let (heads, kv_heads, head_dim) = shape;
    Attention { heads, kv_heads, head_dim, scale: SCALE, qkv, segments, pages, layer: 1 }.run(isa, pool)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn it_agrees_with_the_definition_in_any_chunking_and_company() {
    let pools = [Pool::new(1).unwrap(), Pool::new(3).unwrap()];
    for isa in Isa::all() {
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Q8] {
            for shape in [(1, 1, 1), (3, 3, 5), (4, 2, 16), (2, 2, 24), (9, 3, 32), (7, 1, 64), (6, 2, 80), (2, 1, 129)] {
                let (heads, kv_heads, dim) = shape;
                let (width, row_width, rows) = (heads * dim, (heads + 2 * kv_heads) * dim, 37);
                let qkv = noise(dim, rows * row_width);
                // Pages out of order.
                let pages: [u32; 3] = [4, 0, 2];
                let whole = [Segment { row: 0, rows, position: 0, pages: &pages }];
                let all = run(isa, &pools[1], shape, &qkv, &whole, &mut pages_for(shape, dtype, 6));
                for (got, want) in all.iter().zip(plain(&qkv, shape, dtype)) {
                    assert!((f64::from(*got) - want).abs() < 1e-5, "{isa} {dtype} {shape:?}: {got} and {want}");
                }
                for chunk in [1, 3, 16, 20] {
                    let mut memory = pages_for(shape, dtype, 6);
                    let neighbour: [u32; 3] = [1, 3, 5];
                    for position in (0..rows).step_by(chunk) {
                        let count = chunk.min(rows - position);
                        let mine = &qkv[position * row_width..(position + count) * row_width];
                        // A neighbour in front that is somewhere else in the same text.
                        let both = [&qkv[position * row_width..(position + 1) * row_width], mine].concat();
                        let segments = [
                            Segment { row: 0, rows: 1, position: position / chunk, pages: &neighbour },
                            Segment { row: 1, rows: count, position, pages: &pages },
                        ];
                        let out = run(isa, &pools[chunk % 2], shape, &both, &segments, &mut memory);
                        let want = &all[position * width..(position + count) * width];
                        assert_eq!(bits(&out[width..]), bits(want), "{isa} {dtype} {shape:?} by {chunk}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_long_sequence_is_the_same_in_one_task_and_in_many() {
    // Over several blocks of keys, one of which ends within a chunk.
    let (shape, rows) = ((4, 1, 16), 1100);
    let (heads, kv_heads, dim) = shape;
    let (width, row_width) = (heads * dim, (heads + 2 * kv_heads) * dim);
    let qkv = noise(7, rows * row_width);
    let pages: Vec<u32> = (0..69).rev().collect();
    for isa in Isa::all() {
        for dtype in [KvDtype::F32, KvDtype::Q8] {
            let mut memory = pages_for(shape, dtype, 69);
            let whole = [Segment { row: 0, rows, position: 0, pages: &pages }];
            let all = run(isa, &Pool::new(1).unwrap(), shape, &qkv, &whole, &mut memory);
            for (got, want) in all.iter().zip(plain(&qkv, shape, dtype)) {
                assert!((f64::from(*got) - want).abs() < 1e-5, "{isa} {dtype}: {got} and {want}");
            }
            for threads in [1, 3, 16] {
                let pool = Pool::new(threads).unwrap();
                // What stands in the pages stays: each row again alone, or with some that follow it.
                for (position, count) in [(1099, 1), (1023, 1), (1024, 1), (767, 5), (255, 3), (1020, 80)] {
                    let rows = position..position + count;
                    let segment = [Segment { row: 0, rows: count, position, pages: &pages }];
                    let mine = &qkv[rows.start * row_width..rows.end * row_width];
                    let out = run(isa, &pool, shape, mine, &segment, &mut memory);
                    let want = &all[rows.start * width..rows.end * width];
                    assert_eq!(bits(&out), bits(want), "{isa} {dtype} {rows:?} on {threads} threads");
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_does_not_become_one_and_what_is_too_large_for_a_half_stays_finite() {
    let pool = Pool::new(1).unwrap();
    let pages = [0];
    let segment = [Segment { row: 0, rows: 1, position: 0, pages: &pages }];
    for isa in Isa::all() {
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Q8] {
            let value = |value: f32| {
                let mut memory = pages_for((1, 1, 4), dtype, 1);
                run(isa, &pool, (1, 1, 4), &[0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.5, value, 0.5, 0.5], &segment, &mut memory)
                    [1]
            };
            for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(!value(broken).is_finite(), "{isa} {dtype}: {broken} became {}", value(broken));
            }
            let want = if dtype == KvDtype::F16 { 65_504.0 } else { 1e6 };
            assert!((value(1e6) / want - 1.0).abs() < 1e-6, "{isa} {dtype}: {}", value(1e6));
            assert!(value(1e-40).abs() < 1e-6);
        }
    }
}
