//! Hypervisor calls: function identifiers in the vendor specific hypervisor service range.
//!
//! Made by `HVC #0` with the identifier in `w0` and arguments from `x1` on, as SMCCC (Arm DEN 0028)
//! says. A VM can only ask about itself. An unknown identifier returns [`NOT_SUPPORTED`].
//!
//! # Who may call
//!
//! [`VENDOR_UID`], [`VERDICT`] and [`STAT`] everybody. All the others change the caller's memory, or how it is kept, and
//! are for guests that are allowed to: the device tree node of the guest's image has the property `stage2,manage`, or the
//! hypervisor's command line the word `manage`. Everybody else is told [`NOT_SUPPORTED`].
//!
//! # Calls on a range
//!
//! [`PROTECT`], [`POPULATE`], [`RELEASE`], [`AGE`], [`DIRTY_START`], [`DIRTY_HARVEST`] and [`RECOVER`] take a range of the caller's RAM:
//! `x1` is the first address, `x2` the bytes; whole pages, at least one, at most [`RANGE_MAX`]. A call does a bounded part of
//! it. It returns [`SUCCESS`] in `x0`, in `x1` the bytes from the first address on that are done, in `x2` a count that it
//! states. Who wants the rest calls again with it. Or it returns in `x0` [`INVALID_PARAMETER`] for a range that is not RAM,
//! unaligned, empty or too large, or another argument that is wrong, [`BUSY`] while another CPU changes the VM's memory,
//! [`NO_MEMORY`]. Nothing was changed then, and `x1` and `x2` are as they were.

mod stat;

pub use stat::Stat;

use crate::measure::MEASURE;

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

/// Limits what the guest may do with a range of its RAM: `x3` is the sum of [`PROT_READ`], [`PROT_WRITE`], [`PROT_EXEC_EL1`]
/// and [`PROT_EXEC_EL0`]. Everything is what RAM has at first, and grants it again.
///
/// It holds for what is mapped now and for what will be: pages that are touched later, moved, copied, released or populated
/// keep it, until another `PROTECT` of theirs or the VM's end. The guest's other CPUs run on. When the call returns, no CPU
/// goes by what was allowed before in the part that is done.
///
/// An access that is not allowed is a *synchronous external abort* at the guest's EL1, with the address in `FAR_EL1`. That
/// includes the walks of its own stage 1, and whatever EL2 does for it by address.
///
/// A [call on a range](self#calls-on-a-range). `x2` counts blocks that were split, because the part that is done begins or
/// ends within them. [`INVALID_PARAMETER`] also for other bits in `x3`, and for execution at one exception level alone on
/// a machine without FEAT_XNX; [`NO_MEMORY`] also if RAM would have more than [`PROTECT_MAX`] ranges of which the permissions
/// are limited.
pub const PROTECT: u32 = 0xC600_000A;

/// Of [`PROTECT`]: loads.
pub const PROT_READ: u64 = 1 << 0;
/// Of [`PROTECT`]: stores.
pub const PROT_WRITE: u64 = 1 << 1;
/// Of [`PROTECT`]: instruction fetch at EL1.
pub const PROT_EXEC_EL1: u64 = 1 << 2;
/// Of [`PROTECT`]: instruction fetch at EL0.
pub const PROT_EXEC_EL0: u64 = 1 << 3;

/// The most ranges with limited permissions that a VM has; neighbours alike are one.
pub const PROTECT_MAX: usize = 64;

/// Has a range of RAM mapped now, instead of when it is touched: what is there stays, the rest is as its first touch would
/// find it. A [call on a range](self#calls-on-a-range). `x2` counts pages, and blocks, that were mapped. Of a range that lies in the
/// middle of a block all of it may be mapped.
pub const POPULATE: u32 = 0xC600_000B;

/// Gives a range of RAM back: what it held is gone, its next touch finds what the first one found. Permissions of
/// [`PROTECT`] stay. A [call on a range](self#calls-on-a-range). `x2` counts the pages that there were. In a
/// [recovery window](RECOVER) holes are left, in one outside of RAM, too: scratch pages go, and are not counted.
///
/// It does not ask who uses the range: a guest that releases its own code or stack finds that out.
pub const RELEASE: u32 = 0xC600_000C;

/// Asks which pages of a range were accessed since the last call, and forgets it. `x1` is a multiple of 64 pages. `x3` is the
/// address of a bitmap in RAM, 8 bytes aligned, or 0 for none: bit *n* of the words that begin there, little endian, is set
/// if page *n* of the part that was done is mapped and was *not* accessed. A [call on a range](self#calls-on-a-range). The
/// part that is done is a multiple of 64 pages, or all; whole words are written for it. `x2` counts the pages that were
/// accessed.
///
/// A block has one record for all of its pages, and so has a contiguous run: `x2` counts all of them, also where the range
/// has a part of it. It is a hint: CPUs access speculatively.
pub const AGE: u32 = 0xC600_000D;

/// Begins to log writes to a range of RAM, one range a VM. `x3` bit 0: blocks are split, as they are met by harvests, so that
/// writes are told by the page. A [call on a range](self#calls-on-a-range), done at once: all that is mapped counts as written at
/// first.
pub const DIRTY_START: u32 = 0xC600_000E;

/// Harvests the log: `x3` is the address of a bitmap in RAM, 8 bytes aligned. Bit *n* of the words that begin there is set
/// if page *n* of the part that was done was written since its last harvest, by the guest or for it. A [call on a
/// range](self#calls-on-a-range) within that of [`DIRTY_START`]. The part that is done is a multiple of 64 pages, or all; `x2`
/// counts the pages that were written. [`INVALID_PARAMETER`] also without [`DIRTY_START`].
pub const DIRTY_HARVEST: u32 = 0xC600_000F;

/// Ends the log, and makes blocks again of what it has split. No arguments. Returns as a call on a range, in `x2` the blocks
/// that were made; [`INVALID_PARAMETER`] without [`DIRTY_START`].
pub const DIRTY_STOP: u32 = 0xC600_0010;

/// Keeps a second copy of a range of RAM, the *shadow*, by what harvests of the log report and nothing else: migration in
/// small, which tests the log. `x1` is the operation, `x2` the first address of a range, `x3` its bytes, both multiples of
/// [`SHADOW_UNIT`].
///
/// | `x1` | range | what happens | `x1` | `x2` |
/// | --- | --- | --- | --- | --- |
/// | [`SHADOW_BEGIN`] | within that of [`DIRTY_START`], at most [`SHADOW_MAX`] | a shadow is made of what first touches would find | bytes of it | 0 |
/// | [`SHADOW_ROUND`] | within the shadow's | a harvest of the first part; what it reports is copied, while the guest's other CPUs run on | bytes that are done | pages copied |
/// | [`SHADOW_END`] | any | the guest's other CPUs stand still; the rest is harvested and copied, all is compared, and the shadow given up | pages copied | address of the first page that differs, 0 if none does |
/// | [`SHADOW_DROP`] | any | the shadow is given up | 0 | 0 |
///
/// The log has to be fresh: what [`DIRTY_HARVEST`] has reported the shadow does not hear of. Or, in `x0`,
/// [`INVALID_PARAMETER`] for another operation or range, or if there is no shadow, or one already; [`BUSY`] while another CPU
/// changes memory, or stops the VM; [`NO_MEMORY`] when there are not enough free frames. Nothing was changed then.
pub const SHADOW: u32 = 0xC600_0011;

/// Of [`SHADOW`]: makes one.
pub const SHADOW_BEGIN: u64 = 0;
/// Of [`SHADOW`]: harvests and copies.
pub const SHADOW_ROUND: u64 = 1;
/// Of [`SHADOW`]: stops the guest, copies the rest, compares.
pub const SHADOW_END: u64 = 2;
/// Of [`SHADOW`]: gives it up.
pub const SHADOW_DROP: u64 = 3;

/// What the range of a [`SHADOW`] is a multiple of, in bytes.
pub const SHADOW_UNIT: u64 = 256 << 10;
/// The most that a shadow has, in bytes.
pub const SHADOW_MAX: u64 = 16 << 20;

/// Declares a *recovery window*, or takes it back: what becomes of an access to addresses of the caller's where there is no memory.
/// `x3` is a policy:
///
/// | `x3` | an access to an address of the range at which nothing is mapped |
/// | --- | --- |
/// | [`RECOVER_NONE`] | is what it was before: RAM is populated, all else is as the VM's default says |
/// | [`RECOVER_SCRATCH`] | goes to the VM's scratch page, is recorded, and the guest goes on; an instruction fetch is answered as by [`RECOVER_INJECT`] |
/// | [`RECOVER_INJECT`] | is a synchronous external abort at the guest's EL1, as of [`PROTECT`], and is recorded |
/// | [`RECOVER_STOP`] | ends the VM with a diagnosis |
///
/// The range is RAM, or has no RAM in it; it has no device's address. In RAM, what is mapped stays, and what is not is a *hole*: no
/// touch populates it. [`POPULATE`] does, in place of the scratch page too, and [`RELEASE`] makes holes again. All holes of a VM share
/// one scratch page: what is written there anybody may find anywhere, or not.
///
/// A [call on a range](self#calls-on-a-range). `x2` counts the scratch pages that were taken away, because the policy is another now.
/// [`INVALID_PARAMETER`] also for another `x3`, for addresses beyond the VM's, and if windows would have more than
/// [`RECOVER_MAX_BYTES`] outside of RAM; [`NO_MEMORY`] also if there would be more than [`RECOVER_MAX`] windows.
pub const RECOVER: u32 = 0xC600_0013;

/// Of [`RECOVER`]: no window.
pub const RECOVER_NONE: u64 = 0;
/// Of [`RECOVER`]: the scratch page.
pub const RECOVER_SCRATCH: u64 = 1;
/// Of [`RECOVER`]: an abort.
pub const RECOVER_INJECT: u64 = 2;
/// Of [`RECOVER`]: the VM's end.
pub const RECOVER_STOP: u64 = 3;

/// The most recovery windows that a VM has; neighbours alike are one.
pub const RECOVER_MAX: usize = 16;
/// The most bytes that they have outside of RAM, all together.
pub const RECOVER_MAX_BYTES: u64 = 1 << 30;

/// The most that a [call on a range](self#calls-on-a-range) takes at once, in bytes.
pub const RANGE_MAX: u64 = 1 << 30;

/// Size of a block, in bytes.
pub const BLOCK: u64 = 2 << 20;

/// The most that [`SPLIT`] and the calls like it take at once, in bytes.
pub const RESIZE_MAX: u64 = 1 << 30;

/// The calls that change memory, or how it is kept: for guests that are [allowed to](self#who-may-call).
pub const MANAGING: [u32; 17] = [
    MOVE,
    SPLIT,
    COLLAPSE,
    COPY,
    CONTIGUOUS,
    DISSOLVE,
    SCAN,
    PROTECT,
    POPULATE,
    RELEASE,
    AGE,
    DIRTY_START,
    DIRTY_HARVEST,
    DIRTY_STOP,
    SHADOW,
    MEASURE,
    RECOVER,
];

/// Whether a call is one of [`MANAGING`].
#[must_use]
pub const fn manages(function: u32) -> bool {
    MOVE <= function && function <= RECOVER
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_changes_memory_is_there_once() {
        for (number, id) in (MOVE..).zip(MANAGING) {
            assert_eq!(id, number, "in order, without gaps");
            assert!(manages(id));
        }
        assert!([VENDOR_UID, VERDICT, STAT, RECOVER + 1].into_iter().all(|id| !manages(id)));
    }

    #[test]
    fn identifiers_are_fast_calls_of_the_vendor_hypervisor_service() {
        for id in [VENDOR_UID, VERDICT, STAT].iter().chain(&MANAGING) {
            assert_eq!(id >> 31, 1, "fast call");
            assert_eq!((id >> 24) & 0x3f, 6, "owning entity: vendor specific hypervisor service");
        }
    }
}
