//! The container: metadata, and where tensors lie (docs/gguf.md of ggml, versions 2 and 3).
//!
//! Reads a header where it lies and copies no string. A file says how long its parts are, and none of it is believed before
//! the bytes are there: nothing is reserved by a count, and the work is bounded by the file's length.

use std::collections::HashMap;

use super::kind_of;
use crate::stored::Kind;

/// How a file begins.
const MAGIC: &[u8] = b"GGUF";

/// Where data begin at a multiple of, unless metadata say otherwise.
const ALIGNMENT: u64 = 32;

/// ggml's tensors have no more dimensions.
const DIMS_MAX: u32 = 4;

/// A file's header.
pub(crate) struct Header<'a> {
    metadata: HashMap<&'a str, Value<'a>>,
    pub(crate) tensors: Vec<Tensor<'a>>,
}

/// A tensor as the header has it.
pub(crate) struct Tensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: Kind,
    /// The last one the nearest: the other way round than in the file.
    pub(crate) dims: Vec<usize>,
    /// Where its bytes lie in the file.
    pub(crate) bytes: std::ops::Range<usize>,
}

/// What stands behind a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Whole(i128),
    /// As it is written in decimals: 1e-5 in 32 bits is meant to be 1e-5.
    Float(f64),
    Flag(bool),
    Text(&'a str),
    List(List<'a>),
}

/// Several values of one type, read when somebody asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List<'a> {
    kind: u32,
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads a file's beginning; all tensors' bytes are there.
    pub(crate) fn read(file: &'a [u8]) -> Result<Header<'a>, String> {
        let mut at = Cursor { rest: file };
        if at.take(4).ok() != Some(MAGIC) {
            return Err("no GGUF file: it does not begin with GGUF; is it one that was downloaded whole?".into());
        }
        match at.u32()? {
            2 | 3 => {}
            version if version.swap_bytes() < 16 => {
                return Err("written for big-endian machines; take a little-endian file".into());
            }
            version => return Err(format!("of version {version}, and this program reads 2 and 3: convert the model again")),
        }
        let (tensors, pairs) = (at.u64()?, at.u64()?);
        let mut metadata = HashMap::new();
        for _ in 0..pairs {
            let key = at.text()?;
            let kind = at.u32()?;
            let value = at.value(kind).map_err(|error| format!("{key}: {error}"))?;
            if metadata.insert(key, value).is_some() {
                return Err(format!("{key} stands there twice"));
            }
        }
        let mut header = Header { metadata, tensors: Vec::new() };
        if let Some(parts) = header.whole("split.count")?.filter(|parts| *parts > 1) {
            return Err(format!("one of {parts} parts: join them with `llama-gguf-split --merge`"));
        }
        let alignment = header.whole("general.alignment")?.unwrap_or(ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(format!("general.alignment is {alignment}, which is no power of two up to 2^20"));
        }
        let mut infos = Vec::new();
        for _ in 0..tensors {
            infos.push(Info::read(&mut at)?);
        }
        let data = ((file.len() - at.rest.len()) as u64).next_multiple_of(alignment);
        for info in infos {
            header.tensors.push(info.place(data, file.len() as u64)?);
        }
        Ok(header)
    }

    /// What stands behind a key.
    pub(crate) fn get(&self, key: &str) -> Option<Value<'a>> {
        self.metadata.get(key).copied()
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(format!("{key} should be a text")),
        }
    }

    pub(crate) fn whole(&self, key: &str) -> Result<Option<u64>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Whole(number)) => u64::try_from(number).map(Some).map_err(|_| format!("{key} should not be negative")),
            Some(_) => Err(format!("{key} should be a whole number")),
        }
    }

    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) => Ok(Some(number)),
            Some(Value::Whole(number)) => Ok(Some(number as f64)),
            Some(_) => Err(format!("{key} should be a number")),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Flag(flag)) => Ok(Some(flag)),
            Some(_) => Err(format!("{key} should be true or false")),
        }
    }

    pub(crate) fn list(&self, key: &str) -> Result<Option<List<'a>>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(list)) => Ok(Some(list)),
            Some(_) => Err(format!("{key} should be a list")),
        }
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&Tensor<'a>> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

impl<'a> List<'a> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// All of them.
    pub(crate) fn values(&self) -> impl Iterator<Item = Value<'a>> {
        let (mut at, kind) = (Cursor { rest: self.bytes }, self.kind);
        (0..self.count).map(move |_| at.value(kind).expect("read once before"))
    }

    /// All of them, which are texts.
    pub(crate) fn texts(&self) -> Result<Vec<&'a str>, String> {
        let text = |value| match value {
            Value::Text(text) => Ok(text),
            _ => Err("should be a list of texts".to_owned()),
        };
        self.values().map(text).collect()
    }
}

/// A tensor's header, whose place is not known yet.
struct Info<'a> {
    name: &'a str,
    kind: Kind,
    dims: Vec<usize>,
    length: u64,
    offset: u64,
}

impl<'a> Info<'a> {
    fn read(at: &mut Cursor<'a>) -> Result<Info<'a>, String> {
        let name = at.text()?;
        let count = at.u32()?;
        if count > DIMS_MAX {
            return Err(format!("tensor {name} has {count} dimensions, and {DIMS_MAX} are the most"));
        }
        let mut dims = Vec::new();
        for _ in 0..count {
            dims.push(at.u64()?);
        }
        let kind = kind_of(at.u32()?).map_err(|error| format!("tensor {name} is {error}"))?;
        let offset = at.u64()?;
        let count = dims.iter().try_fold(1u64, |all, dim| all.checked_mul(*dim)).filter(|count| *count <= usize::MAX as u64 / 8);
        let blocks = dims.first().is_none_or(|row| row.is_multiple_of(kind.values() as u64));
        let length = count.filter(|_| blocks).and_then(|count| kind.bytes_of(count as usize));
        let Some(length) = length else {
            return Err(format!("tensor {name} of {kind} has the dimensions {dims:?}, which no such tensor can have"));
        };
        let dims = dims.into_iter().rev().map(|dim| dim as usize).collect();
        Ok(Info { name, kind, dims, length: length as u64, offset })
    }

    fn place(self, data: u64, file: u64) -> Result<Tensor<'a>, String> {
        let start = data.checked_add(self.offset);
        let end = start.and_then(|start| start.checked_add(self.length)).filter(|end| *end <= file);
        let (Some(start), Some(end)) = (start, end) else {
            let name = self.name;
            return Err(format!("cut short: tensor {name} lies behind its end ({file} bytes); fetch it again"));
        };
        Ok(Tensor { name: self.name, kind: self.kind, dims: self.dims, bytes: start as usize..end as usize })
    }
}

/// What is left of a file's header.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let count = usize::try_from(count).ok().filter(|count| *count <= self.rest.len());
        let Some(count) = count else { return Err("cut short within its header: fetch it again".into()) };
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N as u64)?.try_into().expect("as many as were asked for"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.u64()?;
        std::str::from_utf8(self.take(length)?).map_err(|_| "a text in it is not UTF-8: fetch it again".to_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value<'a>, String> {
        let whole = |number: i128| Value::Whole(number);
        Ok(match kind {
            0 => whole(u8::from_le_bytes(self.array()?).into()),
            1 => whole(i8::from_le_bytes(self.array()?).into()),
            2 => whole(u16::from_le_bytes(self.array()?).into()),
            3 => whole(i16::from_le_bytes(self.array()?).into()),
            4 => whole(u32::from_le_bytes(self.array()?).into()),
            5 => whole(i32::from_le_bytes(self.array()?).into()),
            6 => {
                let number = f32::from_le_bytes(self.array()?);
                Value::Float(number.to_string().parse().unwrap_or(f64::NAN))
            }
            7 => Value::Flag(self.array::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                let start = self.rest;
                match kind {
                    8 => (0..count).try_for_each(|_| self.text().map(drop))?,
                    // Lists of lists are nobody's.
                    9 => return Err("a list of lists, which no model has".into()),
                    other => {
                        let each = size_of_value(other)?;
                        let Some(length) = count.checked_mul(each) else { return Err("a list without an end".into()) };
                        self.take(length)?;
                    }
                }
                let bytes = &start[..start.len() - self.rest.len()];
                // As many as there are bytes at the most.
                Value::List(List { kind, count: count as usize, bytes })
            }
            10 => whole(u64::from_le_bytes(self.array()?).into()),
            11 => whole(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("a value of type {other}, which this program does not know")),
        })
    }
}

/// Bytes of a value that has always as many.
fn size_of_value(kind: u32) -> Result<u64, String> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        other => Err(format!("a list of type {other}, which this program does not know")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::File;
    use super::*;

    fn refused(bytes: &[u8]) -> String {
        match Header::read(bytes) {
            Ok(_) => panic!("should be refused"),
            Err(error) => error,
        }
    }

    #[test]
    fn metadata_and_tensors_are_read_where_they_lie() {
        let bytes = File::new()
            .text("general.architecture", "llama")
            .number("llama.block_count", 30)
            .float("llama.rope.freq_base", 1e-5)
            .flag("tokenizer.ggml.add_bos_token", true)
            .texts("tokenizer.ggml.tokens", &["a", "é", ""])
            .tensor("one.weight", 8, &[2, 64], &[7; 136])
            .tensor("two.weight", 0, &[3], &[1; 12])
            .bytes();
        let header = Header::read(&bytes).unwrap();
        assert_eq!(header.text("general.architecture"), Ok(Some("llama")));
        assert_eq!(header.whole("llama.block_count"), Ok(Some(30)));
        assert_eq!(header.float("llama.rope.freq_base"), Ok(Some(1e-5)));
        assert_eq!(header.flag("tokenizer.ggml.add_bos_token"), Ok(Some(true)));
        assert_eq!(header.list("tokenizer.ggml.tokens").unwrap().unwrap().texts(), Ok(vec!["a", "é", ""]));
        assert_eq!(header.text("llama.block_count"), Err("llama.block_count should be a text".into()));
        assert_eq!(header.whole("nothing"), Ok(None));
        let one = header.tensor("one.weight").unwrap();
        assert_eq!((one.kind, &one.dims[..], &bytes[one.bytes.clone()]), (Kind::Q8_0, &[2, 64][..], &[7; 136][..]));
        assert_eq!(one.bytes.start % 32, 0);
        assert_eq!(bytes[header.tensor("two.weight").unwrap().bytes.clone()], [1; 12]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert!(refused(b"").contains("no GGUF file"));
        assert!(refused(b"GGUF\x01\0\0\0").contains("version 1"));
        assert!(refused(b"GGUF\0\0\0\x03").contains("big-endian"));
        assert!(refused(b"GGUF\x03\0\0\0\xff").contains("cut short"));
        let whole = File::new().tensor("a", 0, &[4], &[0; 16]).bytes();
        assert!(refused(&whole[..whole.len() - 1]).contains("tensor a lies behind its end"));
        assert!(refused(&File::new().tensor("a", 2, &[16], &[0; 16]).bytes()).contains("[16]"));
        assert!(refused(&File::new().tensor("a", 16, &[32], &[0; 16]).bytes()).contains("IQ2_XXS"));
        assert!(refused(&File::new().tensor("a", 0, &[usize::MAX, 9], &[]).bytes()).contains("dimensions"));
        assert!(refused(&File::new().number("a", 1).number("a", 2).bytes()).contains("a stands there twice"));
        assert!(refused(&File::new().number("general.alignment", 3).bytes()).contains("power of two"));
        assert!(refused(&File::new().number("split.count", 2).bytes()).contains("llama-gguf-split"));
    }

    proptest! {
        #[test]
        fn mutilated_headers_never_panic(
            cut in prop::option::of(0usize..600), changes in prop::collection::vec((0usize..600, any::<u8>()), 0..5),
        ) {
            let mut bytes = File::small().bytes();
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            bytes.truncate(cut.unwrap_or(usize::MAX).min(bytes.len()));
            if let Ok(header) = Header::read(&bytes) {
                for tensor in &header.tensors {
                    let _ = &bytes[tensor.bytes.clone()];
                }
                for value in header.metadata.values() {
                    if let Value::List(list) = value {
                        prop_assert!(list.values().count() == list.len());
                    }
                }
            }
        }
    }
}
