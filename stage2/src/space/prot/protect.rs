//! One change for all leaves of a range.

use super::{ProtError, Relax};
use crate::arch::Arch;
use crate::attr::Prot;
use crate::claim::Claim;
use crate::descriptor::Change;
use crate::epoch::Cpu;
use crate::memory::Memory;
use crate::space::{Batch, Progress, Space};

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Has the leaves in a batch of the claimed range allow what `prot` says, and no more. What is not mapped stays so:
    /// what it is to allow later is for the caller's policy, which is published before.
    ///
    /// Counts as slots those of leaves, and what else walks end in. Remote PEs go by the old permissions until the
    /// flush within, at the latest; what is broken meanwhile faults, and is repeated: see [`Engine`](super::Engine).
    /// Accessed and dirty state of a leaf that stays writable is kept. What a leaf that is write-protected had
    /// recorded goes with it; if a [dirty session](Space::dirty_start) covers it, that is told after the flush.
    ///
    /// # Errors
    /// [`ProtError`]: nothing has changed in this call. A batch that comes to something in the way ends before it, and
    /// the next one says so.
    pub fn protect(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        prot: Prot,
        relax: Relax,
    ) -> Result<Progress, ProtError> {
        let change = Change::protect(prot, self.encoding).map_err(ProtError::Attributes)?;
        self.change_all(cpu, claim, batch, change, relax)
    }

    /// Takes the permission to write from the leaves in a batch of the claimed range. Otherwise as
    /// [`protect`](Self::protect).
    ///
    /// # Errors
    /// As of [`protect`](Self::protect).
    pub fn write_protect(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
    ) -> Result<Progress, ProtError> {
        self.change_all(cpu, claim, batch, Change::WRITE_PROTECT, Relax::Everywhere)
    }

    fn change_all(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        change: Change,
        relax: Relax,
    ) -> Result<Progress, ProtError> {
        let guard = cpu.enter();
        let mut transaction = self.modify_prot(&guard, claim, batch, relax)?;
        let outcome = transaction.all(&change, |_| true, |_| {});
        let modified = transaction.closed();
        match outcome {
            Err(error) if modified.progress == Progress::Until(batch.from) => Err(error),
            _ => Ok(modified.progress),
        }
    }
}
