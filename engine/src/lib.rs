//! Models: loading, templates, tokenizer, kernels, KV cache, sampling, continuous batching.
//!
//! Knows no tree and no network (but the hub's). A caller submits [`Request`]s to an [`Engine`] and receives [`Step`]s.

mod account;
mod admission;
pub mod bench;
mod bundled;
mod bytes;
mod calibrate;
mod checkpoint;
mod draft;
mod engine;
mod error;
pub mod fake;
mod folder;
mod gguf;
mod hardware;
mod hub;
mod kernels;
mod kv;
mod language;
pub mod limits;
mod local;
mod memory;
mod model;
mod ops;
mod pages;
mod prefixes;
mod profile;
mod progress;
pub mod quality;
mod ragged;
mod request;
mod room;
mod runner;
mod sampler;
pub mod scheduler;
mod sequence;
mod several;
mod source;
mod stored;
mod telling;
mod template;
mod text;
pub mod threads;
mod tokenizer;

pub use account::Account;
pub use calibrate::{Calibration, calibrate};
pub use checkpoint::Checkpoint;
pub use engine::{Engine, Info, Options, Order, Orders, Served, StartError};
pub use error::{LoadError, ResolveError};
pub use folder::Folder;
pub use hardware::{Gpu, Hardware};
pub use hub::{Cached, Checked, Hub, Token, Verdict};
pub use model::{DeviceChoice, Dtype, KvDtype, LoadOptions, Model, RandomShape, UnknownChoice};
pub use profile::Profile;
pub use progress::Progress;
pub use request::{
    FinishReason, LogitBias, Message, Output, PIECE, Prompt, Refusal, Request, Sampling, SequenceId, Step, Tell, TokenLogprob,
    Told, Usage,
};
pub use room::KvMemory;
pub use sampler::{Logprob, Sampled, Sampler};
pub use source::Source;
pub use template::{Rendered, Template};
pub use text::{Pushed, TextStream};
pub use tokenizer::Tokenizer;
