//! The virtual machine: what it consists of, and who may touch which part.
//!
//! | part | shared how |
//! | --- | --- |
//! | stage-2 tables | lock-free installs by any vCPU's faults (crate `stage2`) |
//! | policy (region map) | immutable, published by pointer, read under a guard |
//! | payload (image, device tree, ramdisk) | immutable bytes, copied into a page when it is first touched |
//! | power states, mailboxes | atomics |
//! | devices; the model of the interrupt controller | one lock each, never taken on the populate path |
//! | a vCPU's registers | its CPU's alone |
//!
//! There is one VM, and each of its vCPUs has a home, the CPU that it always runs on. Where there are no more vCPUs than CPUs, EL1's
//! registers stay live in the hardware and nothing is switched; else a CPU runs its vCPUs in turns ([`schedule`]).
//! A CPU without a vCPU may work on the VM's tables while it is idle (`idle`).
//!
//! # Guest memory
//!
//! RAM is a region, nothing more, until the guest touches it. A translation fault takes a zeroed frame
//! from the CPU's stock, copies what the payload has for that page, cleans that, and installs it. The guard
//! spans the look into the policy and the install, so that a later change of policy can wait for
//! decisions that were made under the old one.
//!
//! # A vCPU's life
//!
//! ```text
//!            CPU_ON                     exits                       stop claimed by anybody
//!   off ───────────────▶ running ◀──────────────▶ handled at EL2 ─────────────────────────▶ parked
//!    ▲                     │ CPU_OFF                                                         │
//!    ├─────────────────────┘                                                                 │
//!    └───────────────────────────── the VM starts anew ◀─────────────────────────────────────┘
//! ```
//!
//! The first vCPU that has a reason to end the VM claims the stop, kicks the others by SGI, waits until
//! they are parked (`life`), takes the VM down (`takedown`), and starts it anew or tells the report.

pub(crate) mod ageing;
pub(crate) mod blocks;
mod caches;
mod churning;
pub(crate) mod context;
mod control;
pub(crate) mod copying;
mod create;
mod edges;
mod el1;
mod fault;
pub(crate) mod filling;
pub(crate) mod guest_memory;
mod idle;
pub(crate) mod idregs;
mod inject;
pub(crate) mod interrupts;
mod life;
pub(crate) mod logging;
#[cfg(feature = "measure")]
pub(crate) mod measuring;
pub(crate) mod moving;
pub(crate) mod outcome;
mod pause;
pub(crate) mod payload;
mod pe;
mod policy;
pub(crate) mod populating;
#[cfg(feature = "selftest")]
pub(crate) mod probing;
pub(crate) mod protecting;
pub(crate) mod recovery;
mod relaxing;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod scan;
pub(crate) mod schedule;
mod second;
pub(crate) mod shadow;
pub(crate) mod stop;
mod takedown;
#[cfg(feature = "trace")]
mod traced;
mod trap;
pub(crate) mod vcpu;

use alloc::boxed::Box;
use core::convert::Infallible;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use create::Plan;
use hyp_abi::MAX_VCPUS;
use hyp_core::mmio::Devices;
use hyp_core::psci::Psci;
use hyp_core::recovery::Meter;
use hyp_core::vgic::Vgic;
use pe::{Pages, Pe};
use policy::Policy;
use stage2::{Epochs, Guard, Region, RegionMap, Scratch, Space, Tally};
use vcpu::Mailbox;

use crate::boot::{Machine, Refusal};
use crate::cpu::PerCpu;
use crate::lock::Lock;

/// The number of the only VM.
pub(crate) const NUMBER: u32 = 0;

/// Regions: RAM and the windows of the emulated devices.
pub(crate) type Regions = RegionMap<[Region; create::REGIONS]>;

/// Stage-2 tables of a VM here.
pub(crate) type Stage2 = Space<'static, Pages, Pe>;

/// The guards of all CPUs.
pub(crate) static EPOCHS: Epochs<MAX_VCPUS> = Epochs::new();

/// A virtual machine, from power-on to its end.
#[derive(Debug)]
pub(crate) struct Vm {
    /// What it was made from.
    pub(crate) plan: &'static Plan,
    /// What installs had done before: of memory, and how many scratch leaves.
    since: (Tally, u64),
    /// Stage-2 tables.
    pub(crate) space: Stage2,
    /// What its guest finds where it has no memory, if it may go on.
    scratch: Scratch,
    /// How often it has.
    meter: Meter,
    /// Table pages that the scratch page took outside of RAM: see [`recovery`].
    outlying: AtomicU64,
    policy: AtomicPtr<Policy>,
    /// The turn of who moves memory, resizes leaves or scans. Others try it, and never wait.
    moving: Lock<()>,
    /// Where the scan is; `None` where RAM stays in pages. Locked by who has the turn, `moving`, and nobody else.
    scan: Lock<Option<scan::Scanner>>,
    /// The dirty session, if there is one. Locked by who has the turn, and nobody else.
    logging: Lock<Option<logging::Logging>>,
    /// The second copy of a range of RAM, if there is one. Others try it, and never wait.
    shadow: Lock<Option<shadow::Shadow>>,
    /// Who changes its memory in the background, if anybody does.
    churning: churning::Churning,
    /// Power states.
    pub(crate) psci: Psci,
    /// Start requests.
    pub(crate) mailboxes: [Mailbox; MAX_VCPUS],
    /// Emulated devices.
    pub(crate) devices: Lock<Devices>,
    /// Whether these have no room for input. Written with their lock.
    pub(crate) full: AtomicBool,
    /// The interrupt controller's model: see [`interrupts`].
    vgic: Lock<Vgic>,
    /// What the physical counter read when this life began: there the guest's virtual counter is 0.
    epoch: u64,
}

impl Vm {
    /// The policy as it stands while the guard is open.
    #[inline]
    pub(crate) fn policy<'g>(&self, _guard: &'g Guard<'_>) -> &'g Policy {
        // SAFETY: (1) the pointer came from a box; (2) whoever replaces the policy waits for the
        // guards that may have seen it before freeing it.
        unsafe { &*self.policy.load(Ordering::Acquire) }
    }
}

/// Makes the VM and runs its first vCPU on this, the boot CPU. Returns only if the VM cannot be made.
pub(crate) fn start(machine: Machine) -> Result<Infallible, Refusal> {
    let plan = Box::leak(Box::new(create::plan(machine)?));
    life::first(plan)?;
    #[cfg(feature = "selftest")]
    crate::selftest::run(0);
    life::serve(crate::cpu::current())
}

/// Where the other CPUs wait until there is a VM, and run their vCPU.
pub(crate) fn secondary(cpu: &'static PerCpu) -> ! {
    life::serve(cpu)
}
