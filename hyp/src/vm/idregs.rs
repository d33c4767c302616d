//! What the guest sees in the ID registers: the boot CPU's, sanitised by `hyp-core`, read once.
//!
//! `HCR_EL2.TID3` traps the whole space op0=3, op1=0, CRn=0, CRm=1-7, and every encoding in it can be
//! read: unallocated ones are zero [D24.3]. So the table is filled by encoding and no register needs a name.

use hyp_core::idreg::{Encoding, sanitise};

use crate::sysreg;

/// CRm of the first register.
const FIRST: u8 = 1;
const ROWS: usize = 7;
const COLUMNS: usize = 8;

/// The guest's values, by CRm and op2.
#[derive(Debug)]
pub(crate) struct IdRegisters([[u64; COLUMNS]; ROWS]);

macro_rules! row {
    ($crm:literal) => {
        [
            sysreg::read!(concat!("S3_0_C0_C", $crm, "_0")),
            sysreg::read!(concat!("S3_0_C0_C", $crm, "_1")),
            sysreg::read!(concat!("S3_0_C0_C", $crm, "_2")),
            sysreg::read!(concat!("S3_0_C0_C", $crm, "_3")),
            sysreg::read!(concat!("S3_0_C0_C", $crm, "_4")),
            sysreg::read!(concat!("S3_0_C0_C", $crm, "_5")),
            sysreg::read!(concat!("S3_0_C0_C", $crm, "_6")),
            sysreg::read!(concat!("S3_0_C0_C", $crm, "_7")),
        ]
    };
}

impl IdRegisters {
    /// Reads and sanitises, for a guest with `ipa_bits` bits of physical address.
    pub(crate) fn read(ipa_bits: u32) -> Self {
        let mut rows = [row!(1), row!(2), row!(3), row!(4), row!(5), row!(6), row!(7)];
        for (crm, row) in (FIRST..).zip(&mut rows) {
            for (op2, value) in (0..).zip(row) {
                *value = sanitise((3, 0, 0, crm, op2), *value, ipa_bits).unwrap_or(0);
            }
        }
        Self(rows)
    }

    /// The guest's value; `None` for a register outside the space.
    pub(crate) fn get(&self, register: Encoding) -> Option<u64> {
        let (3, 0, 0, crm, op2) = register else {
            return None;
        };
        let row = self.0.get(usize::from(crm.checked_sub(FIRST)?))?;
        row.get(usize::from(op2)).copied()
    }
}
