//! What a node infers with: the flags for model and engine, loading the weights once, and engines that share them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use banyan_engine::{
    Calibration, DeviceChoice, Dtype, Engine, Info, KvDtype, LoadOptions, Model, Options, Progress, Served, Source, calibrate,
    fake,
};
use banyan_etcd::Policy;
use banyan_node::Routing;
use banyan_proto::PROVIDER_PREFIX;
use banyan_provider::Config as Providers;

use crate::{
    args::{self, Sequences},
    config::Part,
    exit::{Code, Failure},
    fleet, output,
};

/// Which models, and how to load them.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// A folder in Hugging Face layout, a .gguf file, a hub name like owner/name, owner/name@revision or owner/name/file.gguf,
    /// or `banyan-tiny`, which is in this program. Without it: gpt2 from the cache or the hub, or else banyan-tiny. Repeated, a node
    /// serves several, whose sequences count together.
    #[arg(long = "model", env = "BANYAN_MODEL", value_name = "MODEL", value_delimiter = ',')]
    pub(crate) models: Vec<String>,
    /// The weights' type: auto, f32, bf16, q8 or q4.
    #[arg(long, env = "BANYAN_DTYPE", value_name = "TYPE", default_value = "auto")]
    pub(crate) dtype: Dtype,
    /// As what keys and values are kept: auto, f32, f16 or q8; auto is f32 with weights in f32, else f16.
    #[arg(long, env = "BANYAN_KV_DTYPE", value_name = "TYPE", default_value = "auto")]
    pub(crate) kv_dtype: KvDtype,
    /// Where to compute: auto, cpu or cuda:N.
    #[arg(long, env = "BANYAN_DEVICE", value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: DeviceChoice,
}

impl ModelArgs {
    /// Finds and loads the models, where they fit into memory beside that much KV of each engine; blocks for as long as the
    /// download and the disk take.
    pub(crate) fn load(&self, kv_memory: Option<u64>, nodes: usize) -> Result<Vec<Model>, Failure> {
        let wanted: Vec<Option<&str>> = match &self.models[..] {
            [] => vec![None],
            models => models.iter().map(|model| Some(model.as_str())).collect(),
        };
        let engines = nodes * wanted.len();
        let options = LoadOptions { device: self.device, dtype: self.dtype, kv_dtype: self.kv_dtype, kv_memory, engines };
        let load = |model| Ok(Model::load(&find(model)?, &options, &Progress::stderr()).map_err(anyhow::Error::new)?);
        wanted.into_iter().map(load).collect()
    }
}

/// Finds the model that `--model` names; blocks for as long as the download takes.
pub(crate) fn find(model: Option<&str>) -> Result<Source, Failure> {
    Source::resolve(model, &Progress::stderr()).map_err(|error| Failure::new(Code::NotFound, error))
}

/// With what a node infers, and when it passes queries on.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct InferenceArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// What computes: `local` runs a model here, `fake` invents a text without weights, to try trees out, `provider` asks the
    /// services in the file of --providers.
    #[arg(long, env = "BANYAN_ENGINE", value_enum, default_value = "local")]
    pub(crate) engine: Kind,
    /// A file of services that others run, with their models and keys: docs/providers.md says what is in it.
    #[arg(long, env = "BANYAN_PROVIDERS", value_name = "FILE")]
    providers: Option<PathBuf>,
    /// Those of banyan.toml.
    #[arg(skip)]
    pub(crate) providers_table: Option<Part>,
    /// How many sequences a node runs before it calls itself busy; `auto` measures at start with how many a step takes twice
    /// as long as with one.
    #[arg(long, env = "BANYAN_BUSY_AT", value_name = "N", default_value = "auto")]
    busy_at: Sequences,
    /// How many sequences run together at most; `auto` measures at start from where on more of them hardly bring more
    /// tokens a second.
    #[arg(long, env = "BANYAN_BATCH", value_name = "N", default_value = "auto")]
    pub(crate) batch: Sequences,
    /// CPU threads of each engine at most; by default as many as cores. The nodes of a process share its cores: those that are
    /// busy divide them.
    #[arg(long, env = "BANYAN_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Memory for the KV of an engine's sequences, such as 2GB or 512MiB; by default the engines of a process take a quarter of
    /// what is available, or less where the whole batch needs no more.
    #[arg(long, env = "BANYAN_KV_MEMORY", value_name = "SIZE", value_parser = args::size)]
    kv_memory: Option<u64>,
    /// Whether to guess at tokens that follow, and check the guesses in the same step: `auto` does where it pays. The text is the
    /// same.
    #[arg(long, env = "BANYAN_SPECULATE", value_enum, value_name = "WHEN", default_value = "auto")]
    speculate: Speculate,
    /// How a busy node picks a child: round-robin, classic, weighted or least-busy.
    #[arg(long, env = "BANYAN_ROUTING", value_name = "HOW", default_value = "round-robin")]
    pub(crate) routing: Routing,
    /// With --engine fake: how long a step takes.
    #[arg(long, env = "BANYAN_TOKEN_TIME", value_name = "TIME", default_value = "20ms", value_parser = args::duration)]
    token_time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Local,
    Fake,
    Provider,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Speculate {
    Off,
    Auto,
}

/// What engines are made of: read once, and shared by all of a process.
pub(crate) enum Weights {
    /// Each with what was measured, where something was left to be.
    Local(Vec<(Arc<Model>, Option<Calibration>)>),
    Fake,
    Provider(Providers),
}

impl Weights {
    /// When a provider's models stand in for others.
    pub(crate) fn policy(&self) -> Option<Policy> {
        let Weights::Provider(providers) = self else { return None };
        Some(match providers.policy {
            banyan_provider::Policy::Spill => Policy::Spill,
            banyan_provider::Policy::Always => Policy::Always,
            banyan_provider::Policy::Never => Policy::Never,
        })
    }
}

impl InferenceArgs {
    /// Whether somebody asked for a model, which a root has no use for.
    pub(crate) fn names_a_model(&self) -> bool {
        !self.model.models.is_empty()
    }

    /// Whether somebody named services that others run.
    pub(crate) fn has_providers(&self) -> bool {
        self.providers.is_some() || self.providers_table.is_some()
    }

    /// Whether a flag did, or a variable: for this command, and not for all that is started here.
    pub(crate) fn names_providers(&self) -> bool {
        self.providers.is_some()
    }

    /// The services of --providers, for a node of their own. Keys that two nodes count apart would be spent twice.
    pub(crate) fn providers(&self) -> Result<Option<Weights>, Failure> {
        let providers = match (&self.providers, &self.providers_table) {
            (Some(file), _) => Providers::read(file),
            (None, Some(part)) => Providers::of(part.table.clone(), &part.path),
            (None, None) if self.engine == Kind::Provider => {
                return Err(Failure::told(
                    Code::Usage,
                    "--engine provider needs --providers FILE, or [providers] in banyan.toml",
                ));
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(Weights::Provider(providers.map_err(anyhow::Error::new)?)))
    }

    /// Finds and loads the model for the `nodes` of this process, and measures once for all of them what is left to be
    /// measured; takes as long as the download and the disk, and a fifth of a second.
    pub(crate) async fn load(&self, nodes: usize) -> Result<Weights, Failure> {
        match self.engine {
            Kind::Fake => return Ok(Weights::Fake),
            Kind::Provider => {
                return Ok(self.providers()?.expect("whoever asks for providers is refused where there are none"));
            }
            Kind::Local => {}
        }
        let args = self.clone();
        let loading = tokio::task::spawn_blocking(move || {
            let measures = args.batch == Sequences::Auto || args.busy_at == Sequences::Auto;
            let measured = |model: Model| {
                let model = Arc::new(model);
                let calibration = measures.then(|| calibrate(&model, &args.options(nodes))).transpose();
                Ok((model, calibration.map_err(anyhow::Error::new)?))
            };
            let models = args.model.load(args.kv_memory, nodes)?.into_iter().map(measured);
            Ok::<_, Failure>(Weights::Local(models.collect::<Result<_, Failure>>()?))
        });
        loading.await.map_err(|error| anyhow::Error::new(error).context("loading the model failed"))?
    }

    /// Of a node, one of the `nodes` in this process.
    fn options(&self, nodes: usize) -> Options {
        let threads = self.threads.map(usize::from);
        let speculate = self.speculate == Speculate::Auto;
        let engines = nodes * self.model.models.len().max(1);
        Options { threads, kv_memory: self.kv_memory, engines, speculate, ..Options::default() }
    }

    /// With how many sequences a node is busy; `None`: with as many as it batches.
    pub(crate) fn busy_at(&self, weights: &Weights) -> Option<u32> {
        self.busy_at.given().or(match weights {
            // Together they are no faster than the slowest alone.
            Weights::Local(models) => {
                models.iter().filter_map(|(_, calibration)| calibration.as_ref()).map(|measured| measured.busy_at).min()
            }
            Weights::Fake | Weights::Provider(_) => None,
        })
    }

    /// Starts the engine of one of the `nodes` in this process.
    pub(crate) fn start(&self, weights: &Weights, nodes: usize) -> Result<fleet::Engine, Failure> {
        match weights {
            Weights::Local(models) => {
                let one = |(model, calibration): &(Arc<Model>, Option<Calibration>)| {
                    let measured = calibration.as_ref().map(|measured| measured.batch_max);
                    let options = self.options(nodes);
                    let options = Options { batch_max: self.batch.given().or(measured).unwrap_or(options.batch_max), ..options };
                    Engine::start(Arc::clone(model), options)
                };
                together(models.iter().map(one).collect::<Result<_, _>>().map_err(anyhow::Error::new)?)
            }
            Weights::Provider(providers) => {
                Ok(banyan_provider::start(providers.clone(), PROVIDER_PREFIX).map_err(anyhow::Error::new)?)
            }
            Weights::Fake => {
                let defaults = fake::Options::default();
                let batch_max = self.batch.given().unwrap_or(defaults.batch_max);
                let one = |model: String| {
                    Engine::fake(fake::Options {
                        model,
                        batch_max,
                        token_time: self.token_time,
                        speculate: self.speculate == Speculate::Auto,
                        ..defaults.clone()
                    })
                };
                match &self.model.models[..] {
                    [] => Ok(one(defaults.model.clone())),
                    models => together(models.iter().cloned().map(one).collect()),
                }
            }
        }
    }
}

/// One engine as it is, several behind one handle.
fn together(mut engines: Vec<fleet::Engine>) -> Result<fleet::Engine, Failure> {
    if engines.len() == 1 {
        return Ok(engines.remove(0));
    }
    Ok(Engine::several(engines).map_err(anyhow::Error::new)?)
}

/// Says what an engine serves, in a line, and with how many sequences its node is busy.
pub(crate) fn describe(info: &Info, busy_at: Option<u32>) -> String {
    let mut together = format!("{} at once", output::count(info.batch_max as usize, "sequence"));
    if let Some(busy_at) = busy_at.filter(|busy_at| *busy_at < info.batch_max) {
        together.push_str(&format!(" (busy at {busy_at})"));
    }
    let names: Vec<&str> = info.models.iter().map(|served| served.model.as_str()).collect();
    if info.device == "provider" {
        return format!("{} by others, {together}", names.join(", "));
    }
    if info.first().parameters == 0 {
        return format!("a fake engine that serves as {}, {together}", names.join(", "));
    }
    let sized = |served: &Served| {
        format!("{} ({:.1} million parameters) in {}", served.model, served.parameters as f64 / 1e6, served.dtype)
    };
    let models: Vec<String> = info.models.iter().map(sized).collect();
    format!("{} on {}, {together}", models.join(" and "), info.device)
}
