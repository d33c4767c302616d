//! Tables as a walk finds them: lockless to the table, and from there only one way to write, which cannot forget.
//!
//! A walk under a guard finds a table and keeps it from being freed, but not from being unlinked: between
//! the walk and the lock somebody else may have taken the table out of the tree, and whoever writes
//! into it then writes where no walker looks, or into a table that is being torn down:
//!
//! ```text
//! PE 0, lookup_rw                     PE 1, unmaps the range
//! walks: parent slot -> table T
//!                                     locks the parent and T; slots -> Drain, Dead; parent -> Drain
//!                                     flushes, unlocks, waits for PE 0's guard
//! locks T
//! compares the parent slot: moved     <- without this PE 0 writes a leaf into a dying table
//! Stale: looks again
//! ```
//!
//! Linux has the two kinds as `pte_offset_map_ro_nolock` and `pte_offset_map_rw_nolock`; the second hands out
//! the parent's value and asks its callers to compare. Here they cannot forget: an [`RwTable`] has no
//! slots to offer until [`lock`](RwTable::lock) has compared, and an [`RoTable`] never has a method that
//! writes, not even under the lock.
//!
//! Unlinking a table needs its own lock and its parent's. So the parent slot cannot move while the
//! table's own lock is held, and one comparison after taking it is enough.

use core::fmt;

use super::Space;
use super::lookup::Lookup;
use crate::addr::{Ipa, Level, Pa};
use crate::arch::{Arch, Locked, Observation};
use crate::descriptor::{Descriptor, View};
use crate::epoch::Guard;
use crate::lock::{Held, Rank, TableMeta};
use crate::memory::{Memory, Table};
use crate::slot::Slot;

/// The parent slot of a table, with what it held when the walk came through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link<'g> {
    pub(super) slot: &'g Slot,
    pub(super) seen: Descriptor,
}

/// A table in the tree, as a walk found it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'g> {
    pub(super) table: &'g Table,
    meta: &'g TableMeta,
    pa: Pa,
    pub(super) level: Level,
    /// First IPA of the table's span.
    pub(super) start: Ipa,
    /// None for a root, which nobody unlinks.
    pub(super) link: Option<Link<'g>>,
}

impl<'g> Node<'g> {
    /// First address after the table's span.
    pub(super) const fn end(&self) -> u64 {
        self.start.get() + self.level.table_bytes()
    }

    /// First IPA of a slot.
    pub(super) const fn ipa_of(&self, index: usize) -> Ipa {
        Ipa::new(self.start.get() + index as u64 * self.level.slot_bytes())
    }

    fn rank(&self) -> Rank {
        Rank::new(self.level, self.start)
    }

    /// Takes the lock.
    pub(super) fn hold<A: Arch>(self, arch: &'g A, guard: &'g Guard<'_>) -> LockedTable<'g, A> {
        arch.about_to_lock(Locked::Table(self.pa));
        let held = Held::take(self.meta, guard.cpu(), self.rank());
        arch.observe(Observation::Locked { table: self.pa });
        LockedTable { node: self, arch, _held: held }
    }

    /// The same table?
    pub(super) fn is(&self, other: &Node<'_>) -> bool {
        self.pa == other.pa
    }

    /// Takes the lock and compares the parent.
    pub(super) fn lock<A: Arch>(
        self,
        arch: &'g A,
        guard: &'g Guard<'_>,
    ) -> Result<LockedTable<'g, A>, Stale> {
        let held = self.hold(arch, guard);
        if let Some(Link { slot, seen }) = self.link {
            let found = slot.load(arch);
            if found != seen {
                return Err(Stale { level: self.level, start: self.start, seen, found });
            }
        }
        Ok(held)
    }
}

/// The tables from the root to where a walk ended.
#[derive(Debug)]
pub(super) struct Path<'g> {
    nodes: [Option<Node<'g>>; 4],
    depth: usize,
}

impl<'g> Path<'g> {
    /// The table in which the walk ended.
    pub(super) fn leaf(&self) -> Option<Node<'g>> {
        *self.nodes.get(self.depth.checked_sub(1)?)?
    }

    /// The table that links to `node`.
    pub(super) fn above(&self, node: &Node<'g>) -> Option<Node<'g>> {
        let below = |above: &&Node<'g>| above.level.next() == Some(node.level);
        self.nodes.iter().flatten().find(below).copied()
    }

    /// The table of `level`.
    pub(super) fn of(&self, level: Level) -> Option<Node<'g>> {
        self.nodes.iter().flatten().find(|node| node.level == level).copied()
    }

    /// The table of `level`, and the one that it leads to.
    pub(super) fn pair(&self, level: Level) -> Option<(Node<'g>, Node<'g>)> {
        let mut nodes = self.nodes.iter().flatten().skip_while(|node| node.level < level);
        Some((*nodes.next()?, *nodes.next()?))
    }

    fn push(&mut self, node: Node<'g>) {
        if let Some(place) = self.nodes.get_mut(self.depth) {
            *place = Some(node);
            self.depth += 1;
        }
    }
}

/// The parent slot of a table moved between the walk and the lock: look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// Level of the table.
    pub level: Level,
    /// First IPA of its span.
    pub start: Ipa,
    /// What the parent slot held when the walk came through.
    pub seen: Descriptor,
    /// What it holds now.
    pub found: Descriptor,
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, start, seen, found } = self;
        let (seen, found) = (seen.bits(), found.bits());
        write!(f, "the parent of the {level} table at {start} moved from {seen:#x} to {found:#x}")
    }
}

impl core::error::Error for Stale {}

/// A table to be read, with or without its lock.
#[derive(Debug)]
pub struct RoTable<'g, A> {
    node: Node<'g>,
    arch: &'g A,
    guard: &'g Guard<'g>,
}

/// A table that may be written once its lock is held and its parent has been compared.
#[derive(Debug)]
pub struct RwTable<'g, A> {
    node: Node<'g>,
    arch: &'g A,
    guard: &'g Guard<'g>,
}

/// A table whose lock this CPU holds and that is linked where the walk found it.
#[derive(Debug)]
pub struct LockedTable<'g, A: Arch> {
    pub(super) node: Node<'g>,
    arch: &'g A,
    _held: Held<'g>,
}

/// A table that is read under its lock: what is live stays so, but for what hardware and fault handlers may
/// do to it. Empty slots may be filled, and Drain and Dead may end: their owner needs no lock for that.
#[derive(Debug)]
pub struct RoLocked<'g, A: Arch>(LockedTable<'g, A>);

impl<A: Arch> Drop for LockedTable<'_, A> {
    fn drop(&mut self) {
        self.arch.observe(Observation::Unlocked { table: self.node.pa });
    }
}

macro_rules! reads {
    ($($type:ident => $($node:tt).+),*) => {$(
        impl<A: Arch> $type<'_, A> {
            /// Level of the table's slots.
            #[must_use]
            pub const fn level(&self) -> Level {
                self.$($node).+.level
            }

            /// First IPA that the table translates; its slots follow, `level().slot_bytes()` each.
            #[must_use]
            pub const fn start(&self) -> Ipa {
                self.$($node).+.start
            }

            /// What the slot that translates `ipa` holds at this moment; `None` outside the table.
            #[must_use]
            pub fn get(&self, ipa: Ipa) -> Option<Lookup> {
                let node = &self.$($node).+;
                if ipa < node.start || ipa.get() >= node.end() {
                    return None;
                }
                let descriptor = node.table.slot(node.level.index(ipa)).load(self.arch());
                Some(Lookup { level: node.level, descriptor })
            }
        }
    )*};
}

reads!(RoTable => node, RwTable => node, LockedTable => node, RoLocked => 0.node);

impl<'g, A: Arch> RoTable<'g, A> {
    const fn arch(&self) -> &'g A {
        self.arch
    }

    /// What its slots hold, in order of address; each as it was when it was read.
    pub fn descriptors(&self) -> impl Iterator<Item = Descriptor> {
        self.node.table.slots().iter().map(|slot| slot.load(self.arch))
    }

    /// Takes the table's lock, to read what stays as it is meanwhile. The table may be out of the tree by
    /// now; the guard keeps it from being freed, and nothing is written, so nobody compares.
    #[must_use]
    pub fn lock(self) -> RoLocked<'g, A> {
        RoLocked(self.node.hold(self.arch, self.guard))
    }
}

impl<'g, A: Arch> RoLocked<'g, A> {
    const fn arch(&self) -> &'g A {
        self.0.arch
    }
}

impl<'g, A: Arch> RwTable<'g, A> {
    const fn arch(&self) -> &'g A {
        self.arch
    }

    /// What the parent slot held when the walk came through; `None` for a root.
    #[must_use]
    pub fn parent(&self) -> Option<Descriptor> {
        self.node.link.map(|link| link.seen)
    }

    /// Takes the table's lock and compares the parent slot with what the walk saw.
    ///
    /// The caller holds no lock of this table's level or a lower one, or only those of tables at
    /// lower addresses of its level: debug builds check.
    ///
    /// # Errors
    /// [`Stale`]: the table may be out of the tree. The lock was given back; look up again.
    pub fn lock(self) -> Result<LockedTable<'g, A>, Stale> {
        self.node.lock(self.arch, self.guard)
    }
}

impl<'g, A: Arch> LockedTable<'g, A> {
    pub(super) const fn arch(&self) -> &'g A {
        self.arch
    }

    /// The slot that translates `ipa`, for the holder of this lock to write; `None` outside the table.
    ///
    /// Its methods are `unsafe` where they write: the lock is the first clause of each, and a change that is
    /// not over when the lock is given back needs a [`Claim`](crate::Claim), too. An Empty slot may be
    /// populated meanwhile, also by a map with a claim, and hardware may update a live one.
    #[must_use]
    pub fn slot(&self, ipa: Ipa) -> Option<&Slot> {
        let node = &self.node;
        let inside = ipa >= node.start && ipa.get() < node.end();
        inside.then(|| node.table.slot(node.level.index(ipa)))
    }
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// The lowest table on the way to `ipa`, to be read. `None` as for [`lookup`](Self::lookup).
    #[must_use]
    pub fn lookup_ro<'g>(&'g self, guard: &'g Guard<'_>, ipa: Ipa) -> Option<RoTable<'g, A>> {
        let node = self.lowest(guard, ipa)?;
        Some(RoTable { node, arch: &self.arch, guard })
    }

    /// The lowest table on the way to `ipa`, perhaps to be written. `None` as for
    /// [`lookup`](Self::lookup).
    #[must_use]
    pub fn lookup_rw<'g>(&'g self, guard: &'g Guard<'_>, ipa: Ipa) -> Option<RwTable<'g, A>> {
        let node = self.lowest(guard, ipa)?;
        Some(RwTable { node, arch: &self.arch, guard })
    }

    /// Every table on the way to `ipa`, from the root down.
    pub(super) fn path<'g>(&'g self, guard: &'g Guard<'_>, ipa: Ipa) -> Option<Path<'g>> {
        let mut path = Path { nodes: [None; 4], depth: 0 };
        self.tables_to(guard, ipa, |node| path.push(node()))?;
        Some(path)
    }

    /// The lowest of them. `None` as for [`lookup`](Self::lookup).
    pub(super) fn lowest<'g>(&'g self, guard: &'g Guard<'_>, ipa: Ipa) -> Option<Node<'g>> {
        self.tables_to(guard, ipa, |_| {})
    }

    /// Shows the tables on the way to `ipa`, each to be made if it is wanted, and returns the last.
    #[inline(always)]
    fn tables_to<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        ipa: Ipa,
        mut show: impl for<'n> FnMut(&'n dyn Fn() -> Node<'g>),
    ) -> Option<Node<'g>> {
        if !self.geometry.contains(ipa) || !self.domain.owns(guard) {
            return None;
        }
        let mut level = self.geometry.start();
        let mut pa = self.geometry.root_page(self.root, ipa);
        let mut link = None;
        loop {
            let table = self.linked_table(guard, pa);
            let node = || Node {
                table,
                // SAFETY: (1) as the table itself: found linked under the guard, or a root.
                meta: unsafe { self.memory.meta(pa) },
                pa,
                level,
                start: ipa.align_down(level.table_bytes()),
                link,
            };
            show(&node);
            let slot = table.slot(level.index(ipa));
            let seen = slot.load(&self.arch);
            match (seen.as_table(level), level.next()) {
                (Some(next), Some(below)) => {
                    link = Some(Link { slot, seen });
                    pa = next;
                    level = below;
                }
                _ => return Some(node()),
            }
        }
    }

    /// The table that the Busy slot for `ipa` in `parent` remembers: for who made it Busy, under a claim, which
    /// keeps the table where it is.
    pub(super) fn below_busy<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        parent: &Node<'g>,
        ipa: Ipa,
    ) -> Option<(Pa, Node<'g>)> {
        let slot = parent.table.slot(parent.level.index(ipa));
        let View::Busy(seen) = slot.load(&self.arch).view(parent.level) else { return None };
        let (pa, level) = (seen.as_table(parent.level)?, parent.level.next()?);
        let table = self.linked_table(guard, pa);
        // SAFETY: (1) as the table itself.
        let meta = unsafe { self.memory.meta(pa) };
        let start = ipa.align_down(level.table_bytes());
        Some((pa, Node { table, meta, pa, level, start, link: Some(Link { slot, seen }) }))
    }
}
