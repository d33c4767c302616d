//! Pages are written while the dirty log reports which.
//!
//! Three vCPUs write pages with versions and checksums in blocks of theirs, words in pages that all of them write, and
//! tables of stage 1 that their walkers write. The fourth drives sessions of the dirty log, in which the hypervisor keeps a
//! second copy, the *shadow*, by what harvests report and nothing else: a migration before its end. Then everything
//! stands still, the last harvest is copied, and the shadow is compared with memory, byte for byte. A write that no harvest
//! reported shows there, and only there. The workers verify what they have written all the time: a write that
//! was lost shows at once.
//!
//! Before that one vCPU alone takes the log step by step, and knows each page that it has to report (`steps`).
//!
//! It goes on until everything has happened more often than its minimum (`watch`), or until the time is over, which fails.
//!
//! Arguments (`key=value`): `sessions` at the least (4), `rounds` of each (12), `seconds` at the most (60), `blocks=1` if RAM
//! is populated by blocks, and the minimum of each: `min-dirtied`, `min-stopped`, `min-windows`, `min-refaults` (0).

#![no_std]
#![no_main]

mod calls;
mod drive;
mod page;
mod steps;
mod walk;
mod watch;
mod work;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use drive::Driver;
use guest_rt::{MIB2, Machine, check_eq, cpu, say, smp};
use watch::{KINDS, Watch, key};
use work::Progress;

guest_rt::guest!("dirtier", dirtier);

/// vCPUs, the driver included.
const VCPUS: usize = 4;

const KEYS: [&str; 4 + KINDS] =
    ["sessions", "rounds", "seconds", "blocks", key(0), key(1), key(2), key(3)];

fn dirtier(machine: &Machine) {
    let args = machine.args(&KEYS);
    check_eq!(machine.vcpus().len(), VCPUS, "vCPUs");
    let (sessions, rounds) = (args.number("sessions", 4) as u64, args.number("rounds", 12));
    let limit = args.number("seconds", 60) as u64 * cpu::tick_rate();
    let resizes = args.number("blocks", 0) != 0;
    let Some(watch) = Watch::new(args) else {
        say!("dirtier: no hypervisor, so nobody logs what is written");
        return;
    };
    let mut arena = machine.arena();
    let alone = arena.take(3 * MIB2, MIB2);
    steps::run(alone, machine);
    if resizes {
        steps::block(alone + 2 * MIB2, alone + MIB2);
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
        progress.stop.store(true, Ordering::Release);
        driver.verify();
        say!("dirtier: {} sessions of {rounds} rounds", driver.sum.sessions);
        watch.judge(driver.sum);
    });
    say!("dirtier: {} steps of the workers meanwhile", progress.steps.load(Ordering::Relaxed));
}
