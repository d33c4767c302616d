//! Which guest-physical address an abort is about, and where that stands.
//!
//! HPFAR_EL2 is written for four kinds of faults of stage 2 and is UNKNOWN after every other exception (D24.2.76, RFKLWR):
//!
//! | fault | elsewhere | on a stage-1 walk (S1PTW) |
//! | --- | --- | --- |
//! | Translation, Access flag, Address size | valid | valid |
//! | Permission | **UNKNOWN** | valid |
//! | granule protection, in the second stage | valid, but whose stage it was the syndrome does not say | likewise |
//! | external abort, parity, TLB conflict, alignment, unsupported update or access | UNKNOWN | UNKNOWN |
//!
//! Where it is UNKNOWN and the address is needed, FAR_EL2 is translated by **`AT S1E1R`**: stage 1 alone, as a read at EL1,
//! which stage 1 has allowed wherever it allowed the access. Never by `AT S12E1*`, which asks stage 2, too, and meets there the
//! fault that is being handled. Another vCPU may have changed stage 1 since: if the translation fails, the guest goes back
//! and faults again.
//!
//! FAR_EL2 holds the address of the access, but for an external abort with FnV. On a walk it is the address that was being
//! translated, so that of the descriptor only the page is known.

use super::{Abort, Status};
use crate::addr::Ipa;

/// Where the guest-physical address of an abort is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// HPFAR_EL2 has its page: [`reported`].
    Reported,
    /// Only FAR_EL2 is known, and stage 1 is asked: `AT S1E1R`, then [`translated`].
    Translate,
    /// It is not known, and nothing that is done about such an abort needs it.
    Unknown,
}

/// `HPFAR_EL2.FIPA`, bits 47:4: bits 55:12 of the address.
const FIPA: u64 = (1 << 48) - (1 << 4);
/// `PAR_EL1.F`.
const FAILED: u64 = 1;
/// `PAR_EL1.PA`, bits 51:12.
const PAR_ADDRESS: u64 = (1 << 52) - (1 << 12);
/// What a page does not say of an address.
const OFFSET: u64 = (1 << 12) - 1;

/// The page in a value of HPFAR_EL2, which is valid.
#[inline(always)]
#[must_use]
pub const fn reported(hpfar: u64) -> Ipa {
    Ipa::new((hpfar & FIPA) << 8)
}

/// The page in a value of PAR_EL1, after `AT S1E1R`; `None` if stage 1 does not translate the address.
#[inline(always)]
#[must_use]
pub const fn translated(par: u64) -> Option<Ipa> {
    if par & FAILED == 0 { Some(Ipa::new(par & PAR_ADDRESS)) } else { None }
}

impl Abort {
    /// Where its guest-physical address is to be had.
    #[must_use]
    pub const fn address(self) -> Address {
        match self.status() {
            Status::Translation(_) | Status::AccessFlag(_) | Status::AddressSize(_) => {
                Address::Reported
            }
            Status::Permission(_) if self.is_stage1_walk() => Address::Reported,
            Status::Permission(_) => Address::Translate,
            _ => Address::Unknown,
        }
    }

    /// The address of the access, of which `page` is known, and FAR_EL2: on a walk no more than the page.
    #[must_use]
    pub const fn ipa_in(self, page: Ipa, far: u64) -> Ipa {
        if self.is_stage1_walk() { page } else { Ipa::new(page.get() | far & OFFSET) }
    }
}
