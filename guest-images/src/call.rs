//! Calls to the hypervisor: statistics, PSCI, and the verdict that ends the VM.

use core::fmt;

use aarch64_cpu::asm::{barrier, wfe};
use hyp_abi::call::{self as vendor, Stat};
use smccc::psci::{self, LowestAffinityLevel};
use smccc::{Call, Hvc, hvc64};

use crate::{console, start};

/// The first four result registers of a call.
pub type Results = [u64; 4];

/// Makes a 64-bit call through conduit `C` with up to three arguments.
pub fn raw<C: Call>(function: u32, args: [u64; 3]) -> Results {
    let mut all = [0; 17];
    all[..3].copy_from_slice(&args);
    let result = C::call64(function, all);
    [result[0], result[1], result[2], result[3]]
}

/// A VM-wide counter of the hypervisor, or `None` where there is no hypervisor to answer.
pub fn stat(which: Stat) -> Option<u64> {
    let [status, value, ..] = raw::<Hvc>(vendor::STAT, [which as u64, 0, 0]);
    (status == 0).then_some(value)
}

/// Starts a vCPU at the runtime's secondary entry with `vcpu` as its number.
pub fn cpu_on(mpidr: u64, vcpu: usize) -> Result<(), psci::Error> {
    // The entry code and what it reads were stored cacheable by this vCPU; it reads them cacheable.
    barrier::dsb(barrier::ISHST);
    psci::cpu_on::<Hvc>(mpidr, start::secondary_entry_ipa(), vcpu as u64)
}

/// Whether the CPU is off, as PSCI sees it.
pub fn is_off(mpidr: u64) -> bool {
    psci::affinity_info::<Hvc>(mpidr, LowestAffinityLevel::All) == Ok(psci::AffinityState::Off)
}

/// Ends the VM with the verdict *pass*.
pub fn pass() -> ! {
    verdict(0)
}

/// Ends the VM with the verdict *fail*, after a line that says why. For [`crate::fail!`].
pub fn fail(file: &str, line: u32, why: fmt::Arguments<'_>) -> ! {
    let (guest, vcpu) = (start::guest_name(), start::vcpu());
    console::urgent_line(format_args!("{guest}: FAIL: {why} (vCPU {vcpu}, {file}:{line})"));
    verdict(1)
}

/// Ends the VM with a verdict; without a hypervisor, by PSCI, after saying so.
pub fn verdict(code: u64) -> ! {
    raw::<Hvc>(vendor::VERDICT, [code, 0, 0]);
    let guest = start::guest_name();
    let word = if code == 0 { "pass" } else { "fail" };
    console::urgent_line(format_args!("{guest}: no hypervisor: verdict {word} ({code})"));
    system_off()
}

/// PSCI SYSTEM_OFF. Waits for ever if that returns.
pub fn system_off() -> ! {
    hvc64(psci::PSCI_SYSTEM_OFF, [0; 17]);
    park()
}

/// Waits for ever.
pub fn park() -> ! {
    loop {
        wfe();
    }
}
