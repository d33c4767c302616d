//! Protection transactions: what leaves allow and what they have recorded changes, in a batch, under one flush.
//!
//! ```text
//!  start    under the table's lock: a leaf, as it is at this moment
//!  commit   one compare-exchange from the value that was read, which fails if hardware has set AF or the dirty
//!           state since: then once more, from what is there now. So what a commit replaced is the final word
//!           in place: leaf -> new leaf          by a break: leaf -> Busy, which remembers the new leaf
//!  finish   lock back; one flush for the batch, however many tables; then each Busy -> what it remembers; DSB
//! ```
//!
//! (The names, and the contract that no update of hardware between them is lost, are those of Linux'
//! `ptep_modify_prot_start` and `_commit`. There the start makes the entry invalid. Here it leaves the leaf alone, so
//! a leaf that the caller looks at and leaves as it is costs neither a break nor a flush.)
//!
//! # Leaves that are alike
//!
//! What changes all leaves of a range in the same way ([`Space::protect`], [`Space::write_protect`],
//! [`Transaction::take`]) decides once for leaves side by side that are alike but for their address, and alters them in one
//! loop: `prot/bulk.rs`. Where bits are only cleared, that is one atomic clear a leaf instead of an exchange. It is sound
//! although a record may be set just before: all bits of the change are cleared, whichever a leaf had, and a leaf in which
//! something may be set meanwhile was to be broken before and is to be broken after. While a dirty session runs, what the
//! clear found is looked at, too.
//!
//! # Two engines
//!
//! A change of permissions needs no break \[RWHZWS\]. But where hardware manages the dirty state, it may lose or invent
//! records of a leaf that is changed without one:
//!
//! ```text
//! PE 0, takes the dirty state         PE 1, hardware
//!                                     holds the leaf: writable, clean
//! the leaf: clean, and no execution
//!                                     a store, by the leaf that it holds: it may go unrecorded [RRTBRL]
//! flush                               <- the page is not sent
//! ```
//!
//! So what hardware can still write into, before or after the change, is broken: invalid, it is re-read before the dirty
//! state is set \[RSGJBL\], and no TLB has it when it lives again.
//!
//! | [`Engine`] | taken where | dirty state | AF | a vCPU that touches the leaf meanwhile |
//! | --- | --- | --- | --- | --- |
//! | in place | HD = 0 | exact: only software writes it | exact with HA = 0, else advisory: it may be lost \[IGXGZY\] | goes on |
//! | by a break of what is not settled | HD = 1 | exact | exact | of what is broken: faults, and repeats |
//! | by a break of all | pinned | exact | exact | faults, and repeats |
//! | in place | HD = 1, pinned | **may be lost or invented** | may be lost | goes on |
//!
//! The last row is for tests, which show that the oracle notices. A leaf is settled if hardware can set nothing in it: it
//! is accessed, and dirty or not writable. To take the permission to write from a dirty page is thus a change in place; to make
//! it writable-clean is a break. AF is a hint in any case: hardware may set it speculatively \[RLHQRX\].
//!
//! # What is not the VM's
//!
//! A leaf of memory that is not the VM's ([`Owner::Other`](crate::Owner::Other)), such as a scratch page, is passed over: it is not shown, not
//! changed, not flushed, and has no records.
//!
//! # Contiguous runs
//!
//! A change of one member would be for nothing, as another may speak for it, or for everybody \[RJQQTC\]. So where a run
//! begins, all of it is broken, by any engine, and each member gets what any of them has recorded \[INFFSV\], before the
//! first is shown. When they live again they are a run if they are alike still and settled; if not, the run is dissolved.
//! So no fault handler has to set a record in a member.
//!
//! # Who waits for the flush
//!
//! The table's lock is given back before the flush; Busy slots belong to the claim. What was changed in place can be read
//! before the flush, by a fault handler or by who takes the lock next. Who relies on what such a leaf does not allow asks
//! [`Space::pending_flush`] after he has read it.

mod bulk;
mod commit;
mod error;
mod logged;
mod pending;
mod protect;
mod take;
mod walk;

use core::marker::PhantomData;

pub use error::ProtError;
use logged::Logged;
pub(super) use pending::Pending;
use pending::Place;
pub use take::Taken;

use super::tables::{LockedTable, Node};
use super::{Batch, Progress, Space};
use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::Arch;
use crate::claim::Claim;
use crate::descriptor::{Change, Leaf};
use crate::epoch::Guard;
use crate::gather::Owed;
use crate::geometry::HwUpdate;
use crate::memory::Memory;

/// How leaves are changed: see the module `space/prot.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// One exchange, from leaf to leaf.
    InPlace,
    /// By a break, unless hardware can set nothing in the leaf, before the change or after.
    BreakUnsettled,
    /// By a break, always.
    Break,
}

/// Where what only grants something is flushed. What takes something away is always flushed everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relax {
    /// On all PEs: none takes a fault any more for what is granted.
    Everywhere,
    /// On this PE: others may take one more fault, which finds nothing to do, for as long as they hold what was there.
    Here,
}

/// What a transaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modified {
    /// Where it has come to.
    pub progress: Progress,
    /// Leaves that were changed.
    pub changed: u64,
    /// Leaves that were invalid until the flush was over, those of contiguous runs included.
    pub broken: u64,
}

/// Changes of protections in a batch of a claimed range, under one flush.
///
/// [`start`](Self::start) gives one leaf after the other, [`each`](Self::each) all of them; [`finish`](Self::finish)
/// flushes. Dropped, it does the same. Until then the changes may or may not be in force, PE by PE; what is broken
/// faults. Forgotten, it leaves its table locked, and what is broken Busy.
#[derive(Debug)]
#[must_use = "what is not committed stays as it is"]
pub struct Transaction<'t, M: Memory, A: Arch> {
    space: &'t Space<'t, M, A>,
    guard: &'t Guard<'t>,
    range: IpaRange,
    engine: Engine,
    hw_update: HwUpdate,
    relax: Relax,
    /// Everything of the batch before this has been shown.
    at: Ipa,
    left: usize,
    /// The table that `at` is in, or was.
    table: Option<LockedTable<'t, A>>,
    /// Nothing before this is Busy.
    low: u64,
    /// Busy slots before this are members of a run that was broken here.
    run_end: u64,
    changed: u64,
    broken: u64,
    owed: Owed<'t, A>,
    /// What was granted for a flush of this PE.
    here: Here,
    pending: Option<Place<'t>>,
    log: Logged,
    /// A claim has one user at a time.
    claim: PhantomData<&'t mut ()>,
}

/// What this PE alone has to flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Here {
    Nothing,
    One(Ipa, Level),
    Many,
}

/// A leaf, to be committed or aborted; dropped, it is aborted. There is one at a time.
#[derive(Debug)]
#[must_use = "what is not committed stays as it is"]
pub struct Started<'x, 't, M: Memory, A: Arch> {
    transaction: &'x mut Transaction<'t, M, A>,
    node: Node<'t>,
    index: usize,
    leaf: Leaf,
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Has protections changed by this engine, for measurements and tests; `None` is the one that this VM's hardware
    /// updates ask for. [`Engine::InPlace`] under hardware dirty management loses writes.
    pub fn pin_engine(&self, engine: Option<Engine>) {
        self.pins.pin_engine(engine);
    }

    /// The engine by which protections are changed.
    #[must_use]
    pub fn engine(&self) -> Engine {
        match (self.pins.engine(), self.geometry.hw_update()) {
            (Some(pinned), _) => pinned,
            (None, HwUpdate::AccessAndDirty) => Engine::BreakUnsettled,
            (None, HwUpdate::Off | HwUpdate::Access) => Engine::InPlace,
        }
    }

    /// Opens a transaction on a batch of the claimed range. The lock of a table is held from the first leaf of it that is
    /// shown until another table's is, or the end.
    ///
    /// Counts as slots those that it shows or passes over; a contiguous run that was begun is gone through. A block in which
    /// the batch begins is shown as a whole, a run from there on.
    ///
    /// # Errors
    /// [`ProtError`]: nothing has changed.
    // In line: it is large, and is made where it stays.
    #[inline(always)]
    pub fn modify_prot<'t>(
        &'t self,
        guard: &'t Guard<'_>,
        claim: &'t mut Claim<'_>,
        batch: Batch,
        relax: Relax,
    ) -> Result<Transaction<'t, M, A>, ProtError> {
        let range = self.claimed(claim, batch.from).map_err(ProtError::Claim)?;
        if !self.domain.owns(guard) {
            return Err(ProtError::ForeignGuard);
        }
        if guard.cpu().holds_lock() {
            return Err(ProtError::HoldsLock);
        }
        let pending = self.pending.place(batch.from).ok_or(ProtError::TooMany)?;
        Ok(Transaction {
            space: self,
            guard,
            range,
            engine: self.engine(),
            hw_update: self.geometry.hw_update(),
            relax,
            at: batch.from,
            left: batch.slots.max(1),
            table: None,
            low: u64::MAX,
            run_end: 0,
            changed: 0,
            broken: 0,
            owed: Owed::new(self.tlb()),
            here: Here::Nothing,
            pending: Some(pending),
            log: Logged::new(self.logs(range)),
            claim: PhantomData,
        })
    }

    /// Whether a transaction may have changed the leaf that translates `ipa`, and its flush is not over: some PE may
    /// go on by what was there before. To be asked after the leaf was read. It may say yes for neighbours of
    /// what is changed, too: for all of their table's span.
    #[must_use]
    pub fn pending_flush(&self, ipa: Ipa) -> bool {
        self.pending.contains(ipa)
    }
}

impl<'t, M: Memory, A: Arch> Transaction<'t, M, A> {
    /// The next leaf of the batch; `None` at its end. What is no leaf of the VM's is passed over.
    ///
    /// # Errors
    /// [`ProtError`]: what is in the way. What comes before it stays committed.
    pub fn start(&mut self) -> Result<Option<Started<'_, 't, M, A>>, ProtError> {
        while let Some((node, index)) = self.next_slot()? {
            let found = self.look(node, index)?;
            self.pass(node, index);
            if let Some(leaf) = found {
                return Ok(Some(Started { transaction: self, node, index, leaf }));
            }
        }
        Ok(None)
    }

    /// Shows every leaf of the VM's that is left in the batch, with the first IPA of its slot, and commits what `decide` answers;
    /// `None` leaves the leaf as it is. If hardware or a fault handler changes a leaf meanwhile, `decide` is asked
    /// about it again: what it was told last, a commit has replaced.
    ///
    /// # Errors
    /// [`ProtError`]: what is in the way. What comes before it stays committed.
    #[inline]
    pub fn each(
        &mut self,
        mut decide: impl FnMut(Ipa, &Leaf) -> Option<Change>,
    ) -> Result<(), ProtError> {
        while let Some((node, index)) = self.next_slot()? {
            let (next, odd) = match node.level {
                // Where the level is a constant, so are shifts and masks.
                Level::L3 => self.sweep(node, Level::L3, index, &mut decide)?,
                level => self.sweep(node, level, index, &mut decide)?,
            };
            let leads_down = || node.table.slot(next).load(&self.space.arch).as_table(node.level);
            if odd && leads_down().is_none() {
                if let Some(leaf) = self.look(node, next)? {
                    self.commit(node, next, leaf, &mut decide)?;
                }
                self.pass(node, next);
            }
        }
        Ok(())
    }

    /// Flushes, and makes what was broken live. Every PE goes by what was committed when this returns, but for grants
    /// that were to be flushed on this PE alone.
    pub fn finish(mut self) -> Modified {
        self.closed()
    }
}

impl<M: Memory, A: Arch> Drop for Transaction<'_, M, A> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<M: Memory, A: Arch> Started<'_, '_, M, A> {
    /// First IPA of the leaf.
    #[must_use]
    pub const fn ipa(&self) -> Ipa {
        self.node.ipa_of(self.index)
    }

    /// The leaf as it was read. Hardware may set AF and the dirty state in it until it is committed.
    #[must_use]
    pub const fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// Changes it. Returns what was replaced: the final word on its accessed and dirty state, as exact as the
    /// [engine](Engine) is. Guests may go on writing by it until [`finish`](Transaction::finish): who copies the page
    /// does so afterwards.
    ///
    /// # Errors
    /// [`ProtError::Unsupported`], [`ProtError::Unexpected`]: it stays as it is.
    pub fn commit(self, change: &Change) -> Result<Leaf, ProtError> {
        let Self { transaction, node, index, leaf } = self;
        let mut last = leaf;
        transaction.commit(node, index, leaf, |_, leaf| {
            last = *leaf;
            Some(*change)
        })?;
        Ok(last)
    }

    /// Leaves it as it is.
    pub fn abort(self) {}
}
