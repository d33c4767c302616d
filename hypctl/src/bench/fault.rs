//! `hypctl bench fault`: EL2 instructions of one populate fault, from the vector to the ERET, without the zeroing
//! and the cleaning of the page; and, in a run of its own, of a write fault on a page whose writes are logged, where
//! hardware does not manage the dirty state (`mask=hw-dirty`); and, in a third, of an access to an address without memory that is
//! recovered by the scratch page, the violation recorded.

use hyp_abi::map::RAM_BASE;
use hyp_core::report::Measure;
use serde::Serialize;

use super::{Bench, BenchError, Memory, publish, told};
use crate::cli::BenchArgs;
use crate::exit::Exit;

/// The guest that is measured.
const GUEST: &str = "bench-fault";
/// Holds the pages of a full run.
const MEMORY: Memory = Memory { machine: 512 << 20, guest: 64 << 20 };

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
    identical: bool,
}

/// Runs `hypctl bench fault`.
pub fn fault(arguments: &BenchArgs) -> Exit {
    told(measure(arguments))
}

fn measure(arguments: &BenchArgs) -> Result<Exit, BenchError> {
    let bench = Bench::prepare(arguments)?;
    let pages = if arguments.quick { 512 } else { 4096 };
    let setting = bench.setting(GUEST, format!("pages={pages}"), "", MEMORY)?;
    let (ran, identical) = setting.run_twice()?;
    let measure = ran.measured(ran.report.measure.filter(|measure| measure.samples > 0))?;
    let logged = bench.setting(GUEST, format!("pages={pages} log=1"), "mask=hw-dirty ", MEMORY)?;
    let (again, same) = logged.run_twice()?;
    let refault = again.measured(again.report.relaxing.filter(|measure| measure.samples > 0))?;
    let holes = bench.setting(
        GUEST,
        format!("pages={pages} holes=1"),
        &format!("recover=scratch@{:#x}+32M ", RAM_BASE + MEMORY.guest),
        MEMORY,
    )?;
    let (gone, alike) = holes.run_twice()?;
    let recover = gone.measured(gone.report.recovering.filter(|measure| measure.samples > 0))?;
    let identical = identical && same && alike;
    let numbers = Numbers {
        schema: 3,
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
        identical,
    };
    let Measure { samples, min, median, max } = measure;
    let text = format!(
        "populate fault: EL2 instructions from vector to ERET, zeroing and cleaning not counted\n\
         cpu {0}, {samples} faults: min {min}, median {median}, max {max}\n\
         write fault on a clean page that is logged, without hardware dirty state\n\
         cpu {0}, {1} faults: min {2}, median {3}, max {4}\n\
         access without memory that is recovered by the scratch page, and recorded\n\
         cpu {0}, {5} faults: min {6}, median {7}, max {8}\n",
        arguments.cpu,
        refault.samples,
        refault.min,
        refault.median,
        refault.max,
        recover.samples,
        recover.min,
        recover.median,
        recover.max
    );
    Ok(publish(arguments.json.as_deref(), &numbers, &text, identical))
}
