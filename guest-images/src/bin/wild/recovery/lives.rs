//! What the next VM finds.

use guest_rt::access::{load, store};
use guest_rt::{Args, Machine, PAGE, check_eq, fail};
use smccc::{Hvc, psci};

use super::{Hole, PATTERN, recovers};

/// All over the scratch page.
const SECRET: u64 = 0x7365_6372_6574_2121;

/// Finds the scratch page as it is at first, all of it; writes a secret all over it; and has the machine reset. The next
/// life does the same.
pub(crate) fn secret(machine: &Machine, _: Args) {
    let mut hole = Hole::of(machine);
    let [one, other] = [(); 2].map(|()| hole.take(1));
    recovers("a whole page", 1, || {
        for word in (one..one + PAGE).step_by(8) {
            check_eq!(load(word), Ok(PATTERN), "the word at {word:#x}, in a new life");
        }
    });
    (one..one + PAGE).step_by(8).for_each(|word| {
        if let Err(fault) = store(word, SECRET) {
            fail!("a store at {word:#x}: {fault}");
        }
    });
    recovers("another", 1, || check_eq!(load(other + 0x7f8), Ok(SECRET), "the secret"));
    // RAM is not that page either.
    let mut arena = machine.arena();
    for at in (0..64).map(|_| arena.take(PAGE, PAGE)) {
        check_eq!(load(at + 0x7f8), Ok(0), "RAM at {at:#x}, first seen");
    }
    let refused = psci::system_reset::<Hvc>();
    fail!("PSCI SYSTEM_RESET returned: {refused:?}");
}
