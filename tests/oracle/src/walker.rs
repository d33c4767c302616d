//! Table walks of hardware, on the tables of an [`OracleMachine`]: they set the access flag and the
//! dirty state (FEAT_HAFDBS), at any moment that the architecture permits.
//!
//! A walk has two steps, so that software can change the tables while it is in flight:
//!
//! ```text
//! Walk::begin    reads the tables down to the leaf
//!      ...       software changes what it likes
//! Walk::finish   one atomic update of the leaf, if it still is what was read [RSGJBL]; else: again
//! ```
//!
//! The access flag may be set for an access that never happens \[RLHQRX\], the dirty state only for a
//! write that is performed \[RDYCFD\]. A leaf that a PE holds as writable-dirty it writes through with no
//! update, whatever the descriptor says meanwhile: [`store_by_held`]. A store may be seen before its
//! record \[RZYCN\]: [`Walk::store_first`].
//!
//! After a change without break-before-make the architecture lets hardware fail \[IGXGZY, RRTBRL\]:
//! the walk's caller, or [`Hardware`]'s dice, then chooses a [`Choice`] other than `Faithful`. Where
//! nothing is at risk every choice is `Faithful`.

use stage2::slot::native;

use crate::descriptor::{self, Kind, LEAF_LEVEL, kind, shift};
use crate::event::{Event, Pe};
use crate::machine::OracleMachine;

mod dice;

pub use dice::{Counts, Hardware};

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load, or the fetch of an instruction.
    Read,
    /// A store.
    Write,
    /// An access that is not performed.
    Speculative,
}

/// Why a walk ended without a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is mapped, or no VMID is in force.
    Translation,
    /// The access flag is clear, and hardware does not manage it.
    AccessFlag,
    /// The leaf does not let the access through.
    Permission,
}

/// What hardware does where it is permitted to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// What it does where nothing is at risk.
    Faithful,
    /// The access goes through, and the access flag stays clear \[IGXGZY\].
    LoseAccess,
    /// The store goes through, and its record is lost \[RRTBRL\].
    LoseDirty,
    /// No store goes through, and one is recorded \[RRTBRL\].
    InventDirty,
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The access is done; this is what the leaf held then, any update included.
    Done(u64),
    /// The leaf changed, or an invalidation ended the walk: it begins again.
    Again,
    /// The access flag was not set.
    AccessLost,
    /// The store was not recorded.
    DirtyLost,
    /// A store was recorded that there was not.
    DirtyInvented,
}

/// A walk in flight.
#[derive(Clone, Copy, Debug)]
pub struct Walk<'m> {
    machine: &'m OracleMachine,
    pe: Pe,
    access: Access,
    /// Address of the leaf.
    slot: u64,
    /// What it held.
    seen: u64,
}

impl<'m> Walk<'m> {
    /// Walks from the root of `pe` to the leaf of `ipa`.
    ///
    /// # Errors
    /// The [`Fault`] that the access takes.
    pub fn begin(
        machine: &'m OracleMachine,
        pe: Pe,
        ipa: u64,
        access: Access,
    ) -> Result<Self, Fault> {
        let setup = machine.setup();
        let root = machine.vttbr_of(pe) & 0x0000_ffff_ffff_fffe;
        if root == 0 {
            return Err(Fault::Translation);
        }
        let mut level = setup.start_level;
        let mut table = root + (ipa >> (shift(level) + 9)) % setup.root_pages * 0x1000;
        loop {
            let slot = table + (ipa >> shift(level) & 511) * 8;
            let seen = native::load(machine.slot_at(slot));
            match kind(seen, level) {
                Kind::Table(next) if level < LEAF_LEVEL => (table, level) = (next, level + 1),
                Kind::Leaf(_) => {
                    if !descriptor::accessed(seen) && !setup.hw_access {
                        return Err(Fault::AccessFlag);
                    }
                    let recorded = setup.tracks_dirty() && descriptor::writable_clean(seen);
                    if access == Access::Write && !descriptor::writes_freely(seen) && !recorded {
                        return Err(Fault::Permission);
                    }
                    return Ok(Self { machine, pe, access, slot, seen });
                }
                _ => return Err(Fault::Translation),
            }
        }
    }

    /// Address of the leaf.
    #[must_use]
    pub const fn slot(&self) -> u64 {
        self.slot
    }

    /// Ends the walk: updates the leaf where that is due, and makes the access.
    pub fn finish(self, choice: Choice) -> Outcome {
        let setup = self.machine.setup();
        let (at_risk, alive) = self.machine.with_model(|model| {
            (model.at_risk(self.slot), model.holds(self.pe, self.slot, self.seen))
        });
        if !alive {
            return Outcome::Again;
        }
        let write = self.access == Access::Write;
        let records = write && setup.tracks_dirty() && descriptor::writable_clean(self.seen);
        match choice {
            Choice::LoseDirty if at_risk && records => {
                self.store();
                return Outcome::DirtyLost;
            }
            Choice::InventDirty if at_risk && setup.tracks_dirty() => return self.invent(),
            Choice::LoseAccess if at_risk && !write && !descriptor::accessed(self.seen) => {
                return Outcome::AccessLost;
            }
            _ => {}
        }
        let mut new = self.seen;
        if setup.hw_access {
            new |= descriptor::RECORD_ACCESS;
        }
        if records {
            new |= descriptor::RECORD;
        }
        if new == self.seen {
            if write {
                self.store();
            }
            return Outcome::Done(new);
        }
        let made = self.machine.hardware_exchange(self.pe, self.slot, self.seen, new, records);
        match made {
            Ok(_) => {
                if write && !records {
                    self.store();
                }
                Outcome::Done(new)
            }
            Err(_) => Outcome::Again,
        }
    }

    /// Makes the store before its record, which follows at some time: at the latest before a DSB of
    /// the PE that waits for loads and stores is over, or before software changes the descriptor.
    /// `false` if there is nothing to record, or the leaf changed.
    ///
    /// Not under loom: its threads may switch between two steps that are one for hardware.
    #[cfg(not(loom))]
    #[must_use]
    pub fn store_first(self) -> bool {
        let setup = self.machine.setup();
        let live = self.machine.with_model(|model| model.current(self.slot) == self.seen);
        let records = setup.tracks_dirty() && descriptor::writable_clean(self.seen);
        let due = self.access == Access::Write && records && live;
        if due {
            self.machine.owe_record(self.pe, self.slot);
        }
        due
    }

    fn store(&self) {
        let (pe, slot) = (self.pe, self.slot);
        self.machine.on_pe(pe, || self.machine.note(|pe| Event::GuestStore { pe, slot }));
    }

    /// Says of whatever leaf stands there now that it was written.
    fn invent(self) -> Outcome {
        let now = native::load(self.machine.slot_at(self.slot));
        let leaf = now & 1 != 0 && descriptor::writable_clean(now);
        let new = now | descriptor::RECORD;
        let made =
            leaf && self.machine.hardware_exchange(self.pe, self.slot, now, new, false).is_ok();
        if made { Outcome::DirtyInvented } else { Outcome::Again }
    }
}

/// A store of `pe` to `ipa` by a writable-dirty leaf that it holds, whatever the tables say: nothing is
/// updated. Returns the address of the leaf; `None` if the PE cannot hold such a one.
pub fn store_by_held(machine: &OracleMachine, pe: Pe, ipa: u64) -> Option<u64> {
    let slot = machine.with_model(|model| model.writes_by_held(pe, ipa))?;
    machine.on_pe(pe, || machine.note(|pe| Event::GuestStore { pe, slot }));
    Some(slot)
}
