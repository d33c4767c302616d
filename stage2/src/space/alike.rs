//! Whether leaves side by side are parts of one: alike, and of memory that goes on from one to the next.
//!
//! A collapse asks for 512, and so does who moves memory together; a contiguous run has 16. Alike means: everything
//! is the same but the address, the accessed and dirty state, and the Contiguous bit, which is about the neighbours
//! and goes where these become one.

use core::fmt;
use core::ops::Range;

use super::tables::Node;
use crate::addr::{Ipa, Level, Pa};
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Leaf, State, View};
use crate::slot::Slot;

/// Why leaves do not become one. Each names the first slot in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Nothing is mapped there.
    Hole {
        /// First IPA of the slot.
        ipa: Ipa,
    },
    /// A note stands there.
    Note {
        /// First IPA of the slot.
        ipa: Ipa,
    },
    /// Not a leaf of the level below the block: a table, which has to be collapsed first, or a slot that is being
    /// changed.
    NoLeaf {
        /// First IPA of the slot.
        ipa: Ipa,
        /// What it holds.
        seen: Descriptor,
    },
    /// Its memory does not follow that of the slot before it.
    Elsewhere {
        /// First IPA of the slot.
        ipa: Ipa,
        /// Where its memory is.
        pa: Pa,
        /// Where it would have to be.
        wanted: Pa,
    },
    /// It allows something else than the first, or belongs to somebody else.
    Unlike {
        /// First IPA of the slot.
        ipa: Ipa,
    },
    /// A dirty session covers it: a run would have one record for all its members.
    Logged {
        /// First IPA of the slot.
        ipa: Ipa,
    },
    /// The first leaf's memory is not aligned to the whole.
    Unaligned {
        /// Where it is.
        pa: Pa,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hole { ipa } => write!(f, "nothing is mapped at {ipa}"),
            Self::Note { ipa } => write!(f, "a note stands at {ipa}"),
            Self::NoLeaf { ipa, seen } => write!(f, "the slot at {ipa} holds {:#x}", seen.bits()),
            Self::Elsewhere { ipa, pa, wanted } => {
                write!(f, "the memory at {ipa} is at {pa}, and would have to be at {wanted}")
            }
            Self::Unlike { ipa } => write!(f, "the leaf at {ipa} is unlike the first"),
            Self::Logged { ipa } => write!(f, "writes at {ipa} are logged"),
            Self::Unaligned { pa } => {
                write!(f, "the memory begins at {pa}, where the whole cannot")
            }
        }
    }
}

/// The first of some leaves that are parts of one, and what any of them has recorded. `read` says what a slot
/// holds, and is asked for each in order until one is in the way.
pub(super) fn parts(
    node: Node<'_>,
    slots: Range<usize>,
    mut read: impl FnMut(&Slot) -> Descriptor,
) -> Result<(Leaf, State), Obstacle> {
    let start = node.ipa_of(slots.start);
    let mut slots = node.table.slots().get(slots).unwrap_or_default().iter().zip(0_u64..);
    // There are some.
    let Some((slot, _)) = slots.next() else { return Err(Obstacle::Hole { ipa: start }) };
    let first = leaf(read(slot), node.level, start)?;
    let mut state = first.state();
    for (slot, index) in slots {
        let seen = read(slot);
        match first.state_of_part(index, seen) {
            Some(its) => state = state.or(its),
            None => return Err(obstacle(&first, start, index, seen)),
        }
    }
    Ok((first, state))
}

/// The leaf that a slot holds.
fn leaf(seen: Descriptor, level: Level, ipa: Ipa) -> Result<Leaf, Obstacle> {
    match seen.view(level) {
        View::Leaf(leaf) => Ok(leaf),
        View::Empty => Err(Obstacle::Hole { ipa }),
        View::Note(_) => Err(Obstacle::Note { ipa }),
        _ => Err(Obstacle::NoLeaf { ipa, seen }),
    }
}

/// Why what a slot holds does not go on from the first leaf, which begins at `start`.
#[cold]
fn obstacle(first: &Leaf, start: Ipa, index: u64, seen: Descriptor) -> Obstacle {
    let behind = index * first.level().slot_bytes();
    let ipa = Ipa::new(start.get() + behind);
    let wanted = Pa::new(first.pa().get() + behind);
    match leaf(seen, first.level(), ipa) {
        Ok(leaf) if leaf.pa() != wanted => Obstacle::Elsewhere { ipa, pa: leaf.pa(), wanted },
        Ok(_) => Obstacle::Unlike { ipa },
        Err(obstacle) => obstacle,
    }
}

/// Makes a live leaf Busy; returns what it was, or what else stands there. The caller holds the table's lock.
pub(super) fn to_busy<A: Arch>(arch: &A, slot: &Slot, level: Level) -> Descriptor {
    loop {
        let seen = slot.load(arch);
        let Some(busy) = seen.to_busy().filter(|_| seen.as_leaf(level).is_some()) else {
            return seen;
        };
        // SAFETY: (1) the table's lock is held: the holder may make a leaf Busy.
        match unsafe { arch.compare_exchange(slot, seen.bits(), busy.bits()) } {
            // A machine without the exchange has no leaves but those of `map`, which needs it, too.
            Some(Ok(_)) | None => return seen,
            // A fault handler or hardware has changed it: at the most as often as it has such bits.
            Some(Err(_)) => {}
        }
    }
}
