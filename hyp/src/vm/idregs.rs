//! What the guest sees in the ID registers: the hardware's, sanitised by `hyp-core`, read once.
//!
//! `HCR_EL2.TID3` traps the whole space op0=3, op1=0, CRn=0, CRm=1-7, and every encoding in it can be
//! read: unallocated ones are zero \[D24.3\]. So the table is filled by encoding and no register needs a name.
//!
//! A VM has one table, because a guest takes its CPUs for alike. CPUs that differ in what a guest would see
//! cannot share a VM, and the hypervisor refuses to start rather than hide what only some of them have.

use alloc::format;
use core::array;

use hyp_core::idreg::sanitise;

use crate::boot::Refusal;
use crate::{cpu, sysreg};

/// Registers for each CRm.
const COLUMNS: usize = 8;
/// CRm 0, whose row is empty, to 7.
const ROWS: usize = 8;

/// The guest's values, by `CRm * 8 + op2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdRegisters([u64; ROWS * COLUMNS]);

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
        let rows = [[0; COLUMNS], row!(1), row!(2), row!(3), row!(4), row!(5), row!(6), row!(7)];
        Self(array::from_fn(|number| rows[number / COLUMNS][number % COLUMNS])).narrowed(u32::MAX)
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
        for (number, value) in (0..).zip(&mut self.0) {
            let register = (3, 0, 0, number >> 3, number & 7);
            *value = sanitise(register, *value, ipa_bits).unwrap_or(0);
        }
        self
    }

    /// The guest's value of the register with this [number](hyp_core::syndrome::SystemRegister::id_register).
    #[inline]
    pub(crate) fn get(&self, number: usize) -> Option<u64> {
        self.0.get(number).copied()
    }
}
