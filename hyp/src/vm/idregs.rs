//! What the guest sees in the ID registers: the hardware's, sanitised by `hyp-core`, read once.
//!
//! `HCR_EL2.TID3` traps the whole space op0=3, op1=0, CRn=0, CRm=1-7, and every encoding in it can be
//! read: unallocated ones are zero \[D24.3\]. So the table is filled by encoding and no register needs a name.
//!
//! A VM has one table, because a guest takes its CPUs for alike. CPUs that differ in what a guest would see
//! cannot share a VM, and the hypervisor refuses to start rather than hide what only some of them have.

use alloc::format;

use hyp_core::idreg::{Encoding, sanitise};

use crate::boot::Refusal;
use crate::{cpu, sysreg};

/// CRm of the first register.
const FIRST: u8 = 1;
const ROWS: usize = 7;
const COLUMNS: usize = 8;

/// The guest's values, by CRm and op2.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The executing CPU's, for a guest with the largest physical address space there is.
    pub(crate) fn read() -> Self {
        Self([row!(1), row!(2), row!(3), row!(4), row!(5), row!(6), row!(7)]).narrowed(u32::MAX)
    }

    /// Those that all CPUs up to number `cpus` have, for a guest with `ipa_bits` bits of physical address.
    pub(crate) fn of_all(cpus: usize, ipa_bits: u32) -> Result<Self, Refusal> {
        let mut all =
            cpu::all().iter().take(cpus).filter_map(|cpu| Some((cpu.number, cpu.ids.get()?)));
        let (_, first) = all.next().ok_or("no CPU has told its ID registers")?;
        match all.find(|(_, ids)| *ids != first) {
            None => Ok(first.clone().narrowed(ipa_bits)),
            Some((number, _)) => Err(format!(
                "CPU {number} has other ID registers than the boot CPU: no VM can have both"
            )
            .into()),
        }
    }

    fn narrowed(mut self, ipa_bits: u32) -> Self {
        for (crm, row) in (FIRST..).zip(&mut self.0) {
            for (op2, value) in (0..).zip(row) {
                *value = sanitise((3, 0, 0, crm, op2), *value, ipa_bits).unwrap_or(0);
            }
        }
        self
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
