//! A checkpoint: config.json and the tensors of one or several safetensors files, or of a GGUF file, mapped and not copied.
//!
//! Knows names, shapes and forms as stored; what they mean is the architecture's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::bytes::Bytes;
use crate::error::LoadError;
use crate::folder::Folder;
use crate::stored::{Content, Kind, Order, Stored};
use crate::{bundled, gguf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// No published model comes in more files; beyond that an index is damaged or hostile.
const SHARDS_MAX: usize = 1_000;

/// A model's weights and configuration.
pub struct Checkpoint {
    folder: Folder,
    config: Value,
    tensors: BTreeMap<String, Place>,
    files: Vec<Weights>,
}

/// A file of weights.
struct Weights {
    name: String,
    bytes: Bytes,
}

/// Where a tensor lies, and how.
struct Place {
    /// Number of its file.
    file: usize,
    /// `Err`: what it is called that this program does not read. A model may carry such and not need it.
    kind: Result<Kind, String>,
    order: Order,
    dims: Vec<usize>,
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Maps a folder's weights; all files are checked to be whole before anything is computed from them.
    pub fn open(folder: &Folder) -> Result<Self, LoadError> {
        let config = read_config(folder)?;
        let mut checkpoint = Checkpoint { folder: folder.clone(), config, tensors: BTreeMap::new(), files: Vec::new() };
        match folder {
            Folder::Bundled => {
                let bytes = bundled::file(SINGLE).expect("the bundled model has its weights");
                checkpoint.add_safetensors(SINGLE.into(), Bytes::Bundled(bytes))?;
            }
            Folder::Disk(path) => {
                for name in weight_files(folder)? {
                    let bytes = map(&path.join(&name))?;
                    checkpoint.add_safetensors(name, bytes)?;
                }
            }
            Folder::Gguf(path) => {
                let bytes = gguf::map(path)?;
                for gguf::Tensor { name, kind, order, dims, bytes } in gguf::tensors(path, &bytes)? {
                    checkpoint.tensors.insert(name, Place { file: 0, kind: Ok(kind), order, dims, bytes });
                }
                checkpoint.files.push(Weights { name: SINGLE.into(), bytes });
            }
        }
        checkpoint.check_index()?;
        Ok(checkpoint)
    }

    fn add_safetensors(&mut self, name: String, bytes: Bytes) -> Result<(), LoadError> {
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|source| LoadError::Weights {
            path: self.folder.show(&name),
            bytes: bytes.len() as u64,
            source,
        })?;
        for (tensor, info) in metadata.tensors() {
            // The header's length stands before it.
            let start = size_of::<u64>() + header;
            let place = Place {
                file: self.files.len(),
                kind: match info.dtype {
                    Dtype::F32 => Ok(Kind::F32),
                    Dtype::F16 => Ok(Kind::F16),
                    Dtype::BF16 => Ok(Kind::Bf16),
                    other => Err(format!("{other:?}")),
                },
                order: Order::AsIs,
                dims: info.shape.clone(),
                bytes: start + info.data_offsets.0..start + info.data_offsets.1,
            };
            self.tensors.insert(tensor, place);
        }
        self.files.push(Weights { name, bytes });
        Ok(())
    }

    /// config.json.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Where it was opened.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All tensors' names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's dimensions; nothing is read for it.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>, LoadError> {
        self.place(name).map(|place| place.dims.clone())
    }

    /// A tensor, where and as it lies.
    pub(crate) fn stored(&self, name: &str) -> Result<Stored<'_>, LoadError> {
        let place = self.place(name)?;
        let kind = place.kind.clone().map_err(|kind| LoadError::Unsupported(format!(
            "tensor {name} in {} is of type {kind}, and this version reads F32, F16 and BF16 from safetensors: convert the model",
            self.folder.show(&self.files[place.file].name)
        )))?;
        let content = Content::File(&self.files[place.file].bytes, place.bytes.clone());
        Ok(Stored { kind, order: place.order, dims: place.dims.clone(), content })
    }

    /// Bytes of all matrices as stored.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.values().filter(|place| place.dims.len() == 2).map(|place| place.bytes.len() as u64).sum()
    }

    /// Matrices and vectors: their names, dimensions and kinds. What has more dimensions is no parameter of a model that is known
    /// here.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = (&str, &[usize], Kind)> {
        let known = self.tensors.iter().filter(|(_, place)| place.dims.len() <= 2);
        known.filter_map(|(name, place)| Some((name.as_str(), &place.dims[..], *place.kind.as_ref().ok()?)))
    }

    fn place(&self, name: &str) -> Result<&Place, LoadError> {
        self.tensors.get(name).ok_or_else(|| {
            let nearest = nearest_name(name, self.names()).map(|found| format!("; it has {found}")).unwrap_or_default();
            let file = if self.files.len() == 1 { &self.files[0].name } else { INDEX };
            LoadError::TensorMissing { path: self.folder.show(file), name: name.into(), nearest }
        })
    }

    /// What the index promises is there, so that a shard of another model is noticed here and not in the middle of loading.
    fn check_index(&self) -> Result<(), LoadError> {
        if self.files.len() == 1 && self.files[0].name == SINGLE {
            return Ok(());
        }
        for (name, file) in read_index(&self.folder)?.unwrap_or_default() {
            if !self.has(&name) {
                return Err(LoadError::TensorMissing { path: self.folder.show(&file), name, nearest: String::new() });
            }
        }
        Ok(())
    }
}

fn read_config(folder: &Folder) -> Result<Value, LoadError> {
    let path = folder.show("config.json");
    let config = folder.read_json("config.json")?.ok_or_else(|| LoadError::Missing {
        path: path.clone(),
        hint: "a model's folder holds config.json, model.safetensors and tokenizer.json, as the hub has them",
    })?;
    if !config.is_object() {
        return Err(LoadError::Invalid {
            path,
            message: "not a JSON object; restore the file from where the model came from".into(),
        });
    }
    Ok(config)
}

/// The single file where there is one, as Hugging Face's own loader prefers it; else what the index names.
fn weight_files(folder: &Folder) -> Result<Vec<String>, LoadError> {
    let Folder::Disk(path) = folder else { return Ok(vec![SINGLE.into()]) };
    if path.join(SINGLE).exists() {
        return Ok(vec![SINGLE.into()]);
    }
    let Some(index) = read_index(folder)? else {
        let hint = if path.join("pytorch_model.bin").exists() {
            "there is only pytorch_model.bin; convert it with transformers: \
             AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)"
        } else {
            "copy the weights beside config.json, as model.safetensors or in shards with model.safetensors.index.json"
        };
        return Err(LoadError::Missing { path: folder.show(SINGLE), hint });
    };
    let mut files: Vec<String> = index.into_values().collect();
    files.sort();
    files.dedup();
    if files.is_empty() || files.len() > SHARDS_MAX {
        let message = format!("names {} weights files; 1 to {SHARDS_MAX} make a model", files.len());
        return Err(LoadError::Invalid { path: folder.show(INDEX), message });
    }
    Ok(files)
}

/// Tensor name to file name; `None` where there is no index.
fn read_index(folder: &Folder) -> Result<Option<BTreeMap<String, String>>, LoadError> {
    let Some(index) = folder.read_json(INDEX)? else { return Ok(None) };
    let invalid = |message: String| LoadError::Invalid { path: folder.show(INDEX), message };
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(invalid("has no weight_map; fetch it again".into()));
    };
    let mut names = BTreeMap::new();
    for (name, file) in map {
        let file = file.as_str().unwrap_or_default();
        // A shard lies beside its index: a path would let a model read files that are not its own.
        let plain = Path::new(file).file_name().is_some_and(|name| name == file);
        if !plain {
            return Err(invalid(format!("{name} lies in {file:?}, which is no file name; fetch it again")));
        }
        names.insert(name.clone(), file.to_string());
    }
    Ok(Some(names))
}

/// Maps one file, after a check of its beginning.
fn map(path: &Path) -> Result<Bytes, LoadError> {
    let show = path.display().to_string();
    let read = |source| LoadError::Read { path: show.clone(), source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let hint = "the index names it; copy it beside the others, or fetch the model again";
            return Err(LoadError::Missing { path: show, hint });
        }
        Err(error) => return Err(read(error)),
    };
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        return Err(LoadError::Invalid { path: show, message: "not a file".into() });
    }
    let mut start = Vec::new();
    (&mut file).take(POINTER.len() as u64).read_to_end(&mut start).map_err(read)?;
    if start == POINTER {
        let message = "a git-lfs pointer in place of the weights; run `git lfs pull` in the folder".into();
        return Err(LoadError::Invalid { path: show, message });
    }
    Bytes::map(&file).map_err(read)
}

/// The name that is most like `wanted`: the same last parts under another prefix.
fn nearest_name<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let shared = |name: &str| wanted.rsplit('.').zip(name.rsplit('.')).take_while(|(a, b)| a == b).count();
    names.map(|name| (shared(name), name)).filter(|(parts, _)| *parts >= 2).max_by_key(|(parts, _)| *parts).map(|(_, name)| name)
}

/// How a git-lfs pointer file begins.
const POINTER: &[u8] = b"version https://git-lfs";

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::PathBuf;

    use candle_core::{DType, Device, Tensor};
    use proptest::prelude::*;

    use super::*;

    /// A folder of a model with the tensors `a` and `b` in one file.
    struct Model {
        folder: tempfile::TempDir,
    }

    impl Model {
        fn new() -> Self {
            let model = Model { folder: tempfile::tempdir().unwrap() };
            model.write("config.json", r#"{"model_type": "gpt2"}"#);
            model.save(SINGLE, &[("x.a.weight", 3), ("x.b.weight", 5)]);
            model
        }

        fn sharded() -> Self {
            let model = Model::new();
            std::fs::remove_file(model.path(SINGLE)).unwrap();
            model.save("one.safetensors", &[("a", 3)]);
            model.save("two.safetensors", &[("b", 5)]);
            model.write(INDEX, r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#);
            model
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.path(name), text).unwrap();
        }

        /// Tensors of so many halves, counted up from 0.
        fn save(&self, name: &str, tensors: &[(&str, u32)]) {
            let values = |count: u32| Tensor::arange(0u32, count, &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
            let tensors: HashMap<&str, Tensor> = tensors.iter().map(|&(name, count)| (name, values(count))).collect();
            candle_core::safetensors::save(&tensors, self.path(name)).unwrap();
        }

        fn open(&self) -> Result<Checkpoint, LoadError> {
            Checkpoint::open(&Folder::from(self.folder.path()))
        }

        fn refused(&self) -> String {
            match self.open() {
                Ok(_) => panic!("should be refused"),
                Err(error) => error.to_string(),
            }
        }
    }

    fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
        checkpoint.stored(name).unwrap().floats()
    }

    #[test]
    fn tensors_come_as_they_are_stored() {
        let checkpoint = Model::new().open().unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["x.a.weight", "x.b.weight"]);
        assert_eq!(checkpoint.stored("x.a.weight").unwrap().kind, Kind::F16);
        assert_eq!(values(&checkpoint, "x.a.weight"), [0.0, 1.0, 2.0]);
        assert_eq!((checkpoint.shape("x.b.weight").unwrap(), checkpoint.parameters().count()), (vec![5], 2));
        assert_eq!(checkpoint.config()["model_type"], "gpt2");
    }

    #[test]
    fn shards_are_one_checkpoint() {
        let checkpoint = Model::sharded().open().unwrap();
        assert_eq!((values(&checkpoint, "a"), values(&checkpoint, "b").len()), (vec![0.0, 1.0, 2.0], 5));
    }

    #[test]
    fn the_bundled_model_is_read_from_the_binary() {
        let checkpoint = Checkpoint::open(&Folder::Bundled).unwrap();
        assert_eq!(checkpoint.shape("wte.weight").unwrap(), [4096, 256]);
        let weights = checkpoint.stored("wte.weight").unwrap();
        assert_eq!((weights.kind, &weights.dims[..]), (Kind::F16, &[4096, 256][..]));
    }

    #[test]
    fn a_missing_tensor_is_named_with_the_one_that_looks_alike() {
        let checkpoint = Model::new().open().unwrap();
        let error = checkpoint.shape("transformer.a.weight").unwrap_err().to_string();
        assert!(error.contains("no tensor transformer.a.weight; it has x.a.weight"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let model = Model::new();
        std::fs::remove_file(model.path(SINGLE)).unwrap();
        assert!(model.refused().contains("model.safetensors is missing: copy the weights"));
        model.write("pytorch_model.bin", "");
        assert!(model.refused().contains("safe_serialization=True"));
        std::fs::remove_file(model.path("config.json")).unwrap();
        assert!(model.refused().contains("config.json is missing"));
        let model = Model::sharded();
        std::fs::remove_file(model.path("two.safetensors")).unwrap();
        assert!(model.refused().contains("two.safetensors is missing: the index names it"));
    }

    #[test]
    fn what_is_damaged_is_named() {
        let model = Model::new();
        model.write("config.json", "{");
        assert!(model.refused().contains("config.json is not valid JSON"));
        model.write("config.json", "[]");
        assert!(model.refused().contains("not a JSON object"));

        let model = Model::new();
        let whole = std::fs::read(model.path(SINGLE)).unwrap();
        std::fs::write(model.path(SINGLE), &whole[..whole.len() - 1]).unwrap();
        assert!(model.refused().contains(&format!("({} bytes): it is cut short or damaged", whole.len() - 1)));
        model.write(SINGLE, "");
        assert!(model.refused().contains("(0 bytes)"));
        model.write(SINGLE, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n");
        assert!(model.refused().contains("git lfs pull"));
    }

    #[test]
    fn an_index_that_makes_no_sense_is_refused() {
        let model = Model::sharded();
        model.write(INDEX, "{}");
        assert!(model.refused().contains("no weight_map"));
        model.write(INDEX, r#"{"weight_map": {}}"#);
        assert!(model.refused().contains("names 0 weights files"));
        for path in ["../one.safetensors", "/etc/passwd", "", "..", "a/b", "one.safetensors/"] {
            model.write(INDEX, &serde_json::json!({"weight_map": {"a": path}}).to_string());
            assert!(model.refused().contains("no file name"), "{path}");
        }
        model.write(INDEX, r#"{"weight_map": {"c": "one.safetensors"}}"#);
        assert!(model.refused().contains("has no tensor c"));
    }

    proptest! {
        #[test]
        fn mutilated_weights_never_panic(
            cut in prop::option::of(0usize..400), changes in prop::collection::vec((0usize..400, any::<u8>()), 0..4),
        ) {
            let model = Model::new();
            let mut bytes = std::fs::read(model.path(SINGLE)).unwrap();
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            bytes.truncate(cut.unwrap_or(usize::MAX).min(bytes.len()));
            std::fs::write(model.path(SINGLE), &bytes).unwrap();
            if let Ok(checkpoint) = model.open() {
                for name in checkpoint.names().map(str::to_string).collect::<Vec<_>>() {
                    let _ = checkpoint.stored(&name).map(|stored| stored.floats());
                }
            }
        }
    }
}
