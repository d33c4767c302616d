//! EL2's controls over the guest. Every one is written: none keeps what firmware left in it. They are the same for all vCPUs, but
//! VMPIDR_EL2, VTTBR_EL2 and HCR_EL2.TVM (`el1`).
//!
//! | register | why |
//! | --- | --- |
//! | HCR_EL2 | stage 2 on, AArch64; interrupts and SErrors to EL2; traps: SMC, ID registers, implementation-defined registers, set/way, ACTLR, error records, LORegions; writes of the virtual memory registers while the caches are off (`caches`); WFI (`idle`); barriers and TLB maintenance of the guest reach all CPUs (BSU, FB); pointer authentication allowed; FWB as the tables are encoded |
//! | CPTR_EL2 | FP and SIMD allowed; SVE, SME, trace and activity monitors trapped |
//! | MDCR_EL2 | debug, OS lock, PMU, SPE and trace trapped |
//! | MPAM2_EL2, MPAMHCR_EL2 | memory partitioning trapped, where it exists |
//! | HCRX_EL2, HFG*_EL2, HDFG*_EL2 | 0: nothing that they could enable, and what is not known is trapped |
//! | CNTHCTL_EL2, CNTVOFF_EL2 | counters and the virtual timer are the guest's, its physical timer is emulated; virtual time begins with the VM |
//! | ICH_HCR_EL2 | the virtual CPU interface is off until there is a vCPU (`interrupts`) |
//! | VTCR_EL2, VTTBR_EL2 | the VM's tables, VMID not 0 |
//! | VPIDR_EL2, VMPIDR_EL2 | the real part, the vCPU's number |
//! | ACTLR_EL1, MDSCR_EL1 | 0: the guest's own accesses trap |
//!
//! A trapped register that the ID registers do not promise is undefined for the guest (`trap`).

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    CNTHCTL_EL2, CNTVOFF_EL2, CPTR_EL2, HCR_EL2, MIDR_EL1, Readable, VTCR_EL2, Writeable,
};
use stage2::Pa;
use stage2::vmid::{self, EntryError, Running};

use super::pe::Pe;
use super::{Vm, interrupts};
use crate::event::trace;
use crate::sysreg;

/// `CPTR_EL2`: the bits that are RES1 without SVE and SME, which are their traps; TTA, TAM; TFP 0.
const CPTR: u64 = 0x33ff | 1 << 20 | 1 << 30;
/// `MDCR_EL2`: TDCC, TTRF, TPMS, TDRA, TDOSA, TDA, TPM, TPMCR; E2PB and E2TB 0.
const MDCR: u64 = 1 << 27 | 1 << 19 | 1 << 14 | 0b111 << 9 | 0b11 << 5;

/// Writes HCR_EL2. The barriers keep the write from meeting translations under way: on AmpereOne it may corrupt
/// those of loads and stores (erratum AC04_CPU_23). Not in line, so that the order can be read in the machine code.
#[inline(never)]
fn write_hcr(value: u64) {
    barrier::dsb(barrier::NSH);
    HCR_EL2.set(value);
    barrier::isb(barrier::SY);
}

/// Whether the guest's writes of its virtual memory registers trap (HCR_EL2.TVM) on this CPU.
pub(super) fn trap_vm_registers(on: bool) {
    let tvm = HCR_EL2::TVM::EnableTrapTVM.value;
    let others = HCR_EL2.get() & !tvm;
    write_hcr(if on { others | tvm } else { others });
}

/// Sets EL2's controls on this CPU for all vCPUs of the VM.
pub(super) fn load(vm: &Vm) {
    VTCR_EL2.set(vm.space.geometry().vtcr());
    let hcr = HCR_EL2::VM::SET
        + HCR_EL2::SWIO::SET
        + HCR_EL2::FMO::SET
        + HCR_EL2::IMO::SET
        + HCR_EL2::AMO::SET
        + HCR_EL2::FB::SET
        + HCR_EL2::BSU::InnerShareable
        + HCR_EL2::TID3::SET
        + HCR_EL2::TSC::SET
        + HCR_EL2::TIDCP::SET
        + HCR_EL2::TACR::SET
        + HCR_EL2::TSW::SET
        + HCR_EL2::RW::EL1IsAarch64
        + HCR_EL2::TLOR::SET
        + HCR_EL2::TERR::SET
        + HCR_EL2::APK::SET
        + HCR_EL2::API::SET
        + HCR_EL2::TID5::SET
        + HCR_EL2::TWI::SET
        + HCR_EL2::FWB.val(u64::from(vm.space.encoding().fwb));
    write_hcr(hcr.value);
    CPTR_EL2.set(CPTR);
    sysreg::write!("mdcr_el2", MDCR | event_counters());
    sysreg::write!("hstr_el2", 0);
    CNTHCTL_EL2.write(CNTHCTL_EL2::EL1PCTEN::SET);
    CNTVOFF_EL2.set(vm.epoch);
    interrupts::switch_off();
    sysreg::write!("vpidr_el2", MIDR_EL1.get());
    sysreg::write!("actlr_el1", 0);
    sysreg::write!("mdscr_el1", 0);
    optional();
    barrier::isb(barrier::SY);
    trace::synchronized();
}

/// Enters the VM on this CPU for a vCPU, which may run here until the returned token is dropped. After [`load`].
///
/// # Errors
/// Of [`Space::enter`](stage2::Space::enter): none where each CPU has a place, and there are more VMIDs than
/// CPUs.
pub(super) fn enter<'r>(
    vm: &'r Vm,
    place: &'r mut vmid::Cpu<'_>,
    vcpu: usize,
) -> Result<Running<'r, Pe>, EntryError> {
    // Bit 31 is RES1; Aff0 is the number.
    sysreg::write!("vmpidr_el2", 1 << 31 | vcpu as u64);
    // SAFETY: (1) `place` is this CPU's, and until the token is dropped only `vcpu` of this VM runs here, under the
    // registers that `load` has set; (2) nobody else writes VTTBR_EL2.
    unsafe { vm.space.enter(place, vcpu as u16) }
}

/// A root that maps nothing, for CPUs that run no VM: as large and aligned as any root can be.
#[repr(align(65536))]
struct NoVm([u64; 8192]);

static NO_VM: NoVm = NoVm([0; 8192]);

/// Where VTTBR_EL2 points on a CPU that runs no VM.
pub(super) fn no_vm() -> Pa {
    Pa::new(core::ptr::from_ref(&NO_VM.0).addr() as u64)
}

/// `MDCR_EL2.HPMN`: all event counters, which then belong to the lower levels, where their use is trapped.
fn event_counters() -> u64 {
    // PMCR_EL0 exists where PMUVer is neither 0 nor 0xf.
    match sysreg::read!("id_aa64dfr0_el1") >> 8 & 0xf {
        0 | 0xf => 0,
        _ => sysreg::read!("pmcr_el0") >> 11 & 0x1f,
    }
}

/// Memory partitioning is hidden from guests, and trapped: MPAM2_EL2 keeps what firmware left otherwise.
///
/// Firmware must let EL2 have these registers (MPAM3_EL3.TRAPLOWER 0), as the boot protocol asks.
fn partitioning() {
    let major = sysreg::read!("id_aa64pfr0_el1") >> 40 & 0xf;
    let minor = sysreg::read!("id_aa64pfr1_el1") >> 16 & 0xf;
    if major == 0 && minor == 0 {
        return;
    }
    // TRAPMPAM0EL1 and TRAPMPAM1EL1; EL2's own partition is the default one.
    let traps = 1 << 49 | 1 << 48;
    let id = sysreg::read!("S3_0_C10_C4_4"); // MPAMIDR_EL1
    let (has_hcr, has_tidr) = (id >> 17 & 1 != 0, id >> 58 & 1 != 0);
    let tidr = if has_tidr { 1 << 58 } else { 0 };
    sysreg::write!("S3_4_C10_C5_0", traps | tidr); // MPAM2_EL2
    if has_hcr {
        sysreg::write!("S3_4_C10_C4_0", 1 << 31); // MPAMHCR_EL2.TRAP_MPAMIDR_EL1
    }
}

/// The controls that only newer CPUs have.
fn optional() {
    partitioning();
    let mmfr0 = sysreg::read!("id_aa64mmfr0_el1");
    let mmfr1 = sysreg::read!("id_aa64mmfr1_el1");
    if mmfr1 >> 40 & 0xf != 0 {
        sysreg::write!("S3_4_C1_C2_2", 0); // HCRX_EL2
    }
    let fine_grained = mmfr0 >> 56 & 0xf;
    if fine_grained >= 1 {
        sysreg::write!("S3_4_C1_C1_4", 0); // HFGRTR_EL2
        sysreg::write!("S3_4_C1_C1_5", 0); // HFGWTR_EL2
        sysreg::write!("S3_4_C1_C1_6", 0); // HFGITR_EL2
        sysreg::write!("S3_4_C3_C1_4", 0); // HDFGRTR_EL2
        sysreg::write!("S3_4_C3_C1_5", 0); // HDFGWTR_EL2
    }
    if fine_grained >= 2 {
        sysreg::write!("S3_4_C3_C1_0", 0); // HDFGRTR2_EL2
        sysreg::write!("S3_4_C3_C1_1", 0); // HDFGWTR2_EL2
        sysreg::write!("S3_4_C3_C1_2", 0); // HFGRTR2_EL2
        sysreg::write!("S3_4_C3_C1_3", 0); // HFGWTR2_EL2
        sysreg::write!("S3_4_C3_C1_7", 0); // HFGITR2_EL2
    }
}
