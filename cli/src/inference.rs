//! What a node infers with: the flags for model and engine, loading the weights once, and engines that share them.

use std::{sync::Arc, time::Duration};

use banyan_engine::{
    Calibration, DeviceChoice, Dtype, Engine, Info, KvDtype, LoadOptions, Model, Options, Progress, Source, calibrate, fake,
};
use banyan_node::Routing;

use crate::{
    args::{self, Sequences},
    exit::{Code, Failure},
    fleet, output,
};

/// Which model, and how to load it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// A folder in Hugging Face layout, a .gguf file, a hub name like owner/name, owner/name@revision or owner/name/file.gguf,
    /// or `banyan-tiny`, which is in this program. Without it: gpt2 from the cache or the hub, or else banyan-tiny.
    #[arg(long, env = "BANYAN_MODEL", value_name = "MODEL")]
    pub(crate) model: Option<String>,
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
    /// Finds and loads the model, where it fits into memory beside that much KV of each engine; blocks for as long as the download
    /// and the disk take.
    pub(crate) fn load(&self, kv_memory: Option<u64>, engines: usize) -> Result<Model, Failure> {
        let options = LoadOptions { device: self.device, dtype: self.dtype, kv_dtype: self.kv_dtype, kv_memory, engines };
        Ok(Model::load(&find(self.model.as_deref())?, &options, &Progress::stderr()).map_err(anyhow::Error::new)?)
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
    /// What computes: `local` runs a model here, `fake` invents a text without weights, to try trees out.
    #[arg(long, env = "BANYAN_ENGINE", value_enum, default_value = "local")]
    engine: Kind,
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
enum Kind {
    Local,
    Fake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Speculate {
    Off,
    Auto,
}

/// What engines are made of: read once, and shared by all of a process.
pub(crate) enum Weights {
    Local {
        model: Arc<Model>,
        /// Where something was left to be measured.
        calibration: Option<Calibration>,
    },
    Fake,
}

impl InferenceArgs {
    /// Whether somebody asked for a model, which a root has no use for.
    pub(crate) fn names_a_model(&self) -> bool {
        self.model.model.is_some()
    }

    /// Finds and loads the model for the `nodes` of this process, and measures once for all of them what is left to be
    /// measured; takes as long as the download and the disk, and a fifth of a second.
    pub(crate) async fn load(&self, nodes: usize) -> Result<Weights, Failure> {
        if self.engine == Kind::Fake {
            return Ok(Weights::Fake);
        }
        let args = self.clone();
        let loading = tokio::task::spawn_blocking(move || {
            let model = Arc::new(args.model.load(args.kv_memory, nodes)?);
            let measures = args.batch == Sequences::Auto || args.busy_at == Sequences::Auto;
            let measured = measures.then(|| calibrate(&model, &args.options(nodes))).transpose();
            Ok::<_, Failure>(Weights::Local { calibration: measured.map_err(anyhow::Error::new)?, model })
        });
        loading.await.map_err(|error| anyhow::Error::new(error).context("loading the model failed"))?
    }

    /// Of a node, one of the `nodes` in this process.
    fn options(&self, nodes: usize) -> Options {
        let threads = self.threads.map(usize::from);
        let speculate = self.speculate == Speculate::Auto;
        Options { threads, kv_memory: self.kv_memory, engines: nodes, speculate, ..Options::default() }
    }

    /// With how many sequences a node is busy; `None`: with as many as it batches.
    pub(crate) fn busy_at(&self, weights: &Weights) -> Option<u32> {
        self.busy_at.given().or(match weights {
            Weights::Local { calibration, .. } => calibration.as_ref().map(|measured| measured.busy_at),
            Weights::Fake => None,
        })
    }

    /// Starts the engine of one of the `nodes` in this process.
    pub(crate) fn start(&self, weights: &Weights, nodes: usize) -> Result<fleet::Engine, Failure> {
        match weights {
            Weights::Local { model, calibration } => {
                let measured = calibration.as_ref().map(|measured| measured.batch_max);
                let options = self.options(nodes);
                let options = Options { batch_max: self.batch.given().or(measured).unwrap_or(options.batch_max), ..options };
                Ok(Engine::start(Arc::clone(model), options).map_err(anyhow::Error::new)?)
            }
            Weights::Fake => {
                let defaults = fake::Options::default();
                let batch_max = self.batch.given().unwrap_or(defaults.batch_max);
                let model = self.model.model.clone().unwrap_or_else(|| defaults.model.clone());
                Ok(Engine::fake(fake::Options {
                    model,
                    batch_max,
                    token_time: self.token_time,
                    speculate: self.speculate == Speculate::Auto,
                    ..defaults
                }))
            }
        }
    }
}

/// Says what an engine serves, in a line, and with how many sequences its node is busy.
pub(crate) fn describe(info: &Info, busy_at: Option<u32>) -> String {
    let mut together = format!("{} at once", output::count(info.batch_max as usize, "sequence"));
    if let Some(busy_at) = busy_at.filter(|busy_at| *busy_at < info.batch_max) {
        together.push_str(&format!(" (busy at {busy_at})"));
    }
    if info.parameters == 0 {
        return format!("a fake engine that serves as {}, {together}", info.model);
    }
    let millions = info.parameters as f64 / 1e6;
    format!("{} ({millions:.1} million parameters) on {} in {}, {together}", info.model, info.device, info.dtype)
}
