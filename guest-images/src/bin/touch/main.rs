//! vCPUs fault the same and different pages of on-demand RAM, in every order and at the same moment.
//!
//! | phase | who touches what | what it is after |
//! | --- | --- | --- |
//! | private | every vCPU its own pages, neighbours in one table | installs beside each other |
//! | ascending, descending | every vCPU every page | the convoy: who is ahead is slowed by its faults until the others are abreast |
//! | random, interleaved | every vCPU every page, each in its own order | faults all over the tables at once |
//! | together | all vCPUs one page at the same moment, page by page | lost leaf races |
//! | tables | all vCPUs one never-touched 2 MiB block at the same moment | lost table races |
//!
//! Each page is zero when it is first seen; each vCPU writes into its own part of it, and at the end
//! every vCPU verifies every part: two frames for one page would have lost somebody's write. With the
//! hypervisor's counters: pages installed are the pages touched (and a few of the runtime's), and
//! more races were lost than the minimum, when more than one vCPU took part.
//!
//! Arguments (`key=value`): `pages` of a phase (512), `rounds` at least (1), `tables` a round (16, fewer where RAM is small),
//! `vcpus` (all), `min-lost` and `min-lost-tables` (see `MIN_LOST`). While a minimum is not reached,
//! rounds are added, up to `MOST_ROUNDS` or until RAM is used up.

#![no_std]
#![no_main]

mod pages;

use guest_rt::rng::Permutation;
use guest_rt::smp::{self, Barrier, Rendezvous, Vcpu};
use guest_rt::{MIB2, Machine, PAGE, call, check, say};
use hyp_abi::call::Stat;
use pages::{Pages, Spread};

guest_rt::guest!("touch", touch);

/// Lost leaf races that a run with several vCPUs must exceed.
const MIN_LOST: usize = 16;
/// Lost table races that a run with several vCPUs must exceed.
const MIN_LOST_TABLES: usize = 0;
/// Rounds after which a run that lost too few races has failed.
const MOST_ROUNDS: usize = 64;

/// An order in which a vCPU touches the pages of a phase.
type Order = fn(page: usize, pages: usize, me: Vcpu) -> usize;

const ORDERS: [(&str, Order); 4] = [
    ("ascending", |page, _, _| page),
    ("descending", |page, pages, _| pages - 1 - page),
    ("random", |page, pages, me| {
        Permutation::new(pages, me.index as u64).at(page)
    }),
    ("interleaved", |page, pages, me| {
        (page + me.index * pages / me.count) % pages
    }),
];

/// The counters that a phase moves.
#[derive(Clone, Copy, Default)]
struct Counters {
    faults: u64,
    installed: u64,
    lost: u64,
    lost_tables: u64,
}

impl Counters {
    fn read() -> Option<Self> {
        Some(Self {
            faults: call::stat(Stat::Faults)?,
            installed: call::stat(Stat::Installed)?,
            lost: call::stat(Stat::LostRaces)?,
            lost_tables: call::stat(Stat::LostTables)?,
        })
    }
}

/// What a run works with.
struct Run<'a> {
    machine: &'a Machine,
    arena: guest_rt::Arena,
    vcpus: usize,
    pages: usize,
    tables: usize,
    touched: usize,
}

fn touch(machine: &Machine) {
    let args = machine.args(&[
        "pages",
        "rounds",
        "tables",
        "vcpus",
        "min-lost",
        "min-lost-tables",
    ]);
    let vcpus = args.number("vcpus", machine.vcpus().len());
    check!(
        (1..=machine.vcpus().len()).contains(&vcpus),
        "vcpus={vcpus}: the machine has {}",
        machine.vcpus().len()
    );
    let rounds = args.number("rounds", 1);
    let raced = |key, default| {
        if vcpus > 1 {
            Some(args.number(key, default) as u64)
        } else {
            None
        }
    };
    let least = raced("min-lost", MIN_LOST).zip(raced("min-lost-tables", MIN_LOST_TABLES));
    let arena = machine.arena();
    // At most a quarter of RAM: a block costs 2 MiB of address space for one page.
    let tables = (arena.left() / MIB2 / 4).min(16);
    let mut run = Run {
        machine,
        arena,
        vcpus,
        pages: args.number("pages", 512).max(8),
        tables: args.number("tables", tables),
        touched: 0,
    };

    let before = Counters::read();
    let mut round = 0;
    loop {
        check!(
            run.has_room(),
            "round {round} needs more RAM than is left ({:#x})",
            run.arena.left()
        );
        run.round(round);
        round += 1;
        let now = before.zip(Counters::read());
        let few = now
            .zip(least)
            .is_some_and(|((before, now), (lost, lost_tables))| {
                now.lost - before.lost <= lost
                    || now.lost_tables - before.lost_tables <= lost_tables
            });
        if round >= rounds && !(few && round < MOST_ROUNDS && run.has_room()) {
            break;
        }
    }
    say!(
        "touch: {vcpus} vCPUs, {round} rounds, {} pages touched and verified",
        run.touched
    );
    match before.zip(Counters::read()) {
        Some((before, now)) => judge(&run, before, now, least),
        None => say!("touch: no hypervisor, so nobody counted the races"),
    }
}

/// The hypervisor's counters must tell the story that the guest has seen.
fn judge(run: &Run<'_>, before: Counters, now: Counters, least: Option<(u64, u64)>) {
    // Pages of stacks, of the image and of .bss that a run may touch for the first time.
    const RUNTIME: u64 = 256;
    let (installed, touched) = (now.installed - before.installed, run.touched as u64);
    let (lost, lost_tables) = (now.lost - before.lost, now.lost_tables - before.lost_tables);
    let faults = now.faults - before.faults;
    say!(
        "touch: {faults} faults, {installed} pages installed, {lost} leaf races and {lost_tables} table races lost"
    );
    check!(
        (touched..touched + RUNTIME).contains(&installed),
        "{installed} pages installed for {touched} touched"
    );
    if let Some((least, least_tables)) = least {
        check!(
            lost > least,
            "{lost} leaf races lost, more than {least} wanted"
        );
        check!(
            lost_tables > least_tables,
            "{lost_tables} table races lost, more than {least_tables} wanted"
        );
    }
}

impl Run<'_> {
    /// Pages that all vCPUs meet at, one by one: meeting is slow where vCPUs outnumber host CPUs.
    fn meetings(&self) -> usize {
        self.pages.min(if self.vcpus > 2 { 32 } else { 256 })
    }

    fn has_room(&self) -> bool {
        let pages = (ORDERS.len() + self.vcpus) * self.pages + self.meetings();
        self.arena.left() >= pages * PAGE + (self.tables + 2) * MIB2
    }

    fn round(&mut self, round: usize) {
        let (machine, vcpus, seed) = (self.machine, self.vcpus, round as u64);
        let private = self.take("private", vcpus * self.pages, PAGE, seed);
        let shared = ORDERS.map(|(name, _)| self.take(name, self.pages, PAGE, seed));
        let together = self.take("together", self.meetings(), PAGE, seed);
        let blocks = self.take("tables", self.tables, MIB2, seed);
        let (start, point) = (Barrier::new(), Rendezvous::new());

        let before = Counters::read();
        smp::run(machine, vcpus, &|me| {
            for page in 0..private.count() / me.count {
                private.visit(page * me.count + me.index, me.index);
            }
        });
        let mut last = report("private", before);
        for ((name, order), pages) in ORDERS.iter().zip(&shared) {
            smp::run(machine, vcpus, &|me| {
                start.wait(me);
                for page in 0..pages.count() {
                    pages.visit(order(page, pages.count(), me), me.index);
                }
            });
            last = report(name, last);
        }
        smp::run(machine, vcpus, &|me| {
            for page in 0..together.count() {
                point.meet(me, page);
                together.visit(page, me.index);
            }
            for block in 0..blocks.count() {
                point.meet(me, together.count() + block);
                blocks.visit_block(block, me.index);
            }
        });
        report("together and tables", last);

        smp::run(machine, vcpus, &|_| {
            private.verify(Spread::Owner { count: vcpus });
            shared
                .iter()
                .for_each(|pages| pages.verify(Spread::All { count: vcpus }));
            together.verify(Spread::All { count: vcpus });
            blocks.verify_blocks(vcpus);
        });
        self.touched += private.count() + shared.iter().map(Pages::count).sum::<usize>();
        self.touched += together.count() + blocks.block_pages(vcpus);
    }

    fn take(&mut self, name: &'static str, count: usize, stride: usize, seed: u64) -> Pages {
        let align = if stride == MIB2 { MIB2 } else { PAGE };
        Pages::new(
            name,
            self.arena.take(count * stride, align),
            count,
            stride,
            seed,
        )
    }
}

/// Says what a phase moved, and returns the counters for the next one.
fn report(phase: &str, before: Option<Counters>) -> Option<Counters> {
    let now = Counters::read();
    if let Some((before, now)) = before.zip(now) {
        say!(
            "touch: {phase}: {} faults, {} pages, {} leaf and {} table races lost",
            now.faults - before.faults,
            now.installed - before.installed,
            now.lost - before.lost,
            now.lost_tables - before.lost_tables
        );
    }
    now
}
