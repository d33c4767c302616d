//! `hypctl bench fault`: EL2 instructions of one populate fault, from the vector to the ERET, without the zeroing
//! and the cleaning of the page; and, in a run of its own, of a write fault on a page whose writes are logged, where
//! hardware does not manage the dirty state (`mask=hw-dirty`).

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
    let identical = identical && same;
    let numbers = Numbers {
        schema: 2,
        what: "EL2 instructions of one populate fault, and of one write to a clean page that is logged, from vector to ERET",
        cpu: &arguments.cpu,
        qemu: bench.qemu.version().to_string(),
        command: setting.command(),
        measure,
        refault_command: logged.command(),
        refault,
        identical,
    };
    let Measure { samples, min, median, max } = measure;
    let text = format!(
        "populate fault: EL2 instructions from vector to ERET, zeroing and cleaning not counted\n\
         cpu {0}, {samples} faults: min {min}, median {median}, max {max}\n\
         write fault on a clean page that is logged, without hardware dirty state\n\
         cpu {0}, {1} faults: min {2}, median {3}, max {4}\n",
        arguments.cpu, refault.samples, refault.min, refault.median, refault.max
    );
    Ok(publish(arguments.json.as_deref(), &numbers, &text, identical))
}
