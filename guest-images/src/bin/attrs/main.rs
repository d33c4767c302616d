//! Stage 1 over on-demand RAM: every way in which a first access can come.
//!
//! Every access below is the first to its page, so each of them is a stage-2 fault in the middle of
//! something else: of a walk ([`walk`]), of a load that has no syndrome ([`access`]), of an
//! instruction fetch ([`code`]), of an access with other memory attributes ([`alias`]). The guest must
//! find zeroes, its own writes, and its FP/SIMD registers. Arguments: none.

#![no_std]
#![no_main]

mod access;
mod alias;
mod code;
mod walk;

use guest_rt::{Machine, fpsimd, say};

guest_rt::guest!("attrs", attrs);

/// A pattern that says "written by this guest".
pub(crate) const MARK: u64 = 0x5eed_ab1e_c0de_d00d;

fn attrs(machine: &Machine) {
    machine.args(&[]);
    let mut arena = machine.arena();
    fpsimd::check_kept("faults on stage-1 walks", 1 << 40, || walk::check(&mut arena));
    say!("attrs: tables in never-touched RAM: walks by load, store, fetch and AT");
    let kinds = access::check(&mut arena);
    say!("attrs: {kinds} kinds of access as the first to a page");
    let mappings = alias::check(&mut arena);
    say!(
        "attrs: {mappings} mappings (page, 2 MiB, 1 GiB; each memory type) verified through both aliases"
    );
    fpsimd::check_kept("faults on instruction fetch", 1 << 41, || code::check(machine, &mut arena));
    say!("attrs: code from fresh pages on {} vCPUs", machine.vcpus().len());
}
