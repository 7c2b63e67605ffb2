//! The network by itself: its kernels against candle's operations, and the bits of its logits.

use candle_core::{DType, Device};

use super::{Config, Form, Model};
use crate::kernels::{Isa, Pool, Segment};
use crate::kv::{PAGE_TOKENS, Storage};
use crate::pages::Pages;
use crate::{Checkpoint, Dtype, Folder, KvDtype, Source};

fn load(form: Form, isa: Isa) -> Model {
    load_with(form, KvDtype::Auto, isa)
}

fn load_with(form: Form, kv_dtype: KvDtype, isa: Isa) -> Model {
    Model::load_as(&Source::bundled(), Device::Cpu, form, kv_dtype, isa).expect("the bundled model loads")
}

/// A small model of the llama family: grouped queries, a head's width of its own, odd sizes, and what `change` adds.
fn llama(model_type: &str, change: serde_json::Value, form: Form, kv_dtype: KvDtype, isa: Isa) -> Model {
    let mut config = serde_json::json!({
        "model_type": model_type, "vocab_size": 4099, "hidden_size": 72, "intermediate_size": 100, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20, "max_position_embeddings": 96,
    });
    for (name, value) in change.as_object().unwrap() {
        config[name] = value.clone();
    }
    Model::random_of(model_type, Config::read(&config, "config.json").unwrap(), form, kv_dtype, isa).expect("noise is a model")
}

/// What is told apart of the llama family, each in one of these.
fn llamas(form: Form, kv_dtype: KvDtype, isa: Isa) -> [Model; 2] {
    let scaling = serde_json::json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32});
    let untied = serde_json::json!({"rope_scaling": scaling, "attention_bias": true, "mlp_bias": true});
    let tied = serde_json::json!({"tie_word_embeddings": true, "head_dim": 16});
    [llama("llama", untied, form, kv_dtype, isa), llama("qwen3", tied, form, kv_dtype, isa)]
}

fn text() -> Vec<u32> {
    (0..75u32).map(|i| (i * i * 31 + i * 7) % 4000 + 1).collect()
}

/// A KV cache and some sequences in it.
struct Bench<'a> {
    model: &'a Model,
    pool: &'a Pool,
    cache: Storage,
    free: Pages,
}

impl<'a> Bench<'a> {
    fn new(model: &'a Model, pool: &'a Pool) -> Bench<'a> {
        Bench { model, pool, cache: model.cache(64).unwrap(), free: Pages::new(64) }
    }

    /// One step: of each sequence, tokens `from..to` of the text; the logits of all rows.
    fn step(&mut self, parts: &mut [(&[u32], std::ops::Range<usize>, &mut Vec<u32>)]) -> Vec<Vec<f32>> {
        let mut tokens = Vec::new();
        for (_, range, pages) in parts.iter_mut() {
            while pages.len() < range.end.div_ceil(PAGE_TOKENS as usize) {
                pages.push(self.free.take().unwrap());
            }
        }
        let mut segments = Vec::new();
        for (text, range, pages) in parts.iter() {
            segments.push(Segment { row: tokens.len(), rows: range.len(), position: range.start, pages });
            tokens.extend_from_slice(&text[range.clone()]);
        }
        let samples: Vec<u32> = (0..tokens.len() as u32).collect();
        let on = self.model.compute(self.pool);
        let logits = self.model.network.forward(on, &mut self.cache, &tokens, &segments, &samples).unwrap();
        logits.values.chunks(self.model.config.vocabulary()).map(<[f32]>::to_vec).collect()
    }

    /// All logits of a text, computed by chunks.
    fn by(&mut self, text: &[u32], chunk: usize) -> Vec<Vec<f32>> {
        let mut pages = Vec::new();
        let mut logits = Vec::new();
        for start in (0..text.len()).step_by(chunk) {
            logits.extend(self.step(&mut [(text, start..(start + chunk).min(text.len()), &mut pages)]));
        }
        self.free.release_all(pages);
        logits
    }
}

/// By bits, so that a difference shows where it is and not eighty thousand numbers.
fn same(a: &[Vec<f32>], b: &[Vec<f32>], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (position, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}: position {position} differs");
    }
}

#[test]
fn a_positions_logits_have_the_same_bits_by_any_chunking_in_any_company_with_any_threads() {
    let pools = [1, 2, 3].map(|threads| Pool::new(threads).unwrap());
    for isa in Isa::all() {
        for (dtype, kv_dtype) in
            [(Dtype::F32, KvDtype::F32), (Dtype::Bf16, KvDtype::F16), (Dtype::Q8, KvDtype::Q8), (Dtype::Q4, KvDtype::F16)]
        {
            let form = Form::Packed(dtype);
            for model in [load_with(form, kv_dtype, isa)].into_iter().chain(llamas(form, kv_dtype, isa)) {
                has_the_same_bits(&model, &pools, &format!("{} {isa} {dtype} {kv_dtype}", model.name));
            }
        }
    }
}

fn has_the_same_bits(model: &Model, pools: &[Pool; 3], what: &str) {
    let text = text();
    let whole = Bench::new(model, &pools[0]).by(&text, text.len());
    assert!(whole.iter().flatten().all(|logit| logit.is_finite()));
    for (chunk, pool) in [(1, 1), (2, 2), (7, 0), (16, 1), (33, 2)] {
        let chunked = Bench::new(model, &pools[pool]).by(&text, chunk);
        same(&chunked, &whole, &format!("{what} by {chunk} on {} threads", pool + 1));
    }
    // Others before and behind, at other places of other texts, decoding and prefilling.
    let mut bench = Bench::new(model, &pools[1]);
    let other: Vec<u32> = text.iter().rev().copied().collect();
    let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
    bench.step(&mut [(&other, 0..20, &mut a)]);
    let mut logits = Vec::new();
    for (turn, start) in (0..text.len()).step_by(5).enumerate() {
        let mut parts = [
            (&other[..], 20 + turn..21 + turn, &mut a),
            (&text[..], start..start + 5, &mut b),
            (&other[..], turn * 3..turn * 3 + 3, &mut c),
        ];
        logits.extend_from_slice(&bench.step(&mut parts)[1..6]);
    }
    same(&logits, &whole, &format!("{what} in company"));
}

#[test]
fn the_kernels_agree_with_candles_operations() {
    let pool = Pool::new(2).unwrap();
    let text = text();
    let all = |form, isa| [load(form, isa)].into_iter().chain(llamas(form, KvDtype::Auto, isa));
    let wanted: Vec<_> =
        all(Form::Plain(DType::F32), Isa::detect()).map(|plain| Bench::new(&plain, &pool).by(&text, 19)).collect();
    for isa in Isa::all() {
        for (model, want) in all(Form::Packed(Dtype::F32), isa).zip(&wanted) {
            let got = Bench::new(&model, &pool).by(&text, 19);
            let worst = got.iter().flatten().zip(want.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
            assert!(worst < 2e-4, "{} {isa}: {worst}", model.name);
        }
    }
}

#[test]
fn q8_stays_near_f32() {
    let pool = Pool::new(2).unwrap();
    let text = text();
    let f32 = Bench::new(&load(Form::Packed(Dtype::F32), Isa::detect()), &pool).by(&text, 75);
    let q8 = Bench::new(&load(Form::Packed(Dtype::Q8), Isa::detect()), &pool).by(&text, 75);
    let softmax = |logits: &[f32]| {
        let most = logits.iter().fold(f32::MIN, |most, logit| most.max(*logit));
        let weights: Vec<f64> = logits.iter().map(|logit| f64::from(logit - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(move |weight| weight / sum).collect::<Vec<_>>()
    };
    let divergence = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
    let mean = f32.iter().zip(&q8).map(|(p, q)| divergence(&softmax(p), &softmax(q))).sum::<f64>() / text.len() as f64;
    assert!(mean < 0.005, "mean KL divergence {mean}");
}

#[test]
fn candles_operations_in_16_bits_stay_near_f32() {
    let pool = Pool::new(2).unwrap();
    let text = text();
    let bench = |dtype| Bench::new(&load(Form::Plain(dtype), Isa::detect()), &pool).by(&text, 75);
    let f32 = bench(DType::F32);
    for (dtype, most) in [(DType::BF16, 0.5), (DType::F16, 0.1)] {
        let narrow = bench(dtype);
        let worst = f32.iter().flatten().zip(narrow.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        assert!(worst > 0.0 && worst < most, "{dtype:?}: {worst}");
    }
}

#[test]
fn a_gpu_computes_in_what_the_checkpoint_has_unless_somebody_asks() {
    let checkpoint = Checkpoint::open(&Folder::Bundled).unwrap();
    let forms = [Dtype::Auto, Dtype::F32, Dtype::Bf16, Dtype::Q8].map(|asked| Form::on_gpu(asked, &checkpoint));
    assert_eq!(forms, [Some(DType::F16), Some(DType::F32), Some(DType::BF16), None].map(|dtype| dtype.map(Form::Plain)));
    let names = [DType::F16, DType::BF16].map(|dtype| load(Form::Plain(dtype), Isa::detect()).info(1));
    assert_eq!([&names[0].first().dtype, &names[1].first().dtype], ["f16", "bf16"]);
    assert_ne!(names[0].fingerprint(), names[1].fingerprint());
}

/// A small checkpoint of odd sizes, in a folder.
fn checkpoint(prefix: &str, tied: bool, change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    checkpoint_with(prefix, tied, change, |_, _| ())
}

/// The same, with other weights: `spoil` sees each tensor's name and values.
pub(crate) fn checkpoint_with(
    prefix: &str,
    tied: bool,
    change: impl FnOnce(&mut serde_json::Value),
    spoil: impl Fn(&str, &mut [f32]),
) -> tempfile::TempDir {
    use super::weights::noise;
    use candle_core::Tensor;
    use std::collections::HashMap;

    let folder = tempfile::tempdir().unwrap();
    let (n, inner, vocabulary) = (48, 100, 4099);
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    let mut add = |name: String, dims: &[usize]| {
        // Large enough that attention and GELU matter; every tensor by its bare name, so that prefixes change nothing.
        let values: Vec<f32> = noise(&format!("{}.x", name.trim_start_matches(prefix)), &[dims.iter().product(), 1]);
        let mut values: Vec<f32> = values.into_iter().map(|value| value * 10.0).collect();
        spoil(&name, &mut values);
        tensors.insert(name, Tensor::from_vec(values, dims, &Device::Cpu).unwrap());
    };
    add(format!("{prefix}wte.weight"), &[vocabulary, n]);
    add(format!("{prefix}wpe.weight"), &[96, n]);
    for layer in 0..3 {
        let h = format!("{prefix}h.{layer}");
        for (name, inputs, columns) in
            [("attn.c_attn", n, 3 * n), ("attn.c_proj", n, n), ("mlp.c_fc", n, inner), ("mlp.c_proj", inner, n)]
        {
            add(format!("{h}.{name}.weight"), &[inputs, columns]);
            add(format!("{h}.{name}.bias"), &[columns]);
        }
        for name in ["ln_1", "ln_2"] {
            add(format!("{h}.{name}.weight"), &[n]);
            add(format!("{h}.{name}.bias"), &[n]);
        }
        add(format!("{h}.attn.bias"), &[1, 1, 96, 96]);
    }
    add(format!("{prefix}ln_f.weight"), &[n]);
    add(format!("{prefix}ln_f.bias"), &[n]);
    if !tied {
        add("lm_head.weight".into(), &[vocabulary, n]);
    }
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    let mut config = serde_json::json!({
        "model_type": "gpt2", "vocab_size": vocabulary, "n_positions": 96, "n_embd": n, "n_layer": 3, "n_head": 2,
        "n_inner": inner, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-4,
        "scale_attn_by_inverse_layer_idx": true, "tie_word_embeddings": tied, "eos_token_id": 0,
    });
    change(&mut config);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let tokenizer = crate::Folder::Bundled.read("tokenizer.json").unwrap().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    folder
}

fn load_from(folder: &tempfile::TempDir, form: Form) -> Result<Model, crate::LoadError> {
    Model::load_as(&Source::from_folder(folder.path()).unwrap(), Device::Cpu, form, KvDtype::Auto, Isa::detect())
}

#[test]
fn both_styles_of_names_and_a_separate_head_load_and_compute_on_odd_sizes() {
    let pool = Pool::new(2).unwrap();
    let text = text();
    let mut heads = Vec::new();
    for tied in [true, false] {
        let bare = load_from(&checkpoint("", tied, |_| ()), Form::Packed(Dtype::F32)).unwrap();
        let prefixed = checkpoint("transformer.", tied, |_| ());
        let packed = load_from(&prefixed, Form::Packed(Dtype::F32)).unwrap();
        let logits = Bench::new(&packed, &pool).by(&text, 10);
        same(&logits, &Bench::new(&bare, &pool).by(&text, 75), "the prefix");
        let plain = Bench::new(&load_from(&prefixed, Form::Plain(DType::F32)).unwrap(), &pool).by(&text, 32);
        let worst = logits.iter().flatten().zip(plain.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        assert!(worst < 2e-3, "{worst} at logits of up to {:?}", logits[0].iter().copied().reduce(f32::max));
        let q8 = load_from(&prefixed, Form::Packed(Dtype::Q8)).unwrap();
        same(&Bench::new(&q8, &pool).by(&text, 9), &Bench::new(&q8, &pool).by(&text, 1), "odd sizes in q8");
        heads.push(logits);
    }
    assert_ne!(heads[0], heads[1], "a separate head is another head");
}

#[test]
fn files_that_do_not_belong_together_are_refused_by_name() {
    for (key, value, words) in
        [("n_inner", 64, "c_fc"), ("n_layer", 4, "h.3."), ("vocab_size", 5000, "wte.weight"), ("n_positions", 128, "wpe.weight")]
    {
        let folder = checkpoint("", true, |config| config[key] = value.into());
        let error = load_from(&folder, Form::Packed(Dtype::F32)).unwrap_err().to_string();
        assert!(error.contains(words), "{key}: {error}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_the_tensors_name() {
    let last = |values: &[f32]| values.len() - 1;
    for (prefix, name, form) in [
        ("", "wte.weight", Form::Packed(Dtype::F32)),
        ("transformer.", "transformer.h.1.attn.c_attn.weight", Form::Packed(Dtype::Q8)),
        ("", "h.2.mlp.c_proj.bias", Form::Plain(DType::F32)),
        ("", "ln_f.weight", Form::Packed(Dtype::Q8)),
        ("", "wpe.weight", Form::Packed(Dtype::F32)),
        ("transformer.", "lm_head.weight", Form::Packed(Dtype::F32)),
    ] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let spoil = |tensor: &str, values: &mut [f32]| {
                if tensor == name {
                    values[last(values)] = value;
                }
            };
            let folder = checkpoint_with(prefix, name != "lm_head.weight", |_| (), spoil);
            let error = load_from(&folder, form).unwrap_err();
            assert!(matches!(error, crate::LoadError::NotFinite { .. }), "{error:?}");
            let error = error.to_string();
            let path = folder.path().display().to_string();
            for words in [&format!("tensor {name} in {path} is {value} at element"), "fetch it again"] {
                assert!(error.contains(words), "{error:?} says {words:?}");
            }
        }
    }
}

#[test]
fn constants_that_are_not_used_may_be_anything() {
    // `attn.bias` masks the future, with infinities where somebody saved it so.
    let folder = checkpoint_with(
        "",
        true,
        |_| (),
        |name, values| {
            if name.ends_with(".attn.bias") {
                values.fill(f32::NEG_INFINITY)
            }
        },
    );
    load_from(&folder, Form::Packed(Dtype::F32)).unwrap();
}

#[test]
fn keys_and_values_of_16_and_8_bits_stay_near_f32_and_are_other_models() {
    let pool = Pool::new(2).unwrap();
    let text = text();
    let model = |kv_dtype| load_with(Form::Packed(Dtype::F32), kv_dtype, Isa::detect());
    let exact = model(KvDtype::F32);
    let want = Bench::new(&exact, &pool).by(&text, 75);
    assert_eq!(model(KvDtype::Auto).info(1).fingerprint(), exact.info(1).fingerprint(), "auto is f32 with weights in f32");
    for (kv_dtype, allowed) in [(KvDtype::F16, 0.02), (KvDtype::Q8, 0.5)] {
        let other = model(kv_dtype);
        assert_ne!(other.info(1).fingerprint(), exact.info(1).fingerprint());
        let got = Bench::new(&other, &pool).by(&text, 75);
        let worst = got.iter().flatten().zip(want.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        assert!(worst > 0.0 && worst < allowed, "{kv_dtype}: {worst}");
    }
}
