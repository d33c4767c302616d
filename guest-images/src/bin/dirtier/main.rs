//! Pages are written while the dirty log reports which.
//!
//! Three vCPUs write pages with versions and checksums in blocks of theirs, words in pages that all of them write, and
//! tables of stage 1 that their walkers write. The fourth drives sessions of the dirty log, in which the hypervisor keeps a
//! second copy, the *shadow*, by what harvests report and nothing else: a migration before its end. Then everything
//! stands still, the last harvest is copied, and the shadow is compared with memory, byte for byte. A write that no harvest
//! reported shows there, and only there. The workers verify what they have written all the time: a write that
//! was lost shows at once.
//!
//! Before that one vCPU alone takes the log step by step, and knows each page that it has to report (`steps`, `parts`).
//!
//! It goes on until everything has happened more often than its minimum (`watch`), or until the time is over, which fails.
//!
//! Arguments (`key=value`): `sessions` at the least (4), `rounds` of each (12), `seconds` at the most (60), `blocks=1` if RAM
//! is populated by blocks, and the minimum of each: `min-dirtied`, `min-stopped`, `min-windows`, `min-refaults` (0).
//! With `crowd=1` vCPUs stop each other while they come and go (`crowd`), before all that.
//! With `end` a pass is not the end of it: in the middle of one more session, while the workers write, the VM ends by a
//! verdict (1), by a reset of its machine (2), or by an access to where nothing is (3).

#![no_std]
#![no_main]

mod calls;
mod crowd;
mod drive;
mod page;
mod parts;
mod steps;
mod walk;
mod watch;
mod work;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use drive::Driver;
use guest_rt::{GIB, MIB2, Machine, call, check_eq, cpu, fail, say, smp};
use smccc::{Hvc, psci};
use watch::{KINDS, Watch, key};
use work::Progress;

guest_rt::guest!("dirtier", dirtier);

/// vCPUs, the driver included.
const VCPUS: usize = 4;
/// Blocks of a log that takes more than one call to stop.
const STOPPED: usize = 12;
/// Where there is no RAM: it begins at 1 GiB, and is not that large.
const NOWHERE: usize = 3 * GIB;

const KEYS: [&str; 6 + KINDS] =
    ["sessions", "rounds", "seconds", "blocks", "crowd", "end", key(0), key(1), key(2), key(3)];

fn dirtier(machine: &Machine) {
    let args = machine.args(&KEYS);
    check_eq!(machine.vcpus().len(), VCPUS, "vCPUs");
    let (sessions, rounds) = (args.number("sessions", 4) as u64, args.number("rounds", 12));
    let limit = args.number("seconds", 60) as u64 * cpu::tick_rate();
    let resizes = args.number("blocks", 0) != 0;
    let end = args.number("end", 0);
    let Some(watch) = Watch::new(args) else {
        say!("dirtier: no hypervisor, so nobody logs what is written");
        return;
    };
    let mut arena = machine.arena();
    let alone = arena.take(3 * MIB2, MIB2);
    steps::run(alone, machine);
    parts::run(alone, machine);
    parts::stopped(arena.take(STOPPED * MIB2, MIB2), STOPPED, alone);
    if resizes {
        steps::block(alone + 2 * MIB2, alone + MIB2);
    }
    if args.number("crowd", 0) != 0 {
        crowd::run(machine, alone);
    }

    let start = arena.take((VCPUS + 1) * MIB2, MIB2);
    let block = |number: usize| start + number * MIB2;
    let progress = Progress { steps: AtomicU64::new(0), stop: AtomicBool::new(false) };
    smp::run(machine, VCPUS, &|me| {
        if me.index != 0 {
            let number = me.index - 1;
            work::work(number, block(number), block(VCPUS - 1), &progress);
            return;
        }
        let begun = cpu::ticks();
        let mut driver = Driver::new(start, VCPUS, resizes, &progress);
        while !(driver.sum.sessions >= sessions && watch.is_enough(driver.sum))
            && cpu::ticks() - begun < limit
        {
            driver.session(rounds);
        }
        driver.verify();
        if end != 0 {
            watch.judge(driver.sum);
            driver.begin(1);
            leave(end);
        }
        progress.stop.store(true, Ordering::Release);
        say!("dirtier: {} sessions of {rounds} rounds", driver.sum.sessions);
        watch.judge(driver.sum);
    });
    say!("dirtier: {} steps of the workers meanwhile", progress.steps.load(Ordering::Relaxed));
}

/// Ends the VM as it is.
fn leave(end: usize) {
    match end {
        1 => call::pass(),
        2 => {
            let refused = psci::system_reset::<Hvc>();
            fail!("PSCI SYSTEM_RESET returned: {refused:?}");
        }
        _ => {
            // SAFETY: 1. inside the identity map, where there is no RAM: the VM is stopped.
            let found = unsafe { (NOWHERE as *const u64).read_volatile() };
            fail!("the word at {NOWHERE:#x}, where nothing is, is {found:#x}");
        }
    }
}
