//! The interrupt controller, a GICv3, as a scenario sees it: registers by INTID, and this vCPU's interface.
//!
//! Crate `arm-gic` sets it up, as it would for any kernel that uses it ([`init`]), and acknowledges and ends interrupts. The
//! rest are plain loads and stores of one register each, because a scenario asks what exactly that register says.
//! SGIs and PPIs are in the redistributor of a vCPU, SPIs in the distributor, at the same offsets (Arm IHI 0069, 12.8 to 12.11).

use core::arch::asm;
use core::ptr::NonNull;

use aarch64_cpu::asm::barrier;
pub use arm_gic::gicv3::GicCpuInterface as Interface;
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicV3, SgiTarget, SgiTargetGroup};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};
use hyp_abi::interrupt::{FIRST_PPI, FIRST_SPI};
use hyp_abi::map::{GICD_BASE, GICR_BASE, GICR_STRIDE};

use crate::{fail, start};

/// Offset of the frame of SGIs and PPIs in a redistributor.
const SGI_FRAME: u64 = 0x1_0000;

/// Registers with one bit for each interrupt.
const IGROUPR: u64 = 0x080;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
/// One byte for each.
const IPRIORITYR: u64 = 0x400;
/// Two bits for each.
const ICFGR: u64 = 0xc00;
/// Eight bytes for each SPI.
const IROUTER: u64 = 0x6000;

/// What a register is as wide as. Each access is one plain instruction: of others the hypervisor is not told enough (ISV).
pub trait Width: Copy {
    /// Loads from a register.
    ///
    /// # Safety
    /// 1. `at` is a mapped device register, aligned.
    unsafe fn load(at: u64) -> Self;

    /// Stores to a register.
    ///
    /// # Safety
    /// 1. `at` is a mapped device register, aligned; 2. nothing there reaches memory.
    unsafe fn store(self, at: u64);
}

macro_rules! width {
    ($type:ty, $load:literal, $store:literal) => {
        impl Width for $type {
            unsafe fn load(at: u64) -> Self {
                let value: u64;
                // SAFETY: 1. by the caller's clause 1.
                unsafe { asm!($load, out(reg) value, in(reg) at, options(nostack, preserves_flags)) };
                value as $type
            }

            unsafe fn store(self, at: u64) {
                // SAFETY: 1. and 2. by the caller's clauses.
                unsafe {
                    asm!($store, in(reg) u64::from(self), in(reg) at, options(nostack, preserves_flags));
                }
            }
        }
    };
}

width!(u8, "ldrb {:w}, [{}]", "strb {:w}, [{}]");
width!(u32, "ldr {:w}, [{}]", "str {:w}, [{}]");
width!(u64, "ldr {:x}, [{}]", "str {:x}, [{}]");

/// Reads a register of the GIC's.
fn read<T: Width>(at: u64) -> T {
    // SAFETY: 1. the GIC is mapped as Device by the identity map, and callers ask for naturally aligned registers.
    unsafe { T::load(at) }
}

/// Writes a register of the GIC's.
fn write<T: Width>(at: u64, value: T) {
    // SAFETY: 1. as in `read`; 2. the GIC has no LPIs here, so it does not write to memory.
    unsafe { value.store(at) }
}

/// Reads a register of the distributor.
pub fn gicd<T: Width>(offset: u64) -> T {
    read(GICD_BASE + offset)
}

/// Writes a register of the distributor.
pub fn set_gicd<T: Width>(offset: u64, value: T) {
    write(GICD_BASE + offset, value);
}

/// Where a vCPU's redistributor has a register.
fn at_gicr(vcpu: usize, offset: u64) -> u64 {
    GICR_BASE + vcpu as u64 * GICR_STRIDE + offset
}

/// Reads a register of a vCPU's redistributor.
pub fn gicr<T: Width>(vcpu: usize, offset: u64) -> T {
    read(at_gicr(vcpu, offset))
}

/// Writes a register of a vCPU's redistributor.
pub fn set_gicr<T: Width>(vcpu: usize, offset: u64, value: T) {
    write(at_gicr(vcpu, offset), value);
}

/// One interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Its INTID.
    pub intid: u32,
    /// Of SGIs and PPIs: whose.
    vcpu: usize,
}

impl Interrupt {
    /// An SPI, or the SGI or PPI of this vCPU.
    pub fn new(intid: u32) -> Self {
        Self::of(start::vcpu(), intid)
    }

    /// An SPI, or the SGI or PPI of a vCPU.
    pub fn of(vcpu: usize, intid: u32) -> Self {
        Self { intid, vcpu }
    }

    fn address(self, offset: u64) -> u64 {
        let private = self.intid < FIRST_SPI;
        if private { at_gicr(self.vcpu, SGI_FRAME + offset) } else { GICD_BASE + offset }
    }

    fn word(self, offset: u64) -> u64 {
        self.address(offset + u64::from(self.intid / 32) * 4)
    }

    fn bit(self, offset: u64) -> bool {
        read::<u32>(self.word(offset)) >> (self.intid % 32) & 1 == 1
    }

    /// Zeros change nothing.
    fn set_bit(self, offset: u64) {
        write::<u32>(self.word(offset), 1 << (self.intid % 32));
    }

    /// Whether it is forwarded to its vCPU.
    pub fn is_enabled(self) -> bool {
        self.bit(ISENABLER)
    }

    /// Forwards it, or does not.
    pub fn enable(self, on: bool) {
        self.set_bit(if on { ISENABLER } else { ICENABLER });
    }

    /// Whether it is pending.
    pub fn is_pending(self) -> bool {
        self.bit(ISPENDR)
    }

    /// Makes it pending, or takes that back.
    pub fn pend(self, on: bool) {
        self.set_bit(if on { ISPENDR } else { ICPENDR });
    }

    /// Whether it is active.
    pub fn is_active(self) -> bool {
        self.bit(ISACTIVER)
    }

    /// Makes it active, or inactive.
    pub fn activate(self, on: bool) {
        self.set_bit(if on { ISACTIVER } else { ICACTIVER });
    }

    /// Its priority, by a load of one byte.
    pub fn priority(self) -> u8 {
        read(self.address(IPRIORITYR + u64::from(self.intid)))
    }

    /// Sets its priority, by a store of one byte: lower numbers are served first.
    pub fn set_priority(self, priority: u8) {
        write(self.address(IPRIORITYR + u64::from(self.intid)), priority);
    }

    /// Edge-triggered, or level-sensitive.
    pub fn set_edge(self, on: bool) {
        let register = self.address(ICFGR + u64::from(self.intid / 16) * 4);
        let bit = 2 << (self.intid % 16 * 2);
        modify(register, bit, if on { bit } else { 0 });
    }

    /// Its group: 0, which comes as FIQ, or 1.
    pub fn set_group(self, group: u32) {
        let bit = 1 << (self.intid % 32);
        modify(self.word(IGROUPR), bit, group << (self.intid % 32));
    }

    /// Has an SPI go to the vCPU with this affinity.
    pub fn route(self, mpidr: u64) {
        set_gicd::<u64>(IROUTER + u64::from(self.intid) * 8, mpidr);
    }

    /// Where an SPI goes.
    pub fn target(self) -> u64 {
        gicd(IROUTER + u64::from(self.intid) * 8)
    }
}

/// Changes bits of a register of settings.
fn modify(register: u64, clear: u32, set: u32) {
    write::<u32>(register, read::<u32>(register) & !clear | set);
}

/// Sets up the distributor, if this is vCPU 0, and this vCPU's redistributor and interface, by the driver. Everything is disabled, in
/// group 1, level-sensitive.
pub fn init(vcpus: usize) {
    let me = start::vcpu();
    let (distributor, redistributors) = (GICD_BASE as *mut Gicd, GICR_BASE as *mut GicrSgi);
    let (Some(distributor), Some(redistributors)) =
        (NonNull::new(distributor), NonNull::new(redistributors))
    else {
        fail!("the GIC is at address 0")
    };
    // SAFETY: 1. the device tree names a GICv3 there, mapped as Device; 2. no other driver is alive: vCPU 0 sets up before it
    // starts others, and those touch their own redistributor only.
    let driver = unsafe { GicV3::new(UniqueMmioPointer::new(distributor), redistributors, vcpus) };
    let mut driver = match driver {
        Ok(driver) => driver,
        Err(error) => fail!("the driver does not take this GIC: {error}"),
    };
    if me == 0 {
        driver.setup(me);
    } else {
        driver.init_cpu(me);
        Interface::enable_group1(true);
    }
    Interface::set_priority_mask(0xff);
    barrier::isb(barrier::SY);
}

/// Takes the interrupt of group 1 that is to be served next: it is active now.
pub fn acknowledge() -> Option<u32> {
    let intid = Interface::get_and_acknowledge_interrupt(InterruptGroup::Group1)?;
    barrier::dsb(barrier::SY);
    Some(intid.raw_value())
}

/// Drops the running priority; with EOImode 0 the interrupt is inactive then, too.
pub fn end(intid: u32) {
    if let Some(intid) = id(intid) {
        Interface::end_interrupt(intid, InterruptGroup::Group1);
    }
    barrier::isb(barrier::SY);
}

/// The driver's name of an INTID.
fn id(intid: u32) -> Option<IntId> {
    match intid {
        0..FIRST_PPI => Some(IntId::sgi(intid)),
        FIRST_PPI..FIRST_SPI => Some(IntId::ppi(intid - FIRST_PPI)),
        FIRST_SPI..1020 => Some(IntId::spi(intid - FIRST_SPI)),
        _ => None,
    }
}

/// ICC_DIR_EL1: an interrupt that is active is inactive, with EOImode 1.
pub fn deactivate(intid: u32) {
    // SAFETY: 1. a register of this vCPU's interface.
    unsafe { asm!("msr S3_0_C12_C11_1, {}", "isb", in(reg) u64::from(intid), options(nostack)) };
}

/// ICC_CTLR_EL1.EOImode: whether [`end`] leaves deactivation to [`deactivate`].
pub fn set_split_end(on: bool) {
    let value: u64;
    // SAFETY: 1. as in `deactivate`.
    unsafe { asm!("mrs {}, S3_0_C12_C12_4", out(reg) value, options(nomem, nostack)) };
    let value = value & !2 | u64::from(on) << 1;
    // SAFETY: 1. as in `deactivate`.
    unsafe { asm!("msr S3_0_C12_C12_4, {}", "isb", in(reg) value, options(nostack)) };
}

/// ICC_RPR_EL1: the priority of what is being served, 0xff if nothing is.
pub fn running_priority() -> u64 {
    let value: u64;
    // SAFETY: 1. as in `deactivate`.
    unsafe { asm!("mrs {}, S3_0_C12_C11_3", out(reg) value, options(nomem, nostack)) };
    value & 0xff
}

/// Sends an SGI of group 1 to the vCPUs of `list`, bit n for Aff0 = n. What was stored before is seen by who takes it.
pub fn send(intid: u32, list: u16) {
    let target = SgiTarget::List { affinity3: 0, affinity2: 0, affinity1: 0, target_list: list };
    signal(intid, target, SgiTargetGroup::CurrentGroup1);
}

/// Sends an SGI of group 1 to all vCPUs but this.
pub fn send_to_others(intid: u32) {
    signal(intid, SgiTarget::All, SgiTargetGroup::CurrentGroup1);
}

/// Sends an SGI of group 0 to the vCPUs of `list`.
pub fn send_group0(intid: u32, list: u16) {
    let target = SgiTarget::List { affinity3: 0, affinity2: 0, affinity1: 0, target_list: list };
    signal(intid, target, SgiTargetGroup::Group0);
}

fn signal(intid: u32, target: SgiTarget, group: SgiTargetGroup) {
    barrier::dsb(barrier::ISHST);
    if let Err(error) = Interface::send_sgi(IntId::sgi(intid % FIRST_PPI), target, group) {
        fail!("SGI {intid}: {error}");
    }
    barrier::isb(barrier::SY);
}

/// Takes the interrupt of group 0 that is to be served next, and ends it.
pub fn serve_group0() -> Option<u32> {
    let intid = Interface::get_and_acknowledge_interrupt(InterruptGroup::Group0)?;
    Interface::end_interrupt(intid, InterruptGroup::Group0);
    barrier::isb(barrier::SY);
    Some(intid.raw_value())
}
