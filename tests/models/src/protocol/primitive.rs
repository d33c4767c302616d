//! The contract of each primitive: whoever finds a descriptor finds what it leads to complete.
//!
//! Three ways to publish a descriptor, three ways to come by one. Every protocol is made of these, so
//! here each order stands alone; [`install`](super::install) and the others show what comes of it.

use std::sync::Arc;

use stage2::slot::native;
use stage2::{Descriptor, Level, Pa, Slot};

use crate::outcome::reached;
use crate::sched::atomic::{AtomicU64, Ordering};
use crate::sched::thread;
use crate::world::RUBBISH;

/// How a descriptor gets into a slot.
#[derive(Clone, Copy, Debug)]
pub enum Publish {
    /// By a store.
    Store,
    /// By a swap.
    Swap,
    /// By a compare-exchange that wins.
    Exchange,
}

/// How a PE comes by what a slot holds.
#[derive(Clone, Copy, Debug)]
pub enum Follow {
    /// By a load.
    Load,
    /// By a swap.
    Swap,
    /// By a compare-exchange that loses.
    LostExchange,
}

/// One PE fills a page and publishes it, another comes by the descriptor and looks into the page.
///
/// # Panics
/// When it sees what the page held before it was filled.
pub fn hand_over(publish: Publish, follow: Follow) {
    let descriptor = Descriptor::table(Level::L2, Pa::new(0x1000)).unwrap().bits();
    let shared = Arc::new((Slot::new(Descriptor::EMPTY), AtomicU64::new(RUBBISH)));
    let writer = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let (slot, page) = &*shared;
            page.store(0, Ordering::Relaxed);
            // SAFETY: (1, 2) the slot is the test's, and what it leads to was filled.
            unsafe {
                match publish {
                    Publish::Store => native::store(slot, descriptor),
                    Publish::Swap => _ = native::swap(slot, descriptor),
                    // The other PE may have drained the slot first.
                    Publish::Exchange => _ = native::compare_exchange(slot, 0, descriptor),
                }
            }
        })
    };
    let (slot, page) = &*shared;
    // SAFETY: (1, 2) the slot is the test's.
    let found = unsafe {
        match follow {
            Follow::Load => native::load(slot),
            Follow::Swap => native::swap(slot, Descriptor::DEAD.bits()),
            Follow::LostExchange => {
                // It expects what never stands there.
                native::compare_exchange(slot, Descriptor::DEAD.bits(), 0).unwrap_err()
            }
        }
    };
    if found == descriptor {
        let content = page.load(Ordering::Relaxed);
        assert_ne!(content, RUBBISH, "published by {publish:?}, followed by {follow:?}: rubbish");
        reached("followed");
    } else {
        reached("came too early");
    }
    writer.join().unwrap();
}
