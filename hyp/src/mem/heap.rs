//! The heap: a buddy allocator (crate `buddy_system_allocator`) over a fixed arena in the image.
//!
//! It serves what is made at boot, at a VM's start and at its end: the device tree's contents, EL2's tables, the guest's
//! device tree, the VM, the report, and one diagnosis a CPU when the VM ends. Of what a guest does only calls that change its memory
//! allocate here, one at a time, and are refused when there is no room: `MOVE` lists of 512 pages and three policies, `RELEASE` two,
//! `PROTECT` one; a policy has a list of up to 64 ranges. `SHADOW` keeps one list of 4097 pages. So a guest cannot exhaust it; running out is a build-time mistake and ends in a crash dump.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::NonNull;

use buddy_system_allocator::Heap;

use crate::lock::Lock;

/// Bytes of the arena.
const SIZE: usize = 1 << 20;
/// One more than the order of the largest block.
const ORDERS: usize = 21;

#[repr(C, align(4096))]
struct Arena(UnsafeCell<[u8; SIZE]>);

// SAFETY: (1) the arena is only ever reached through blocks that the locked heap hands out.
unsafe impl Sync for Arena {}

#[unsafe(link_section = ".noinit.heap")]
static ARENA: Arena = Arena(UnsafeCell::new([0; SIZE]));

struct Locked(Lock<Heap<ORDERS>>);

// SAFETY: the inner allocator holds lists of addresses in ARENA, guarded by the lock.
unsafe impl Sync for Locked {}

#[global_allocator]
static HEAP: Locked = Locked(Lock::new("the heap", Heap::new()));

/// Gives the arena to the heap. Called once, before anything allocates.
pub(crate) fn init() {
    let start = ARENA.0.get() as usize;
    let mut heap = HEAP.0.lock();
    if heap.stats_total_bytes() == 0 {
        // SAFETY: (1) the arena is writable, ours, and in no other heap; (2) it lives for ever.
        unsafe { heap.init(start, SIZE) };
    }
}

/// Bytes that were asked for and not given back.
pub(crate) fn used() -> usize {
    HEAP.0.lock().stats_alloc_user()
}

/// Does `work` with the heap's lock held.
#[cfg(feature = "selftest")]
pub(crate) fn with_lock(work: &mut dyn FnMut()) {
    let _held = HEAP.0.lock();
    work();
}

// SAFETY: `Heap` hands out disjoint blocks of at least the layout's size and alignment.
unsafe impl GlobalAlloc for Locked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().alloc(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = NonNull::new(pointer) {
            // SAFETY: (1) the caller got `pointer` from `alloc` with this layout, once.
            unsafe { self.0.lock().dealloc(pointer, layout) };
        }
    }
}
