//! The pages are part of the binary: build it again when a file joins or leaves them.

fn main() {
    println!("cargo:rerun-if-changed=../web");
}
