//! Boots to be measured: to the first program and off again, with the same files under the hypervisor and on QEMU alone.

use super::cli::LinuxArgs;
use super::marks::Marks;
use super::{Initrd, expect_linux_of, judge, plain, run_arguments};
use crate::cli::RunArgs;
use crate::cli::shared::{CommonArgs, HypArgs};
use crate::error::Error;
use crate::exit::Exit;
use crate::run::unattended_as;
use crate::summary::Summary;
use crate::workspace::Workspace;

/// The mark of lines for us, and that of the report: drawn anew, they would make two runs differ.
const MARK: &str = "ffeeddccbbaa99887766554433221100";
const NONCE: &str = "00112233445566778899aabbccddeeff";

/// On what a kernel boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    /// QEMU alone.
    Plain,
    /// The hypervisor.
    Hypervisor,
    /// The hypervisor's build that measures.
    Measured,
}

/// What all boots have in common.
pub(crate) struct Boots {
    workspace: Workspace,
    linux: LinuxArgs,
    initrd: Initrd,
}

/// A boot that is over.
pub(crate) struct Booted {
    /// How it was.
    pub(crate) summary: Summary,
    /// All that was printed.
    pub(crate) console: Vec<u8>,
}

impl Boots {
    /// Of this kernel with this script; the images are there.
    ///
    /// # Errors
    /// As `hypctl linux`: what is wrong with the kernel or the sizes.
    pub(crate) fn of(workspace: Workspace, linux: LinuxArgs) -> Result<Self, Error> {
        let initrd = Initrd::of(&workspace, &linux, Some(MARK))?;
        expect_linux_of(&workspace, &run_arguments(&linux, initrd.path()))?;
        Ok(Self { workspace, linux, initrd })
    }

    /// Boots once, on so many CPUs.
    pub(crate) fn boot(&self, on: On, cpus: u32, icount: bool) -> Booted {
        let run = run_arguments(&self.linux, self.initrd.path());
        let run = RunArgs {
            vcpus: Some(cpus),
            smp: None,
            common: CommonArgs { no_build: true, quiet: true, ..run.common },
            hyp: HypArgs { icount, ..run.hyp },
            ..run
        };
        let run = RunArgs { measure: on == On::Measured, ..run };
        let mut console = Vec::new();
        let summary = match on {
            On::Plain => {
                let mut summary = Summary::of(&run);
                match plain::prepare(&self.workspace, &run, &mut summary) {
                    Ok((qemu, words)) => {
                        let (mark, sink) = (Some(MARK), &mut console);
                        plain::play(&qemu, &words, &run, mark, sink, &mut summary);
                    }
                    Err(error) => {
                        summary.message = Some(error.to_string());
                        summary.exit_code = Exit::USAGE.code();
                    }
                }
                summary
            }
            On::Hypervisor | On::Measured => {
                let mut marks = Marks::new(MARK, &mut console);
                let mut summary = unattended_as(&run, NONCE, &mut marks);
                let exit = Exit::from_report(summary.exit_code.into());
                judge(exit, marks.finish(), cpus, &mut summary);
                summary
            }
        };
        Booted { summary, console }
    }
}
