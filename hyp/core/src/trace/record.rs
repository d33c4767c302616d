//! One record: what happened, in four words.
//!
//! | word | bits | what |
//! | --- | --- | --- |
//! | 0 | 7:0 | kind |
//! |   | 15:8 | CPU |
//! |   | 23:16 | which barrier, which invalidation, how a slot was written; 1 for a flush of a range |
//! |   | 31:24 | 0 |
//! |   | 63:32 | number + 1 |
//! | 1-3 | | operands |

use super::TraceError;

/// A data synchronization barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Barrier {
    /// `DSB ISHST`
    IshSt = 0,
    /// `DSB ISH`
    Ish = 1,
    /// `DSB NSH`
    Nsh = 2,
}

impl Barrier {
    pub(super) const ALL: [Self; 3] = [Self::IshSt, Self::Ish, Self::Nsh];
}

/// A TLB invalidation, by instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the instructions'")]
pub enum Invalidation {
    Ipas2e1Is = 0,
    Ripas2e1Is = 1,
    Ipas2e1 = 2,
    Vmalle1Is = 3,
    Vmalle1 = 4,
    Vmalls12e1Is = 5,
    Alle1Is = 6,
    Vmalls12e1 = 7,
    Vae2Is = 8,
    Alle2Is = 9,
}

impl Invalidation {
    pub(super) const ALL: [Self; 10] = [
        Self::Ipas2e1Is,
        Self::Ripas2e1Is,
        Self::Ipas2e1,
        Self::Vmalle1Is,
        Self::Vmalle1,
        Self::Vmalls12e1Is,
        Self::Alle1Is,
        Self::Vmalls12e1,
        Self::Vae2Is,
        Self::Alle2Is,
    ];
}

/// How a descriptor was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Access {
    /// A store with release order.
    Store = 0,
    /// An atomic read-modify-write.
    Atomic = 1,
    /// A store without any order.
    Relaxed = 2,
}

impl Access {
    const ALL: [Self; 3] = [Self::Store, Self::Atomic, Self::Relaxed];
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// VTTBR_EL2 was written.
    SetVttbr {
        /// Its value.
        value: u64,
    },
    /// A context synchronization: an ISB, or an exception entry or return.
    Synchronized,
    /// A descriptor was written.
    Write {
        /// Its address.
        slot: u64,
        /// What it held.
        old: u64,
        /// What it holds now.
        new: u64,
        /// By what.
        by: Access,
    },
    /// A barrier.
    Dsb(Barrier),
    /// A TLB invalidation, with its operand as in the register; 0 if it has none.
    Tlbi(Invalidation, u64),
    /// A page became a table, all zero.
    AllocTable {
        /// Its address.
        table: u64,
    },
    /// A table page was given back.
    FreeTable {
        /// Its address.
        table: u64,
    },
    /// Memory behind leaves was given back.
    FreeFrame {
        /// Its address.
        frame: u64,
        /// Bytes.
        bytes: u64,
    },
    /// A VMID is lent to a VM, as if it had never been used.
    Lent {
        /// The VMID.
        vmid: u16,
    },
    /// A table's lock was taken.
    Locked {
        /// The table's address.
        table: u64,
    },
    /// A table's lock is about to be given back.
    Unlocked {
        /// The table's address.
        table: u64,
    },
    /// Software goes on as if every CPU's walks read what this one has written.
    Published,
    /// Software goes on as if no CPU translated these addresses by anything but the tables.
    Flushed {
        /// The VM.
        vmid: u16,
        /// The first address and how many bytes; `None` is all of the VM's.
        range: Option<(u64, u64)>,
    },
    /// EL2's own walks, of every CPU, start at this L0 table: what is hooked into it is recorded from here on.
    El2Root {
        /// Its address.
        root: u64,
    },
    /// Software goes on as if no CPU translated EL2's addresses by anything but the tables.
    El2Flushed,
}

/// What happened, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// The CPU's number.
    pub cpu: u8,
    /// What it did.
    pub what: What,
}

impl Record {
    pub(super) fn encode(self, number: u64) -> [u64; 4] {
        let (kind, sub, operands) = match self.what {
            What::SetVttbr { value } => (1, 0, [value, 0, 0]),
            What::Synchronized => (2, 0, [0; 3]),
            What::Write { slot, old, new, by } => (3, by as u64, [slot, old, new]),
            What::Dsb(barrier) => (4, barrier as u64, [0; 3]),
            What::Tlbi(invalidation, operand) => (5, invalidation as u64, [operand, 0, 0]),
            What::AllocTable { table } => (6, 0, [table, 0, 0]),
            What::FreeTable { table } => (7, 0, [table, 0, 0]),
            What::FreeFrame { frame, bytes } => (8, 0, [frame, bytes, 0]),
            What::Flushed { vmid, range: None } => (9, 0, [u64::from(vmid), 0, 0]),
            What::Flushed { vmid, range: Some((ipa, bytes)) } => {
                (9, 1, [u64::from(vmid), ipa, bytes])
            }
            What::Published => (10, 0, [0; 3]),
            What::Locked { table } => (11, 0, [table, 0, 0]),
            What::Unlocked { table } => (12, 0, [table, 0, 0]),
            What::Lent { vmid } => (13, 0, [u64::from(vmid), 0, 0]),
            What::El2Root { root } => (14, 0, [root, 0, 0]),
            What::El2Flushed => (15, 0, [0; 3]),
        };
        let [a, b, c] = operands;
        let number = number.wrapping_add(1);
        [number << 32 | sub << 16 | u64::from(self.cpu) << 8 | kind, a, b, c]
    }

    /// The record `number`; `Ok(None)` if it was not finished.
    pub(super) fn decode(words: [u64; 4], number: u64) -> Result<Option<Self>, TraceError> {
        let [head, a, b, c] = words;
        if head == 0 {
            return Ok(None);
        }
        let unknown = TraceError::Record { number, head };
        if head >> 32 != number.wrapping_add(1) || head >> 24 & 0xff != 0 {
            return Err(unknown);
        }
        let sub = (head >> 16 & 0xff) as usize;
        let what = match (head & 0xff, sub) {
            (1, 0) => What::SetVttbr { value: a },
            (2, 0) => What::Synchronized,
            (3, _) => {
                let by = Access::ALL.get(sub).copied().ok_or(unknown)?;
                What::Write { slot: a, old: b, new: c, by }
            }
            (4, _) => What::Dsb(Barrier::ALL.get(sub).copied().ok_or(unknown)?),
            (5, _) => What::Tlbi(Invalidation::ALL.get(sub).copied().ok_or(unknown)?, a),
            (6, 0) => What::AllocTable { table: a },
            (7, 0) => What::FreeTable { table: a },
            (8, 0) => What::FreeFrame { frame: a, bytes: b },
            (9, 0 | 1) => {
                let vmid = u16::try_from(a).map_err(|_| unknown)?;
                What::Flushed { vmid, range: (sub == 1).then_some((b, c)) }
            }
            (10, 0) => What::Published,
            (11, 0) => What::Locked { table: a },
            (12, 0) => What::Unlocked { table: a },
            (13, 0) => What::Lent { vmid: u16::try_from(a).map_err(|_| unknown)? },
            (14, 0) => What::El2Root { root: a },
            (15, 0) => What::El2Flushed,
            _ => return Err(unknown),
        };
        Ok(Some(Self { cpu: (head >> 8 & 0xff) as u8, what }))
    }
}
