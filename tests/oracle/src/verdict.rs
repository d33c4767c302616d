//! What the oracle finds wrong, and by which rule.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::event::Event;

/// A kind of defect. Each names what the architecture permits to go wrong, not what some machine did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Defect {
    /// Software relies on a flush, but a PE may still translate by what was there before.
    StaleTranslation,
    /// Two translations of one address, of different output address, may be held at once.
    ConflictingAddress,
    /// Likewise, of different memory type, cacheability or shareability.
    ConflictingMemory,
    /// Likewise, of different size, and the machine does not allow that.
    ConflictingSize,
    /// An invalidation was executed under another VMID than the entry's, or while it was not
    /// determined which VMID is in force; so the entry may still be held.
    WrongVmid,
    /// A slot became Empty while a PE may still translate by what it held.
    EmptyTooEarly,
    /// A table page was given back while a walk may still enter it.
    TableStillWalked,
    /// A page became a table again while a walk may still enter it as what it was before.
    TableReused,
    /// A table page was put in a list, from which others take, while a walk may still enter it.
    TableListed,
    /// Something that is no descriptor was written where a walk may still read.
    TableScribbled,
    /// A frame was given back while a PE may still reach it.
    FrameStillReachable,
    /// A VMID was given to another VM while entries of the old one may be held.
    VmidStillCached,
    /// VTTBR_EL2 was changed while walks of the guest that ran before may go on: they may fill a TLB
    /// from its tables under the new VMID.
    WalkAcrossSwitch,
    /// A descriptor was written into a page that is no table.
    WriteToNoTable,
    /// A slot of a table that is being torn down was written by somebody else.
    WriteToDeadSlot,
    /// A table was linked before its content was visible to walks.
    PublishedBeforeFilled,
    /// A change without a break, while hardware may be recording a write: the record may be lost,
    /// or invented.
    DirtyAtRisk,
    /// Dirty state was taken for complete while a store's record may still be on its way, or
    /// missing, or while stores may go on with no record.
    LostDirty,
    /// A descriptor says dirty although nobody wrote: the record was invented after a change
    /// without a break.
    InventedDirty,
    /// A plain store over a descriptor that hardware changed since it was read.
    UpdateOverwritten,
    /// A hardware update, or a guest's store, that no architecture makes: the trace is wrong.
    ImpossibleUpdate,
    /// Locks taken child before parent, or siblings not by ascending address.
    LockOrder,
    /// A lock taken while another PE holds it, given back by one that does not, or never.
    LockState,
    /// A change of a descriptor was begun twice, committed by another PE, or never.
    UnmatchedTransaction,
    /// Software relies on what it wrote, but a walk may still read what was there before.
    NotYetVisible,
}

impl Defect {
    /// Every kind.
    pub const ALL: [Self; 25] = [
        Self::StaleTranslation,
        Self::ConflictingAddress,
        Self::ConflictingMemory,
        Self::ConflictingSize,
        Self::WrongVmid,
        Self::EmptyTooEarly,
        Self::TableStillWalked,
        Self::TableReused,
        Self::TableListed,
        Self::TableScribbled,
        Self::FrameStillReachable,
        Self::VmidStillCached,
        Self::WalkAcrossSwitch,
        Self::WriteToNoTable,
        Self::WriteToDeadSlot,
        Self::PublishedBeforeFilled,
        Self::DirtyAtRisk,
        Self::LostDirty,
        Self::InventedDirty,
        Self::UpdateOverwritten,
        Self::ImpossibleUpdate,
        Self::LockOrder,
        Self::LockState,
        Self::UnmatchedTransaction,
        Self::NotYetVisible,
    ];

    /// The rule of the Arm ARM, or of the design, that the defect breaks.
    #[must_use]
    pub const fn rule(self) -> &'static str {
        match self {
            Self::StaleTranslation => {
                "RGPPYH, RPSMWS, RYNJCP, RBLDZX: maintenance completes with a DSB of its scope"
            }
            Self::ConflictingAddress | Self::ConflictingMemory => "RWHZWS: break-before-make",
            Self::ConflictingSize => "RWHZWS, RKFLJB: break-before-make on a change of size",
            Self::WrongVmid => "RVZZVZ, RPMNQC, RBMMCC: the current VMID, once synchronized",
            Self::EmptyTooEarly => {
                "RDDMVT: invalidate before make; an Empty slot may be made at once"
            }
            Self::TableStillWalked
            | Self::TableReused
            | Self::TableListed
            | Self::TableScribbled => "RRVJDB: intermediate entries and walks in flight count, too",
            Self::FrameStillReachable => "RLXHLD: old translations are in use until TLBI and DSB",
            Self::VmidStillCached => "RNWYRD: entries are tagged with the VMID",
            Self::WalkAcrossSwitch => "RLFHQG, IQVPYJ: a DSB at EL2 ends the walks of lower levels",
            Self::WriteToNoTable => "ownership: only table pages hold descriptors",
            Self::WriteToDeadSlot => "slot states: Dead belongs to who tears the table down",
            Self::PublishedBeforeFilled => "RTGRMW: a walk may read a table once it is linked",
            Self::DirtyAtRisk | Self::InventedDirty => "RRTBRL: no break, so no promise",
            Self::LostDirty => {
                "RZYCN, RMKHJS, RSGJBL: records complete with a DSB, or with a flush"
            }
            Self::UpdateOverwritten => {
                "RLFTXR, RPQJJR: hardware updates are atomic, so must be software's"
            }
            Self::ImpossibleUpdate => {
                "RHDTRB, RNSXRD, RDYCFD, IDSHLJ, RSGJBL: what hardware updates"
            }
            Self::LockOrder | Self::LockState => "lock order: parent before child, siblings by IPA",
            Self::UnmatchedTransaction => "transactions: who starts commits, once",
            Self::NotYetVisible => "RSPVBD: a write is observable after a DSB of its own PE",
        }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The serde name is the name.
        self.serialize(f)
    }
}

/// A defect, where it showed, and what led to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What is wrong.
    pub defect: Defect,
    /// Number of the event that showed it, from 0.
    pub at: usize,
    /// What exactly, with the numbers.
    pub what: String,
    /// The events that matter, by number: who wrote what is still held, which invalidations and
    /// barriers came after, and the claim that they do not bear out. Empty after the first 64
    /// verdicts.
    pub trace: Vec<(usize, Event)>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {}: {}: {} ({})", self.at, self.defect, self.what, self.defect.rule())?;
        for (at, event) in &self.trace {
            let mark = if *at == self.at { '>' } else { ' ' };
            write!(f, "\n{mark} {at:5}  {event}")?;
        }
        Ok(())
    }
}
