//! `banyan bench count`, which help does not show: a small fixed case for `tests/instructions`, which counts the instructions of
//! the engine's passes. One thread and one sequence, so that each run executes the same ones.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use banyan_engine::{DeviceChoice, Dtype, Engine, LoadOptions, Model, Options, Output, Progress, Request, SequenceId, Source};

use crate::{exit::Failure, output};

/// As many rows as take the wide tiles and the narrow ones.
const PROMPT: u32 = 15;
const TOKENS: u32 = 16;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The weights' type.
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: Dtype,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let computing = tokio::task::spawn_blocking(move || compute(args.dtype));
    output::print(&computing.await.context("the case ended")??)
}

/// Says what computed, so that counts of different kernels are not compared.
fn compute(dtype: Dtype) -> anyhow::Result<String> {
    let options = LoadOptions { device: DeviceChoice::Cpu, dtype, ..LoadOptions::default() };
    let model = Arc::new(Model::load(&Source::bundled(), &options, &Progress::silent())?);
    let kernels = model.kernels();
    let (engine, mut steps) =
        Engine::start(model, Options { batch_max: 1, threads: Some(1), speculate: false, ..Options::default() })?;
    let prompt = (0..PROMPT).map(|at| 1 + at * 31 % 200).collect();
    engine.submit(Request::fixed(SequenceId(1), prompt, TOKENS));
    while let Some(step) = steps.blocking_recv() {
        for output in step.outputs {
            match output {
                Output::Finished { .. } => return Ok(format!("{kernels} in {}", engine.info().first().dtype)),
                Output::Refused { refusal, .. } => bail!("the engine refused the case: {refusal}"),
                _ => {}
            }
        }
    }
    bail!("the engine ended")
}
