//! Hands the linker script to the guests' link step.

fn main() {
    println!("cargo:rerun-if-changed=guest.ld");
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(dir) = std::env::var("CARGO_MANIFEST_DIR") {
        println!("cargo:rustc-link-arg-bins=-T{dir}/guest.ld");
    }
    // Pages of 4 KiB: the image stays small when it is flattened.
    println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
}
