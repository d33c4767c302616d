//! All RAM that nobody else has, in 4 KiB frames.
//!
//! A buddy allocator (crate `buddy_system_allocator`) behind one ticket lock. The fault path never comes
//! here: it takes frames from its CPU's stock (`mem/cache.rs`), which is refilled from here at a safe
//! point, a batch at a time.
//!
//! The allocator keeps its lists in the free frames themselves, so a frame's bytes are undefined when it
//! comes out, and nothing may be given back that a guest or a table walker can still reach.
//!
//! Each frame has a [`Meta`]: where it is, and what crate `stage2` keeps for it while it is a table page,
//! such as its lock.

use core::alloc::Layout as AllocLayout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use buddy_system_allocator::Heap;
use hyp_core::PaRange;
use spin::Once;
use stage2::TableMeta;

use super::PAGE;
use crate::lock::Lock;

/// One more than the order of the largest block: 2^47 bytes.
const ORDERS: usize = 48;
/// Ranges of free RAM that are managed; more are left unused, and counted.
const MAX_AREAS: usize = 16;

/// Where a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum State {
    /// In the allocator.
    Free = 0,
    /// Handed out.
    Taken = 1,
    /// The pool's own: holds metadata.
    Own = 2,
    /// Given back, and not in the allocator yet: see [`set_aside`].
    Aside = 3,
}

/// What is known of one frame.
#[derive(Debug)]
pub(crate) struct Meta {
    state: AtomicU32,
    /// While the frame is a table page.
    pub(crate) table: TableMeta,
}

/// A stretch of frames and its metadata.
#[derive(Debug)]
struct Area {
    range: PaRange,
    meta: &'static [Meta],
}

struct Pool {
    heap: Lock<Heap<ORDERS>>,
    areas: [Option<Area>; MAX_AREAS],
}

// SAFETY: the allocator's lists hold addresses of memory that only it owns, guarded by the lock.
unsafe impl Sync for Pool {}
// SAFETY: as for `Sync`.
unsafe impl Send for Pool {}

static POOL: Once<Pool> = Once::new();

/// Takes over the free ranges. The metadata lies at the start of each.
///
/// # Safety
/// 1. The ranges are RAM, mapped writable, whole pages, apart, and used by nobody else, for ever.
pub(crate) unsafe fn init(free: &[PaRange]) {
    POOL.call_once(|| {
        let mut heap = Heap::new();
        let mut areas = [const { None }; MAX_AREAS];
        let mut slots = areas.iter_mut();
        for range in free {
            let frames = range.len() / PAGE;
            let bytes = frames * size_of::<Meta>() as u64;
            let first = range.start + bytes.next_multiple_of(PAGE);
            if first >= range.end {
                continue;
            }
            let Some(slot) = slots.next() else { break };
            let meta = core::ptr::with_exposed_provenance_mut::<Meta>(range.start as usize);
            // SAFETY: (1) the range is ours by clause 1, and its first `bytes` are kept from the
            // allocator; (2) each is written before the slice is made.
            let meta = unsafe {
                for frame in 0..frames as usize {
                    let state = AtomicU32::new(State::Free as u32);
                    meta.add(frame).write(Meta { state, table: TableMeta::new() });
                }
                core::slice::from_raw_parts(meta.cast_const(), frames as usize)
            };
            for own in &meta[..((first - range.start) / PAGE) as usize] {
                own.state.store(State::Own as u32, Ordering::Relaxed);
            }
            // SAFETY: (1) clause 1, without the metadata's pages.
            unsafe { heap.add_to_heap(first as usize, range.end as usize) };
            *slot = Some(Area { range: *range, meta });
        }
        Pool { heap: Lock::new("the frame pool", heap), areas }
    });
}

fn layout(frames: usize) -> Option<AllocLayout> {
    let bytes = frames.checked_next_power_of_two()?.checked_mul(PAGE as usize)?;
    AllocLayout::from_size_align(bytes, bytes).ok()
}

/// Takes `frames` frames side by side (rounded up to a power of two), aligned to their size. Their
/// bytes are undefined.
pub(crate) fn take(frames: usize) -> Option<u64> {
    let pool = POOL.get()?;
    let first = pool.heap.lock().alloc(layout(frames)?).ok()?.as_ptr().expose_provenance() as u64;
    for frame in 0..frames as u64 {
        swap_state(first + frame * PAGE, State::Taken);
    }
    Some(first)
}

/// Takes single frames, as [`take`] does, until `into` is full or the pool is empty; returns how many.
///
/// The lock is taken once: CPUs that refill at the same time would otherwise queue for it once a
/// frame, and under an emulator a queue of ticket holders waits for whoever the host does not run.
pub(crate) fn take_batch(into: &mut [u64]) -> usize {
    let Some((pool, layout)) = POOL.get().zip(layout(1)) else { return 0 };
    let mut heap = pool.heap.lock();
    let mut taken = 0;
    for slot in into {
        let Ok(frame) = heap.alloc(layout) else { break };
        *slot = frame.as_ptr().expose_provenance() as u64;
        swap_state(*slot, State::Taken);
        taken += 1;
    }
    taken
}

/// Gives back frames that were handed out.
///
/// They may be given back in other pieces than they came in: a block that was split as single frames, and 512
/// frames that have become a block as one. A buddy allocator knows only what is free; each frame's state
/// here tells whether it was handed out.
///
/// # Safety
/// 1. `frames` is a power of two, `first` aligned to as many frames; all of them were taken, and each is given
///    back once.
/// 2. Nobody reaches the frames any more: no table, no TLB, no CPU.
pub(crate) unsafe fn give_back(first: u64, frames: usize) {
    let (Some(pool), Some(layout)) = (POOL.get(), layout(frames)) else {
        return;
    };
    for frame in 0..frames as u64 {
        // A second time is a mistake of ours; the frame stays out of circulation.
        if swap_state(first + frame * PAGE, State::Free) != Some(State::Taken as u32) {
            return;
        }
    }
    if let Some(pointer) = NonNull::new(core::ptr::with_exposed_provenance_mut(first as usize)) {
        // SAFETY: (1) the caller's clauses.
        unsafe { pool.heap.lock().dealloc(pointer, layout) };
    }
}

/// Gives back many frames, of any order, as [`give_back`] does. They are to be had again after the next [`collect`].
///
/// # Safety
/// 1. As for [`give_back`].
pub(crate) unsafe fn set_aside(first: u64, frames: usize) {
    for frame in 0..frames as u64 {
        // A frame that was not handed out is a mistake of ours, and stays where it is.
        if let Some(meta) = meta(first + frame * PAGE) {
            let (taken, aside) = (State::Taken as u32, State::Aside as u32);
            let _ = meta.state.compare_exchange(taken, aside, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// Puts what was [set aside](set_aside) into the allocator, in the order of addresses. For each frame that allocator looks for the neighbour,
/// among all free ones, from the one that came last: in this order that is where it is, in another one there are thousands
/// to look at, each time.
pub(crate) fn collect() {
    let Some((pool, layout)) = POOL.get().zip(layout(1)) else { return };
    let mut heap = pool.heap.lock();
    for area in pool.areas.iter().flatten() {
        let frames = (area.range.start..area.range.end).step_by(PAGE as usize).zip(area.meta);
        for (frame, meta) in frames {
            if meta.state.load(Ordering::Relaxed) != State::Aside as u32 {
                continue;
            }
            meta.state.store(State::Free as u32, Ordering::Relaxed);
            let pointer = core::ptr::with_exposed_provenance_mut(frame as usize);
            if let Some(pointer) = NonNull::new(pointer) {
                // SAFETY: (1) it was taken, and set aside once: its state said so; (2) nobody reaches it, by the contract of
                // `set_aside`.
                unsafe { heap.dealloc(pointer, layout) };
            }
        }
    }
}

/// Notes where a frame is; returns where it was.
fn swap_state(frame: u64, state: State) -> Option<u32> {
    meta(frame).map(|meta| meta.state.swap(state as u32, Ordering::Relaxed))
}

/// The metadata of the frame that holds an address; `None` for what the pool does not manage.
pub(crate) fn meta(address: u64) -> Option<&'static Meta> {
    let area = POOL.get()?.areas.iter().flatten().find(|area| area.range.contains(address))?;
    area.meta.get(((address - area.range.start) / PAGE) as usize)
}

/// Does `work` with the pool's lock held.
#[cfg(feature = "selftest")]
pub(crate) fn with_lock(work: &mut dyn FnMut()) {
    let _held = POOL.get().map(|pool| pool.heap.lock());
    work();
}

/// Bytes that are not handed out.
pub(crate) fn free() -> u64 {
    POOL.get().map_or(0, |pool| {
        let heap = pool.heap.lock();
        heap.stats_total_bytes().saturating_sub(heap.stats_alloc_actual()) as u64
    })
}
