//! Pages that are not empty: the guest's own image, which is populated on demand as well.
//!
//! The hypervisor copies the image's bytes into a frame before it installs it, so the time between
//! its look at the empty slot and its install is long, and two vCPUs that come together both get
//! there. Whoever loses must still find the image's bytes, and nobody the other's frame.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::{PAGE, check_eq, race};

use crate::{Counters, Run};

/// Pages of the image that nobody looks at before the race.
const PAGES: usize = 192;
/// Words of a page.
const WORDS: usize = PAGE / 8;

#[repr(C, align(4096))]
struct Content([[AtomicU64; WORDS]; PAGES]);

#[unsafe(link_section = ".data.content")]
static CONTENT: Content = {
    let mut content = [const { [const { AtomicU64::new(0) }; WORDS] }; PAGES];
    let mut page = 0;
    while page < PAGES {
        let mut word = 0;
        while word < WORDS {
            content[page][word] = AtomicU64::new(expected(page, word));
            word += 1;
        }
        page += 1;
    }
    Content(content)
};

/// What the image has in a word.
const fn expected(page: usize, word: usize) -> u64 {
    ((page * WORDS + word) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// Races for the image's pages; one vCPU alone takes them one by one.
pub(crate) fn check(run: &Run<'_>, moved: Option<Counters>) -> Option<Counters> {
    if run.vcpus == 1 {
        (0..PAGES).for_each(visit);
    } else {
        race::run(run.machine, run.vcpus, 0..PAGES, &|meeting, _| visit(meeting.pair));
    }
    run.report("image", moved)
}

/// Touches a page of the image and checks every word of it.
fn visit(page: usize) {
    for (word, found) in CONTENT.0[page].iter().enumerate() {
        check_eq!(found.load(Ordering::Relaxed), expected(page, word), "image: page {page}");
    }
}
