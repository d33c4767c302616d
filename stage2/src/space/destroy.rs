//! The end of a VM's tables.

use core::fmt;

use super::{Batch, Census, Notes, Progress, Release, Space, UnmapError};
use crate::account::Account;
use crate::addr::{Ipa, IpaRange, PAGE_SIZE, Pa};
use crate::arch::Arch;
use crate::claim::ClaimError;
use crate::descriptor::Descriptor;
use crate::epoch::Cpu;
use crate::memory::Memory;

/// Why tables could not be taken down. They are as safe to use as before.
pub struct DestroyError<S> {
    /// What is left.
    pub space: S,
    /// Why.
    pub why: Leak,
}

/// What stands in the way of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leak {
    /// EL2's window is still hooked into EL2's tables: [`Space::unhook_window`] first. Nothing was unmapped.
    Hooked,
    /// A claim was forgotten, and so never ended.
    Claim(ClaimError),
    /// Something could not be unmapped.
    Unmap(UnmapError),
    /// Something is left after everything was unmapped.
    Left(Census),
}

impl<S> fmt::Debug for DestroyError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DestroyError").field("why", &self.why).finish_non_exhaustive()
    }
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hooked => f.write_str("EL2's window is still hooked into EL2's tables"),
            Self::Claim(error) => error.fmt(f),
            Self::Unmap(error) => error.fmt(f),
            Self::Left(census) => write!(f, "left after everything was unmapped: {census:?}"),
        }
    }
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Unmaps everything, flushes the VMID, and gives every table back, the root last. Returns the
    /// closing account: if all installs were credited, [`Account::leaves_now`] and
    /// [`Account::tables_now`] are 0.
    ///
    /// Notes are dropped; who needs their payloads takes them out first.
    ///
    /// # Errors
    /// [`DestroyError`] with the space and what is left in it.
    ///
    /// # Safety
    /// 1. No PE runs the VM, or will: VTTBR_EL2 holds its value nowhere.
    /// 2. EL2's tables lead to the VM's window where [`hook_window`](Self::hook_window) has hooked it, and nowhere else.
    #[expect(clippy::result_large_err, reason = "what could not be taken down comes back")]
    pub unsafe fn destroy(
        self,
        cpu: &Cpu<'_>,
        mut relax: impl FnMut(),
        release: &mut impl Release,
    ) -> Result<Account, DestroyError<Self>> {
        if self.window.is_hooked() {
            return Err(DestroyError { space: self, why: Leak::Hooked });
        }
        if let Err(why) = self.empty(cpu, &mut relax, release) {
            return Err(DestroyError { space: self, why });
        }
        let _ = self.tlb().vm();
        // SAFETY: (1) asked above, and nobody else has the space; the caller's clause 2.
        unsafe { self.free_window() };
        let pages = self.geometry.root_tables();
        // SAFETY: (1) the root, which nobody runs on; (2) flushed, and the last grace period ended after
        // the last lookup could begin: the space is ours alone; (3) every slot was found Empty.
        unsafe { self.memory.free_table(self.root, pages) };
        Ok(self.account())
    }

    fn empty(
        &self,
        cpu: &Cpu<'_>,
        relax: &mut impl FnMut(),
        release: &mut impl Release,
    ) -> Result<(), Leak> {
        let everything = IpaRange::new(Ipa::new(0), 1 << self.geometry.ipa_bits());
        // An IPA size is a power of two of at least a page, and no claim is left: claims borrow.
        let Ok(everything) = everything else { return Ok(()) };
        let mut claim = self.claim(everything).map_err(Leak::Claim)?;
        let mut batch = Batch::all_of(&claim);
        while let Progress::Until(next) = self
            .unmap(cpu, &mut claim, batch, Notes::Remove, &mut *relax, release)
            .map_err(Leak::Unmap)?
        {
            batch.from = next;
        }
        let empty = (0..self.geometry.root_tables() as u64).all(|page| {
            let pa = Pa::new(self.root.get() + page * PAGE_SIZE);
            // SAFETY: (1) the root lives as long as the space.
            let root = unsafe { self.memory.table(pa) };
            root.slots().iter().all(|slot| slot.load(&self.arch) == Descriptor::EMPTY)
        });
        if empty { Ok(()) } else { Err(Leak::Left(self.census(&cpu.enter(), everything))) }
    }
}
