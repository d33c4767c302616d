//! AGE: what was accessed, page by page. QEMU accesses nothing that a guest does not.

use guest_rt::access::{load, store};
use guest_rt::{MIB2, PAGE, call, check_eq, say};
use hyp_abi::call::{AGE, INVALID_PARAMETER, POPULATE};
use smccc::Hvc;

use crate::Scene;
use crate::calls::{READ, all, part, protect};

/// Pages of a word.
const WORD: usize = 64;

pub(crate) fn check(scene: &mut Scene<'_>) {
    let (start, buffer) = (scene.arena.take(MIB2, MIB2), scene.arena.take(PAGE, PAGE));
    refused(start, buffer);
    // Not all of the last word.
    let pages = 3 * WORD + 10;
    all(POPULATE, start, pages * PAGE, 0);
    // What all of a block is accessed with.
    let unit = if scene.blocks { MIB2 / PAGE } else { 1 };
    let ages = |accessed: &dyn Fn(usize) -> bool, what: &str| {
        let words = pages.div_ceil(WORD);
        for word in 0..=words {
            check_eq!(store(buffer + word * 8, u64::MAX), Ok(()), "a store");
        }
        let any = (0..pages).any(accessed);
        let expected = if unit > 1 {
            if any { unit } else { 0 }
        } else {
            (0..pages).filter(|page| accessed(*page)).count()
        };
        let answer = part(AGE, start as u64, (pages * PAGE) as u64, buffer as u64);
        check_eq!(answer, Ok(((pages * PAGE) as u64, expected as u64)), "{what}");
        for page in 0..words * WORD {
            let word = load(buffer + page / WORD * 8).unwrap_or(0);
            let idle = page < pages && !if unit > 1 { any } else { accessed(page) };
            check_eq!(word >> (page % WORD) & 1 != 0, idle, "{what}: page {page} is idle");
        }
        check_eq!(load(buffer + words * 8).ok(), Some(u64::MAX), "what lies behind the bitmap");
    };
    ages(&|_| true, "pages that were just populated");
    ages(&|_| false, "pages that nobody has touched since");
    (0..pages)
        .step_by(3)
        .for_each(|page| check_eq!(load(start + page * PAGE).is_ok(), true, "a load"));
    ages(&|page| page % 3 == 0, "every third page");
    check_eq!(store(start + 70 * PAGE, 5), Ok(()), "a store");
    ages(&|page| page == 70, "one page");
    // Where it is said does not matter, nor whether it is.
    check_eq!(load(start).is_ok(), true, "a load");
    check_eq!(part(AGE, start as u64, (pages * PAGE) as u64, 0).is_ok(), true, "without a bitmap");
    ages(&|_| false, "pages that were asked about without a bitmap");
    check_eq!(load(start + 70 * PAGE).ok(), Some(5), "what a page holds that was aged");
    say!("protects: pages age");
}

/// Nothing is forgotten for a call that is refused.
fn refused(start: usize, buffer: usize) {
    let bytes = (WORD * PAGE) as u64;
    all(POPULATE, start, WORD * PAGE, 0);
    all(POPULATE, buffer, PAGE, 0);
    protect(buffer, PAGE, READ);
    let ram = start as u64;
    for [from, bytes, to] in [
        [ram + PAGE as u64, bytes, 0],
        [ram, bytes, 4],
        [ram, bytes, 1 << 60],
        [ram, bytes, 0xffff_ffff_ffff_fff8],
        // It may not be written.
        [ram, bytes, buffer as u64],
    ] {
        let [status, ..] = call::raw::<Hvc>(AGE, [from, bytes, to]);
        check_eq!(status as i64, INVALID_PARAMETER, "AGE of {from:#x}, {bytes:#x}, {to:#x}");
    }
    protect(buffer, PAGE, crate::calls::ALL);
    let count = part(AGE, ram, bytes, 0).map(|(_, count)| count >= WORD as u64);
    check_eq!(count, Ok(true), "pages that were accessed before the calls that were refused");
    check_eq!(load(start).is_ok(), true, "a load");
    (0..WORD).for_each(|page| check_eq!(load(start + page * PAGE).is_ok(), true, "a load"));
}
