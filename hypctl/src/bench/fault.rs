//! `hypctl bench fault`: EL2 instructions of one populate fault, from the vector to the ERET, without the zeroing
//! and the cleaning of the page; and, in a run of its own, of a write fault on a page whose writes are logged, where
//! hardware does not manage the dirty state (`mask=hw-dirty`); and, in a third, of an access to an address without memory that is
//! recovered by the scratch page, the violation recorded: in the recovery window that the vCPU has last met, one of as many
//! as there may be; and, in a fourth, in two of them by turns. With `--linux` the first two are counted under Debian's Linux, too.

mod linux;

use hyp_abi::call::RECOVER_MAX;
use hyp_abi::map::RAM_BASE;
use hyp_core::report::Measure;
use serde::Serialize;

use self::linux::UnderLinux;
use super::{Bench, BenchError, Memory, publish, told};
use crate::cli::FaultArgs;
use crate::exit::Exit;

/// The guest that is measured.
const GUEST: &str = "bench-fault";
/// Holds the pages of a full run.
const MEMORY: Memory = Memory { machine: 512 << 20, guest: 64 << 20 };

/// Where the second of two windows by turns begins.
const FAR: u64 = 0x8000_0000;

/// The word that declares as many recovery windows as there may be. Of two the policy is `scratch`: behind RAM, and at [`FAR`].
fn windows() -> String {
    let mut word = format!("recover=scratch@{:#x}+32M", RAM_BASE + MEMORY.guest);
    word.push_str(&format!(",scratch@{FAR:#x}+64M"));
    let others = (2..RECOVER_MAX as u64).map(|number| 0xa000_0000 + (number << 24));
    word.extend(others.map(|at| format!(",inject@{at:#x}+1M")));
    word.push(' ');
    word
}

/// The verdict about Linux.
const NOT_WORSE: &str = "under Linux neither median is more than the bare guest's\n";
const WORSE: &str = "under Linux a median is more than the bare guest's\n";

#[derive(Debug, Serialize)]
struct Numbers<'a> {
    schema: u32,
    what: &'a str,
    cpu: &'a str,
    qemu: String,
    command: String,
    measure: Measure,
    refault_command: String,
    refault: Measure,
    recover_command: String,
    recover: Measure,
    turns_command: String,
    turns: Measure,
    linux: Option<UnderLinux>,
    identical: bool,
}

/// Runs `hypctl bench fault`.
pub fn fault(arguments: &FaultArgs) -> Exit {
    told(measure(arguments))
}

fn measure(FaultArgs { bench: arguments, linux }: &FaultArgs) -> Result<Exit, BenchError> {
    let bench = Bench::prepare(arguments)?;
    let pages = if arguments.quick { 512 } else { 4096 };
    let setting = bench.setting(GUEST, format!("pages={pages}"), "", MEMORY)?;
    let (ran, identical) = setting.run_twice()?;
    let measure = ran.measured(ran.report.measure.filter(|measure| measure.samples > 0))?;
    let logged = bench.setting(GUEST, format!("pages={pages} log=1"), "mask=hw-dirty ", MEMORY)?;
    let (again, same) = logged.run_twice()?;
    let refault = again.measured(again.report.relaxing.filter(|measure| measure.samples > 0))?;
    let holes = bench.setting(GUEST, format!("pages={pages} holes=1"), &windows(), MEMORY)?;
    let (gone, alike) = holes.run_twice()?;
    let recover = gone.measured(gone.report.recovering.filter(|measure| measure.samples > 0))?;
    let far = FAR - RAM_BASE - MEMORY.guest;
    let words = format!("pages={pages} holes=1 far={far}");
    let two = bench.setting(GUEST, words, &windows(), MEMORY)?;
    let (turned, equal) = two.run_twice()?;
    let turns = turned.measured(turned.report.recovering.filter(|measure| measure.samples > 0))?;
    let under = || linux::measure(arguments, bench.workspace.clone(), [measure, refault]);
    let under = linux.then(under).transpose()?;
    let is_same = under.as_ref().is_none_or(|under| under.identical);
    let identical = identical && same && alike && equal && is_same;
    let numbers = Numbers {
        schema: 5,
        what: "EL2 instructions of one populate fault, of one write to a clean page that is logged, and of one access without memory \
               that is recovered, from vector to ERET",
        cpu: &arguments.cpu,
        qemu: bench.qemu.version().to_string(),
        command: setting.command(),
        measure,
        refault_command: logged.command(),
        refault,
        recover_command: holes.command(),
        recover,
        turns_command: two.command(),
        turns,
        linux: under,
        identical,
    };
    let parts = [
        (
            "populate fault: EL2 instructions from vector to ERET, zeroing and cleaning not counted",
            measure,
        ),
        ("write fault on a clean page that is logged, without hardware dirty state", refault),
        (
            "access without memory that is recovered by the scratch page, and recorded: in the same of 16 windows",
            recover,
        ),
        ("the same, in two of 16 windows by turns", turns),
    ];
    let line = |(what, measure): (&str, Measure)| {
        let Measure { samples, min, median, max } = measure;
        let cpu = &arguments.cpu;
        format!("{what}\ncpu {cpu}, {samples} faults: min {min}, median {median}, max {max}\n")
    };
    let mut text: String = parts.into_iter().map(line).collect();
    let Some(UnderLinux { kernel, measure, refault, not_worse, .. }) = &numbers.linux else {
        return Ok(publish(arguments.json.as_deref(), &numbers, &text, identical));
    };
    let populate = format!("populate fault, under Linux {kernel} and a manager of its memory");
    text.push_str(&line((&populate, *measure)));
    text.push_str(&line(("write fault on a clean page, in the same run", *refault)));
    text.push_str(if *not_worse { NOT_WORSE } else { WORSE });
    let exit = publish(arguments.json.as_deref(), &numbers, &text, identical);
    Ok(if exit == Exit::OK && !not_worse { Exit::VERDICT } else { exit })
}
