//! The physical GICv3 (crate `arm-gic`): what of it reaches EL2, and what is done about that at once.
//!
//! | INTID | what | taken: | deactivated: |
//! | --- | --- | --- | --- |
//! | 0, an SGI | makes another CPU look | | at once |
//! | 25 | maintenance: the vCPU's list registers want service | | at once |
//! | 26 | EL2's own timer (`platform/timer.rs`) | its alarms | at once |
//! | 27 | the vCPU's virtual timer | for the vCPU | by the guest, through a list register that is linked to it, or by [`release`] |
//! | 33, the machine's UART | input for the guest (`device`) | on the boot CPU | when there is room for more input |
//!
//! Everything else stays disabled, at the distributor and at the redistributors. With `HCR_EL2.IMO` a pending interrupt
//! takes a CPU out of its guest whatever the guest masks; at EL2 interrupts stay masked and a pending one only ends a
//! WFI. The SGI carries no message. What is to be looked at was stored before it, and a DSB stands between: a system
//! register write is not ordered with stores by anything less.
//!
//! The end of an interrupt only drops its priority (EOImode 1), so that one which belongs to a guest can stay active until the
//! guest is through with it: an active interrupt is not signalled again, however long its level stays high.

use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering, fence};

use aarch64_cpu::asm::barrier;
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{
    GicCpuInterface, GicDistributor, GicRedistributorIterator, Group, HIGHEST_NS_PRIORITY,
    SgiTarget, SgiTargetGroup,
};
use arm_gic::{IntId, InterruptGroup, Trigger, UniqueMmioPointer};
use hyp_core::fdt::Gic;

use super::timer;
use crate::cpu::PerCpu;
use crate::lock::Lock;
use crate::{cpu, sysreg};

/// The SGI that makes a CPU look.
const LOOK: IntId = IntId::sgi(0);
/// Maintenance of list registers: the assignment is of the Base System Architecture, as is the next.
const MAINTENANCE: IntId = IntId::ppi(9);
/// EL2's physical timer: INTID 26 on every system that keeps to the Base System Architecture (Arm DEN 0094, PPI
/// assignments), which QEMU's `virt` does. If it were another, idle CPUs would sleep until they are kicked.
const TIMER: IntId = IntId::ppi(10);
/// EL1's virtual timer.
const VIRTUAL_TIMER: IntId = IntId::ppi(11);
/// The machine's UART: SPI 1 on QEMU's `virt`. If it were another, input would be seen when the guest looks.
const CONSOLE: IntId = IntId::spi(1);
/// `ICC_CTLR_EL1.EOImode`: the end of an interrupt drops its priority, and no more.
const EOI_MODE: u64 = 1 << 1;

/// Whether the interrupt of the virtual timer was taken, and the model of the guest's controller has not been told yet. Reached by its
/// CPU alone.
#[derive(Debug)]
pub(crate) struct Forwarded(Cell<bool>);

impl Forwarded {
    /// It was not.
    pub(crate) const fn no() -> Self {
        Self(Cell::new(false))
    }
}

/// Whether the interrupt of the machine's UART was taken, and not deactivated since.
static CONSOLE_ACTIVE: AtomicBool = AtomicBool::new(false);

/// What cannot be used.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GicError {
    /// The registers are at address 0.
    Nowhere,
    /// No redistributor belongs to the CPU of this affinity.
    NoRedistributor(u64),
    /// The crate refused.
    Refused(arm_gic::gicv3::GicError),
}

impl core::fmt::Display for GicError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Nowhere => f.write_str("the GIC's registers are at address 0"),
            Self::NoRedistributor(mpidr) => {
                write!(f, "no GIC redistributor belongs to CPU {mpidr:#x}")
            }
            Self::Refused(error) => write!(f, "GIC: {error}"),
        }
    }
}

impl From<arm_gic::gicv3::GicError> for GicError {
    fn from(error: arm_gic::gicv3::GicError) -> Self {
        Self::Refused(error)
    }
}

/// Redistributors are shared by address range: one CPU at a time.
static REDISTRIBUTORS: Lock<()> = Lock::new("the redistributors", ());

/// Turns on affinity routing and non-secure group 1, and has the console's interrupt come to this, the boot CPU. Once.
///
/// # Safety
/// 1. `gic` names a GICv3, mapped as device memory.
pub(crate) unsafe fn init(gic: &Gic) -> Result<(), GicError> {
    let registers = core::ptr::with_exposed_provenance_mut::<Gicd>(gic.dist.start as usize);
    let registers = NonNull::new(registers).ok_or(GicError::Nowhere)?;
    // SAFETY: (1) the caller's clause 1; (2) this is the only place that makes a pointer to it.
    let mut distributor = GicDistributor::new(unsafe { UniqueMmioPointer::new(registers) });
    // Bits 4 and 1 of GICD_CTLR: ARE and group 1, whether the GIC has one security state or this is
    // the non-secure view of two.
    distributor.enable_affinity_routing_secure(true);
    // Whatever firmware left enabled would take the guest out again and again.
    distributor.enable_all_interrupts(false);
    distributor.enable_group1_non_secure(true);
    distributor.set_group(CONSOLE, Group::Group1NS)?;
    distributor.set_trigger(CONSOLE, Trigger::Level)?;
    distributor.set_interrupt_priority(CONSOLE, HIGHEST_NS_PRIORITY)?;
    distributor.set_routing(CONSOLE, Some(cpu::affinity()))?;
    distributor.enable_interrupt(CONSOLE, true)?;
    distributor.wait_for_pending_write();
    Ok(())
}

/// Makes the executing CPU receive the SGI.
///
/// # Safety
/// 1. As for [`init`], which has returned.
pub(crate) unsafe fn join(gic: &Gic, mpidr: u64) -> Result<(), GicError> {
    let registers = core::ptr::with_exposed_provenance_mut::<GicrSgi>(gic.redist.start as usize);
    let registers = NonNull::new(registers).ok_or(GicError::Nowhere)?;
    // A guest finds ICC_SRE_EL1 as on a machine of its own.
    GicCpuInterface::enable_system_register_el2(true);
    // Firmware may have left them on.
    timer::stop();
    sysreg::write!("cntv_ctl_el0", 0);
    barrier::isb(barrier::SY);
    {
        let _one_at_a_time = REDISTRIBUTORS.lock();
        // SAFETY: (1) the caller's clause 1; (2) the lock makes this the only iterator.
        let mut all = unsafe { GicRedistributorIterator::new(registers) }?;
        let mut mine = all
            .find(|redistributor| redistributor.typer().core_mpidr() == mpidr)
            .ok_or(GicError::NoRedistributor(mpidr))?;
        // Awake already is as good.
        let _ = mine.mark_core_awake();
        mine.enable_all_interrupts(false);
        for interrupt in [LOOK, MAINTENANCE, TIMER, VIRTUAL_TIMER] {
            mine.set_group(interrupt, Group::Group1NS)?;
            mine.set_interrupt_priority(interrupt, HIGHEST_NS_PRIORITY)?;
            mine.enable_interrupt(interrupt, true)?;
        }
        mine.wait_for_pending_write();
    }
    sysreg::write!("S3_0_C12_C12_4", EOI_MODE); // ICC_CTLR_EL1
    GicCpuInterface::set_priority_mask(0xff);
    GicCpuInterface::enable_group1(true);
    barrier::isb(barrier::SY);
    Ok(())
}

/// Makes the CPU with this affinity look: it leaves its guest or its WFI.
pub(crate) fn kick(mpidr: u64) {
    let [aff0, affinity1, affinity2, _, affinity3, ..] = mpidr.to_le_bytes();
    // Aff0 is a number in 0..16 within the list's range; QEMU and the hardware we know keep to it.
    let target =
        SgiTarget::List { affinity3, affinity2, affinity1, target_list: 1 << (aff0 & 0xf) };
    barrier::dsb(barrier::ISHST);
    let _ = GicCpuInterface::send_sgi(LOOK, target, SgiTargetGroup::CurrentGroup1);
    barrier::isb(barrier::SY);
}

/// Whether an interrupt is pending on this CPU.
pub(crate) fn is_pending() -> bool {
    // ISR_EL1.I: at EL2 that of physical interrupts.
    sysreg::read!("isr_el1") >> 7 & 1 != 0
}

/// Takes what is pending on this CPU, one interrupt; returns whether anything was. What a guest's vCPU has to know of it, it finds
/// out when its interrupts are looked at the next time (`vm/interrupts.rs`).
pub(crate) fn acknowledge() -> bool {
    let Some(number) = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1)
    else {
        return false;
    };
    // The acknowledge is complete before what it announced is read.
    barrier::dsb(barrier::SY);
    if number == TIMER {
        // It is pending for as long as the timer is on and the time is past.
        timer::came(cpu::current());
        barrier::isb(barrier::SY);
    }
    GicCpuInterface::end_interrupt(number, InterruptGroup::Group1);
    match number {
        VIRTUAL_TIMER => cpu::current().forwarded.0.set(true),
        CONSOLE => {
            CONSOLE_ACTIVE.store(true, Ordering::Release);
            // Before this CPU looks whether there is room: who makes some looks at this one (`device`).
            fence(Ordering::SeqCst);
        }
        _ => deactivate(number.into()),
    }
    barrier::isb(barrier::SY);
    true
}

/// Whether the virtual timer's interrupt was taken on the executing CPU, whose block `cpu` is, since this was last asked.
pub(crate) fn was_forwarded(cpu: &PerCpu) -> bool {
    cpu.forwarded.0.replace(false)
}

/// Whether the interrupt of the machine's UART is active: input has come, and it does not tell of more.
pub(crate) fn console_is_active() -> bool {
    CONSOLE_ACTIVE.load(Ordering::Acquire)
}

/// Deactivates it: it comes again for input that is there, or that comes. Callers exclude each other.
pub(crate) fn listen_to_console() {
    // Before, so that the mark of the next one is not lost.
    CONSOLE_ACTIVE.store(false, Ordering::Release);
    barrier::dsb(barrier::ISHST);
    release(CONSOLE.into());
}

/// Deactivates a PPI of the executing CPU that was taken for a guest: the guest is not going to. Of one that is not active
/// nothing changes; one whose level is high comes again.
pub(crate) fn release(intid: u32) {
    deactivate(intid);
    barrier::isb(barrier::SY);
}

/// The second half of an interrupt's end, after the drop of its priority.
fn deactivate(intid: u32) {
    sysreg::write!("S3_0_C12_C11_1", u64::from(intid)); // ICC_DIR_EL1
}
