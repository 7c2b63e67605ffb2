//! Damaged weights and unreadable configuration: said clearly, and before anybody counts on the node.

use std::{
    fs,
    path::{Path, PathBuf},
};

use banyan_tests::{Banyan, process::banyan};

/// The model that the binary carries, as files.
fn tiny() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny");
    fs::create_dir(&path).expect("a folder");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/banyan-tiny");
    for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(file), path.join(file)).expect("the model's files are in the repository");
    }
    (folder, path)
}

/// Has a node load a model that can't be loaded, below a root that is there: what it says, and nobody ever saw it.
async fn refused(etcd: &str, model: &Path) -> String {
    let line = format!("node run leaf --parent root --listen 127.0.0.1:0 --etcd {etcd} --model {}", model.display());
    let finished = banyan(&line).await;
    // 3 when there is no model at all.
    assert!(finished.code == 1 || finished.code == 3, "{finished:?}");
    assert!(!finished.err.contains("panicked"), "{}", finished.err);
    let names = banyan(&format!("node list -o name --etcd {etcd}")).await;
    assert_eq!(names.out.trim(), "root", "it never registered");
    finished.err
}

#[tokio::test]
async fn a_node_whose_model_is_damaged_says_what_to_do_and_never_registers() {
    let registry = Banyan::start("registry serve --listen 127.0.0.1:0");
    let etcd = registry.fact("etcd").await;
    let root = Banyan::start(&format!("node run root --listen 127.0.0.1:0 --etcd {etcd}"));
    root.printed("is ready").await;
    let (_folder, model) = tiny();
    let weights = fs::read(model.join("model.safetensors")).expect("weights");

    for cut in [0, 7, 1000, weights.len() / 2, weights.len() - 1] {
        fs::write(model.join("model.safetensors"), &weights[..cut]).expect("a write");
        let said = refused(&etcd, &model).await;
        assert!(said.contains("model.safetensors") && said.contains("cut short or damaged, fetch it again"), "{cut}: {said}");
    }
    // A flipped bit in the length of the header; in the numbers themselves it shows only against a checksum, as the hub gives.
    let mut flipped = weights.clone();
    flipped[3] ^= 0x40;
    fs::write(model.join("model.safetensors"), &flipped).expect("a write");
    let said = refused(&etcd, &model).await;
    assert!(said.contains("cut short or damaged, fetch it again"), "{said}");
    fs::write(model.join("model.safetensors"), &weights).expect("a write");

    let gguf = model.with_extension("gguf");
    fs::write(&gguf, b"GGUF\x03\0\0\0\x05\0\0\0\0\0\0\0").expect("a write");
    let said = refused(&etcd, &gguf).await;
    assert!(said.contains("tiny.gguf") && said.contains("cut short"), "{said}");

    fs::write(model.join("config.json"), "{\n  \"architectures\": [\n").expect("a write");
    let said = refused(&etcd, &model).await;
    assert!(said.contains("config.json") && said.contains("line 3"), "the file and the line: {said}");
    fs::remove_file(model.join("config.json")).expect("a removal");
    let said = refused(&etcd, &model).await;
    assert!(said.contains("config.json"), "{said}");
}
