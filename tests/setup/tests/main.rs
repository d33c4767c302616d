//! The set-up on machines that lack something: what it says, how it ends, what it leaves behind.

mod book;
mod disk;
mod fetch;
mod fuzzer;
mod idle;
mod interrupt;
mod qemu;
mod runner;
mod stages;
mod toolchain;
