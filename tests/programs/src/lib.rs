//! Random programs of operations on stage 2, and the bodies of the fuzz targets.
//!
//! * [`program`], [`run`](mod@run): programs on the real code of crate `stage2`, beside a [`reference`](mod@reference) of
//!   ordered maps, with the oracle underneath; every allocation fails once, every compare-exchange is raced once.
//! * [`programs`], [`descriptors`], [`device_trees`], [`syndromes`]: the fuzz targets. Each is an ordinary function of some bytes
//!   that panics when it finds something, so that the saved corpus is replayed by `cargo test`. The folder `fuzz`
//!   beside this crate only hands the bytes over.
//! * [`interrupts`]: programs on the guests' interrupt controller, beside one without list registers, with a CPU that takes and ends.
//! * [`format`](mod@format), [`walk`]: hardware's view of descriptors and tables, from the manual's tables.

pub mod descriptors;
pub mod device_trees;
pub mod format;
pub mod interrupts;
pub mod memory;
pub mod program;
pub mod programs;
pub mod reference;
pub mod run;
pub mod syndromes;
pub mod walk;

/// A fuzz target: its name and its body, which panics on a finding.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("programs", programs::check),
    ("descriptors", descriptors::check),
    ("device_trees", device_trees::check),
    ("syndromes", syndromes::check),
    ("interrupts", interrupts::check),
];
