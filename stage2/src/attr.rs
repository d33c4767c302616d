//! What a leaf allows and how memory behind it behaves, as types; their bits, in one place.
//!
//! | field | bits | where |
//! | --- | --- | --- |
//! | MemAttr | 5:2 | table D8-96; with FWB tables D8-100, D8-101 |
//! | S2AP | 7:6 | \[RFQNDX\]: bit 6 read, bit 7 write |
//! | SH | 9:8 | ignored by hardware for Device and non-cacheable memory |
//! | AF | 10 | D8.5.1 |
//! | DBM | 51 | D8.5.2: the hardware may turn S2AP\[1\] on |
//! | Contiguous | 52 | D8.7.1 |
//! | XN\[1:0\] | 54:53 | table D8-78; without FEAT_XNX bit 53 is RES0 (table D8-77) |
//!
//! [`Attributes`] and bits are in one-to-one correspondence under an [`Encoding`], which says how
//! this machine reads MemAttr and XN. Decoding is total: bits that this crate never writes decode
//! to `None`.

use core::fmt;

use bitflags::bitflags;

use crate::features::{Caps, Features};

bitflags! {
    /// What a region of guest memory may be used for: the policy, as a region map states it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Prot: u8 {
        /// Loads.
        const READ = 1 << 0;
        /// Stores.
        const WRITE = 1 << 1;
        /// Instruction fetch at EL1.
        const EXEC_EL1 = 1 << 2;
        /// Instruction fetch at EL0.
        const EXEC_EL0 = 1 << 3;
    }
}

impl Prot {
    /// Loads only.
    pub const RO: Self = Self::READ;
    /// Loads and stores.
    pub const RW: Self = Self::READ.union(Self::WRITE);
    /// Loads and instruction fetch at both exception levels.
    pub const RX: Self = Self::READ.union(Self::EXEC);
    /// Everything: what ordinary guest RAM has.
    pub const RWX: Self = Self::RW.union(Self::EXEC);
    /// Instruction fetch at both exception levels.
    pub const EXEC: Self = Self::EXEC_EL1.union(Self::EXEC_EL0);
}

impl fmt::Display for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |bit, letter| if self.contains(bit) { letter } else { '-' };
        write!(f, "{}{}", letter(Self::READ, 'r'), letter(Self::WRITE, 'w'))?;
        match *self & Self::EXEC {
            Self::EXEC => f.write_str("x"),
            Self::EXEC_EL1 => f.write_str("p"),
            Self::EXEC_EL0 => f.write_str("u"),
            _ => f.write_str("-"),
        }
    }
}

/// How the memory behind a leaf behaves, before the guest's own stage-1 attributes are combined in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemType {
    /// Normal, write-back. With FWB the guest cannot weaken it; without, the weaker of both wins.
    Normal,
    /// Normal, non-cacheable at both levels.
    NonCacheable,
    /// Device-nGnRE.
    Device,
}

/// Whether a store is allowed, and who notes it. S2AP\[1\] and DBM together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// S2AP\[1\]=0, DBM=0: a store faults.
    Denied,
    /// S2AP\[1\]=1, DBM=0: a store goes through and the leaf counts as dirty.
    Allowed,
    /// S2AP\[1\]=0, DBM=1, "writable-clean": with VTCR_EL2.HD the first store makes it dirty;
    /// without HD a store faults.
    Clean,
    /// S2AP\[1\]=1, DBM=1, "writable-dirty".
    Dirty,
}

/// Everything that a leaf says besides where it points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// Loads allowed: S2AP\[0\].
    pub read: bool,
    /// Stores: S2AP\[1\] and DBM.
    pub write: Write,
    /// Instruction fetch at EL1.
    pub exec_el1: bool,
    /// Instruction fetch at EL0.
    pub exec_el0: bool,
    /// Memory type.
    pub mem: MemType,
    /// The access flag. A leaf with it clear is never cached in a TLB \[RXCLRD\].
    pub accessed: bool,
    /// One of 16 adjacent leaves that a TLB may hold as one entry.
    pub contiguous: bool,
}

/// How this machine reads the bits of a leaf. Fixed for the life of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// HCR_EL2.FWB is 1.
    pub fwb: bool,
    /// FEAT_XNX: execute permission for EL1 and EL0 apart.
    pub xnx: bool,
}

/// Why attributes have no encoding on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeError {
    /// Execute permission for one exception level only needs FEAT_XNX.
    ExecuteNeedsXnx,
}

impl fmt::Display for AttributeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("execute permission for EL1 and EL0 apart needs FEAT_XNX")
    }
}

impl core::error::Error for AttributeError {}

/// S2AP\[0\]: loads.
const READ: u64 = 1 << 6;
/// S2AP\[1\]: stores; with DBM the only record of dirtiness.
const WRITE: u64 = 1 << 7;
/// Inner shareable.
const SH_INNER: u64 = 0b11 << 8;
/// The access flag.
const ACCESSED: u64 = 1 << 10;
/// Dirty bit modifier.
const DBM: u64 = 1 << 51;
const CONTIGUOUS: u64 = 1 << 52;
const XN0: u64 = 1 << 53;
const XN1: u64 = 1 << 54;
const MEM_SHIFT: u32 = 2;
const MEM_MASK: u64 = 0b1111 << MEM_SHIFT;

impl Encoding {
    /// What a machine with `features` uses: FWB and XNX wherever they exist.
    #[must_use]
    pub const fn of(features: &Features) -> Self {
        Self { fwb: features.has(Caps::FWB), xnx: features.has(Caps::XNX) }
    }

    /// MemAttr\[3:0\].
    const fn mem(self, mem: MemType) -> u64 {
        match (mem, self.fwb) {
            (MemType::Normal, false) => 0b1111,
            (MemType::Normal, true) => 0b0110,
            (MemType::NonCacheable, _) => 0b0101,
            (MemType::Device, _) => 0b0001,
        }
    }
}

impl Attributes {
    /// Fresh attributes for what `prot` allows: accessed, and dirty where writable, so that hardware
    /// has nothing left to update.
    #[must_use]
    pub const fn new(prot: Prot, mem: MemType) -> Self {
        Self {
            read: prot.contains(Prot::READ),
            write: if prot.contains(Prot::WRITE) { Write::Allowed } else { Write::Denied },
            exec_el1: prot.contains(Prot::EXEC_EL1),
            exec_el0: prot.contains(Prot::EXEC_EL0),
            mem,
            accessed: true,
            contiguous: false,
        }
    }

    /// What a guest may do through this leaf now. Writable-clean counts as writable: the store
    /// goes through, with a hardware update or a fault in between.
    #[must_use]
    pub fn prot(&self) -> Prot {
        let mut prot = Prot::empty();
        prot.set(Prot::READ, self.read);
        prot.set(Prot::WRITE, self.write != Write::Denied);
        prot.set(Prot::EXEC_EL1, self.exec_el1);
        prot.set(Prot::EXEC_EL0, self.exec_el0);
        prot
    }

    /// The attribute bits of a block or page descriptor.
    ///
    /// # Errors
    /// [`AttributeError`] when this machine has no encoding for them.
    pub const fn encode(&self, encoding: Encoding) -> Result<u64, AttributeError> {
        let mut bits = encoding.mem(self.mem) << MEM_SHIFT | SH_INNER;
        if self.read {
            bits |= READ;
        }
        bits |= match self.write {
            Write::Denied => 0,
            Write::Allowed => WRITE,
            Write::Clean => DBM,
            Write::Dirty => DBM | WRITE,
        };
        if self.accessed {
            bits |= ACCESSED;
        }
        if self.contiguous {
            bits |= CONTIGUOUS;
        }
        bits |= match (self.exec_el1, self.exec_el0) {
            (true, true) => 0,
            (false, false) => XN1,
            _ if !encoding.xnx => return Err(AttributeError::ExecuteNeedsXnx),
            (false, true) => XN0,
            (true, false) => XN1 | XN0,
        };
        Ok(bits)
    }

    /// The attributes that `bits` of a block or page descriptor stand for; `None` where MemAttr, SH
    /// or XN hold what [`encode`](Self::encode) never writes.
    #[must_use]
    pub const fn decode(bits: u64, encoding: Encoding) -> Option<Self> {
        let mem_attr = (bits & MEM_MASK) >> MEM_SHIFT;
        let mem = if mem_attr == encoding.mem(MemType::Normal) {
            MemType::Normal
        } else if mem_attr == encoding.mem(MemType::NonCacheable) {
            MemType::NonCacheable
        } else if mem_attr == encoding.mem(MemType::Device) {
            MemType::Device
        } else {
            return None;
        };
        if bits & SH_INNER != SH_INNER || (bits & XN0 != 0 && !encoding.xnx) {
            return None;
        }
        let (exec_el1, exec_el0) = match (bits & XN1 != 0, bits & XN0 != 0) {
            (false, false) => (true, true),
            (false, true) => (false, true),
            (true, false) => (false, false),
            (true, true) => (true, false),
        };
        let write = match (bits & DBM != 0, bits & WRITE != 0) {
            (false, false) => Write::Denied,
            (false, true) => Write::Allowed,
            (true, false) => Write::Clean,
            (true, true) => Write::Dirty,
        };
        Some(Self {
            read: bits & READ != 0,
            write,
            exec_el1,
            exec_el0,
            mem,
            accessed: bits & ACCESSED != 0,
            contiguous: bits & CONTIGUOUS != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_attributes() -> impl Iterator<Item = Attributes> {
        (0..3 * 4 * 32u32).map(|n| Attributes {
            mem: [MemType::Normal, MemType::NonCacheable, MemType::Device][n as usize % 3],
            write: [Write::Denied, Write::Allowed, Write::Clean, Write::Dirty][n as usize / 3 % 4],
            read: (n / 12) & 1 != 0,
            exec_el1: (n / 12) & 2 != 0,
            exec_el0: (n / 12) & 4 != 0,
            accessed: (n / 12) & 8 != 0,
            contiguous: (n / 12) & 16 != 0,
        })
    }

    fn encodings() -> impl Iterator<Item = Encoding> {
        (0..4).map(|n| Encoding { fwb: n & 1 != 0, xnx: n & 2 != 0 })
    }

    #[test]
    fn every_attribute_round_trips_on_every_machine() {
        for encoding in encodings() {
            let mut distinct = std::collections::HashSet::new();
            for attributes in all_attributes() {
                match attributes.encode(encoding) {
                    Ok(bits) => {
                        assert_eq!(Attributes::decode(bits, encoding), Some(attributes));
                        assert!(distinct.insert(bits), "{attributes:?} shares its bits");
                    }
                    Err(AttributeError::ExecuteNeedsXnx) => {
                        assert!(!encoding.xnx && attributes.exec_el1 != attributes.exec_el0);
                    }
                }
            }
        }
    }

    #[test]
    fn decode_accepts_only_what_encode_writes() {
        for encoding in encodings() {
            let written: std::collections::HashSet<u64> =
                all_attributes().filter_map(|a| a.encode(encoding).ok()).collect();
            // All values of bits 10:2 with all values of bits 54:51.
            for low in 0..512u64 {
                for high in 0..16u64 {
                    let bits = low << 2 | high << 51;
                    let decoded = Attributes::decode(bits, encoding);
                    assert_eq!(decoded.is_some(), written.contains(&bits), "{bits:#x}");
                }
            }
        }
    }

    const PLAIN: Encoding = Encoding { fwb: false, xnx: false };
    const FWB: Encoding = Encoding { fwb: true, xnx: false };
    const XNX: Encoding = Encoding { fwb: false, xnx: true };

    /// Literal values, worked out from the tables by hand.
    #[test]
    fn memory_types_are_what_the_manual_spells() {
        let bits = |mem, encoding| Attributes::new(Prot::RWX, mem).encode(encoding).unwrap();
        assert_eq!(bits(MemType::Normal, PLAIN), 0b1_11_11_1111_00);
        assert_eq!(bits(MemType::NonCacheable, PLAIN), 0b1_11_11_0101_00);
        assert_eq!(bits(MemType::Device, PLAIN), 0b1_11_11_0001_00);
        assert_eq!(bits(MemType::Normal, FWB), 0b1_11_11_0110_00);
        assert_eq!(bits(MemType::NonCacheable, FWB), 0b1_11_11_0101_00);
        assert_eq!(bits(MemType::Device, FWB), 0b1_11_11_0001_00);
    }

    #[test]
    fn permissions_are_what_the_manual_spells() {
        let bits = |prot, encoding| Attributes::new(prot, MemType::Normal).encode(encoding);
        let low = 0b1_11_00_1111_00;
        assert_eq!(bits(Prot::RW, PLAIN), Ok(1 << 54 | 0b11 << 6 | low));
        assert_eq!(bits(Prot::RX, PLAIN), Ok(0b01 << 6 | low));
        assert_eq!(bits(Prot::WRITE | Prot::EXEC, PLAIN), Ok(0b10 << 6 | low));
        assert_eq!(bits(Prot::READ | Prot::EXEC_EL1, XNX), Ok(0b11 << 53 | 0b01 << 6 | low));
        assert_eq!(bits(Prot::READ | Prot::EXEC_EL0, XNX), Ok(0b01 << 53 | 0b01 << 6 | low));
    }

    #[test]
    fn the_upper_bits_are_what_the_manual_spells() {
        let ram = Attributes::new(Prot::RWX, MemType::Normal);
        let bits = |attributes: Attributes| attributes.encode(PLAIN).unwrap();
        let plain = bits(ram);
        assert_eq!(bits(Attributes { write: Write::Dirty, ..ram }), plain | 1 << 51);
        assert_eq!(bits(Attributes { write: Write::Clean, ..ram }), plain & !(1 << 7) | 1 << 51);
        assert_eq!(bits(Attributes { contiguous: true, ..ram }), plain | 1 << 52);
        assert_eq!(bits(Attributes { accessed: false, ..ram }), plain & !(1 << 10));
    }

    #[test]
    fn the_encoding_follows_the_features() {
        let of = |caps| {
            Encoding::of(&Features {
                caps,
                bbm: crate::Bbm::Level0,
                pa_bits: 40,
                errata: crate::Errata::empty(),
            })
        };
        assert_eq!(of(Caps::empty()), PLAIN);
        assert_eq!(of(Caps::FWB), FWB);
        assert_eq!(of(Caps::XNX), XNX);
    }

    #[test]
    fn prot_of_fresh_attributes_is_the_policy() {
        for bits in 0..16 {
            let prot = Prot::from_bits_truncate(bits);
            assert_eq!(Attributes::new(prot, MemType::Normal).prot(), prot);
        }
        assert_eq!(format!("{} {}", Prot::RWX, Prot::RO), "rwx r--");
    }
}
