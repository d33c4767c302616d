//! From the first instruction to a machine that can run a VM.
//!
//! | step | file |
//! | --- | --- |
//! | header, entry, MMU switch (assembly) | `entry` |
//! | a map to run Rust in | `early` |
//! | stacks and their guard pages | `stack` |
//! | device tree, console, free memory, final map, frames, GIC | here |
//! | the other CPUs | `secondary` |
//!
//! What the machine lacks is said in one sentence on the console, and nothing is started: a [`Refusal`].
//! It is said as early as possible, which at EL1 means: with the tree's console and the tree's PSCI, and
//! nothing of EL2 touched.

pub(crate) mod early;
pub(crate) mod entry;
pub(crate) mod secondary;
pub(crate) mod stack;

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use aarch64_cpu::registers::{HCR_EL2, Readable};
use hyp_core::config::{Nonce, Request};
use hyp_core::fdt::{self, Conduit, Platform, Salvage};
use hyp_core::range::Count;
use hyp_core::{PaRange, layout};

use crate::mem::{clean, el2_map, frames, image};
use crate::platform::{console, gic, power};
use crate::{cpu, end, say};

/// Where QEMU's `virt` has its console: for saying that the tree cannot be read, and nothing else.
const CONSOLE_OF_VIRT: PaRange = PaRange { start: 0x0900_0000, end: 0x0900_1000 };

/// Why nothing was started.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) String);

impl<T: fmt::Display> From<T> for Refusal {
    fn from(error: T) -> Self {
        Self(error.to_string())
    }
}

/// The machine, ready.
#[derive(Debug)]
pub(crate) struct Machine {
    /// What the tree says.
    pub(crate) platform: Platform,
    /// What the user asked for.
    pub(crate) request: Request,
    /// CPUs that run, the boot CPU included: numbers 0 up to here.
    pub(crate) cpus: usize,
}

/// Brings everything up, on the boot CPU.
pub(crate) fn bring_up(tree: u64, level: u64) -> Result<Machine, Refusal> {
    let blob = blob(tree);
    let platform = fdt::parse(blob).inspect_err(|_| speak(fdt::salvage(blob), level))?;
    speak(
        Salvage {
            uart: Some(platform.uart),
            psci: Some(platform.psci),
            bootargs: Some(platform.bootargs.clone()),
        },
        level,
    );
    let tree = PaRange::from_len(tree, blob.len() as u64)
        .ok_or("the device tree ends beyond all addresses")?;
    #[cfg(feature = "selftest")]
    let platform = Platform { bootargs: crate::selftest::take(&platform.bootargs)?, ..platform };
    let request = Request::parse(&platform.bootargs)?;
    say!(
        "stage2 hypervisor {}, {}",
        env!("CARGO_PKG_VERSION"),
        Count(platform.cpus.len() as u64, "CPU")
    );
    if level != 2 {
        let reason = format!(
            "the hypervisor needs EL2 and was started at EL{level}: start QEMU with -M virt,virtualization=on"
        );
        return Err(Refusal(reason));
    }
    if HCR_EL2.is_set(HCR_EL2::E2H) {
        return Err(Refusal(
            "this CPU's HCR_EL2.E2H cannot be cleared: only the non-VHE EL2 is used".into(),
        ));
    }
    let gic = platform
        .gic
        .ok_or_else(|| Refusal("no GICv3: start QEMU with -M virt,gic-version=3".into()))?;
    let layout = layout::plan(&platform, image::whole(), tree)?;
    el2_map::switch_on(&platform, &layout, tree)?;
    // Whoever had the memory before may have run from it.
    clean::forget_instructions();
    // SAFETY: (1) `plan` says that nobody else uses it; the map has it writable.
    unsafe { frames::init(&layout.free) };
    // SAFETY: (1) the tree calls it a GICv3; the final map has it as device memory.
    unsafe {
        gic::init(&gic)?;
        gic::join(&gic, cpu::affinity())?;
    }
    let cpus = secondary::start_all(&platform, gic)?;
    Ok(Machine { platform, request, cpus })
}

/// What may be the tree's bytes: empty if there is none.
fn blob(tree: u64) -> &'static [u8] {
    if tree == 0 {
        return &[];
    }
    let start = core::ptr::with_exposed_provenance::<u8>(tree as usize);
    // SAFETY: (1) the early map has the block that `tree`, a multiple of 8, lies in. (2) Nobody writes
    // the tree.
    let head = unsafe { core::slice::from_raw_parts(start, 8) };
    match fdt::claimed_size(head) {
        // SAFETY: (1) the early map has as much as the header claims, up to the bound that
        // `claimed_size` checks. (2) As above.
        Ok(size) => unsafe { core::slice::from_raw_parts(start, size) },
        Err(_) => head,
    }
}

/// From here on there are a console, a way to cut the power, and the nonce of the report: from the
/// tree, as far as it tells; else the machine is taken for QEMU's `virt`, for which this image is linked.
fn speak(known: Salvage, level: u64) {
    let uart = known.uart.unwrap_or(CONSOLE_OF_VIRT);
    early::map_device(uart.start);
    // SAFETY: (1) the tree calls it a PL011, or the image's home has one there; mapped by the early
    // map, and later by the final one.
    unsafe { console::init(uart) };
    let usual = if level == 2 { Conduit::Smc } else { Conduit::Hvc };
    power::init(known.psci.unwrap_or(usual));
    end::prepare(known.bootargs.as_deref().and_then(Nonce::find));
}
