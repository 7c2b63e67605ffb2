//! Whether a model fits into memory, before any of it is loaded.

use super::weights::{Form, Role};
use crate::kv::{PAGE_TOKENS, Shape};
use crate::{Checkpoint, Dtype, KvDtype, LoadError, room};

/// Refuses a model whose weights and KV memory are more than the `available` bytes: the `kv_memory` that was asked for, or the
/// least that serves one sequence. Also an asked one that serves none.
pub(super) fn check(
    name: &str,
    checkpoint: &Checkpoint,
    form: Form,
    shape: Shape,
    kv_dtype: KvDtype,
    kv_memory: Option<u64>,
    available: Option<u64>,
) -> Result<(), LoadError> {
    // Where the weights are as the checkpoint has them, f32 is the most that keys and values can become.
    let page_bytes = shape.page_bytes(kv_dtype.settled(form.dtype(Role::Projection, Dtype::F32)));
    room::room(shape.context, page_bytes, 1, kv_memory, 1, None)?;
    let Some(available) = available else { return Ok(()) };
    let (weights, kv) = (weights_bytes(checkpoint, form), kv_memory.unwrap_or(room::least_bytes(shape.context, page_bytes)));
    if weights + kv <= available {
        return Ok(());
    }
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    let Form::Packed(asked) = form else { return Ok(()) };
    let smaller = [Dtype::Q8, Dtype::Q4].into_iter().find_map(|dtype| {
        let bytes = weights_bytes(checkpoint, Form::Packed(dtype));
        (bytes < weights && bytes + kv <= available).then(|| format!("take --dtype {dtype} ({} MB), ", megabytes(bytes)))
    });
    Err(LoadError::TooLarge(format!(
        "{name} needs {} MB for its weights with --dtype {asked} and {} MB for the keys and values of {} tokens, \
         and {} MB of memory are free: {}end other programs, or serve a smaller model",
        megabytes(weights),
        megabytes(kv),
        kv / page_bytes * u64::from(PAGE_TOKENS),
        megabytes(available),
        smaller.unwrap_or_default(),
    )))
}

/// What the weights take when they are loaded. Vectors stay in f32.
fn weights_bytes(checkpoint: &Checkpoint, form: Form) -> u64 {
    let bytes = checkpoint.values().map(|(matrix, kind, count)| {
        let dtype = if matrix { form.dtype(Role::Projection, kind.dtype()) } else { Dtype::F32 };
        // Of 32 weights, with a scale and, of four bits, a least value.
        let bytes = match dtype {
            Dtype::Auto | Dtype::F32 => 128,
            Dtype::Bf16 => 64,
            Dtype::Q8 => 36,
            Dtype::Q4 => 24,
        };
        count.div_ceil(32) * bytes
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Folder;

    #[test]
    fn a_model_that_does_not_fit_is_refused_with_figures_and_a_way_out() {
        let checkpoint = Checkpoint::open(&Folder::Bundled).unwrap();
        let shape = Shape { layers: 6, kv_heads: 8, head_dim: 32, context: 512 };
        let check = |dtype, megabytes: u64| {
            let error =
                check("tiny", &checkpoint, Form::Packed(dtype), shape, KvDtype::F32, None, Some(megabytes * 1_000_000)).err();
            error.map(|error| error.to_string())
        };
        assert_eq!((check(Dtype::F32, 40), check(Dtype::Q8, 16)), (None, None));
        let refused = check(Dtype::F32, 20).unwrap();
        assert!(
            refused.contains("tiny needs 24 MB") && refused.contains("20 MB of memory are free: take --dtype q8"),
            "{refused}"
        );
        let refused = check(Dtype::Q8, 1).unwrap();
        assert!(refused.contains("free: end other programs"), "{refused}");
    }
}
