//! The protocols of crate `stage2` on the oracle's machine: the real code, judged by the architecture.
//!
//! Each test takes a protocol through the sets of capabilities and the sizes that it promises to handle,
//! and ends with no verdict, with the translation that hardware finds, and with every page in
//! exactly one pair of hands. That each of them can fail is shown by the seeded defects of
//! `tests/mutants`, which it has to notice.

mod attributes;
mod epochs;
mod install;
mod rig;
mod switch;
mod tables;
mod unmap;
