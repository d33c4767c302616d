//! What is not allowed is an abort: of the right kind, on each vCPU, from the moment when the call returns.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use guest_rt::access::{Access, RET_AND_SVC, expect, load, store};
use guest_rt::cache::sync_code;
use guest_rt::mmu::{self, ALIAS_SLOT, Attr, Size, Table};
use guest_rt::{PAGE, check_eq, fail, say, smp};
use hyp_abi::call::{INVALID_PARAMETER, PROT_EXEC_EL0, PROT_EXEC_EL1, PROTECT, Stat};

use crate::Scene;
use crate::calls::{ALL, NOTHING, READ, READ_EXEC, READ_WRITE, part, protect, stat};

/// A root slot of its own.
const WALK: usize = ALIAS_SLOT + 102;
/// Fault status of an external abort on a walk, level 0.
const FSC_EXTERNAL_ON_WALK: u64 = 0x14;

pub(crate) fn check(scene: &mut Scene<'_>) {
    kinds(scene);
    walks(scene);
    everywhere(scene);
}

/// Each access, with each permission.
fn kinds(scene: &mut Scene<'_>) {
    let page = scene.arena.take(PAGE, PAGE);
    Access::Store.expect(page, true);
    sync_code(page, 8);
    expect(page, ALL);
    let before = stat(Stat::Violations);
    let mut violations = 0;
    let mut with = |prot: u64| {
        protect(page, PAGE, prot);
        expect(page, prot);
        violations += Access::EVERY.iter().filter(|access| !access.is_allowed(prot)).count();
    };
    [READ, READ_EXEC, READ_WRITE, NOTHING, ALL & !READ, ALL].into_iter().for_each(&mut with);
    // At one level alone, where the CPU can tell them apart.
    for prot in [READ | PROT_EXEC_EL1, READ | PROT_EXEC_EL0] {
        match part(PROTECT, page as u64, PAGE as u64, prot) {
            Ok(_) => with(prot),
            Err(INVALID_PARAMETER) => expect(page, ALL),
            Err(other) => fail!("PROTECT with {prot:#x} answered {other}"),
        }
        with(ALL);
    }
    check_eq!(stat(Stat::Violations) - before, violations as u64, "violations");
    check_eq!(load(page).ok(), Some(RET_AND_SVC), "what the page holds in the end");

    // A page that nobody has touched is one of zeros that cannot be written.
    let fresh = scene.arena.take(PAGE, PAGE);
    protect(fresh, PAGE, READ);
    check_eq!(load(fresh).ok(), Some(0), "a page that was protected before it was touched");
    expect(fresh, READ);
    say!("protects: {violations} violations, each an abort");
}

/// A table of stage 1 that the guest may not read: the abort says at which level the walk met it.
fn walks(scene: &mut Scene<'_>) {
    let [l2, l3, page] = [(); 3].map(|()| scene.arena.take(PAGE, PAGE));
    // SAFETY: 1. pages of the arena, inside the identity map; 2. tables only.
    let tables = [l2, l3].map(|table| unsafe { Table::at(table) });
    let va = mmu::slot_va(WALK) + 5 * 0x20_0000 + 7 * PAGE;
    tables[0].set(5, mmu::table(l3));
    tables[1].set(7, mmu::leaf(page, Size::Page, Attr::WriteBack, false));
    mmu::ROOT.set(WALK, mmu::table(l2));
    mmu::publish();
    check_eq!(store(va, 1), Ok(()), "a store by tables that are there");
    for (level, table) in [(2, l2), (3, l3)] {
        protect(table, PAGE, NOTHING);
        mmu::invalidate();
        let Err(fault) = load(va) else {
            fail!("a walk by a table of level {level} that is not allowed")
        };
        check_eq!(fault.fsc(), FSC_EXTERNAL_ON_WALK + level, "status of a walk");
        check_eq!(fault.far, va as u64, "FAR of a walk");
        check_eq!(fault.esr & (1 << 10 | 1 << 7 | 1 << 6), 0, "FnV, S1PTW, WnR of a walk");
        // To read is all that a walk needs.
        protect(table, PAGE, READ);
        mmu::invalidate();
        check_eq!(load(va).ok(), Some(1), "a load by tables that cannot be written");
        protect(table, PAGE, ALL);
    }
}

/// All other vCPUs write, and go on until they are not allowed to.
fn everywhere(scene: &mut Scene<'_>) {
    const ROUNDS: usize = 20;
    let count = scene.machine.vcpus().len();
    let pages = scene.arena.take(count * PAGE, PAGE);
    for round in 0..ROUNDS {
        let (writing, aborted) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let protected = AtomicBool::new(false);
        smp::run(scene.machine, count, &|me| {
            if me.index == 0 {
                while writing.load(Ordering::Acquire) != count - 1 {
                    smp::relax();
                }
                protect(pages, count * PAGE, READ);
                protected.store(true, Ordering::Release);
                return;
            }
            let mine = pages + me.index * PAGE;
            let mut value = 0;
            loop {
                let was = protected.load(Ordering::Acquire);
                let stored = store(mine, value + 1);
                if stored.is_err() {
                    break;
                }
                if was {
                    fail!("round {round}: a store to a page that was protected before");
                }
                value += 1;
                if value == 1 {
                    writing.fetch_add(1, Ordering::Release);
                }
            }
            check_eq!(load(mine).ok(), Some(value), "what was written last");
            aborted.fetch_add(1, Ordering::Relaxed);
        });
        check_eq!(aborted.load(Ordering::Relaxed), count - 1, "vCPUs that were stopped");
        protect(pages, count * PAGE, ALL);
    }
    say!("protects: {} vCPUs lost what they were writing to, {ROUNDS} times", count - 1);
}
