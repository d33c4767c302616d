//! A dirty session that begins and ends against those who mark without a claim, and so without a lock: under a guard each finds one
//! session, or none, and the bitmap of the one that he has found is there until his guard closes.
//!
//! Sessions do not begin at IPA 0, and another one has another range: half of one and half of the other would show as a bit that neither can have.

use std::sync::Arc;

use stage2::IpaRange;
use stage2::space::{Bitmaps, DirtyError, LogBlocks, Progress};

use crate::outcome::reached;
use crate::ranges::pages;
use crate::sched::atomic::{AtomicU64, Ordering};
use crate::world::{Pe, Shape, World};

/// The page that is marked: of the first session only.
const PAGE: u64 = 3;
/// Its bit.
const BIT: u64 = 1 << 1;

/// The bitmaps of a session on two pages.
struct Log {
    at: IpaRange,
    pages: Vec<AtomicU64>,
    spans: Vec<AtomicU64>,
}

impl Log {
    fn on(first: u64) -> Arc<Self> {
        let at = pages(first, 2);
        let [pages, spans] =
            Bitmaps::words(at).map(|count| (0..count).map(|_| AtomicU64::new(0)).collect());
        Arc::new(Self { at, pages, spans })
    }

    fn start(&self, pe: &Pe<'_>) -> Result<(), DirtyError> {
        let (mut claim, _) = pe.claim(self.at);
        let bitmaps = Bitmaps { pages: &self.pages, spans: &self.spans };
        let relax = pe.world.patience();
        // SAFETY: (1) each case drops its world before the logs.
        unsafe {
            pe.world.space().dirty_start(&pe.cpu, &mut claim, &bitmaps, LogBlocks::Keep, relax)
        }
    }

    /// Stops it; then the bitmap is the caller's alone. Says whether the page was marked.
    fn stop(&self, pe: &Pe<'_>) -> bool {
        let (mut claim, _) = pe.claim(self.at);
        let stopped = pe.world.space().dirty_stop(&pe.cpu, &mut claim, 4096, pe.world.patience());
        assert_eq!(stopped.map(|stopped| stopped.progress), Ok(Progress::Done));
        let bits = self.bits();
        assert!(bits & !BIT == 0, "a bit that no page of the session has: {bits:#x}");
        bits != 0
    }

    /// Takes all bits.
    fn bits(&self) -> u64 {
        self.pages[0].swap(0, Ordering::Acquire)
    }

    /// Nobody has written here since the bitmap was given back.
    fn judge(&self) {
        assert_eq!(self.bits(), 0, "a bit in a bitmap that is not its session's any more");
    }
}

/// Marks the page, as a fault handler does.
fn mark(pe: &Pe<'_>) {
    let guard = pe.cpu.enter();
    pe.world.space().dirty_mark(&guard, pages(PAGE, 1));
}

/// A session begins and ends while somebody marks a page of it.
pub fn a_mark_while_a_session_comes_and_goes() {
    let (log, world) = (Log::on(2), World::new(Shape::small(2, 1)));
    let marker = world.spawn(1, &[], mark);
    let told = world.pe(0, &[], |pe| {
        assert_eq!(log.start(pe), Ok(()));
        log.stop(pe)
    });
    marker.join().unwrap();
    reached(if told { "in time" } else { "before or after" });
    log.judge();
}

/// A session ends, and another one on other pages begins as soon as it can, while somebody marks a page of the first.
pub fn a_mark_while_one_session_gives_way_to_another() {
    let (told, _) = by_turns(2, 0);
    reached(if told { "in time" } else { "before or after" });
}

/// The same, and the page is the second's: whoever finds that one finds its range and its bitmap, and nothing of the first.
pub fn a_mark_while_a_second_session_begins() {
    let (_, later) = by_turns(0, 2);
    reached(if later { "in time" } else { "before it" });
}

/// A session on two pages from `first` on is followed by one on two pages from `second` on, while somebody marks the page. Says
/// whether the first was told, and the second.
fn by_turns(first: u64, second: u64) -> (bool, bool) {
    let (first, second) = (Log::on(first), Log::on(second));
    let world = World::new(Shape::small(2, 1));
    let marker = world.spawn(1, &[], mark);
    let told = world.pe(0, &[], |pe| {
        assert_eq!(first.start(pe), Ok(()));
        let told = first.stop(pe);
        assert_eq!(second.start(pe), Ok(()));
        told
    });
    marker.join().unwrap();
    first.judge();
    let later = second.bits();
    assert!(later & !BIT == 0, "a bit that no page of the session has: {later:#x}");
    (told, later != 0)
}
