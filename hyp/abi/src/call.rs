//! Hypervisor calls: function identifiers in the vendor specific hypervisor service range.
//!
//! Made by `HVC #0` with the identifier in `w0` and arguments from `x1` on, as SMCCC (Arm DEN 0028)
//! says. A VM can only ask about itself. An unknown identifier returns [`NOT_SUPPORTED`].

/// General service query: the UID of the hypervisor, in `w0`..`w3` ([`UID`]).
pub const VENDOR_UID: u32 = 0x8600_FF01;

/// Ends the VM with a verdict. `x1` is the code: 0 is a pass, anything else a failure. Does not return.
pub const VERDICT: u32 = 0xC600_0001;

/// Reads a counter of the caller's VM. `x1` is a [`Stat`].
///
/// Returns [`SUCCESS`] in `x0` and the value in `x1`, or [`INVALID_PARAMETER`] in `x0` for an unknown
/// selector. Values are sums over the VM's virtual CPUs; those that run meanwhile go on counting, so
/// the sum is exact only for what happened before the call, and never goes back.
pub const STAT: u32 = 0xC600_0002;

/// Moves guest memory: `x1` is the first address, `x2` the bytes, whole pages, at most [`MOVE_MAX`].
///
/// Each page of the range is taken out of stage 2 and comes back in another frame with its content,
/// while the guest's other CPUs run on; accesses to it wait meanwhile. It tests the memory manager.
///
/// Returns [`SUCCESS`] in `x0` and the number of pages moved in `x1`, or in `x0`
/// [`INVALID_PARAMETER`] for a range that is not RAM, too large or all of it, [`BUSY`] while another CPU
/// moves something, [`NO_MEMORY`] when there are not enough free frames. Nothing was changed then.
pub const MOVE: u32 = 0xC600_0003;

/// The most that [`MOVE`] takes at once, in bytes.
pub const MOVE_MAX: u64 = 2 << 20;

/// Splits blocks of the caller's RAM into pages: `x1` is the first address, `x2` the bytes, both multiples of
/// [`BLOCK`], at most [`RESIZE_MAX`].
///
/// The guest's other CPUs run on; an access to a block that is being split waits. A call does a bounded part:
/// who wants the rest calls again with it.
///
/// Returns [`SUCCESS`] in `x0`, in `x1` the bytes from the first address on that are done, in `x2` the number of
/// blocks that were split. Or, in `x0`, [`INVALID_PARAMETER`] for a range that is not RAM, unaligned or too large,
/// [`BUSY`] while another CPU moves or resizes something, [`NO_MEMORY`] when there is no table page,
/// [`NOT_SUPPORTED`] when the VM's RAM is populated by pages only. Nothing was changed then.
pub const SPLIT: u32 = 0xC600_0004;

/// Makes blocks of the caller's RAM where 512 pages form one: arguments and answers as of [`SPLIT`], with the
/// number of blocks that were made in `x2`. Pages that form no block stay as they are.
pub const COLLAPSE: u32 = 0xC600_0005;

/// Moves pages of the caller's RAM into blocks, wherever they lie: `x1` and `x2` as of [`SPLIT`], `x3` is how many
/// pages of a block may be missing, at most 511. Those are populated.
///
/// The guest's other CPUs run on; an access to a block that is being made waits, as long as copying takes. Answers as
/// of [`SPLIT`], with the number of blocks that were made in `x2`; [`INVALID_PARAMETER`] for an `x3` out of range,
/// too, and [`NO_MEMORY`] when there are no 2 MiB side by side. What is no table of pages, or has more missing, stays as
/// it is.
pub const COPY: u32 = 0xC600_0006;

/// Makes contiguous runs of the caller's RAM, where 16 pages form one: aligned, alike, one behind the other. Arguments and
/// answers as of [`SPLIT`], with the number of runs that were made in `x2`. Everything else stays as it is.
pub const CONTIGUOUS: u32 = 0xC600_0007;

/// Dissolves the contiguous runs of the caller's RAM: arguments and answers as of [`SPLIT`], with the number of runs
/// that there were in `x2`.
pub const DISSOLVE: u32 = 0xC600_0008;

/// Looks for RAM of the caller's that is worth a block, and makes it: what [`COLLAPSE`] does, where the hypervisor
/// finds it worth while, and what [`COPY`] does. `x1` bounds the work: so many tables of pages are looked at, 1 to [`SCAN_MAX`];
/// 2 MiB without pages count for next to nothing. The call goes on where the last one stopped, and ends where RAM ends.
///
/// A span has to look the same in two scans in a row before anything is done. One that was split, or could not become a
/// block, is left alone for eight.
///
/// Returns [`SUCCESS`] in `x0`, in `x1` the number of blocks that were made, in `x2` 1 if this call came to the end of RAM,
/// else 0. Or, in `x0`, [`INVALID_PARAMETER`] for another number, [`BUSY`] while another CPU moves, resizes
/// or scans, [`NOT_SUPPORTED`] when the VM's RAM stays in pages. Nothing was changed then.
pub const SCAN: u32 = 0xC600_0009;

/// The most tables that one [`SCAN`] looks at.
pub const SCAN_MAX: u64 = 64;

/// Size of a block, in bytes.
pub const BLOCK: u64 = 2 << 20;

/// The most that [`SPLIT`] and the calls like it take at once, in bytes.
pub const RESIZE_MAX: u64 = 1 << 30;

/// What [`VENDOR_UID`] answers: `w0`..`w3`.
pub const UID: [u32; 4] = [0x5f7a_93c1, 0x4e8b_62d4, 0xb1d0_9a1e, 0x27c6_e03f];

/// The call did what it says.
pub const SUCCESS: i64 = 0;

/// There is no such call.
pub const NOT_SUPPORTED: i64 = -1;

/// An argument is not one that the call knows. Nothing was changed.
pub const INVALID_PARAMETER: i64 = -3;

/// Another CPU does the same just now: try again.
pub const BUSY: i64 = -4;

/// Not enough free memory. Nothing was changed.
pub const NO_MEMORY: i64 = -5;

/// The selector of [`STAT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Stat {
    /// Stage-2 faults taken, of any kind.
    Faults = 0,
    /// Pages, or blocks, that a fault installed.
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
}

impl Stat {
    /// All selectors, in the order of their numbers.
    pub const ALL: [Self; 27] = [
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

    #[test]
    fn identifiers_are_fast_calls_of_the_vendor_hypervisor_service() {
        for id in
            [VENDOR_UID, VERDICT, STAT, MOVE, SPLIT, COLLAPSE, COPY, CONTIGUOUS, DISSOLVE, SCAN]
        {
            assert_eq!(id >> 31, 1, "fast call");
            assert_eq!((id >> 24) & 0x3f, 6, "owning entity: vendor specific hypervisor service");
        }
    }
}
