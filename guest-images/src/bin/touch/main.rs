//! vCPUs fault the same and different pages of on-demand RAM, in every order and at the same moment.
//!
//! | phase | who touches what | what it is after |
//! | --- | --- | --- |
//! | private | every vCPU its own pages, neighbours in one table | installs beside each other |
//! | ascending, descending | every vCPU every page | who is ahead is slowed by its faults until the others are abreast |
//! | random, interleaved | every vCPU every page, each in its own order | faults all over the tables at once |
//! | image | any two vCPUs one page of the guest's image at the same moment | lost leaf races, contents |
//! | races | any two vCPUs one page at the same moment | lost leaf races, lost table races |
//!
//! Each page is zero when it is first seen; each vCPU writes into its own part of it, and at the end
//! every vCPU verifies every part: two frames for one page would have lost somebody's write. With the
//! hypervisor's counters: pages installed are the pages touched (and a few of the runtime's), and
//! more races were lost than the minimum, when more than one vCPU took part.
//!
//! Arguments (`key=value`): `pages` of a phase (512), `rounds` of the orders (1), `blocks` of 2 MiB to
//! race in at most (what RAM has), `vcpus` (all), `min-lost` (16) and `min-lost-tables`
//! (not asked for). Racing goes on until both are exceeded (one table race is always tried for) or
//! the blocks are used up.

#![no_std]
#![no_main]

mod content;
mod orders;
mod pages;
mod races;

use guest_rt::{Arena, MIB2, Machine, call, check, say};
use hyp_abi::call::Stat;

guest_rt::guest!("touch", touch);

/// Lost leaf races that a run with several vCPUs must exceed.
const MIN_LOST: usize = 16;
/// Pages that the runtime itself may touch for the first time meanwhile: image, data, stacks.
const RUNTIME: u64 = 256;

/// The hypervisor's counters that a run moves.
#[derive(Clone, Copy)]
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

    /// What was added since `before`.
    fn since(self, before: Self) -> Self {
        Self {
            faults: self.faults - before.faults,
            installed: self.installed - before.installed,
            lost: self.lost - before.lost,
            lost_tables: self.lost_tables - before.lost_tables,
        }
    }
}

/// What a run works with.
struct Run<'a> {
    machine: &'a Machine,
    arena: Arena,
    vcpus: usize,
    /// Pages touched so far.
    touched: usize,
    /// The counters when it began; `None` without a hypervisor.
    before: Option<Counters>,
}

impl Run<'_> {
    /// What the run has moved so far.
    fn moved(&self) -> Option<Counters> {
        Some(Counters::read()?.since(self.before?))
    }

    /// Says what a phase moved; gives what the run had moved at its end.
    fn report(&self, phase: &str, earlier: Option<Counters>) -> Option<Counters> {
        let now = self.moved()?;
        let here = earlier.map_or(now, |earlier| now.since(earlier));
        let Counters { faults, installed, lost, lost_tables } = here;
        say!(
            "touch: {phase}: {faults} faults, {installed} pages installed, {lost} leaf and \
             {lost_tables} table races lost"
        );
        Some(now)
    }
}

fn touch(machine: &Machine) {
    let keys = ["pages", "rounds", "blocks", "vcpus", "min-lost", "min-lost-tables"];
    let args = machine.args(&keys);
    let all = machine.vcpus().len();
    let vcpus = args.number("vcpus", all);
    check!((1..=all).contains(&vcpus), "vcpus={vcpus}: the machine has {all}");
    let pages = args.number("pages", 512);
    let rounds = args.number("rounds", 1);
    let (arena, before) = (machine.arena(), Counters::read());
    let mut run = Run { machine, arena, vcpus, touched: 0, before };

    let mut moved = content::check(&run, None);
    for round in 0..rounds {
        moved = orders::round(&mut run, round, pages, moved);
    }
    if vcpus > 1 {
        let blocks = args.number("blocks", run.arena.left() / MIB2);
        let least = args.number("min-lost", MIN_LOST) as u64;
        let least_tables =
            args.get("min-lost-tables").map(|_| args.number("min-lost-tables", 0) as u64);
        races::race(&mut run, blocks, least, least_tables);
        run.report("races", moved);
    }
    judge(&run);
}

/// The hypervisor's counters must tell the story that the guest has seen.
fn judge(run: &Run<'_>) {
    let (vcpus, touched) = (run.vcpus, run.touched as u64);
    say!("touch: {vcpus} vCPUs touched {touched} pages, all of them verified by all");
    match run.report("in all", None) {
        Some(Counters { installed, .. }) => check!(
            (touched..touched + RUNTIME).contains(&installed),
            "{installed} pages installed for {touched} touched"
        ),
        None => say!("touch: no hypervisor, so nobody counted the races"),
    }
}
