//! The syndrome of an abort, decoded: what access, of what kind of fault (D24.2.46, ESR_EL2).
//!
//! Bits 24:14 describe the access and mean that only while ISV is set; FEAT_RASv2 and others reuse them
//! otherwise. So they are reachable only through [`Abort::access`].

use core::fmt;

use super::Status;

/// The syndrome of an instruction or data abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Abort {
    iss: u32,
    is_instruction: bool,
}

impl Abort {
    /// The abort that a value of ESR_ELx describes: EC 0x20 and 0x24 from a lower Exception level, 0x21 and 0x25 from the
    /// same; `None` for any other class.
    #[must_use]
    pub const fn new(esr: u64) -> Option<Self> {
        let is_instruction = match esr >> 26 & 0x3f {
            0x20 | 0x21 => true,
            0x24 | 0x25 => false,
            _ => return None,
        };
        Some(Self { iss: (esr & 0x1ff_ffff) as u32, is_instruction })
    }

    const fn bit(self, bit: u32) -> bool {
        self.iss.wrapping_shr(bit) & 1 != 0
    }

    /// Whether an instruction fetch aborted.
    #[must_use]
    pub const fn is_instruction(self) -> bool {
        self.is_instruction
    }

    /// ISV: whether the access is decoded. Without it there is no [`access`](Self::access).
    #[must_use]
    pub const fn isv(self) -> bool {
        !self.is_instruction && self.bit(24)
    }

    /// FnV: FAR_EL2 holds no address (possible for a synchronous external abort only).
    #[must_use]
    pub const fn far_not_valid(self) -> bool {
        self.bit(10)
    }

    /// CM: a cache maintenance or address translation instruction, not a load or store.
    #[must_use]
    pub const fn is_cache_maintenance(self) -> bool {
        !self.is_instruction && self.bit(8)
    }

    /// S1PTW: a stage-2 fault on a stage-1 translation table walk.
    #[must_use]
    pub const fn is_stage1_walk(self) -> bool {
        self.bit(7)
    }

    /// WnR: a write. For cache maintenance it is set whatever the instruction; for a stage-1 walk it says
    /// whether hardware was updating the descriptor, not what the instruction was.
    #[must_use]
    pub const fn is_write(self) -> bool {
        !self.is_instruction && self.bit(6)
    }

    /// LST: LD64B or ST64B. The bits mean that for Translation, Access flag and Permission faults.
    const fn is_of_64_bytes(self) -> bool {
        let has_lst = matches!(
            self.status(),
            Status::Translation(_) | Status::AccessFlag(_) | Status::Permission(_)
        );
        has_lst && self.iss.wrapping_shr(11) & 0b11 != 0
    }

    /// What kind of fault.
    #[must_use]
    pub const fn status(self) -> Status {
        Status::new((self.iss & 0x3f) as u8)
    }

    /// The decoded load or store, when hardware gives it (ISV), and it is one of a general register: of the 64 bytes of
    /// LD64B and ST64B, which have ISV set too (LST, bits 12:11), the syndrome would tell eight.
    #[must_use]
    pub const fn access(self) -> Option<LoadStore> {
        if !self.isv() || self.is_of_64_bytes() {
            return None;
        }
        Some(LoadStore {
            size: 1_u8.wrapping_shl((self.iss >> 22) & 3),
            sign_extend: self.bit(21),
            register: ((self.iss >> 16) & 31) as u8,
            is_64_bit: self.bit(15),
            acquire_release: self.bit(14),
            is_write: self.bit(6),
        })
    }
}

impl fmt::Display for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_instruction {
            write!(f, "fetch")?;
        } else if self.is_cache_maintenance() {
            write!(f, "cache maintenance")?;
        } else if let Some(access) = self.access() {
            write!(f, "{access}")?;
        } else {
            let what = if self.is_write() { "write" } else { "read" };
            write!(f, "{what} (not decoded, ISV=0)")?;
        }
        write!(f, ", {}", self.status())?;
        if self.is_stage1_walk() {
            write!(f, ", on a stage-1 table walk (S1PTW)")?;
        }
        if self.far_not_valid() {
            write!(f, ", FAR not valid (FnV)")?;
        }
        Ok(())
    }
}

/// A load or store of one general register, as an abort's syndrome decodes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoadStore {
    /// SAS: bytes accessed, 1, 2, 4 or 8.
    pub size: u8,
    /// SSE: a load extends the sign.
    pub sign_extend: bool,
    /// SRT: the register; 31 is the zero register.
    pub register: u8,
    /// SF: the register is the 64-bit one.
    pub is_64_bit: bool,
    /// AR: acquire or release.
    pub acquire_release: bool,
    /// WnR: a store.
    pub is_write: bool,
}

impl LoadStore {
    /// What a load puts into its 64-bit register for the `size` bytes that the device gave.
    #[must_use]
    pub const fn extend(self, value: u64) -> u64 {
        let spare = 64_u32.wrapping_sub((self.size as u32).wrapping_mul(8)) & 63;
        let top = value.wrapping_shl(spare);
        let value = if self.sign_extend {
            (top as i64).wrapping_shr(spare) as u64
        } else {
            top.wrapping_shr(spare)
        };
        if self.is_64_bit { value } else { value & 0xffff_ffff }
    }

    /// What a store gives the device: the low `size` bytes of its register.
    #[must_use]
    pub const fn truncate(self, register: u64) -> u64 {
        let spare = 64_u32.wrapping_sub((self.size as u32).wrapping_mul(8)) & 63;
        register.wrapping_shl(spare).wrapping_shr(spare)
    }
}

impl fmt::Display for LoadStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, way) = if self.is_write { ("write", "from") } else { ("read", "to") };
        let unit = if self.size == 1 { "byte" } else { "bytes" };
        let width = if self.is_64_bit { 'x' } else { 'w' };
        write!(f, "{what} of {} {unit} {way} ", self.size)?;
        if self.register == 31 {
            write!(f, "{width}zr")?;
        } else {
            write!(f, "{width}{}", self.register)?;
        }
        if self.sign_extend {
            write!(f, ", sign-extended")?;
        }
        if self.acquire_release {
            write!(f, ", acquire/release")?;
        }
        Ok(())
    }
}
