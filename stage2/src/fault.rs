//! What a hypervisor does about an abort of its guest: a pure function of the syndrome, the slot, and the place.
//!
//! [`decide`] takes no lock, allocates nothing, reads no register and no table. Its caller has decoded the syndrome
//! ([`Abort`]), found the address if one is needed ([`Fault::first`]), and has read his policy ([`Place`]) and the slot
//! ([`Seen`]) under **one guard**, which he holds until the [`Action`] is done: whoever changes a policy publishes it, waits for the
//! guards, and sweeps last, so a decision cannot outlive what it was made from.
//!
//! # Every abort class
//!
//! | status of the abort | what is done | why |
//! | --- | --- | --- |
//! | Translation, level -2 to 3 | by the slot and the place: below | an invalid descriptor; nothing is cached \[RDYNYQ, RMLNTS\]. An address beyond the IPA size is one, level 0 (J1.1, `AArch64.IPAIsOutOfRange`) |
//! | Access flag | by the slot: below | nothing is cached \[IPNQBP\]: set AF |
//! | Permission | by the slot: below | may be cached \[RJVXRH\]: grant and flush, or inject |
//! | Address size, level -2 to 3 | beyond the IPA size as a Translation fault there, else **stop** | a descriptor or VTTBR_EL2 has address bits that do not exist \[RCVSBH\]: tables are damaged |
//! | TLB conflict | **flush the VM** on this PE, resume | nothing was accessed; only if all entries go, both stages, it is sure that these do \[RQWTKL, IJCCRT\] |
//! | unsupported atomic update | **stop** | what stage 1 chose wrongly goes to EL1; here it is memory that cannot take hardware's update of a descriptor \[RVSXXT\] |
//! | unsupported exclusive or atomic access | **inject** the same | the guest's instruction, on memory that stage 2 made not write-back (J1.1, `AArch64.S2Translate`) |
//! | alignment | **inject** the same | the guest's instruction, on memory that stage 2 made Device (`S2HasAlignmentFaultDueToMemType`) |
//! | external abort; on a walk | **stop** | memory that the VM was given, or that holds its tables, answers with an error. FnV: FAR is then not shown. Guests never map what is not RAM, so it is no access of theirs that went wrong |
//! | parity or ECC; on a walk | **stop** | as an external abort |
//! | granule protection; on a walk | **stop** | the frame, or the table, is another world's \[D9\] |
//! | tag check, lockdown, reserved | **stop** | not for EL2 while HCR_EL2.TGE is 0, or not to be understood |
//! | unsupported access or alignment of a *fetch* | **stop** | reserved |
//!
//! Flags of the syndrome:
//!
//! | flag | what it changes |
//! | --- | --- |
//! | S1PTW | the address is that of a table of the guest's: HPFAR_EL2 has its page, FAR_EL2 what was being translated. ISV is 0. It counts as a read, or after a Permission fault as what is allowed of read and write \[RBDJJL\]; it is no fetch even if a fetch caused it. A device holds no tables: **stop** |
//! | CM | cache maintenance, or `AT` if S1PTW is set, too. On RAM and on a hole as an access. A device has nothing cached: **ignored**, step over it |
//! | ISV = 0 | pairs, SIMD, writeback, exclusives, DC ZVA, walks: there is no decoded access, and none is guessed. A device needs one: **stop**. RAM and holes do not: the instruction is executed again |
//! | LST | ISV is 1 for LD64B and ST64B, but not 64 bytes can be told: as ISV = 0 |
//! | WnR | read or write; always set for CM, the walker's for S1PTW, UNKNOWN for statuses 0x31 and 0x35 |
//! | FnV | only for status 0x10: FAR_EL2 is UNKNOWN |
//! | HPFAR_EL2 | valid or UNKNOWN by the table in `address.rs` |
//!
//! # Translation faults
//!
//! | slot | RAM | device | recovery window, undeclared, beyond the IPA size |
//! | --- | --- | --- | --- |
//! | Empty | **install** | data with ISV: **emulate**; maintenance: **ignore**; pairs, fetches, walks: **stop** | policy `scratch`: **scratch**, but a fetch, and all beyond the IPA size: **inject**; `inject`: **inject**; `stop`: **stop** |
//! | Busy, Drain, Dead, nT, a table by now | **retry** | | **retry** |
//! | a leaf | **retry**: somebody was faster | as Empty: nothing is ever mapped there | **retry** |
//! | Note | what the **note** says | | `scratch`, `inject`: **inject**, nothing can be installed; `stop`: **stop** |
//! | not ours | **stop** | | **stop** |
//!
//! # Access flag and Permission faults
//!
//! | slot | what is done |
//! | --- | --- |
//! | a leaf of the VM, and the place allows what the access needs | **relax**: give it that, or find that it has it and flush |
//! | a leaf of the VM, and the place does not | **inject** |
//! | a leaf of the VM where the place has no memory | **retry**: its policy is being changed |
//! | a leaf that is not the VM's: scratch | a fetch: **inject**; else it allows the access: **relax**, which finds that |
//! | anything else but what is not ours | **retry**: the next fault is on the translation |
//! | not ours | **stop** |

mod abort;
mod access;
mod address;
mod inject;
mod quick;
mod status;
#[cfg(test)]
mod tests;
mod why;

use core::fmt;

pub use abort::{Abort, LoadStore};
pub use access::{Access, El};
pub use address::{Address, reported, translated};
pub use inject::Entry;
pub use quick::{is_leaf_fault, is_no_fetch, is_plain_store, is_translation};
pub use status::Status;
pub use why::Why;

use crate::addr::Level;
use crate::attr::Prot;
use crate::descriptor::{Descriptor, Note, Owner, View};

/// What becomes of an access where the guest has no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// It lands on the VM's scratch page, and the guest goes on; a fetch is injected.
    Scratch,
    /// The guest takes a synchronous external abort.
    Inject,
    /// The VM is stopped with a diagnosis.
    Stop,
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scratch => "scratch",
            Self::Inject => "inject",
            Self::Stop => "stop",
        })
    }
}

/// What an address is by the VM's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Memory, populated by the first access.
    Ram {
        /// What the guest may do with it.
        allowed: Prot,
    },
    /// A device model's: never mapped.
    Emulated,
    /// A recovery window: what is Empty is a hole.
    Recovery {
        /// What becomes of an access to a hole.
        policy: Recovery,
        /// If it lies in RAM: what the guest may do with memory that is mapped in it all the same.
        ram: Option<Prot>,
    },
    /// Nothing is declared there. What becomes of an access.
    Nothing(Recovery),
    /// The VM's addresses have fewer bits: no table has a slot for it. What becomes of an access to nothing.
    BeyondIpaSize(Recovery),
}

/// What a slot held when it was read, as far as it matters to a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    /// Nothing.
    Empty,
    /// On its way: Busy, Drain, Dead, a block with nT, or a table that was linked a moment ago.
    Changing,
    /// A leaf whose memory is the VM's.
    Owned,
    /// A leaf whose memory is not the VM's ([`Owner::Other`]): a scratch page. Memory of others that was mapped counts as one,
    /// whatever it allows: a fetch from it that faults is injected, so map none that is to be executed.
    Others,
    /// A note.
    Note(Note),
    /// Bits that this crate never writes.
    Foreign,
}

impl Seen {
    /// What a descriptor is in the slot of `level` in which a walk ended.
    #[must_use]
    pub const fn new(level: Level, descriptor: Descriptor) -> Self {
        match descriptor.view(level) {
            View::Empty => Self::Empty,
            View::Leaf(leaf) if leaf.has_no_translation() => Self::Changing,
            View::Leaf(leaf) => match leaf.owner() {
                Owner::Vm => Self::Owned,
                Owner::Other => Self::Others,
            },
            View::Table(_) | View::Busy(_) | View::Drain(_) | View::Dead => Self::Changing,
            View::Note(note) => Self::Note(note),
            View::Foreign(_) => Self::Foreign,
        }
    }
}

/// An abort of a guest, and where it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// The syndrome.
    pub abort: Abort,
    /// The Exception level.
    pub el: El,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum First {
    /// Nothing has to be known but the syndrome.
    Act(Action),
    /// HPFAR_EL2 says which page: read the place and the slot, then [`decide`].
    Reported,
    /// Stage 1 says which page, by `AT S1E1R`: likewise; if it does not translate, [`Action::Retry`].
    Translate,
}

/// What is to be done about an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Map memory by [`Space::install`](crate::Space::install); if something is there by then: [`Retry`](Self::Retry).
    Install,
    /// Map the scratch page by its install, and note the violation; if something is there by then: `Retry`. If the
    /// install answers [`InstallError::Note`](crate::space::InstallError::Note): [`Inject`](Self::Inject).
    Scratch,
    /// Give the leaf this by [`Space::relax`](crate::Space::relax), which is told what [`Place::allows`]. Where that finds the
    /// leaf as it should be, [`Fault::spurious`] says what follows.
    Relax(Prot),
    /// Back to the guest, which faults again or does not; counted, and bounded.
    Retry,
    /// A device model performs the access; then step over the instruction.
    Emulate(LoadStore),
    /// Step over the instruction.
    Ignore,
    /// What the note says.
    Note(Note),
    /// The guest takes an abort of its own: [`Abort::injected`].
    Inject,
    /// This PE's TLB loses all entries of the VM, both stages; then as `Retry`.
    FlushVm,
    /// The VM is stopped.
    Stop(Why),
}

impl Place {
    /// What the guest may do with the leaf that was seen there: with memory of the VM's what the place says, with
    /// others', the scratch page, reading and writing, wherever it is; `None` where there should be none.
    #[must_use]
    pub const fn allows(self, seen: Seen) -> Option<Prot> {
        match (seen, self) {
            (Seen::Others, _) => Some(Prot::RW),
            (Seen::Owned, Self::Ram { allowed }) => Some(allowed),
            (Seen::Owned, Self::Recovery { ram, .. }) => ram,
            _ => None,
        }
    }
}

impl Fault {
    /// A value of ESR_EL2 and SPSR_EL2; `None` if it is no abort.
    #[must_use]
    pub const fn new(esr: u64, spsr: u64) -> Option<Self> {
        match Abort::new(esr) {
            Some(abort) => Some(Self { abort, el: El::of_spsr(spsr) }),
            None => None,
        }
    }

    /// What comes first. For many statuses the syndrome is enough.
    #[must_use]
    pub const fn first(self) -> First {
        match self.abort.address() {
            Address::Reported => return First::Reported,
            Address::Translate => return First::Translate,
            Address::Unknown => {}
        }
        let why = match self.abort.status() {
            Status::TlbConflict => return First::Act(Action::FlushVm),
            Status::Alignment | Status::UnsupportedExclusive if !self.abort.is_instruction() => {
                return First::Act(Action::Inject);
            }
            Status::UnsupportedAtomicUpdate => Why::HardwareUpdate,
            Status::External
            | Status::ExternalOnWalk(_)
            | Status::Parity
            | Status::ParityOnWalk(_) => Why::Memory,
            Status::GranuleProtection | Status::GranuleProtectionOnWalk(_) => Why::Protected,
            Status::Alignment
            | Status::UnsupportedExclusive
            | Status::TagCheck
            | Status::Lockdown
            | Status::Other(_)
            // Their address is known.
            | Status::Translation(_)
            | Status::AccessFlag(_)
            | Status::AddressSize(_)
            | Status::Permission(_) => Why::Unknown,
        };
        First::Act(Action::Stop(why))
    }

    /// What follows where [`Space::relax`](crate::Space::relax) has found that the leaf already is as the policy, `allowed`, would
    /// make it. `again`: the fault before this one, on this vCPU, was the same and ended like this, too.
    ///
    /// This PE's TLB has been flushed, so one such fault may come of an older entry. Two cannot: if it is unclear what
    /// the access was, it was a write where none is allowed.
    #[must_use]
    pub const fn spurious(self, allowed: Prot, again: bool) -> Action {
        let permission = matches!(self.abort.status(), Status::Permission(_));
        let write = permission && self.abort.is_unclear() && !allowed.contains(Prot::WRITE);
        if write && again { Action::Inject } else { Action::Retry }
    }
}

/// What is to be done about an abort of a guest, whose address is `place` and translated by a slot that was `seen`. The last
/// two matter only where [`Fault::first`] does not know what to do.
#[must_use]
pub const fn decide(fault: Fault, seen: Seen, place: Place) -> Action {
    match fault.first() {
        First::Act(action) => action,
        First::Reported | First::Translate => match fault.abort.status() {
            Status::Translation(_) => missing(fault, seen, place),
            Status::AddressSize(_) => match place {
                Place::BeyondIpaSize(policy) => nowhere(fault, seen, place, policy),
                _ => Action::Stop(Why::Tables),
            },
            _ => leaf(fault, seen, place),
        },
    }
}

/// The same for a Translation fault.
///
/// What installs looks at the slot itself, so a caller that has not looked may pass [`Seen::Empty`]: if it is not Empty, the
/// install says so and changes nothing.
#[inline]
#[must_use]
pub const fn missing(fault: Fault, seen: Seen, place: Place) -> Action {
    match place {
        Place::Ram { .. } => match seen {
            Seen::Empty => Action::Install,
            Seen::Changing | Seen::Owned | Seen::Others => Action::Retry,
            Seen::Note(note) => Action::Note(note),
            Seen::Foreign => Action::Stop(Why::Tables),
        },
        Place::Emulated => device(fault.abort),
        Place::Recovery { policy, .. } | Place::Nothing(policy) | Place::BeyondIpaSize(policy) => {
            nowhere(fault, seen, place, policy)
        }
    }
}

/// Where the guest has no memory.
#[inline]
const fn nowhere(fault: Fault, seen: Seen, place: Place, policy: Recovery) -> Action {
    let has_slot = !matches!(place, Place::BeyondIpaSize(_));
    match seen {
        Seen::Changing | Seen::Owned | Seen::Others if has_slot => return Action::Retry,
        Seen::Foreign if has_slot => return Action::Stop(Why::Tables),
        _ => {}
    }
    let fills = has_slot && matches!(seen, Seen::Empty);
    match policy {
        Recovery::Scratch if fills && !matches!(fault.abort.kind(), Access::Fetch) => {
            Action::Scratch
        }
        Recovery::Scratch | Recovery::Inject => Action::Inject,
        Recovery::Stop => Action::Stop(Why::Nothing),
    }
}

/// Where a device model answers.
const fn device(abort: Abort) -> Action {
    match (abort.kind(), abort.access()) {
        (Access::Walk, _) => Action::Stop(Why::WalkInDevice),
        (Access::Fetch, _) => Action::Stop(Why::FetchFromDevice),
        (Access::Maintenance, _) => Action::Ignore,
        (_, Some(access)) => Action::Emulate(access),
        (_, None) => Action::Stop(Why::NotDecoded),
    }
}

/// An Access flag or Permission fault.
const fn leaf(fault: Fault, seen: Seen, place: Place) -> Action {
    let Some(allowed) = place.allows(seen) else {
        let foreign = matches!(seen, Seen::Foreign);
        return if foreign { Action::Stop(Why::Tables) } else { Action::Retry };
    };
    let needs = fault.abort.needs(fault.el, allowed);
    if allowed.contains(needs) { Action::Relax(needs) } else { Action::Inject }
}
