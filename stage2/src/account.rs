//! What a VM's tables have been through: counts of events, for people and for tests.
//!
//! What is there *now* is asked of the tables themselves ([`Space::census`](crate::Space::census)); here
//! is what *happened* since the space was made.
//!
//! Range operations and flushes count as they go: next to a broadcast TLBI, an atomic addition costs
//! nothing. An install does not: an addition to a line that all PEs share would cost it more than
//! its own compare-exchange. It fills the caller's [`Tally`], which may be one for each CPU, and the
//! caller adds that when it suits ([`Space::credit`](crate::Space::credit)). Nor does
//! [`Space::relax`](crate::Space::relax) count on the PE that runs the VM: one that gives a permission, or finds it given, invalidates
//! by one IPAS2E1 and one VMALLE1 there.
//!
//! The counters order nothing and are read one by one: exact when no operation is under way, and never
//! going back while some are.

use core::fmt;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use crate::addr::{IpaRange, Level};
use crate::space::Tally;
use crate::tlbi::Tlbi;

/// Names of the TLB invalidations of one VM, and of EL2's window of it, as [`Tlbi::name`] gives them.
pub const TLBI_KINDS: [&str; 9] = [
    "IPAS2E1IS",
    "RIPAS2E1IS",
    "IPAS2E1",
    "VMALLE1IS",
    "VMALLE1",
    "VMALLS12E1IS",
    "VMALLS12E1",
    "VAE2IS",
    "ALLE2IS",
];

/// Counts of one space's events, at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Leaves that faults installed, as far as it was credited, like the next three.
    pub installed: u64,
    /// Frames given back because another PE had installed one.
    pub lost_races: u64,
    /// Table pages linked by faults and by range operations.
    pub tables: u64,
    /// Table pages given back because another PE had linked one.
    pub lost_tables: u64,
    /// Scratch leaves that faults installed, likewise credited. They are not among what is installed or unmapped.
    pub scratched: u64,
    /// Leaves of memory that is not the VM's ([`Owner::Other`](crate::Owner::Other)), scratch or mapped, that range operations took
    /// away or replaced.
    pub others_unmapped: u64,
    /// Leaves that range operations mapped: blocks of 1 GiB, of 2 MiB, pages.
    pub mapped: [u64; 3],
    /// Leaves of the VM's that they took away, likewise.
    pub unmapped: [u64; 3],
    /// Blocks that were split into 512 parts.
    pub split: u64,
    /// Of these, how many while they were live, with no break: after nT had been set, and at once (levels 1 and
    /// 2 of FEAT_BBM).
    pub split_live: [u64; 2],
    /// Tables of 512 parts that became a block.
    pub collapsed: u64,
    /// Contiguous runs of 16 leaves that were made.
    pub runs_made: u64,
    /// Contiguous runs that were dissolved, other than by an unmap or a collapse.
    pub runs_dissolved: u64,
    /// Leaves that protection transactions changed, harvests among them.
    pub changed: u64,
    /// Of these and of members of contiguous runs, how many were invalid until their flush.
    pub broken: u64,
    /// Transactions that granted something and flushed it on their PE alone.
    pub local_grants: u64,
    /// Linked table pages that were given back to [`Memory`](crate::Memory).
    pub tables_freed: u64,
    /// Invalidations, in the order of [`TLBI_KINDS`]. An instruction of a range form is one.
    pub tlbi: [u64; TLBI_KINDS.len()],
    /// Completed flushes of ranges.
    pub flushes: u64,
    /// Pages of 4 KiB in those ranges.
    pub pages_flushed: u64,
    /// Completed flushes of everything of the VM.
    pub whole_flushes: u64,
}

impl Account {
    /// Invalidations of all kinds.
    #[must_use]
    pub fn tlbis(&self) -> u64 {
        self.tlbi.iter().sum()
    }

    /// Table pages that are linked, if every install was credited and nothing is under way. The root is none.
    #[must_use]
    pub fn tables_now(&self) -> u64 {
        self.tables.wrapping_sub(self.tables_freed)
    }

    /// Leaves that are mapped, under the same conditions, whosever the memory behind them is: what was installed by
    /// [`Space::install`](crate::Space::install) *and* [`Space::install_scratch`](crate::Space::install_scratch) was credited.
    #[must_use]
    pub fn leaves_now(&self) -> u64 {
        let sum = |counts: &[u64; 3]| counts.iter().sum::<u64>();
        (self.installed + self.scratched + sum(&self.mapped))
            .wrapping_sub(sum(&self.unmapped) + self.others_unmapped)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes = |f: &mut fmt::Formatter<'_>, name, [gib, mib, pages]: [u64; 3]| {
            writeln!(f, "{name:<13} {gib} x 1 GiB, {mib} x 2 MiB, {pages} x 4 KiB")
        };
        writeln!(f, "installed     {}, races lost {}", self.installed, self.lost_races)?;
        write!(f, "not the VM's  {} scratch leaves installed", self.scratched)?;
        writeln!(f, ", {} leaves taken away", self.others_unmapped)?;
        sizes(f, "mapped", self.mapped)?;
        sizes(f, "unmapped", self.unmapped)?;
        write!(f, "tables        {} linked, {} given back", self.tables, self.tables_freed)?;
        writeln!(f, ", races lost {}", self.lost_tables)?;
        let [marked, at_once] = self.split_live;
        write!(f, "resized       {} split, of these {} live ", self.split, marked + at_once)?;
        writeln!(f, "({marked} by nT), {} collapsed", self.collapsed)?;
        writeln!(f, "runs          {} made, {} dissolved", self.runs_made, self.runs_dissolved)?;
        write!(f, "protected     {} changed, {} broken", self.changed, self.broken)?;
        writeln!(f, ", {} grants flushed on one PE", self.local_grants)?;
        write!(f, "flushes       {} of {} pages", self.flushes, self.pages_flushed)?;
        writeln!(f, ", {} of everything", self.whole_flushes)?;
        write!(f, "TLBI          {}", self.tlbis())?;
        let kinds = TLBI_KINDS.iter().zip(self.tlbi).filter(|(_, count)| *count != 0);
        for (number, (name, count)) in kinds.enumerate() {
            write!(f, "{} {count} {name}", if number == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

/// The counters behind an [`Account`].
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    installed: AtomicU64,
    lost_races: AtomicU64,
    tables: AtomicU64,
    lost_tables: AtomicU64,
    scratched: AtomicU64,
    others_unmapped: AtomicU64,
    mapped: [AtomicU64; 3],
    unmapped: [AtomicU64; 3],
    split: AtomicU64,
    split_live: [AtomicU64; 2],
    collapsed: AtomicU64,
    runs_made: AtomicU64,
    runs_dissolved: AtomicU64,
    changed: AtomicU64,
    broken: AtomicU64,
    local_grants: AtomicU64,
    tables_freed: AtomicU64,
    tlbi: [AtomicU64; TLBI_KINDS.len()],
    flushes: AtomicU64,
    pages_flushed: AtomicU64,
    whole_flushes: AtomicU64,
}

impl Ledger {
    pub(crate) fn account(&self) -> Account {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        Account {
            installed: get(&self.installed),
            lost_races: get(&self.lost_races),
            tables: get(&self.tables),
            lost_tables: get(&self.lost_tables),
            scratched: get(&self.scratched),
            others_unmapped: get(&self.others_unmapped),
            mapped: self.mapped.each_ref().map(get),
            unmapped: self.unmapped.each_ref().map(get),
            split: get(&self.split),
            split_live: self.split_live.each_ref().map(get),
            collapsed: get(&self.collapsed),
            runs_made: get(&self.runs_made),
            runs_dissolved: get(&self.runs_dissolved),
            changed: get(&self.changed),
            broken: get(&self.broken),
            local_grants: get(&self.local_grants),
            tables_freed: get(&self.tables_freed),
            tlbi: self.tlbi.each_ref().map(get),
            flushes: get(&self.flushes),
            pages_flushed: get(&self.pages_flushed),
            whole_flushes: get(&self.whole_flushes),
        }
    }

    pub(crate) fn credit(&self, tally: &Tally) {
        add(&self.installed, tally.installed);
        add(&self.lost_races, tally.lost_races);
        add(&self.tables, tally.tables);
        add(&self.lost_tables, tally.lost_tables);
    }

    /// Faults have installed so many scratch leaves.
    pub(crate) fn scratched(&self, leaves: u64) {
        add(&self.scratched, leaves);
    }

    /// A range operation has mapped leaves, counted by level, and linked tables.
    pub(crate) fn mapped(&self, [_, leaves @ ..]: [u64; 4], tables: u64) {
        self.mapped.iter().zip(leaves).for_each(|(counter, count)| add(counter, count));
        add(&self.tables, tables);
    }

    /// A block of `level` was split into a new table of so many parts.
    pub(crate) fn split(&self, level: Level, parts: u64) {
        add(&self.split, 1);
        add(&self.tables, 1);
        self.resized(level, &self.unmapped, &self.mapped, parts);
    }

    /// A block that counts as split was so while it was live, after nT had been set or at once.
    pub(crate) fn split_live(&self, marked: bool) {
        let [by_mark, at_once] = &self.split_live;
        add(if marked { by_mark } else { at_once }, 1);
    }

    /// A table of so many parts was collapsed into a block of `level`.
    pub(crate) fn collapsed(&self, level: Level, parts: u64) {
        add(&self.collapsed, 1);
        add(&self.tables_freed, 1);
        self.resized(level, &self.mapped, &self.unmapped, parts);
    }

    /// A contiguous run was made or dissolved.
    pub(crate) fn run(&self, made: bool) {
        add(if made { &self.runs_made } else { &self.runs_dissolved }, 1);
    }

    /// A transaction has changed and broken so many leaves, and perhaps granted something for a flush of its PE.
    pub(crate) fn protected(&self, changed: u64, broken: u64, granted_here: bool) {
        add(&self.changed, changed);
        add(&self.broken, broken);
        if granted_here {
            add(&self.local_grants, 1);
        }
    }

    fn resized(&self, level: Level, one: &[AtomicU64; 3], many: &[AtomicU64; 3], parts: u64) {
        // Index 0 is level 1.
        let index = (level as usize).wrapping_sub(1);
        if let (Some(block), Some(part)) = (one.get(index), many.get(index + 1)) {
            add(block, 1);
            add(part, parts);
        }
    }

    /// A range operation has taken away leaves of memory that is not the VM's.
    pub(crate) fn others_unmapped(&self, leaves: u64) {
        add(&self.others_unmapped, leaves);
    }

    /// A range operation has taken leaves away, counted by level, and given tables back.
    pub(crate) fn unmapped(&self, [_, leaves @ ..]: [u64; 4], tables: u64) {
        self.unmapped.iter().zip(leaves).for_each(|(counter, count)| add(counter, count));
        add(&self.tables_freed, tables);
    }

    /// One invalidation.
    pub(crate) fn tlbi(&self, op: &Tlbi) {
        let kind = TLBI_KINDS.iter().position(|name| *name == op.name());
        if let Some(counter) = kind.and_then(|kind| self.tlbi.get(kind)) {
            add(counter, 1);
        }
    }

    /// A completed flush.
    pub(crate) fn flushed(&self, range: Option<&IpaRange>) {
        match range {
            Some(range) => {
                add(&self.flushes, 1);
                add(&self.pages_flushed, range.pages());
            }
            None => add(&self.whole_flushes, 1),
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Ipa;
    use crate::arch::host::Event;
    use crate::features::Caps;
    use crate::flush::tests::Rig;
    use crate::tlbi::{LeafLevel, VaOperand};

    fn kind(account: &Account, name: &str) -> u64 {
        account.tlbi[TLBI_KINDS.iter().position(|known| *known == name).unwrap()]
    }

    #[test]
    fn each_invalidation_is_counted_under_its_name() {
        let rig = Rig::new();
        let of = |caps| rig.tlb(caps);
        let range = IpaRange::new(Ipa::new(0x4000_0000), 5 << 12).unwrap();
        let _ = of(Caps::empty()).reduce(range, LeafLevel::L3);
        let _ = of(Caps::TLBI_RANGE).reduce(range, LeafLevel::L3);
        of(Caps::empty()).relax_local(range.start(), LeafLevel::L3);
        let _ = of(Caps::empty()).vm();
        of(Caps::empty()).vm_local();
        // EL2's own.
        let operand = VaOperand::page(0x1000, Caps::empty());
        for op in [Tlbi::Vae2Is(operand), Tlbi::Alle2Is] {
            rig.ledger.tlbi(&op);
        }

        let mut issued = [0; TLBI_KINDS.len()];
        for name in ["VAE2IS", "ALLE2IS"] {
            issued[TLBI_KINDS.iter().position(|known| *known == name).unwrap()] += 1;
        }
        for event in rig.host.take_log() {
            if let Event::Tlbi(op, _) = event {
                issued[TLBI_KINDS.iter().position(|name| *name == op.name()).unwrap()] += 1;
            }
        }
        let account = rig.ledger.account();
        assert_eq!(account.tlbi, issued, "counted as issued");
        assert!(issued.iter().all(|count| *count != 0), "every kind: {issued:?}");
        assert_eq!(kind(&account, "IPAS2E1IS"), 5 + 1, "five, and the odd page beside a range");
        assert_eq!((account.flushes, account.pages_flushed, account.whole_flushes), (2, 10, 1));
        let text = account.to_string();
        assert!(text.contains("flushes       2 of 10 pages, 1 of everything"), "{text}");
        assert!(text.contains(": 6 IPAS2E1IS, 1 RIPAS2E1IS, 1 IPAS2E1, "), "{text}");
    }
}
