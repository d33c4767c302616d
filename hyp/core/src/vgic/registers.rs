//! The registers: which one lies at an offset (Arm IHI 0069, sections 12.8 to 12.11), and what the constant ones read.
//!
//! All are taken as words of 32 bits; those of 64 are two. What is not listed here is reserved, or belongs to a feature that is
//! not there (LPIs, message-based SPIs, two security states, ranges above 1019): it reads as zero and ignores writes.

/// Bytes of the distributor's window.
pub(super) const GICD_SIZE: u64 = 0x1_0000;
/// Bytes of one vCPU's redistributor: a frame of control registers and one of its SGIs and PPIs.
pub(super) const GICR_STRIDE: u64 = 0x2_0000;
/// The second of these frames.
const SGI_FRAME: u64 = 0x1_0000;

/// A register of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// `GICD_CTLR`.
    Control,
    /// `GICD_TYPER`.
    DistributorType,
    /// `GICD_IIDR` and `GICR_IIDR`.
    Implementer,
    /// `GICR_TYPER`; its upper word.
    RedistributorType { upper: bool },
    /// `GICR_WAKER`.
    Waker,
    /// A word of a bank of 32 interrupts.
    Bank(Word),
    /// `GICD_IROUTER<n>` of an SPI, by INTID; its upper word.
    Router { intid: u32, upper: bool },
    /// `GICD_PIDR4` and following, and those of the redistributors: which of the 12.
    Identity(usize),
    /// Reads as zero, ignores writes.
    Reserved,
}

/// What a word of a bank is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// IGROUPR.
    Group,
    /// ISENABLER and ICENABLER.
    Enable { set: bool },
    /// ISPENDR and ICPENDR.
    Pending { set: bool },
    /// ISACTIVER and ICACTIVER.
    Active { set: bool },
    /// IPRIORITYR: of the four interrupts from this one on.
    Priority { first: usize },
    /// ICFGR: of the 16 interrupts from this one on.
    Config { first: usize },
}

/// The distributor's register at this offset, a multiple of 4, and the bank it is about: 0 for none, and for that of the SGIs and PPIs,
/// which affinity routing takes away from here.
pub(super) fn distributor(offset: u64) -> (Register, usize) {
    match offset {
        0x0000 => (Register::Control, 0),
        0x0004 => (Register::DistributorType, 0),
        0x0008 => (Register::Implementer, 0),
        0x6000..0x8000 => {
            let (intid, upper) = ((offset.wrapping_sub(0x6000) >> 3) as u32, offset & 4 != 0);
            (Register::Router { intid, upper }, 0)
        }
        0x0080..0x0d00 => match bank(offset) {
            Some((_, 0)) | None => (Register::Reserved, 0),
            Some((word, bank)) => (Register::Bank(word), bank),
        },
        _ => (identity(offset), 0),
    }
}

/// The redistributor's register at this offset from its first frame, a multiple of 4.
pub(super) fn redistributor(offset: u64) -> Register {
    match offset {
        0x0004 => Register::Implementer,
        0x0008 => Register::RedistributorType { upper: false },
        0x000c => Register::RedistributorType { upper: true },
        0x0014 => Register::Waker,
        SGI_FRAME..GICR_STRIDE => match bank(offset.wrapping_sub(SGI_FRAME)) {
            Some((word, 0)) => Register::Bank(word),
            _ => Register::Reserved,
        },
        _ => identity(offset),
    }
}

/// The registers that the distributor and a redistributor's second frame have alike: the word, and which bank of 32.
fn bank(offset: u64) -> Option<(Word, usize)> {
    let at = offset as usize;
    let nth = at >> 2 & 0x1f;
    let (word, bank) = match at {
        0x080..0x100 => (Word::Group, nth),
        0x100..0x200 => (Word::Enable { set: at < 0x180 }, nth),
        0x200..0x300 => (Word::Pending { set: at < 0x280 }, nth),
        0x300..0x400 => (Word::Active { set: at < 0x380 }, nth),
        0x400..0x800 => (Word::Priority { first: at & 0x1c }, at >> 5 & 0x1f),
        0xc00..0xd00 => (Word::Config { first: (at & 4) << 2 }, at >> 3 & 0x1f),
        _ => return None,
    };
    Some((word, bank))
}

fn identity(offset: u64) -> Register {
    match offset {
        0xffd0..0x1_0000 => Register::Identity((offset.wrapping_sub(0xffd0) >> 2) as usize),
        _ => Register::Reserved,
    }
}

/// `GICD_IIDR` and `GICR_IIDR`: Arm (JEP106 code 0x3b, bank 4), product, variant and revision 0.
pub(super) const IMPLEMENTER: u32 = 0x43b;

/// PIDR4 to 7, PIDR0 to 3, CIDR0 to 3. What counts is PIDR2: architecture 3 in bits 7:4, and JEDEC's code. The part number is
/// 0x492 for a distributor, 0x493 for a redistributor.
pub(super) const fn identity_value(index: usize, redistributor: bool) -> u32 {
    match index {
        0 => 0x44,
        4 => 0x92 | redistributor as u32,
        5 => 0xb4,
        6 => 0x3b,
        8 => 0x0d,
        9 => 0xf0,
        10 => 0x05,
        11 => 0xb1,
        _ => 0,
    }
}

/// `GICD_TYPER`: no 1-of-N (bit 25), INTIDs of 10 bits (IDbits, 23:19, is one less), one security state, and
/// 32 × (ITLinesNumber + 1) interrupts.
pub(super) const fn distributor_type(spis: u32) -> u32 {
    (1 << 25) | (9 << 19) | (spis / 32)
}

/// `GICR_TYPER` of a vCPU: its affinity, which is its number; Processor_Number; whether it is the last.
pub(super) const fn redistributor_type(vcpu: usize, last: bool) -> u64 {
    (vcpu as u64) << 32 | (vcpu as u64) << 8 | (last as u64) << 4
}

/// `GICD_CTLR`: DS and ARE are fixed.
pub(super) const CONTROL_FIXED: u32 = 1 << 6 | 1 << 4;
/// `GICD_CTLR.EnableGrp0`.
pub(super) const CONTROL_GROUP0: u32 = 1 << 0;
/// `GICD_CTLR.EnableGrp1`.
pub(super) const CONTROL_GROUP1: u32 = 1 << 1;
/// `GICR_WAKER.ProcessorSleep` and `ChildrenAsleep`.
pub(super) const WAKER_SLEEP: u32 = 1 << 1;
/// See [`WAKER_SLEEP`].
pub(super) const WAKER_ASLEEP: u32 = 1 << 2;
