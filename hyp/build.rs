//! Links the image with `link.ld` and finds the guest that it carries.
//!
//! `HYP_GUEST` names a flat guest image (raw bytes as they stand in guest memory). Without it the
//! hypervisor is built with an empty one, and refuses to start unless QEMU's guest-loader brings
//! a guest.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets this"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets this"));

    let script = manifest.join("link.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    println!("cargo::rustc-link-arg-bins=--no-dynamic-linker");
    println!("cargo::rustc-link-arg-bins=-znorelro");

    println!("cargo::rerun-if-env-changed=HYP_GUEST");
    let guest = match env::var_os("HYP_GUEST").filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(&path).unwrap_or_else(|error| {
                panic!("HYP_GUEST={}: {error}", path.display());
            })
        }
        None => Vec::new(),
    };
    fs::write(out.join("guest.bin"), guest).expect("OUT_DIR is writable");
}
