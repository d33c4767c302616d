//! `hypctl bench resize`: what it takes EL2 to split 1 GiB of blocks into pages, and to make blocks of them
//! again: instructions, TLB invalidations, flushes; with FEAT_BBM as the machine has it, and held down. And what it
//! takes to copy as many pages into blocks, which is the same with any FEAT_BBM.

use std::fmt::Write;

use hyp_core::report::{Resizing, Work};
use serde::Serialize;

use super::{Bench, BenchError, Memory, publish, told};
use crate::cli::BenchArgs;
use crate::exit::Exit;

/// The guest that is measured.
const GUEST: &str = "bench-resize";
/// One part in so many is copied: that takes long.
const COPIED: u64 = 4;
/// Levels of FEAT_BBM that are tried.
const LEVELS: [u8; 3] = [0, 1, 2];

#[derive(Debug, Serialize)]
struct Numbers<'a> {
    schema: u32,
    what: &'a str,
    cpu: &'a str,
    qemu: String,
    levels: Vec<Level>,
    copy: Copy,
    identical: bool,
}

/// What was measured with FEAT_BBM of a level.
#[derive(Debug, Serialize)]
struct Level {
    bbm: u8,
    command: String,
    resizing: Resizing,
    /// What stage 2 made use of.
    #[serde(skip)]
    features: String,
}

/// What was measured of pages that were copied.
#[derive(Debug, Serialize)]
struct Copy {
    command: String,
    work: Work,
}

/// Runs `hypctl bench resize`.
pub fn resize(arguments: &BenchArgs) -> Exit {
    told(measure(arguments))
}

fn measure(arguments: &BenchArgs) -> Result<Exit, BenchError> {
    let bench = Bench::prepare(arguments)?;
    let mib: u64 = if arguments.quick { 256 } else { 1024 };
    let (mut levels, mut identical) = (Vec::<Level>::new(), true);
    let mut run = |bootargs: String, words: &str| {
        let memory = Memory { machine: (mib + 512) << 20, guest: (mib + 32) << 20 };
        let setting = bench.setting(GUEST, bootargs, words, memory)?;
        let (ran, same) = setting.run_twice()?;
        identical &= same;
        let resizing = ran.measured(ran.report.resizing)?;
        Ok::<_, BenchError>((setting.command(), ran, resizing))
    };
    for bbm in LEVELS {
        let (command, ran, resizing) = run(format!("mib={mib}"), &format!("blocks bbm={bbm} "))?;
        let features = ran.report.cpu_features;
        // The machine has no more.
        if levels.last().is_some_and(|before| before.features == features) {
            break;
        }
        levels.push(Level { bbm, command, resizing, features });
    }
    let (command, _, Resizing { copy: work, .. }) =
        run(format!("mib={} copy=1", mib / COPIED), "blocks ")?;
    let copy = Copy { command, work };
    let text = table(&arguments.cpu, mib, &levels, &copy);
    let numbers = Numbers {
        schema: 1,
        what: "EL2's work to split blocks of 2 MiB into pages, and to collapse them",
        cpu: &arguments.cpu,
        qemu: bench.qemu.version().to_string(),
        levels,
        copy,
        identical,
    };
    Ok(publish(arguments.json.as_deref(), &numbers, &text, identical))
}

fn table(cpu: &str, mib: u64, levels: &[Level], copy: &Copy) -> String {
    let mut text = format!(
        "{mib} MiB of blocks of 2 MiB into pages and back, cpu {cpu}: EL2's work\n\
         {:22}{:>8}{:>16}{:>10}{:>9}{:>9}{:>9}\n",
        "", "blocks", "instructions", "a block", "a page", "TLBIs", "flushes"
    );
    for level in levels {
        let Resizing { split, collapse, .. } = level.resizing;
        row(&mut text, &format!("split, FEAT_BBM {}", level.bbm), split);
        row(&mut text, &format!("collapse, FEAT_BBM {}", level.bbm), collapse);
    }
    row(&mut text, "copy", copy.work);
    text
}

fn row(text: &mut String, name: &str, work: Work) {
    let Work { blocks, instructions, tlbis, flushes, .. } = work;
    let each = instructions as f64 / blocks.max(1) as f64;
    let page = each / 512.0;
    let _ = writeln!(
        text,
        "{name:22}{blocks:>8}{instructions:>16}{each:>10.0}{page:>9.1}{tlbis:>9}{flushes:>9}"
    );
}
