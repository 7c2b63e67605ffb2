//! A tensor as a file has it, on its way into panels or floats.
//!
//! Knows forms and orders, and reads where the bytes lie, without a copy of the whole. What tensors mean is the model's.

mod kind;

use std::ops::Range;

pub(crate) use kind::Kind;

use crate::Dtype;
use crate::bytes::Bytes;
use crate::kernels::{BLOCK, Block, Columns, PANEL, Pool};

/// Values that are checked at a time: their bytes stay in a core's cache.
const PART: usize = 1 << 17;

/// Bytes after which rows that were read are let go: often enough to keep little, seldom enough for the system calls not to
/// count.
const WINDOW: usize = 4 << 20;

/// A tensor whose content nobody has looked at yet.
pub(crate) struct Stored<'a> {
    pub(crate) kind: Kind,
    pub(crate) order: Order,
    /// As the model names them, the last one the nearest; the file may have another order.
    pub(crate) dims: Vec<usize>,
    pub(crate) content: Content<'a>,
}

/// Where a tensor's bytes are.
pub(crate) enum Content<'a> {
    File(&'a Bytes, Range<usize>),
    Own(Vec<f32>),
}

/// How the order in a file differs from the one of `dims`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    AsIs,
    /// The two dimensions change places.
    Transposed,
    /// Rows of each head are interleaved: llama.cpp rotates neighbours where Hugging Face rotates halves.
    Rotary {
        head_dim: usize,
    },
}

/// What is known of a tensor's content after a look at all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    /// A number that two tensors of a kind share only if they are equal, but by an accident of one in 2^64: it guards against
    /// mixed-up weights, not against an adversary, and costs a tenth of a cryptographic one.
    pub(crate) digest: u64,
    /// The first value that is no finite number, and where it stands in the file's order.
    pub(crate) broken: Option<(usize, f32)>,
}

impl Order {
    /// Where the file has the row that the model calls `row`.
    fn row(self, row: usize) -> usize {
        match self {
            Order::AsIs | Order::Transposed => row,
            Order::Rotary { head_dim } => {
                let (head, row) = (row / head_dim, row % head_dim);
                head * head_dim + row % (head_dim / 2) * 2 + row / (head_dim / 2)
            }
        }
    }
}

impl Stored<'_> {
    fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::File(bytes, range) => &bytes[range.clone()],
            Content::Own(values) => bytemuck::cast_slice(values),
        }
    }

    /// Reads everything once; the result does not depend on who reads what.
    pub(crate) fn see(&self, pool: &Pool) -> Seen {
        let (bytes, part) = (self.bytes(), PART / self.kind.values() * self.kind.bytes());
        let parts = bytes.len().div_ceil(part);
        let mut seen = vec![(0, true); parts];
        let slots: Vec<_> = seen.iter_mut().map(std::sync::Mutex::new).collect();
        pool.run(parts, &|index| {
            let range = index * part..(index * part + part).min(bytes.len());
            let bytes = &bytes[range.clone()];
            // Each part is one task, so nobody else holds its place.
            **slots[index].lock().unwrap_or_else(std::sync::PoisonError::into_inner) = (digest(bytes), self.kind.finite(bytes));
            self.let_go_of_large(range);
        });
        drop(slots);
        let digest = seen.iter().fold(bytes.len() as u64, |all, (digest, _)| mix(all ^ digest));
        let broken = seen.iter().position(|(_, finite)| !finite).and_then(|index| {
            let bytes = &bytes[index * part..(index * part + part).min(bytes.len())];
            let mut values = vec![0.0; bytes.len() / self.kind.bytes() * self.kind.values()];
            self.kind.floats(bytes, &mut values);
            let at = values.iter().position(|value| !value.is_finite())?;
            Some((index * PART + at, values[at]))
        });
        Seen { digest, broken }
    }

    /// All values, in the order of `dims`.
    pub(crate) fn floats(&self) -> Vec<f32> {
        let count = self.dims.iter().product();
        let mut values = vec![0.0; count];
        let last = self.dims.last().copied().unwrap_or(1).max(1);
        match (self.order, &self.dims[..]) {
            (Order::AsIs, _) => self.kind.floats(self.bytes(), &mut values),
            (Order::Transposed, &[rows, columns]) => {
                let mut column = vec![0.0; rows];
                for at in 0..columns {
                    self.contiguous(at, &mut column);
                    values[at..].iter_mut().step_by(columns).zip(&column).for_each(|(to, value)| *to = *value);
                }
            }
            (order, dims) => {
                // A vector is a column of rows.
                let row = if dims.len() == 1 { 1 } else { last };
                for (number, to) in values.chunks_exact_mut(row).enumerate() {
                    self.contiguous(order.row(number), to);
                }
            }
        }
        self.let_go();
        values
    }

    /// A run of `to.len()` values of the file, which are whole blocks.
    fn contiguous(&self, number: usize, to: &mut [f32]) {
        self.kind.floats(&self.bytes()[self.run(number, to.len())], to);
    }

    /// Bytes of a run of so many values.
    fn run(&self, number: usize, values: usize) -> Range<usize> {
        let length = values / self.kind.values() * self.kind.bytes();
        number * length..(number + 1) * length
    }

    fn let_go(&self) {
        if let Content::File(bytes, range) = &self.content {
            bytes.let_go(range.clone());
        }
    }

    fn let_go_of_large(&self, part: Range<usize>) {
        // What is small is packed at once and better stays at hand.
        if let Content::File(bytes, range) = &self.content
            && range.len() > 8 * WINDOW
        {
            bytes.let_go(range.start + part.start..range.start + part.end);
        }
    }
}

/// Several matrices of the same inputs side by side, read as one.
pub(crate) struct Matrix<'a> {
    inputs: usize,
    columns: usize,
    parts: Vec<Part<'a>>,
}

struct Part<'a> {
    stored: Stored<'a>,
    columns: usize,
    /// Whether the file has each column's weights together; else it has each input's.
    together: bool,
}

impl<'a> Matrix<'a> {
    /// Of tensors that are `[columns, inputs]` each.
    pub(crate) fn of_rows(tensors: Vec<Stored<'a>>) -> Matrix<'a> {
        Matrix::new(tensors, false)
    }

    /// Of a tensor that is `[inputs, columns]`.
    pub(crate) fn of_columns(tensor: Stored<'a>) -> Matrix<'a> {
        Matrix::new(vec![tensor], true)
    }

    fn new(tensors: Vec<Stored<'a>>, by_inputs: bool) -> Matrix<'a> {
        let mut inputs = 0;
        let part = |stored: Stored<'a>| {
            let &[first, second] = &stored.dims[..] else {
                unreachable!("a matrix has two dimensions: shapes are checked before")
            };
            let (columns, these) = if by_inputs { (second, first) } else { (first, second) };
            inputs = these;
            let together = by_inputs == (stored.order == Order::Transposed);
            assert!(together || stored.kind.values() == 1, "blocks run along the inputs");
            Part { stored, columns, together }
        };
        let parts: Vec<_> = tensors.into_iter().map(part).collect();
        Matrix { inputs, columns: parts.iter().map(|part| part.columns).sum(), parts }
    }

    /// Bytes in the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.stored.bytes().len() as u64).sum()
    }

    /// Values as `[columns, inputs]`.
    pub(crate) fn floats(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.inputs * self.columns];
        for (column, to) in values.chunks_exact_mut(self.inputs.max(1)).enumerate() {
            Columns::floats(self, column, to);
        }
        values
    }

    /// The part that has a column, and which of its own it is.
    fn part(&self, mut column: usize) -> (&Part<'a>, usize) {
        for part in &self.parts {
            if column < part.columns {
                return (part, column);
            }
            column -= part.columns;
        }
        panic!("column {column} behind the last one")
    }
}

impl Drop for Matrix<'_> {
    fn drop(&mut self) {
        self.parts.iter().for_each(|part| part.stored.let_go());
    }
}

impl Part<'_> {
    /// A column's bytes in the file, where it has them together; what lies well before them is let go.
    fn bytes(&self, column: usize, inputs: usize) -> &[u8] {
        let run = self.stored.run(self.stored.order.row(column), inputs);
        if let Content::File(bytes, range) = &self.stored.content
            && range.len() > 2 * WINDOW
            && run.start / WINDOW != run.end / WINDOW
        {
            let window = run.start / WINDOW * WINDOW;
            bytes.let_go(range.start + window..range.start + run.start);
        }
        &self.stored.bytes()[run]
    }
}

impl Columns for Matrix<'_> {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn stored(&self) -> Dtype {
        // What all parts have, or else the one that holds them all.
        let mut dtypes = self.parts.iter().map(|part| part.stored.kind.dtype());
        let first = dtypes.next().unwrap_or(Dtype::F32);
        dtypes.fold(first, |a, b| match (a, b) {
            (Dtype::F32, _) | (_, Dtype::F32) => Dtype::F32,
            (Dtype::Q8, _) | (_, Dtype::Q8) => Dtype::Q8,
            (same, _) => same,
        })
    }

    fn floats(&self, column: usize, to: &mut [f32]) {
        let (part, column) = self.part(column);
        if part.together {
            return part.stored.kind.floats(part.bytes(column, self.inputs), to);
        }
        // Neighbouring columns share cache lines: a panel's worth of them stays in the second cache.
        let (each, bytes) = (part.stored.kind.bytes(), part.stored.bytes());
        let numbers = bytes[column * each..].chunks(part.columns * each);
        match part.stored.kind {
            Kind::F32 => {
                let number = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                to.iter_mut().zip(numbers).for_each(|(to, bytes)| *to = number(bytes));
            }
            kind => to.iter_mut().zip(numbers).for_each(|(to, bytes)| kind.floats(&bytes[..each], std::slice::from_mut(to))),
        }
    }

    fn by_inputs(&self, first: usize, columns: usize, to: &mut [f32]) -> bool {
        let (part, own) = self.part(first);
        if part.together || own + columns > part.columns {
            return false;
        }
        let each = part.stored.kind.bytes();
        let rows = part.stored.bytes().chunks_exact(part.columns * each);
        for (to, row) in to.chunks_exact_mut(PANEL).zip(rows) {
            part.stored.kind.floats(&row[own * each..(own + columns) * each], &mut to[..columns]);
        }
        true
    }

    fn blocks(&self, column: usize, to: &mut [Block]) -> bool {
        let (part, column) = self.part(column);
        let whole = part.together && self.inputs.is_multiple_of(BLOCK) && part.stored.kind.dtype() == self.stored();
        whole && part.stored.kind.blocks(part.bytes(column, self.inputs), to)
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut lanes = [0x9e37_79b9_7f4a_7c15u64, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];
    let mut take = |chunk: &[u8; 32]| {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
            *lane = (*lane ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29);
        }
    };
    let chunks = bytes.chunks_exact(32);
    let rest = chunks.remainder();
    chunks.for_each(|chunk| take(chunk.try_into().expect("32 bytes")));
    let mut last = [0; 32];
    last[..rest.len()].copy_from_slice(rest);
    take(&last);
    lanes.into_iter().fold(bytes.len() as u64, |digest, lane| mix(digest ^ lane))
}

fn mix(word: u64) -> u64 {
    word.wrapping_mul(0xc4ce_b9fe_1a85_ec53).rotate_left(31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Epilogue, Isa, Packed, matmul};

    fn own(dims: &[usize], order: Order) -> Stored<'static> {
        let count = dims.iter().product::<usize>();
        let content = Content::Own((0..count).map(|value| value as f32).collect());
        Stored { kind: Kind::F32, order, dims: dims.to_vec(), content }
    }

    fn columns(matrix: &Matrix<'_>) -> Vec<Vec<f32>> {
        (0..matrix.columns)
            .map(|column| {
                let mut to = vec![0.0; matrix.inputs];
                Columns::floats(matrix, column, &mut to);
                to
            })
            .collect()
    }

    #[test]
    fn a_matrix_reads_the_same_by_rows_and_by_columns() {
        assert_eq!(columns(&Matrix::of_rows(vec![own(&[2, 3], Order::AsIs)])), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
        assert_eq!(columns(&Matrix::of_columns(own(&[3, 2], Order::AsIs))), [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]);
        // The file has it as [2, 3].
        assert_eq!(columns(&Matrix::of_columns(own(&[3, 2], Order::Transposed))), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
        assert_eq!(own(&[3, 2], Order::Transposed).floats(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }

    #[test]
    fn a_panel_by_inputs_is_the_columns_that_it_has() {
        let tensor = own(&[3, PANEL + 2], Order::AsIs);
        let matrix = Matrix::of_columns(tensor);
        let columns = columns(&matrix);
        for (first, count) in [(0, PANEL), (PANEL, 2)] {
            let mut panel = vec![0.0; 3 * PANEL];
            assert!(matrix.by_inputs(first, count, &mut panel));
            for (at, weight) in panel.iter().enumerate() {
                let column = (at % PANEL < count).then(|| &columns[first + at % PANEL]);
                assert_eq!(*weight, column.map_or(0.0, |column| column[at / PANEL]));
            }
        }
        let mut panel = vec![0.0; 2 * PANEL];
        assert!(!Matrix::of_rows(vec![own(&[2, 2], Order::AsIs)]).by_inputs(0, 2, &mut panel), "each column lies together");
        let two = Matrix::of_rows(vec![own(&[2, 2], Order::Transposed), own(&[2, 2], Order::Transposed)]);
        assert!(two.by_inputs(2, 2, &mut panel) && !two.by_inputs(0, 4, &mut panel), "within one of them only");
        assert_eq!(panel[..2], [0.0, 1.0]);
    }

    #[test]
    fn matrices_stand_side_by_side() {
        let matrix = Matrix::of_rows(vec![own(&[1, 2], Order::AsIs), own(&[3, 2], Order::AsIs)]);
        assert_eq!((matrix.inputs(), Columns::columns(&matrix)), (2, 4));
        assert_eq!(matrix.floats(), [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn interleaved_heads_come_apart() {
        // Two heads of four rows: the file has 0, 2, 1, 3 of each.
        let order = Order::Rotary { head_dim: 4 };
        assert_eq!(own(&[8], order).floats(), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        let matrix = Matrix::of_rows(vec![own(&[4, 1], order)]);
        assert_eq!(columns(&matrix), [[0.0], [2.0], [1.0], [3.0]]);
        assert_eq!(own(&[4, 1], order).floats(), [0.0, 2.0, 1.0, 3.0]);
    }

    #[test]
    fn what_is_seen_depends_on_the_content_alone() {
        let pools = [1, 3].map(|threads| Pool::new(threads).unwrap());
        let with = |change: Option<(usize, f32)>| {
            let mut values: Vec<f32> = (0..3 * PART + 5).map(|value| value as f32).collect();
            if let Some((at, value)) = change {
                values[at] = value;
            }
            let stored = Stored { kind: Kind::F32, order: Order::AsIs, dims: vec![values.len()], content: Content::Own(values) };
            let [one, three] = pools.each_ref().map(|pool| stored.see(pool));
            assert_eq!(one, three);
            one
        };
        assert_eq!(with(None), with(None));
        assert_ne!(with(None).digest, with(Some((PART + 1, 0.5))).digest);
        assert_eq!(with(Some((2 * PART + 7, f32::INFINITY))).broken, Some((2 * PART + 7, f32::INFINITY)));
    }

    #[test]
    fn a_files_integers_are_computed_with_as_they_are() {
        let pool = Pool::new(2).unwrap();
        for kind in [Kind::Q8_0, Kind::Q4_0, Kind::Q4_1] {
            let (columns, inputs) = (70, 288);
            let mut bytes: Vec<u8> =
                (0..columns * kind.bytes_of(inputs).unwrap()).map(|at| (at * at * 31 + at * 7) as u8).collect();
            for (number, block) in bytes.chunks_exact_mut(kind.bytes()).enumerate() {
                // Scale and, in Q4_1, the least value.
                block[..2].copy_from_slice(&half::f16::from_f32(0.01 + (number % 7) as f32 * 0.003).to_le_bytes());
                if kind == Kind::Q4_1 {
                    block[2..4].copy_from_slice(&half::f16::from_f32(-0.1 + (number % 5) as f32 * 0.01).to_le_bytes());
                }
            }
            let file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut &file, &bytes).unwrap();
            let file = Bytes::map(&file).unwrap();
            let content = Content::File(&file, 0..bytes.len());
            let matrix = Matrix::of_rows(vec![Stored { kind, order: Order::AsIs, dims: vec![columns, inputs], content }]);
            let packed = Packed::pack(Dtype::Auto, &matrix).unwrap();
            let mut column = vec![0.0; inputs];
            let weights = matrix.floats();
            for (number, floats) in weights.chunks_exact(inputs).enumerate() {
                packed.column(number, &mut column);
                assert_eq!(column, floats, "{kind}, column {number}");
            }
            for rows in [1, 5, 40] {
                let x: Vec<f32> = (0..rows * inputs).map(|at| ((at * 37 % 101) as f32 - 50.0) / 50.0).collect();
                for isa in Isa::all() {
                    let got = matmul(isa, &pool, &x, &packed, &[], Epilogue::None);
                    for (at, got) in got.iter().enumerate() {
                        let (x, w) = (&x[at / columns * inputs..][..inputs], &weights[at % columns * inputs..][..inputs]);
                        let want: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                        let size: f32 = x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
                        assert!((got - want).abs() < 0.003 * size, "{kind} {isa} {rows} rows at {at}: {got} {want} {size}");
                    }
                }
            }
        }
    }
}
