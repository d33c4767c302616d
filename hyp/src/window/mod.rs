//! EL2's window: how the hypervisor reaches its VM's memory by address.
//!
//! The byte that the guest has at `ipa` EL2 has at [`WINDOW`](crate::mem::el2_map::WINDOW) + `ipa`. Nothing is looked up beforehand: EL2 touches it,
//! and where its tables have no page yet it takes a fault, which is resolved as the guest's own would be: the page that
//! stage 2 has, a fresh one where RAM is not populated, the scratch page in a hole. What the tables are, and why nobody reaches a page
//! that is not the VM's any more, is said in [`stage2::window`].
//!
//! ```text
//!  with(env, |session| ..)        the guest's syndrome registers are saved; faults of this CPU are resolved for this VM
//!    session.copy_out(..)         routines.rs: load, store ──▶ no page: an exception at EL2 (exception/vectors.rs)
//!                                                                │ not in a routine, or FAR outside the window: crash
//!                                                                ▼
//!                                 fault.rs: guard ── stage 2 ─┬─ a page ── slot: 0 -> page ── ERET, the instruction again
//!                                                             ├─ Empty ─── filled (vm/filling.rs), then as above
//!                                                             └─ else ──── ERET to the fix-up: the access ends with an error
//!  registers are written back
//! ```
//!
//! # Under any lock
//!
//! The fault comes in the middle of whatever EL2 was doing, with whatever locks it holds. So the way to its end asks for none,
//! allocates nothing but pages from the CPU's stock, and waits for nobody ([`fault_path`](crate::lock::fault_path)): what cannot
//! be done at once is [`TouchError::Retry`], for the caller to repeat when it has given back what it holds. An install that took
//! the table's lock would wait for this very CPU; one that only *tried* would never get it.
//!
//! | file | what |
//! | --- | --- |
//! | `routines` | the instructions that may fault, and the fix-up of each |
//! | `fault` | what is done about a fault at EL2 |
//! | `tables` | EL2's tables are built, hung in and taken out |

mod fault;
mod routines;
mod tables;

use core::cell::Cell;
use core::{fmt, ptr};

use aarch64_cpu::registers::{ESR_EL2, FAR_EL2, HPFAR_EL2, Readable, Writeable};
pub(crate) use fault::resolved;
use stage2::Ipa;
pub(crate) use tables::{hook, open, unhook};

use crate::sysreg;
use crate::vm::run::Env;

/// Why an access to the VM's memory has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum TouchError {
    /// The page is on its way, or the stock has no frame: to be repeated, with no guard and no lock held.
    Retry = 1,
    /// The guest may not write there.
    ReadOnly = 2,
    /// Nothing is there, and nothing is meant to be.
    NotMapped = 3,
    /// The window does not reach there, or what is there is no memory.
    NotCovered = 4,
    /// As many violations were recovered as may be: the VM is to end.
    PastLimit = 5,
    /// As many were recovered in this second as may be: likewise.
    PastRate = 6,
}

impl TouchError {
    /// What a routine has returned.
    const fn check(raw: u64) -> Result<(), Self> {
        match raw {
            0 => Ok(()),
            1 => Err(Self::Retry),
            2 => Err(Self::ReadOnly),
            3 => Err(Self::NotMapped),
            4 => Err(Self::NotCovered),
            5 => Err(Self::PastLimit),
            6 => Err(Self::PastRate),
            _ => Err(Self::NotCovered),
        }
    }
}

impl fmt::Display for TouchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Retry => "the page is on its way",
            Self::ReadOnly => "the guest may not write there",
            Self::NotMapped => "nothing is there",
            Self::NotCovered => "EL2's window does not reach there",
            Self::PastLimit => "as many violations were recovered as may be",
            Self::PastRate => "as many violations were recovered in a second as may be",
        })
    }
}

/// The right to reach the VM's memory, on the CPU that it was made on: the guest's syndrome is safe, and who the memory
/// belongs to is known to the fault handler.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    env: Env<'a>,
    /// The page of the last fault, and how many there were in a row.
    last: Cell<(Ipa, u32)>,
}

/// What a CPU's block says of its session: where it is, null if there is none.
pub(crate) type SessionCell = Cell<*const ()>;

/// Reaches the VM's memory. ESR_EL2, FAR_EL2 and HPFAR_EL2 are afterwards what they were before.
pub(crate) fn with<T>(env: Env<'_>, work: impl FnOnce(&Session<'_>) -> T) -> T {
    let syndrome = [ESR_EL2.get(), FAR_EL2.get(), HPFAR_EL2.get()];
    let session = Session { env, last: Cell::new((Ipa::new(0), 0)) };
    let outer = env.cpu.session.replace(ptr::from_ref(&session).cast());
    let done = work(&session);
    env.cpu.session.set(outer);
    let [esr, far, hpfar] = syndrome;
    ESR_EL2.set(esr);
    FAR_EL2.set(far);
    sysreg::write!("hpfar_el2", hpfar);
    done
}

impl Session<'_> {
    /// Reads bytes of the VM's from `ipa` on, over any number of pages.
    ///
    /// # Errors
    /// [`TouchError`]: some of the bytes may have been read.
    pub(crate) fn copy_in(&self, ipa: Ipa, into: &mut [u8]) -> Result<(), TouchError> {
        let from = self.address(ipa, into.len())?;
        let to = into.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: (1) `address` has seen to it; this is a session. (2) Borrowed for it.
        TouchError::check(unsafe { routines::window_copy(to, from, into.len() as u64) })
    }

    /// Writes bytes to the VM's memory from `ipa` on, over any number of pages. It does not ask whether the guest may, and records
    /// nothing: [`Space::write_through`](stage2::Space::write_through) does.
    ///
    /// # Errors
    /// [`TouchError`]: some of the bytes may have been written.
    pub(crate) fn copy_out(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), TouchError> {
        let to = self.address(ipa, bytes.len())?;
        let from = bytes.as_ptr().expose_provenance() as u64;
        // SAFETY: (1) `address` has seen to it; this is a session. (2) Borrowed for it.
        TouchError::check(unsafe { routines::window_copy(to, from, bytes.len() as u64) })
    }

    /// Touches the byte at `ipa`, by reading it: afterwards stage 2 has a page there.
    ///
    /// # Errors
    /// [`TouchError`]
    pub(crate) fn probe(&self, ipa: Ipa) -> Result<(), TouchError> {
        let at = self.address(ipa, 1)?;
        // SAFETY: (1) `address` has seen to it; this is a session.
        TouchError::check(unsafe { routines::window_probe(at) })
    }

    /// Where EL2 has so many bytes, all of them in the window.
    fn address(&self, ipa: Ipa, bytes: usize) -> Result<u64, TouchError> {
        let end = ipa.checked_add(bytes as u64).filter(|end| end.get() <= stage2::window::END);
        end.and_then(|_| self.env.vm.space.window_address(ipa)).ok_or(TouchError::NotCovered)
    }
}

/// Copies 8 bytes from an address that is not in the window, or in no session: a crash.
#[cfg(feature = "selftest")]
pub(crate) fn wild_copy(from: u64) {
    let mut word = 0_u64;
    let to = (&raw mut word).expose_provenance() as u64;
    // SAFETY: none. The routine faults, and nobody resolves it.
    let _never = unsafe { routines::window_copy(to, from, 8) };
    core::hint::black_box(word);
}
