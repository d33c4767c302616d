//! The counters that a guest may ask for, by [`STAT`](super::STAT).

/// The selector of [`STAT`](super::STAT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Stat {
    /// Stage-2 faults taken, of any kind.
    Faults = 0,
    /// Pages, or blocks, that a fault or POPULATE installed where nothing was mapped. Not pages that POPULATE puts in the place of the
    /// scratch page: a call answers how many it has mapped in all.
    Installed = 1,
    /// Installs that lost to another virtual CPU that was faster.
    LostRaces = 2,
    /// Translation tables installed below the root.
    Tables = 3,
    /// Tables that lost to another virtual CPU's and were given back.
    LostTables = 4,
    /// Faults that returned to the guest to try again (an empty frame cache, a slot in transition).
    Retries = 5,
    /// Faults that found a translation in place that permits the access.
    Spurious = 6,
    /// Emulated device accesses.
    Mmio = 7,
    /// HVC and SMC calls.
    Hypercalls = 8,
    /// Faults that met a slot whose translation was just being taken away.
    Drained = 9,
    /// Translation tables given back.
    TablesFreed = 10,
    /// Pages moved to another frame.
    Moved = 11,
    /// Of what faults installed, the blocks.
    Blocks = 12,
    /// Blocks that were split into pages.
    Split = 13,
    /// Blocks that were made of pages.
    Collapsed = 14,
    /// TLB invalidations for the VM in this life of it; one of a range form is one.
    Tlbis = 15,
    /// Flushes in this life of the VM: each waits for the invalidations of a batch, however many those are.
    Flushes = 16,
    /// Blocks that were made by copying pages together.
    Copied = 17,
    /// Pages that were missing in those blocks, and were populated.
    Filled = 18,
    /// Scans that came to the end of RAM.
    ScanPasses = 19,
    /// Spans of 2 MiB that scans have looked at.
    Scanned = 20,
    /// Of these, those that looked worth a block and have to do so again.
    ScanWaits = 21,
    /// Spans that scans left alone because they were split, or could not become a block.
    ScanRests = 22,
    /// Blocks that scans have made, in either way.
    ScanMade = 23,
    /// Spans that scans could not make a block of.
    ScanFailed = 24,
    /// Contiguous runs that were made.
    Runs = 25,
    /// Contiguous runs that were dissolved.
    Dissolved = 26,
    /// Faults that gave a leaf which was there the access flag, a permission, or the record that it was written.
    Relaxed = 27,
    /// Pages that the guest has given back.
    Released = 28,
    /// Accesses to RAM that its permissions do not allow: each is an abort in the guest.
    Violations = 29,
    /// Pages that AGE has looked at.
    Aged = 30,
    /// Pages at which the scratch page was installed.
    Scratched = 31,
    /// Accesses to addresses without memory that were recovered: each went on, on the scratch page.
    Recovered = 32,
    /// Accesses to addresses without memory that were an abort in the guest.
    Injected = 33,
    /// Violations that no record was made of, because a log was full.
    ViolationsLost = 34,
}

impl Stat {
    /// All selectors, in the order of their numbers.
    pub const ALL: [Self; 35] = [
        Self::Faults,
        Self::Installed,
        Self::LostRaces,
        Self::Tables,
        Self::LostTables,
        Self::Retries,
        Self::Spurious,
        Self::Mmio,
        Self::Hypercalls,
        Self::Drained,
        Self::TablesFreed,
        Self::Moved,
        Self::Blocks,
        Self::Split,
        Self::Collapsed,
        Self::Tlbis,
        Self::Flushes,
        Self::Copied,
        Self::Filled,
        Self::ScanPasses,
        Self::Scanned,
        Self::ScanWaits,
        Self::ScanRests,
        Self::ScanMade,
        Self::ScanFailed,
        Self::Runs,
        Self::Dissolved,
        Self::Relaxed,
        Self::Released,
        Self::Violations,
        Self::Aged,
        Self::Scratched,
        Self::Recovered,
        Self::Injected,
        Self::ViolationsLost,
    ];

    /// The selector with this number, if there is one.
    #[must_use]
    pub const fn from_u64(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Faults,
            1 => Self::Installed,
            2 => Self::LostRaces,
            3 => Self::Tables,
            4 => Self::LostTables,
            5 => Self::Retries,
            6 => Self::Spurious,
            7 => Self::Mmio,
            8 => Self::Hypercalls,
            9 => Self::Drained,
            10 => Self::TablesFreed,
            11 => Self::Moved,
            12 => Self::Blocks,
            13 => Self::Split,
            14 => Self::Collapsed,
            15 => Self::Tlbis,
            16 => Self::Flushes,
            17 => Self::Copied,
            18 => Self::Filled,
            19 => Self::ScanPasses,
            20 => Self::Scanned,
            21 => Self::ScanWaits,
            22 => Self::ScanRests,
            23 => Self::ScanMade,
            24 => Self::ScanFailed,
            25 => Self::Runs,
            26 => Self::Dissolved,
            27 => Self::Relaxed,
            28 => Self::Released,
            29 => Self::Violations,
            30 => Self::Aged,
            31 => Self::Scratched,
            32 => Self::Recovered,
            33 => Self::Injected,
            34 => Self::ViolationsLost,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_selector_comes_back_from_its_number() {
        for (number, stat) in Stat::ALL.into_iter().enumerate() {
            assert_eq!(stat as u64, number as u64);
            assert_eq!(Stat::from_u64(number as u64), Some(stat));
        }
    }

    #[test]
    fn unknown_numbers_are_no_selector() {
        assert_eq!(Stat::from_u64(Stat::ALL.len() as u64), None);
        assert_eq!(Stat::from_u64(u64::MAX), None);
    }
}
