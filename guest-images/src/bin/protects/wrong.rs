//! What the calls refuse: nothing changes then, and the answer has nothing but a status.

use guest_rt::access::{Access, load, store};
use guest_rt::{PAGE, call, check_eq, say};
use hyp_abi::call::{
    AGE, INVALID_PARAMETER, NO_MEMORY, POPULATE, PROTECT, PROTECT_MAX, RANGE_MAX, RELEASE,
};
use smccc::Hvc;

use crate::Scene;
use crate::calls::{ALL, READ, part, protect};

pub(crate) fn check(scene: &mut Scene<'_>) {
    let page = scene.arena.take(PAGE, PAGE);
    check_eq!(store(page, 42), Ok(()), "a store");
    protect(page, PAGE, READ);
    let (start, end) = (scene.machine.ram.start as u64, scene.machine.ram.end as u64);
    let (at, size) = (page as u64, PAGE as u64);
    let mut refused = 0;
    let mut refuses = |function: u32, arguments: [u64; 3]| {
        let [status, rest @ ..] = call::raw::<Hvc>(function, arguments);
        check_eq!(status as i64, INVALID_PARAMETER, "{function:#x} of {arguments:#x?}");
        check_eq!(rest, arguments, "x1-x3 of {function:#x}");
        refused += 1;
    };
    for (from, bytes) in [
        (at, 0),
        (at + 8, size),
        (at, size + 8),
        (start - size, size),
        (end, size),
        (end - size, 2 * size),
        (start, end - start + size),
        (start, RANGE_MAX + size),
        (0, size),
        (u64::MAX - size + 1, size),
        (at, 0_u64.wrapping_sub(size)),
        (0, !(size - 1)),
        (1 << 52, size),
    ] {
        for function in [PROTECT, POPULATE, RELEASE, AGE] {
            refuses(function, [from, bytes, 0]);
        }
    }
    for prot in [1 << 4, ALL | 1 << 63, u64::MAX] {
        refuses(PROTECT, [at, size, prot]);
    }
    check_eq!(load(page).ok(), Some(42), "what the page holds");
    Access::Store.expect(page, false);
    protect(page, PAGE, ALL);
    Access::Store.expect(page, true);
    say!("protects: {refused} wrong calls refused");
    too_many(scene);
}

/// As many ranges as there may be, and one more.
fn too_many(scene: &mut Scene<'_>) {
    let start = scene.arena.take(2 * (PROTECT_MAX + 1) * PAGE, PAGE);
    let page = |number: usize| start + 2 * number * PAGE;
    for number in 0..PROTECT_MAX {
        protect(page(number), PAGE, READ);
    }
    let one_more = part(PROTECT, page(PROTECT_MAX) as u64, PAGE as u64, READ);
    check_eq!(one_more, Err(NO_MEMORY), "a range more than there may be");
    Access::Store.expect(page(PROTECT_MAX), true);
    // What joins two of them is no more; nor is what takes one away.
    protect(page(0) + PAGE, PAGE, READ);
    check_eq!(part(PROTECT, page(PROTECT_MAX) as u64, PAGE as u64, READ).is_ok(), true, "now");
    Access::Store.expect(page(PROTECT_MAX), false);
    Access::Store.expect(page(0) + PAGE, false);
    protect(start, 2 * (PROTECT_MAX + 1) * PAGE, ALL);
    (0..=PROTECT_MAX).for_each(|number| Access::Store.expect(page(number), true));
}
