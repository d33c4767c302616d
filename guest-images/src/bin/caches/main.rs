//! Caches switched off and on, the way firmware and boot loaders do it: by set/way operations, then SCTLR_EL1.
//!
//! What a vCPU wrote through its caches must be there when it reads past them, and the other way round; code too
//! ([`uncached`]). A hypervisor that forgets to clean shows nothing of it on an emulator without caches: this
//! guest judges what can be seen there (the registers keep what is written while their writes trap, every instruction
//! is stepped over once, nothing hangs, no vCPU disturbs another, memory may move under a cleaning), and makes the hypervisor do the rest, which it
//! counts. Arguments: `pages=N`, pages for each vCPU.

#![no_std]
#![no_main]

mod set_way;
mod uncached;

use core::ptr;

use guest_rt::cache::sync_code;
use guest_rt::exception::probe_call;
use guest_rt::smp::{self, Rendezvous};
use guest_rt::{Arena, MIB2, Machine, PAGE, call, check, check_eq, say};
use hyp_abi::call as vendor;
use smccc::Hvc;
use uncached::{Job, REGISTERS, without_caches};

guest_rt::guest!("caches", caches);

/// Switches of each vCPU, off and on again.
const ROUNDS: usize = 3;
/// A page of a vCPU's lies that far from its others: beyond what a hypervisor may look at in one go.
const FAR: usize = 24 << 20;

/// Pages that are moved at once.
const STEP: usize = 16;

/// What is written in a page in a round, with and without caches.
const fn pattern(vcpu: usize, page: usize, round: usize, cached: bool) -> u64 {
    let number = (vcpu << 40 | page << 16 | round << 4 | cached as usize) as u64;
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn caches(machine: &Machine) {
    let pages = machine.args(&["pages"]).number("pages", 96);
    check!(pages > 1, "pages={pages}: two pages at the least, data and code");
    let vcpus = machine.vcpus().len();
    let mut arena = machine.arena();
    let near = arena.take(vcpus * pages * PAGE, MIB2);
    let far = far(&mut arena, vcpus);

    let point = Rendezvous::new();
    smp::run(machine, vcpus, &|me| {
        let mine = Mine {
            vcpu: me.index,
            near: near + me.index * pages * PAGE,
            pages,
            far: far + me.index * PAGE,
        };
        let mut operations = 0;
        for round in 0..ROUNDS {
            mine.fill(round);
            // All at once in the first round; later every second vCPU works with its caches on while the others switch.
            point.meet(me, round);
            if round == 0 || (round + me.index) % 2 == 0 {
                operations += set_way::clean_and_invalidate_all();
                mine.off_and_on(round);
            } else {
                // Under the other's walk over all memory.
                mine.move_elsewhere();
                mine.verify(round, true);
            }
        }
        say!("caches: vCPU {}: {operations} set/way operations", me.index);
        check!(operations > 0, "CLIDR_EL1 knows of no data cache");
    });
    say!(
        "caches: what was written with caches on was read with caches off, and the reverse, on {vcpus} vCPUs"
    );
    say!("caches: {REGISTERS} virtual memory registers kept what was written with caches off");
}

/// A page for each vCPU, far from the others.
fn far(arena: &mut Arena, vcpus: usize) -> usize {
    if arena.left() > FAR + vcpus * PAGE {
        arena.take(FAR, PAGE);
    }
    arena.take(vcpus * PAGE, PAGE)
}

/// A vCPU's memory: the last near page is for code.
struct Mine {
    vcpu: usize,
    near: usize,
    pages: usize,
    far: usize,
}

impl Mine {
    fn data(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let near = (0..self.pages - 1).map(|page| (page, self.near + page * PAGE));
        near.chain([(self.pages, self.far)])
    }

    fn fill(&self, round: usize) {
        for (page, at) in self.data() {
            let value = pattern(self.vcpu, page, round, true);
            for word in 0..PAGE / 8 {
                // SAFETY: 1. the arena gave the page to this vCPU; 2. aligned.
                unsafe { ptr::write_volatile((at as *mut u64).add(word), value ^ word as u64) };
            }
        }
    }

    fn verify(&self, round: usize, cached: bool) {
        for (page, at) in self.data() {
            let value = pattern(self.vcpu, page, round, cached);
            for word in 0..PAGE / 8 {
                // SAFETY: as in `fill`.
                let found = unsafe { ptr::read_volatile((at as *const u64).add(word)) };
                check_eq!(
                    found,
                    value ^ word as u64,
                    "vCPU {}, round {round}, page {page}, word {word}",
                    self.vcpu
                );
            }
        }
    }

    /// Has the near pages moved to other frames, if there is a hypervisor that does it and that has the time.
    fn move_elsewhere(&self) {
        for first in (0..self.pages).step_by(STEP) {
            let bytes = STEP.min(self.pages - first) * PAGE;
            let start = self.near + first * PAGE;
            let [status, ..] = call::raw::<Hvc>(vendor::MOVE, [start as u64, bytes as u64, 0]);
            let known = [vendor::SUCCESS, vendor::BUSY, vendor::NOT_SUPPORTED];
            check!(
                known.contains(&(status as i64)),
                "MOVE of {bytes:#x} bytes from {start:#x} answered {status:#x}"
            );
        }
    }

    /// Reads with caches off what was written with caches on; writes data and code; reads and runs that with caches on.
    fn off_and_on(&self, round: usize) {
        let code = self.near + (self.pages - 1) * PAGE;
        let answer = 0x1000 * self.vcpu as u64 + round as u64 + 1;
        let mut job = Job::new(code, answer);
        without_caches(&mut job, |job| {
            for (page, at) in self.data() {
                let old = pattern(self.vcpu, page, round, true);
                let new = pattern(self.vcpu, page, round, false);
                job.exchange(at, old, new);
            }
            job.write_code();
            job.run_code();
            job.registers();
        });
        let vcpu = self.vcpu;
        check_eq!(
            job.wrong(),
            0,
            "vCPU {vcpu}, round {round}: words that were not what was written cached"
        );
        check_eq!(job.ran(), answer, "vCPU {vcpu}, round {round}: code run with caches off");
        check_eq!(
            job.lost(),
            0,
            "vCPU {vcpu}, round {round}: registers that lost what was written"
        );
        self.verify(round, false);
        sync_code(code, 8);
        // SAFETY: the two instructions there keep to x0.
        let result = unsafe { probe_call(code) };
        check_eq!(result, Ok(answer), "vCPU {vcpu}, round {round}: the same code with caches on");
    }
}
