//! What this machine has to compute with, for people who ask why something is slow or does not start.

use crate::{kernels::Isa, memory, threads};

/// What engines of this process can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// Cores.
    pub cores: usize,
    /// The instructions that the kernels take.
    pub instructions: &'static str,
    /// Bytes that are free for a model, where the system says so.
    pub memory: Option<u64>,
    /// Whether this program was built for GPUs, and can reach one.
    pub gpu: Gpu,
}

/// How it stands with GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gpu {
    /// This build knows none.
    NotBuilt,
    /// There is none, or its driver does not answer.
    None,
    /// The first one answers.
    Usable,
}

impl Hardware {
    /// Looks.
    pub fn here() -> Hardware {
        let gpu = match () {
            () if !cfg!(feature = "cuda") => Gpu::NotBuilt,
            () if candle_core::Device::new_cuda(0).is_ok() => Gpu::Usable,
            () => Gpu::None,
        };
        Hardware { cores: threads::available(), instructions: Isa::detect().name(), memory: memory::available(), gpu }
    }
}
