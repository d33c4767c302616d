//! The same faults under Debian's Linux: counted in the same build, and judged by those of the bare guest.
//!
//! Linux knows nothing of it. Its populate faults are those of its boot and of what a script writes; for the others the manager
//! (`churn`) write-protects pages behind its back and harvests a log of them. Hardware does not manage the dirty state, as
//! in the bare guest's run (`mask=hw-dirty`).

use hyp_core::churn::Wanted;
use hyp_core::report::Measure;
use serde::Serialize;

use super::super::BenchError;
use super::super::linux::{came_up, known, report, usual};
use crate::cli::BenchArgs;
use crate::cli::shared::HypArgs;
use crate::linux::boots::{Boots, On};
use crate::linux::cli::LinuxArgs;
use crate::workspace::Workspace;

/// Longer than any run: a machine that ends earlier ends it.
const SECONDS: u32 = 600;
/// A file of 32 MiB in RAM is written over and over again.
const WRITE: &str = "dd if=/dev/zero of=/tmp/file bs=64k count=512 conv=notrunc 2>/dev/null";

/// What was counted.
#[derive(Debug, Serialize)]
pub(super) struct UnderLinux {
    /// The kernel's release.
    pub(super) kernel: String,
    command: Option<String>,
    /// Of a populate fault.
    pub(super) measure: Measure,
    /// Of a write to a page that is write-protected.
    pub(super) refault: Measure,
    /// Neither median is more than the bare guest's.
    pub(super) not_worse: bool,
    /// Two runs agreed.
    #[serde(skip)]
    pub(super) identical: bool,
}

/// Counts faults under Linux; `bare` are the bare guest's, of a populate fault and of a write.
pub(super) fn measure(
    arguments: &BenchArgs,
    workspace: Workspace,
    bare: [Measure; 2],
) -> Result<UnderLinux, BenchError> {
    let times = if arguments.quick { 12 } else { 20 };
    let usual = usual(&arguments.cpu);
    let linux = LinuxArgs {
        script: Some(format!("for i in $(seq {times}); do {WRITE} || exit 1; done")),
        hyp: HypArgs {
            churn: Some(Wanted { seconds: SECONDS, seed: 0, session: None }),
            hyp_append: Some("mask=hw-dirty".to_owned()),
            ..usual.hyp
        },
        ..usual
    };
    let boots = Boots::of(workspace, linux)?;
    let run = || came_up(boots.boot(On::Measured, 1, true));
    let (first, second) = (run()?, run()?);
    let [one, two] = [report(&first)?, report(&second)?];
    let sampled = |measure: Option<Measure>| {
        known(&first, "no fault was measured", measure.filter(|measure| measure.samples > 0))
    };
    let (measure, refault) = (sampled(one.measure)?, sampled(one.relaxing)?);
    let up = first.summary.boot.as_ref().and_then(|boot| boot.up.as_ref());
    Ok(UnderLinux {
        kernel: up.map(|up| up.release.clone()).unwrap_or_default(),
        command: first.summary.command.clone(),
        measure,
        refault,
        not_worse: [measure, refault]
            .iter()
            .zip(&bare)
            .all(|(one, bare)| one.median <= bare.median),
        identical: one == two && first.console == second.console,
    })
}
