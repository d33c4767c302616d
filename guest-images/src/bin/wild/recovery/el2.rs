//! EL2 reaches for this guest's memory itself, and meets what the guest would: RAM that nobody has touched, holes, memory that
//! is taken away. PROBE has it do so with any lock held; builds of the hypervisor for selftests have that call.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use guest_rt::access::{load, store};
use guest_rt::ranges::{all, part};
use guest_rt::smp::{self, Rendezvous};
use guest_rt::{Args, GIB, MIB2, Machine, PAGE, call, check, check_eq, fail};
use hyp_abi::call::{
    AGE, DIRTY_HARVEST, DIRTY_START, DIRTY_STOP, INVALID_PARAMETER, MOVE, PROT_READ, PROTECT,
    RECOVER, RECOVER_INJECT, RECOVER_SCRATCH, RELEASE, SUCCESS, Stat,
};
use hyp_abi::probe::{
    Held, PROBE, PROBE_DONE, PROBE_HOLD, PROBE_NOT_COVERED, PROBE_NOT_MAPPED, PROBE_OTHER,
    PROBE_READ, PROBE_READ_ONLY, PROBE_RETRY, PROBE_WRITE,
};
use smccc::Hvc;

use super::{BYTES, Hole, PATTERN, recovers, stat};

/// What EL2 finds, or why it does not.
pub(super) fn probe(at: usize, what: u64, how: u64) -> Result<u64, u64> {
    let [status, value, end, _] = call::raw::<Hvc>(PROBE, [at as u64, what, how]);
    if status as i64 != SUCCESS {
        fail!("PROBE {what} of {at:#x} with {how:#x}: {}", status as i64);
    }
    if end == PROBE_DONE { Ok(value) } else { Err(end) }
}

/// As [`probe`], again as long as the page is on its way.
fn probe_until(at: usize, what: u64) -> u64 {
    loop {
        match probe(at, what, 0) {
            Ok(value) => return value,
            Err(PROBE_RETRY) => {}
            Err(why) => fail!("PROBE {what} of {at:#x}: {why}"),
        }
    }
}

/// What EL2 reaches for in one round, each for the first time: RAM and a hole, to read and to write.
fn reach(ram: usize, hole: &mut Hole, how: u64) {
    check_eq!(probe(ram, PROBE_READ, how), Ok(0), "RAM that nobody has touched, {how:#x}");
    check_eq!(probe(ram + PAGE, PROBE_WRITE, how), Ok(0), "a write to RAM, {how:#x}");
    check_eq!(load(ram + PAGE), Ok((ram + PAGE) as u64), "what EL2 wrote, {how:#x}");
    let holes = hole.take(2);
    check_eq!(store(holes, PATTERN), Ok(()), "the pattern");
    let [read, written] = [holes + PAGE, hole.take(1)];
    check_eq!(probe(read, PROBE_READ, how), Ok(PATTERN), "a hole, {how:#x}");
    check_eq!(probe(written, PROBE_WRITE, how), Ok(0), "a write to a hole, {how:#x}");
    check_eq!(load(written), Ok(written as u64), "what EL2 wrote to the scratch page, {how:#x}");
    check_eq!(store(written, PATTERN), Ok(()), "the pattern");
}

/// With everything held that this CPU can hold, one after the other.
pub(crate) fn held(machine: &Machine, _: Args) {
    let (mut hole, mut arena) = (Hole::of(machine), machine.arena());
    for held in Held::ALL {
        // No table of pages yet: EL2's fault links one, below a table whose lock may be what is held.
        let far = arena.take(MIB2, MIB2);
        check_eq!(probe(far, PROBE_READ, held as u64), Ok(0), "RAM without a table, {held:?}");
        let ram = far + PAGE;
        recovers("holes that EL2 reaches for", 3, || reach(ram, &mut hole, held as u64));
    }
    let outside = machine.ram.end + BYTES + PAGE;
    check_eq!(probe(outside, PROBE_READ, 0), Err(PROBE_NOT_COVERED), "an address of nothing");
}

/// With everything held by another vCPU.
pub(crate) fn others(machine: &Machine, _: Args) {
    let count = machine.vcpus().len();
    check!(count > 1, "this case needs several vCPUs");
    let kinds = &Held::ALL[1..];
    let first = machine.arena().take(kinds.len() * 4 * PAGE, PAGE);
    let hole = Hole::of(machine).take(kinds.len() * 4);
    let point = Rendezvous::new();
    recovers("holes that EL2 reaches for", kinds.len() as u64, || {
        smp::run(machine, 2, &|me| {
            for (number, held) in kinds.iter().enumerate() {
                for (turn, base) in [first, hole].into_iter().enumerate() {
                    let at = base + number * 4 * PAGE;
                    point.meet(me, 2 * number + turn);
                    if me.index == 0 {
                        let found = probe(at, PROBE_READ, *held as u64 | PROBE_OTHER);
                        let wanted = if turn == 0 { 0 } else { PATTERN };
                        check_eq!(found, Ok(wanted), "with {held:?} held by another");
                    } else {
                        let met = probe(at, PROBE_HOLD, *held as u64);
                        check_eq!(met, Ok(1), "{held:?}: EL2 waited in vain for the other");
                    }
                }
            }
        });
    });
}

/// EL2 and the guest reach the same page, whatever becomes of it.
pub(crate) fn same(machine: &Machine, _: Args) {
    const ROUNDS: u64 = 32;
    let at = machine.arena().take(2 * PAGE, 2 * PAGE);
    for round in 1..=ROUNDS {
        check_eq!(probe_until(at, PROBE_READ), 0, "before round {round}");
        check_eq!(store(at, round), Ok(()), "round {round}");
        check_eq!(probe_until(at, PROBE_READ), round, "what the guest wrote");
        check_eq!(part(MOVE, at as u64, PAGE as u64, 0).map(|it| it.0), Ok(1), "pages moved");
        check_eq!(probe_until(at, PROBE_READ), round, "what has moved");
        check_eq!(store(at, round << 32), Ok(()), "round {round}");
        check_eq!(probe_until(at, PROBE_READ), round << 32, "what the guest wrote then");
        check_eq!(probe_until(at, PROBE_WRITE), 0, "a write of EL2");
        check_eq!(load(at), Ok(at as u64), "what EL2 wrote");
        check_eq!(all(RELEASE, at, PAGE, 0), 1, "pages released");
    }
    check_eq!(all(PROTECT, at, PAGE, PROT_READ), 0, "no blocks");
    check_eq!(
        probe(at, PROBE_WRITE, 0).err(),
        Some(PROBE_READ_ONLY),
        "a write to what is read-only"
    );
    check_eq!(load(at), Ok(0), "what EL2 did not write");
}

/// EL2 reaches for pages that another vCPU takes away and moves. What it finds is what the guest has left there, or nothing.
pub(crate) fn taken(machine: &Machine, _: Args) {
    const PAGES: usize = 32;
    const ROUNDS: usize = 60;
    let count = machine.vcpus().len();
    check!(count > 1, "this case needs several vCPUs");
    let range = machine.arena().take(PAGES * PAGE, PAGES * PAGE);
    let (over, passes) = (AtomicBool::new(false), AtomicUsize::new(0));
    smp::run(machine, count, &|me| {
        if me.index == 0 {
            for round in 0..ROUNDS {
                let before = passes.load(Ordering::Acquire);
                let function = if round % 2 == 0 { RELEASE } else { MOVE };
                let done = part(function, range as u64, (PAGES * PAGE) as u64, 0);
                check!(done.is_ok(), "{function:#x} answered {done:?}");
                while passes.load(Ordering::Acquire) < before + 2 {
                    smp::relax();
                }
            }
            over.store(true, Ordering::Release);
            return;
        }
        while !over.load(Ordering::Acquire) {
            for page in (0..PAGES).map(|page| range + page * PAGE) {
                let at = page + 8 * me.index;
                // Nobody else writes there, and it may be taken away at any moment.
                for what in [PROBE_WRITE, PROBE_READ] {
                    match probe(at, what, 0) {
                        Ok(value) if value == 0 || value == at as u64 => {}
                        Ok(value) => fail!("EL2 found {value:#x} at {at:#x}"),
                        Err(PROBE_RETRY) => {}
                        Err(why) => fail!("PROBE {what} of {at:#x}: {why}"),
                    }
                }
            }
            passes.fetch_add(1, Ordering::Release);
        }
    });
}

/// Calls answer in a buffer that is a hole, or none of ours.
pub(crate) fn buffers(machine: &Machine, _: Args) {
    const PAGES: usize = 64;
    let range = machine.arena().take(PAGES * PAGE, PAGES * PAGE);
    let (start, bytes) = (range as u64, (PAGES * PAGE) as u64);
    let mut hole = Hole::of(machine);
    check_eq!(all(DIRTY_START, range, PAGES * PAGE, 0), 0, "the dirty log");
    check_eq!(store(range + 3 * PAGE, 1), Ok(()), "a page is written");
    let buffer = hole.take(1);
    let harvest = || part(DIRTY_HARVEST, start, bytes, buffer as u64);
    check_eq!(recovers("a buffer", 1, harvest), Ok((bytes, 1)), "a harvest into a hole");
    check_eq!(load(buffer), Ok(1 << 3), "the bitmap, on the scratch page");
    check_eq!(store(range + 5 * PAGE, 1), Ok(()), "a page is written");
    check_eq!(recovers("a buffer", 0, harvest), Ok((bytes, 1)), "a harvest into scratch");
    check_eq!(load(buffer), Ok(1 << 5), "the bitmap, on the scratch page");
    check_eq!(part(DIRTY_STOP, 0, 0, 0).map(|_| ()), Ok(()), "the end of the log");
    let other = hole.take(1) as u64;
    check_eq!(
        recovers("a buffer", 1, || part(AGE, start, bytes, other)).map(|it| it.0),
        Ok(bytes),
        "AGE"
    );
    let nowhere = (machine.ram.end + BYTES) as u64;
    let refused = part(AGE, start, bytes, nowhere);
    check_eq!(refused, Err(INVALID_PARAMETER), "a buffer where nothing is");
    check_eq!(probe(nowhere as usize, PROBE_READ, 0), Err(PROBE_NOT_COVERED), "nothing");
}

/// A call whose buffer EL2 has no way to, though the guest may store there: it is refused before anything has been done. The
/// next call finds every record.
pub(crate) fn outside(machine: &Machine, _: Args) {
    const PAGES: usize = 64;
    const NOWHERE: usize = 0x8000_0000;
    const FAR: usize = 8 * GIB;
    let mut arena = machine.arena();
    let range = arena.take(PAGES * PAGE, PAGES * PAGE);
    let (start, bytes) = (range as u64, (PAGES * PAGE) as u64);
    let buffer = arena.take(PAGE, PAGE);
    // A window that a call declares above 4 GiB, and a hole by default.
    check_eq!(all(RECOVER, FAR, PAGE, RECOVER_SCRATCH), 0, "scratch pages");
    for at in [NOWHERE, FAR] {
        check_eq!(recovers("a hole", 1, || store(at, 0)), Ok(()), "a store to {at:#x}");
    }
    // Likewise RAM that is a hole in which everything is an abort.
    let hole = arena.take(PAGE, PAGE);
    check_eq!(all(RECOVER, hole, PAGE, RECOVER_INJECT), 0, "scratch pages");
    check_eq!(all(DIRTY_START, range, PAGES * PAGE, 0), 0, "the dirty log");
    check_eq!(store(range + 7 * PAGE, 1), Ok(()), "a page is written");
    let flushes = stat(Stat::Flushes);
    for at in [NOWHERE, FAR, hole] {
        for function in [DIRTY_HARVEST, AGE] {
            let refused = part(function, start, bytes, at as u64);
            check_eq!(refused, Err(INVALID_PARAMETER), "{function:#x} into {at:#x}");
        }
    }
    check_eq!(stat(Stat::Flushes), flushes, "flushes for what was refused");
    let harvest = |into: usize| part(DIRTY_HARVEST, start, bytes, into as u64);
    check_eq!(harvest(buffer), Ok((bytes, 1)), "a harvest into RAM");
    check_eq!(load(buffer), Ok(1 << 7), "the bitmap");
    // Once it is declared, EL2 has a way there.
    check_eq!(all(RECOVER, NOWHERE, PAGE, RECOVER_SCRATCH), 0, "scratch pages");
    check_eq!(store(range + 9 * PAGE, 1), Ok(()), "a page is written");
    check_eq!(
        recovers("scratch", 0, || harvest(NOWHERE)),
        Ok((bytes, 1)),
        "a harvest into scratch"
    );
    check_eq!(load(NOWHERE), Ok(1 << 9), "the bitmap, on the scratch page");
    check_eq!(part(DIRTY_STOP, 0, 0, 0).map(|_| ()), Ok(()), "the end of the log");
}

/// In a window of aborts EL2 is refused.
pub(crate) fn refused(machine: &Machine, _: Args) {
    let hole = Hole::of(machine).take(1);
    check_eq!(probe(hole, PROBE_READ, 0), Err(PROBE_NOT_COVERED), "a read of a hole");
    check_eq!(probe(hole, PROBE_WRITE, 0), Err(PROBE_NOT_COVERED), "a write to a hole");
    let mut arena = machine.arena();
    let range = arena.take(64 * PAGE, 64 * PAGE) as u64;
    let age = part(AGE, range, (64 * PAGE) as u64, hole as u64);
    check_eq!(age, Err(INVALID_PARAMETER), "a buffer in a hole");
    // RAM that is a hole EL2 could reach.
    let hole = arena.take(PAGE, PAGE);
    check_eq!(all(RECOVER, hole, PAGE, RECOVER_INJECT), 0, "scratch pages");
    check_eq!(probe(hole, PROBE_READ, 0), Err(PROBE_NOT_MAPPED), "a read of RAM that is a hole");
}
