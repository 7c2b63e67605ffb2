//! The checkpoint that every binary carries, so that a machine without a model hub has a model: banyan-tiny.

/// Its public name.
pub(crate) const NAME: &str = "banyan-tiny";

/// A file of it; the binary itself is mapped by the system, so nothing is unpacked or copied.
pub(crate) fn file(name: &str) -> Option<&'static [u8]> {
    Some(match name {
        "config.json" => include_bytes!("../banyan-tiny/config.json"),
        "generation_config.json" => include_bytes!("../banyan-tiny/generation_config.json"),
        "model.safetensors" => include_bytes!("../banyan-tiny/model.safetensors"),
        "tokenizer.json" => include_bytes!("../banyan-tiny/tokenizer.json"),
        "tokenizer_config.json" => include_bytes!("../banyan-tiny/tokenizer_config.json"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    #[test]
    fn the_bundled_files_are_the_ones_that_its_checksums_name() {
        let sums = include_str!("../banyan-tiny/SHA256SUMS");
        assert!(sums.lines().count() >= 3);
        for line in sums.lines() {
            let (want, name) = line.split_once("  ").expect("sha256sum's format");
            let got = Sha256::digest(super::file(name).expect("a bundled file"));
            assert_eq!(format!("{got:x}"), want, "{name}");
        }
    }
}
