//! Whether a model fits into memory, before any of it is loaded.

use candle_core::DType;

use super::LoadOptions;
use super::network::Config;
use super::weights::{Form, Role};
use crate::kv::PAGE_TOKENS;
use crate::{Checkpoint, Dtype, LoadError};

/// Where a model is going to be.
pub(super) struct Room {
    /// By its name.
    pub(super) device: String,
    /// Bytes, where that is known.
    pub(super) available: Option<u64>,
}

/// Refuses a model whose weights and KV memory are more than the available bytes: for each engine the `kv_memory` that was
/// asked for, or the least that serves one sequence. Also an asked one that serves none.
pub(super) fn check(
    name: &str,
    checkpoint: &Checkpoint,
    config: &Config,
    form: Form,
    options: &LoadOptions,
    room: &Room,
) -> Result<(), LoadError> {
    let (shape, engines) = (config.kv_shape(), options.engines.max(1) as u64);
    // Where the weights are as the checkpoint has them, f32 is the most that keys and values can become.
    let page_bytes = shape.page_bytes(options.kv_dtype.settled(form.dtype(Role::Projection, Dtype::F32)));
    crate::room::room(shape.context, page_bytes, 1, options.kv_memory, 1, None)?;
    let Some(available) = room.available else { return Ok(()) };
    let each = options.kv_memory.unwrap_or(crate::room::least_bytes(shape.context, page_bytes));
    let (weights, kv) = (weights_bytes(checkpoint, config, form), each.saturating_mul(engines));
    if weights.saturating_add(kv) <= available {
        return Ok(());
    }
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    let (asked, narrower) = match form {
        Form::Packed(asked) => (asked.to_string(), vec![Form::Packed(Dtype::Q8), Form::Packed(Dtype::Q4)]),
        Form::Plain(asked) => (asked.as_str().to_owned(), vec![Form::Plain(DType::BF16)]),
    };
    let smaller = narrower.into_iter().find_map(|form| {
        let (dtype, bytes) = (form.dtype(Role::Projection, Dtype::F32), weights_bytes(checkpoint, config, form));
        (bytes < weights && bytes.saturating_add(kv) <= available)
            .then(|| format!("take --dtype {dtype} ({} MB), ", megabytes(bytes)))
    });
    let (on, otherwise) = match form {
        Form::Packed(_) => (String::new(), "end other programs, or serve a smaller model".to_owned()),
        Form::Plain(_) => (format!(" on {}", room.device), "end other programs there, or take --device cpu".to_owned()),
    };
    Err(LoadError::TooLarge(format!(
        "{name} needs {} MB for its weights with --dtype {asked} and {} MB for the keys and values of {} tokens{}, \
         and {} MB of memory are free{on}: {}{otherwise}",
        megabytes(weights),
        megabytes(kv),
        each / page_bytes * u64::from(PAGE_TOKENS),
        if engines > 1 { format!(" in each of {engines} engines") } else { String::new() },
        megabytes(available),
        smaller.unwrap_or_default(),
    )))
}

/// What the weights take when they are loaded. Vectors stay in f32.
fn weights_bytes(checkpoint: &Checkpoint, config: &Config, form: Form) -> u64 {
    let body = config.body().0;
    let bytes = checkpoint.parameters().map(|(name, dims, kind)| {
        let role = config.role(name.strip_prefix(body).unwrap_or(name)).filter(|_| dims.len() == 2);
        // Of 32 weights, with a scale and, of four bits, a least value, both halves.
        let bytes = match role.map_or(Dtype::F32, |role| form.dtype(role, kind.dtype())) {
            Dtype::Auto | Dtype::F32 => 128,
            Dtype::Bf16 => 64,
            Dtype::Q8 => 34,
            Dtype::Q4 => 20,
        };
        (dims.iter().product::<usize>() as u64).div_ceil(32) * bytes
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Folder, KvDtype};

    #[test]
    fn a_model_that_does_not_fit_is_refused_with_figures_and_a_way_out() {
        let checkpoint = Checkpoint::open(&Folder::Bundled).unwrap();
        let config = Config::read(checkpoint.config(), "config.json").unwrap();
        let on = |device: &str, form, kv_dtype, engines, kilobytes: u64| {
            let options = LoadOptions { kv_dtype, engines, ..LoadOptions::default() };
            let room = Room { device: device.into(), available: Some(kilobytes * 1000) };
            check("tiny", &checkpoint, &config, form, &options, &room).err().map(|error| error.to_string())
        };
        let check = |dtype, engines, kilobytes| on("cpu", Form::Packed(dtype), KvDtype::F32, engines, kilobytes);
        let kv = crate::room::least_bytes(config.kv_shape().context, config.kv_shape().page_bytes(KvDtype::F32)) / 1000;
        let weights = |dtype| weights_bytes(&checkpoint, &config, Form::Packed(dtype)) / 1000;
        assert_eq!((check(Dtype::F32, 1, 40_000), check(Dtype::Q8, 1, weights(Dtype::Q8) + kv + 2)), (None, None));
        let refused = check(Dtype::F32, 1, 20_000).unwrap();
        assert!(refused.contains("tiny needs ") && refused.contains("20 MB of memory are free: take --dtype q8"), "{refused}");
        let refused = check(Dtype::Q8, 1, 1000).unwrap();
        assert!(refused.contains("free: end other programs"), "{refused}");
        let two = weights(Dtype::Q8) + 2 * kv + 2;
        assert_eq!(check(Dtype::Q8, 2, two), None);
        let refused = check(Dtype::Q8, 3, two).unwrap();
        assert!(refused.contains("tokens in each of 3 engines"), "{refused}");
        let on_gpu = |dtype, kilobytes| on("cuda:0", Form::Plain(dtype), KvDtype::Auto, 1, kilobytes);
        assert_eq!((on_gpu(DType::F32, 40_000), on_gpu(DType::F16, 20_000)), (None, None));
        let refused = on_gpu(DType::F32, 20_000).unwrap();
        assert!(refused.contains("--dtype f32") && refused.contains("free on cuda:0: take --dtype bf16 ("), "{refused}");
        let refused = on_gpu(DType::F16, 10_000).unwrap();
        assert!(
            refused.contains("--dtype f16") && refused.ends_with("end other programs there, or take --device cpu"),
            "{refused}"
        );
    }

    #[test]
    fn what_is_counted_is_what_is_packed() {
        let checkpoint = Checkpoint::open(&Folder::Bundled).unwrap();
        let config = Config::read(checkpoint.config(), "config.json").unwrap();
        let values = |name: &str| checkpoint.shape(name).unwrap().iter().product::<usize>() as u64;
        let vocabulary: u64 = checkpoint
            .names()
            .filter(|name| matches!(config.role(name.trim_start_matches(config.body().0)), Some(Role::Vocabulary)))
            .map(values)
            .sum();
        assert!(vocabulary > 0);
        let bytes = |dtype| weights_bytes(&checkpoint, &config, Form::Packed(dtype));
        let all: u64 = checkpoint.names().map(values).sum();
        // Eight bits of the vocabulary stay when the layers go down to four.
        assert!(bytes(Dtype::Q4) > all * 20 / 32 + vocabulary * 14 / 32 - 32);
        assert!(bytes(Dtype::Q4) < bytes(Dtype::Q8) && bytes(Dtype::Q8) < bytes(Dtype::Bf16));
    }
}
