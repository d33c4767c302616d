//! What the registers say of the GIC, and that settings are kept.

use core::arch::asm;

use guest_rt::gic::{self, Interrupt, gicd, gicr, set_gicd, set_gicr};
use guest_rt::smp::{self, Vcpu};
use guest_rt::{Machine, check, check_eq, cpu};

/// GICD_CTLR: group 0 and 1 enabled, affinity routing, one security state.
const GICD_CTLR: u64 = 0x0;
const GICD_TYPER: u64 = 0x4;
/// The same offset in both.
const PIDR2: u64 = 0xffe8;
const GICR_TYPER: u64 = 0x8;
const GICR_WAKER: u64 = 0x14;

pub(crate) fn identity(machine: &Machine, _: usize) {
    let control: u32 = gicd(GICD_CTLR);
    check_eq!(control & 0x52, 0x52, "GICD_CTLR: DS, ARE, EnableGrp1");
    let typer: u32 = gicd(GICD_TYPER);
    check!(typer & 0x1f >= 1, "GICD_TYPER {typer:#x}: SPIs");
    check_eq!(typer >> 10 & 1, 0, "GICD_TYPER.SecurityExtn with GICD_CTLR.DS");
    check!(typer >> 19 & 0x1f >= 9, "GICD_TYPER {typer:#x}: bits of an INTID");
    check_eq!(gicd::<u32>(PIDR2) >> 4 & 0xf, 3, "GICD_PIDR2.ArchRev");
    let vcpus = machine.vcpus();
    for (vcpu, &mpidr) in vcpus.iter().enumerate() {
        let typer: u64 = gicr(vcpu, GICR_TYPER);
        let halves = (gicr::<u32>(vcpu, GICR_TYPER), gicr::<u32>(vcpu, GICR_TYPER + 4));
        check_eq!(halves, (typer as u32, (typer >> 32) as u32), "GICR_TYPER in halves");
        check_eq!(typer >> 32, mpidr, "GICR_TYPER.Affinity_Value of vCPU {vcpu}");
        check_eq!(typer >> 8 & 0xffff, vcpu as u64, "GICR_TYPER.Processor_Number");
        check_eq!(typer >> 4 & 1, u64::from(vcpu + 1 == vcpus.len()), "GICR_TYPER.Last");
        check_eq!(gicr::<u32>(vcpu, PIDR2) >> 4 & 0xf, 3, "GICR_PIDR2.ArchRev");
    }
    smp::run(machine, vcpus.len(), &|me| interface(me, machine));
}

/// A vCPU's own.
fn interface(me: Vcpu, machine: &Machine) {
    if me.index > 0 {
        gic::init(machine.vcpus().len());
    }
    check_eq!(cpu::mpidr(), machine.vcpus()[me.index], "MPIDR_EL1 and device tree");
    check_eq!(gicr::<u32>(me.index, GICR_WAKER) & 6, 0, "GICR_WAKER: awake");
    let (sre, control): (u64, u64);
    // SAFETY: 1. registers of this vCPU's interface.
    unsafe {
        asm!("mrs {}, S3_0_C12_C12_5", "mrs {}, S3_0_C12_C12_4", out(reg) sre, out(reg) control,
             options(nomem, nostack));
    }
    check_eq!(sre & 1, 1, "ICC_SRE_EL1.SRE");
    check!(control >> 8 & 7 >= 4, "ICC_CTLR_EL1 {control:#x}: at least five bits of priority");
    check_eq!(gic::running_priority(), 0xff, "ICC_RPR_EL1 when nothing is being served");
    for mask in [0, 0x10, 0x80, 0xf0] {
        gic::Interface::set_priority_mask(mask);
        check_eq!(gic::Interface::get_priority_mask(), mask, "ICC_PMR_EL1");
    }
    gic::Interface::set_priority_mask(0xff);
}

/// Settings of an SGI, a PPI and SPIs, each way that a program may write them.
pub(crate) fn registers(machine: &Machine, _: usize) {
    for intid in [0, 15, 20, 27, 32, 40, 63] {
        let one = Interrupt::new(intid);
        check!(!one.is_enabled(), "INTID {intid} is disabled after a reset");
        one.enable(true);
        check!(one.is_enabled(), "INTID {intid} enabled");
        one.enable(false);
        check!(!one.is_enabled(), "INTID {intid} disabled");
        for priority in [0, 0x20, 0xf0] {
            one.set_priority(priority);
            check_eq!(one.priority(), priority, "priority of INTID {intid}");
        }
    }
    // Four priorities at once, and one byte among them.
    set_gicd::<u32>(0x400 + 36, 0x4030_2010);
    check_eq!(Interrupt::new(38).priority(), 0x30, "byte 2 of four");
    Interrupt::new(38).set_priority(0x80);
    check_eq!(gicd::<u32>(0x400 + 36), 0x4080_2010, "a byte among four");
    // Enabling by zeros changes nothing.
    set_gicd::<u32>(0x104, 0x0000_0100);
    set_gicd::<u32>(0x104, 0);
    check!(Interrupt::new(40).is_enabled(), "writing zeros to GICD_ISENABLER");
    Interrupt::new(40).enable(false);
    // Where SPIs go: in one access, and in halves.
    for (vcpu, &mpidr) in machine.vcpus().iter().enumerate() {
        let one = Interrupt::new(40);
        one.route(mpidr);
        check_eq!(one.target(), mpidr, "GICD_IROUTER to vCPU {vcpu}");
        set_gicd::<u32>(0x6000 + 41 * 8, mpidr as u32);
        set_gicd::<u32>(0x6000 + 41 * 8 + 4, (mpidr >> 32) as u32);
        check_eq!(Interrupt::new(41).target(), mpidr, "GICD_IROUTER in halves");
    }
    Interrupt::new(40).route(machine.vcpus()[0]);
    Interrupt::new(41).route(machine.vcpus()[0]);
    // With affinity routing the distributor has nothing of SGIs and PPIs.
    set_gicd::<u32>(0x100, !0);
    check_eq!(gicd::<u32>(0x100), 0, "GICD_ISENABLER0 with affinity routing");
    // GICR_STATUSR and others that need not be there: whatever they say, they can be asked.
    let _: u32 = gicr(0, 0x10);
    set_gicr::<u32>(0, 0x10, 0);
}
