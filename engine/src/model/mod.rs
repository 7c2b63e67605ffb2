//! A loaded model: network, tokenizer and chat template, shared by the engines of a process.

mod evaluate;
mod fields;
mod fit;
mod gpt2;
mod llama;
mod network;
mod options;
mod rope;
mod weights;

use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use candle_core::Device;
use sha2::{Digest, Sha256};
use tracing::info;

use crate::engine::{Info, Served};
use crate::kernels::{Isa, Pool, give_back};
use crate::kv::{self, Storage};
use crate::ops::Compute;
use crate::{Checkpoint, Folder, LoadError, Progress, Source, Template, Tokenizer, memory};

pub(crate) use evaluate::Reading;
pub(crate) use network::{Config, Network};
pub use options::{DeviceChoice, Dtype, KvDtype, LoadOptions, RandomShape, UnknownChoice};
use weights::{Form, From, Weights};

/// Weights, tokenizer and template. They never change: several engines share one by `Arc`.
pub struct Model {
    pub(crate) network: Network,
    pub(crate) config: Config,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: Template,
    name: String,
    created: u64,
    device: Device,
    dtype: Dtype,
    kv_dtype: KvDtype,
    form: Form,
    isa: Isa,
    fingerprint: String,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("name", &self.name).field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a model's files and brings its weights into the form in which they are computed with; what was read is let go.
    pub fn load(source: &Source, options: &LoadOptions, progress: &Progress) -> Result<Model, LoadError> {
        let device = place(options)?;
        let checkpoint = Checkpoint::open(source.folder())?;
        let form = if device.is_cpu() { Some(Form::Packed(options.dtype)) } else { Form::on_gpu(options.dtype, &checkpoint) };
        let form = form.ok_or_else(|| {
            let gpu = device.tag();
            LoadError::Unsupported(format!(
                "on {gpu} this version computes in f32, f16 and bf16: take --dtype bf16, or --device cpu"
            ))
        })?;
        let model = Model::load_on(source, &checkpoint, device, form, Isa::detect(), options, progress);
        drop(checkpoint);
        give_back();
        model
    }

    /// Noise in the exact shape of a model, with the bundled one's tokenizer: for benchmarks, on the CPU.
    pub fn random(shape: RandomShape, dtype: Dtype, kv_dtype: KvDtype) -> Result<Model, LoadError> {
        let config = match shape {
            RandomShape::Gpt2 => Config::Gpt2(gpt2::Config::gpt2()),
            RandomShape::Gpt2Large => Config::Gpt2(gpt2::Config::gpt2_large()),
            RandomShape::Llama1b => Config::Llama(llama::Config::llama_1b()),
        };
        Model::random_of(&format!("{shape}-random"), config, Form::Packed(dtype), kv_dtype, Isa::detect())
    }

    /// Noise in some shape.
    pub(crate) fn random_of(name: &str, config: Config, form: Form, kv_dtype: KvDtype, isa: Isa) -> Result<Model, LoadError> {
        let weights = Weights::new(From::Random, form, Device::Cpu)?;
        let network = Network::load(config.clone(), &weights)?;
        let tokenizer = Tokenizer::open(&Folder::Bundled)?;
        Model::finish((name.into(), 0), &Folder::Bundled, config, network, tokenizer, &weights, (kv_dtype, isa))
    }

    /// Tests compare forms and instruction sets.
    #[cfg(test)]
    pub(crate) fn load_as(source: &Source, device: Device, form: Form, kv_dtype: KvDtype, isa: Isa) -> Result<Model, LoadError> {
        let options = LoadOptions { kv_dtype, ..LoadOptions::default() };
        Model::load_on(source, &Checkpoint::open(source.folder())?, device, form, isa, &options, &Progress::silent())
    }

    fn load_on(
        source: &Source,
        checkpoint: &Checkpoint,
        device: Device,
        form: Form,
        isa: Isa,
        options: &LoadOptions,
        progress: &Progress,
    ) -> Result<Model, LoadError> {
        let folder = source.folder();
        let config = Config::read(checkpoint.config(), &folder.show("config.json"))?;
        let room = fit::Room { device: device.tag(), available: memory::available_on(&device) };
        fit::check(source.name(), checkpoint, &config, form, options, &room)?;
        let (body, known_by) = config.body();
        let prefix = if checkpoint.has(&format!("{body}{known_by}")) { body } else { "" };
        let loading = progress.loading(source.name(), checkpoint.bytes());
        let weights = Weights::new(From::Checkpoint(checkpoint, prefix, loading), form, device)?;
        // The tokenizer takes as long as some layers, on one thread.
        let (network, tokenizer) = thread::scope(|scope| {
            let tokenizer = scope.spawn(|| Tokenizer::open(folder).inspect(|_| give_back()));
            let network = Network::load(config.clone(), &weights);
            (network, tokenizer.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        let name = (source.name().into(), source.created());
        let model = Model::finish(name, folder, config, network?, tokenizer?, &weights, (options.kv_dtype, isa))?;
        info!(model = model.name, parameters = model.config.parameters(), fingerprint = model.fingerprint, "loaded");
        Ok(model)
    }

    fn finish(
        (name, created): (String, u64),
        folder: &Folder,
        config: Config,
        network: Network,
        tokenizer: Tokenizer,
        weights: &Weights<'_>,
        (kv_dtype, isa): (KvDtype, Isa),
    ) -> Result<Model, LoadError> {
        let (tokens, rows) = (tokenizer.vocabulary(), config.vocabulary());
        if tokens > rows {
            let message = format!("the tokenizer has {tokens} tokens and the model only {rows}: they are not of one model");
            return Err(LoadError::Invalid { path: folder.show("tokenizer.json"), message });
        }
        let dtype = weights.dtype();
        let kv_dtype = kv_dtype.settled(dtype);
        let template = Template::open(folder)?;
        let mut model = Model {
            network,
            config,
            tokenizer: Arc::new(tokenizer),
            template,
            name,
            created,
            device: weights.device.clone(),
            dtype,
            kv_dtype,
            form: weights.form,
            isa,
            fingerprint: String::new(),
        };
        let mut hash = Sha256::new();
        hash.update(weights.identity());
        let (config, dtype, kernels, device) = (&model.config, model.dtype(), model.kernels(), model.device.tag());
        hash.update(format!("{config:?} {dtype} {kv_dtype} {kernels} {device} {}", env!("CARGO_PKG_VERSION")));
        // Half of it is enough to tell models apart, and short enough to read out.
        model.fingerprint = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Ok(model)
    }

    pub(crate) fn info(&self, batch_max: u32) -> Info {
        let served = Served {
            model: self.name.clone(),
            context: self.config.kv_shape().context,
            chat: self.template.own(),
            dtype: self.dtype(),
            fingerprint: self.fingerprint.clone(),
            parameters: self.config.parameters(),
            created: self.created,
        };
        Info { models: vec![served], device: self.device.tag(), batch_max, queues: true }
    }

    /// KV memory for an engine.
    pub(crate) fn cache(&self, pages: u32) -> candle_core::Result<Storage> {
        let shape = self.config.kv_shape();
        match self.form {
            Form::Packed(_) => Storage::for_kernels(shape, self.kv_dtype, pages),
            Form::Plain(dtype) => Storage::plain(shape, pages, dtype, &self.device),
        }
    }

    /// What an engine with these threads computes with.
    pub(crate) fn compute<'a>(&self, pool: &'a Pool) -> Compute<'a> {
        match self.form {
            Form::Packed(_) => Compute::Kernels(self.isa, pool),
            Form::Plain(_) => Compute::Plain,
        }
    }

    /// As what most weights of the layers are stored.
    fn dtype(&self) -> String {
        match self.form {
            Form::Packed(_) => self.dtype.to_string(),
            Form::Plain(dtype) => dtype.as_str().to_owned(),
        }
    }

    /// What computes: the name of a kernel set, or candle.
    pub fn kernels(&self) -> String {
        match self.form {
            Form::Packed(_) => self.isa.to_string(),
            Form::Plain(_) => "candle".to_owned(),
        }
    }

    /// What a checkpoint calls the matrix of such a size.
    pub(crate) fn product(&self, inputs: usize, columns: usize) -> Option<&'static str> {
        self.config.product(inputs, columns)
    }

    /// Whether a row's bits are the same in any company.
    pub(crate) fn is_exact(&self) -> bool {
        matches!(self.form, Form::Packed(_))
    }

    /// Bytes of a KV page of all layers.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.kv_shape().page_bytes(self.kv_dtype())
    }

    /// Bytes that are free where it computes, as far as that is known.
    pub(crate) fn memory_available(&self) -> Option<u64> {
        memory::available_on(&self.device)
    }

    pub(crate) fn kv_shape(&self) -> kv::Shape {
        self.config.kv_shape()
    }

    /// As what keys and values are stored.
    pub(crate) fn kv_dtype(&self) -> KvDtype {
        self.kv_dtype
    }
}

/// A device's name in info and fingerprint.
trait Tag {
    fn tag(&self) -> String;
}

impl Tag for Device {
    fn tag(&self) -> String {
        match self.location() {
            candle_core::DeviceLocation::Cpu => "cpu".into(),
            candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        }
    }
}

/// The device that options ask for.
fn place(options: &LoadOptions) -> Result<Device, LoadError> {
    let gpu = match options.device {
        DeviceChoice::Cpu => return Ok(Device::Cpu),
        DeviceChoice::Auto if !candle_core::utils::cuda_is_available() => return Ok(Device::Cpu),
        DeviceChoice::Auto => 0,
        DeviceChoice::Cuda(gpu) => gpu,
    };
    if !cfg!(feature = "cuda") {
        let message = format!("this build can't use cuda:{gpu}: build with `--features cuda`, or take --device cpu");
        return Err(LoadError::Device(message));
    }
    match Device::new_cuda(gpu) {
        Ok(_) if options.kv_dtype != KvDtype::Auto => Err(LoadError::Unsupported(format!(
            "on cuda:{gpu} keys and values are kept as the weights are: leave --kv-dtype out, or take --device cpu"
        ))),
        Ok(device) => Ok(device),
        // With `auto`, a GPU that is there and does not work is still worth an error: silently slow is worse.
        Err(error) => {
            Err(LoadError::Device(format!("cuda:{gpu} can't be used ({error}): check nvidia-smi, or take --device cpu")))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
