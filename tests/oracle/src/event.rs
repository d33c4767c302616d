//! What happens, as the oracle sees it: one line of a trace.
//!
//! Events are in the order in which they took effect. Everything that hardware may do on its own
//! (walks, speculative or not, and what they cache) is *not* an event: the model does it as early and
//! remembers it as long as the architecture permits. The exception is a hardware update of a
//! descriptor, because it changes memory: [`Event::HwUpdate`].
//!
//! The JSON form is that of `serde` on this type, one event a line, externally tagged:
//! `{"Write":{"pe":0,"slot":12296,"new":0}}`.

use serde::{Deserialize, Serialize};

/// A processing element, by number.
pub type Pe = usize;

/// A data synchronization barrier, as far as translation tables care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dsb {
    /// `DSB ISHST`: completes stores, for all PEs. Completes no TLBI \[RPSMWS\].
    IshSt,
    /// `DSB ISHLD`: completes loads. Completes neither stores nor TLBIs.
    IshLd,
    /// `DSB ISH`: completes stores, and TLBIs of every scope.
    Ish,
    /// `DSB NSHST`: completes stores as far as this PE's own walks see them.
    NshSt,
    /// `DSB NSHLD`: completes this PE's loads. Completes neither stores nor TLBIs.
    NshLd,
    /// `DSB NSH`: what NSHST completes, and local TLBIs.
    Nsh,
}

/// How far a TLB invalidation reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// This PE.
    Local,
    /// Every PE of the Inner Shareable domain: all PEs of the model.
    Is,
}

/// What a TLB invalidation is aimed at; the operand as in the register \[C5.5\].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// `IPAS2E1*`: stage-2 entries of any level on the way to one IPA, as the hint allows.
    Ipa(u64),
    /// `IPAS2LE1*`: last-level stage-2 entries of one IPA.
    IpaLast(u64),
    /// `RIPAS2E1*`: stage-2 entries of a range.
    IpaRange(u64),
    /// `RIPAS2LE1*`: last-level stage-2 entries of a range.
    IpaRangeLast(u64),
    /// `VMALLE1*`: stage-1 and combined entries of the current VMID.
    VmStage1,
    /// `VMALLS12E1*`: everything of the current VMID.
    Vm,
    /// `ALLE1*`: everything of every VMID.
    All,
    /// `VAE2*`: entries of EL2's own regime, of any level on the way to one address, as the hint allows.
    El2Va(u64),
    /// `ALLE2*`: everything of EL2's own regime.
    El2All,
}

impl Aim {
    /// Whether it is aimed at EL2's own regime, and so at no VMID.
    #[must_use]
    pub const fn is_el2(&self) -> bool {
        matches!(self, Self::El2Va(_) | Self::El2All)
    }
}

/// IPAs side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The first.
    pub ipa: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// VTTBR_EL2 was written. In force from the next context synchronization; until then the PE may
    /// walk with either value.
    SetVttbr {
        /// Who.
        pe: Pe,
        /// VMID in bits 63:48, root in bits 47:1.
        value: u64,
    },
    /// `ISB`, exception entry or return.
    Isb {
        /// Who.
        pe: Pe,
    },
    /// A descriptor was written by software, by whatever instruction.
    Write {
        /// Who.
        pe: Pe,
        /// Address of the descriptor.
        slot: u64,
        /// What it holds now.
        new: u64,
        /// Whether it was an atomic read-modify-write, which loses nothing.
        #[serde(default)]
        atomic: bool,
        /// Whether it had no release order: earlier stores of the PE may be seen after it.
        #[serde(default)]
        relaxed: bool,
    },
    /// A walk updated a descriptor: access flag or dirty state, atomically.
    HwUpdate {
        /// Whose walk.
        pe: Pe,
        /// Address of the descriptor.
        slot: u64,
        /// What it holds now.
        new: u64,
        /// Nobody saw it happen: it is known from what a later access found. Then the PE is any, and the
        /// store behind it was not seen either.
        #[serde(default)]
        inferred: bool,
    },
    /// A guest's store went through this leaf, or through a cached copy of it. If the leaf was
    /// writable-clean, a [`HwUpdate`](Self::HwUpdate) of it follows at some time: observers may see
    /// the two in either order \[RZYCN\], a trace has the store first.
    GuestStore {
        /// Whose guest.
        pe: Pe,
        /// Address of the descriptor.
        slot: u64,
    },
    /// Software goes on as if the dirty state that it read covered every store so far, and as if none
    /// that comes later could go unrecorded.
    Harvested {
        /// Who.
        pe: Pe,
        /// Address of the descriptor, or of the first of several.
        slot: u64,
        /// How many descriptors side by side: those of a contiguous run speak for each other.
        #[serde(default = "one")]
        count: u64,
    },
    /// A barrier.
    Dsb {
        /// Who.
        pe: Pe,
        /// Which.
        kind: Dsb,
    },
    /// A TLB invalidation. Complete only after a [`Dsb`] of its scope by the same PE.
    Tlbi {
        /// Who.
        pe: Pe,
        /// How far.
        scope: Scope,
        /// At what.
        aim: Aim,
    },
    /// A page became a table page, all zero and visible as zero.
    AllocTable {
        /// Who.
        pe: Pe,
        /// Its address.
        table: u64,
    },
    /// A table page was given back: from here on it may hold anything.
    FreeTable {
        /// Who.
        pe: Pe,
        /// Its address.
        table: u64,
    },
    /// A table page was put in a list of pages that others may take from.
    ListTable {
        /// Who.
        pe: Pe,
        /// Its address.
        table: u64,
    },
    /// Something that is no descriptor was written into a table page: a list link, a poison.
    Scribble {
        /// Who.
        pe: Pe,
        /// Its address.
        table: u64,
    },
    /// Memory behind leaves was given back, or will be used for something else.
    FreeFrame {
        /// Who.
        pe: Pe,
        /// Its address.
        frame: u64,
        /// Bytes.
        bytes: u64,
    },
    /// Software goes on as if every PE's walks read what this PE has written.
    Published {
        /// Who.
        pe: Pe,
    },
    /// Software goes on as if no PE translated these IPAs by anything but the tables as they are.
    Flushed {
        /// Who.
        pe: Pe,
        /// The VM.
        vmid: u16,
        /// Which IPAs; all of the VM's, if it names none.
        #[serde(default)]
        span: Option<Span>,
    },
    /// EL2's own walks, of every PE, start at this page, an L0 table, from here on: TTBR0_EL2 names it. What is written there is in the
    /// trace from here on; what was written there earlier is not judged.
    El2Root {
        /// Who says so.
        pe: Pe,
        /// Its address.
        root: u64,
    },
    /// Software goes on as if no PE translated EL2's own addresses by anything but the tables as they are.
    El2Flushed {
        /// Who.
        pe: Pe,
    },
    /// Software goes on as if VMID had never been used.
    ReuseVmid {
        /// Who.
        pe: Pe,
        /// The VMID.
        vmid: u16,
    },
    /// A table's lock was taken.
    Lock {
        /// Who.
        pe: Pe,
        /// The table page that the lock guards.
        table: u64,
    },
    /// A table's lock was given back.
    Unlock {
        /// Who.
        pe: Pe,
        /// The table page that the lock guards.
        table: u64,
    },
    /// A change of a descriptor in several steps begins.
    Start {
        /// Who.
        pe: Pe,
        /// Address of the descriptor.
        slot: u64,
    },
    /// It is over.
    Commit {
        /// Who.
        pe: Pe,
        /// Address of the descriptor.
        slot: u64,
    },
}

const fn one() -> u64 {
    1
}

impl Event {
    /// Who did it.
    #[must_use]
    pub const fn pe(&self) -> Pe {
        match *self {
            Self::SetVttbr { pe, .. }
            | Self::Isb { pe }
            | Self::Write { pe, .. }
            | Self::HwUpdate { pe, .. }
            | Self::GuestStore { pe, .. }
            | Self::Harvested { pe, .. }
            | Self::Dsb { pe, .. }
            | Self::Tlbi { pe, .. }
            | Self::AllocTable { pe, .. }
            | Self::FreeTable { pe, .. }
            | Self::ListTable { pe, .. }
            | Self::Scribble { pe, .. }
            | Self::FreeFrame { pe, .. }
            | Self::Published { pe }
            | Self::Flushed { pe, .. }
            | Self::El2Root { pe, .. }
            | Self::El2Flushed { pe }
            | Self::ReuseVmid { pe, .. }
            | Self::Lock { pe, .. }
            | Self::Unlock { pe, .. }
            | Self::Start { pe, .. }
            | Self::Commit { pe, .. } => pe,
        }
    }
}
