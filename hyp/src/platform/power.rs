//! The machine's firmware: PSCI, by the conduit that the device tree names (crate `smccc`).
//!
//! The only file that makes firmware calls. At EL2 on QEMU the conduit is SMC; at EL1, in the refusal,
//! it may be HVC.

use hyp_core::fdt::Conduit;
use smccc::psci::error::Error;
use smccc::{Hvc, Smc, psci};
use spin::Once;

static CONDUIT: Once<Conduit> = Once::new();

/// Remembers the tree's conduit. The first call counts.
pub(crate) fn init(conduit: Conduit) {
    CONDUIT.call_once(|| conduit);
}

fn conduit() -> Conduit {
    CONDUIT.get().copied().unwrap_or(Conduit::Smc)
}

/// Starts another CPU at `entry` (physical, MMU off) with `context` in `x0`.
pub(crate) fn cpu_on(mpidr: u64, entry: u64, context: u64) -> Result<(), Error> {
    match conduit() {
        Conduit::Smc => psci::cpu_on::<Smc>(mpidr, entry, context),
        Conduit::Hvc => psci::cpu_on::<Hvc>(mpidr, entry, context),
    }
}

/// Cuts the power.
pub(crate) fn off() -> ! {
    super::console::flush();
    let _ = match conduit() {
        Conduit::Smc => psci::system_off::<Smc>(),
        Conduit::Hvc => psci::system_off::<Hvc>(),
    };
    stay()
}

/// Resets the machine.
pub(crate) fn reset() -> ! {
    super::console::flush();
    let _ = match conduit() {
        Conduit::Smc => psci::system_reset::<Smc>(),
        Conduit::Hvc => psci::system_reset::<Hvc>(),
    };
    stay()
}

/// Stops this CPU for good.
pub(crate) fn stay() -> ! {
    loop {
        aarch64_cpu::asm::wfe();
    }
}
