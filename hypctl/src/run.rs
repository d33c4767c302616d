//! `hypctl run`: from a name to a guest's console and an exit code.
//!
//! Everything that can be wrong is looked at before anything slow happens and long before QEMU
//! starts: the guest's file, the emulator, its CPU model, the script; then the build; then whether
//! it all fits into memory. From QEMU's start on, the run has exactly one end ([`End`]), and that
//! and the hypervisor's report give the exit code.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use hyp_core::config::MIN_MEM;
use hyp_core::recovery::Asked;
use hyp_core::report::Report;
use hyp_core::trace::Order;

use crate::build::{build, expect_built};
use crate::cli::RunArgs;
use crate::error::Error;
use crate::exit::Exit;
use crate::guest::{Guest, Wanted};
use crate::machine::{Machine, shell_line};
use crate::qemu::Qemu;
use crate::script::{self, Step};
use crate::session::{self, End, Input, Outcome, Told};
use crate::summary::Summary;
use crate::terminal::ControlC;
use crate::trace::{self, Ram};
use crate::workspace::{Variant, Workspace};

/// CPUs of a machine nobody has wishes for: enough for races, not more than small hosts have.
const DEFAULT_SMP: u32 = 2;
/// Machine memory nobody has wishes for, bytes.
const DEFAULT_MEM: u64 = 1 << 30;

/// Runs `hypctl run`.
pub fn run(arguments: &RunArgs) -> Exit {
    let mut summary = Summary::of(arguments);
    let exit = match prepare(arguments, &mut summary) {
        Ok(plan) if arguments.hyp.dry_run => {
            let _ = writeln!(io::stdout(), "{}", plan.line());
            return Exit::OK;
        }
        Ok(mut plan) => {
            let script = plan.script.take();
            let input = input(script, plan.control_c, arguments.common.quiet);
            plan.play(arguments, &nonce(), input, &mut io::stdout(), &mut summary)
        }
        Err(error) => {
            if matches!(error, Error::NoFolder { option: "json", .. }) {
                say(&error.to_string());
                return Exit::USAGE;
            }
            summary.message = Some(error.to_string());
            Exit::USAGE
        }
    };
    summary.exit_code = exit.code();
    conclude(summary, arguments.common.json.as_deref())
}

/// Says what went wrong, and writes the summary where it is wanted.
pub(crate) fn conclude(summary: Summary, json: Option<&Path>) -> Exit {
    let exit = Exit::from_report(summary.exit_code.into());
    if let Some(message) = &summary.message {
        say(message);
    }
    match json.map(|path| (path, summary.write(path))) {
        Some((path, Err(error))) => {
            say(&format!("{}: {error}", path.display()));
            if exit == Exit::OK { Exit::NO_REPORT } else { exit }
        }
        _ => exit,
    }
}

/// Runs it by itself: no keyboard is read, and the console goes to `sink`.
pub(crate) fn unattended(arguments: &RunArgs, sink: &mut dyn Write) -> Summary {
    unattended_as(arguments, &nonce(), sink)
}

/// Likewise, with a mark of the report that is known before: for runs that are to be the same, of guests that do not forge any.
pub(crate) fn unattended_as(arguments: &RunArgs, nonce: &str, sink: &mut dyn Write) -> Summary {
    let mut summary = Summary::of(arguments);
    let exit = match prepare(arguments, &mut summary) {
        Ok(mut plan) => {
            let script = Input::Script(plan.script.take().unwrap_or_default());
            plan.play(arguments, nonce, script, sink, &mut summary)
        }
        Err(error) => {
            summary.message = Some(error.to_string());
            Exit::USAGE
        }
    };
    summary.exit_code = exit.code();
    summary
}

/// A run that nothing is known to be wrong with.
struct Plan {
    elf: PathBuf,
    qemu: Qemu,
    machine: Machine,
    addresses: Vec<u64>,
    script: Option<Vec<Step>>,
    control_c: ControlC,
}

fn prepare(arguments: &RunArgs, summary: &mut Summary) -> Result<Plan, Error> {
    for (option, path) in [("json", &arguments.common.json), ("trace", &arguments.trace)] {
        expect_folder(option, path.as_deref())?;
    }
    let workspace = Workspace::find()?;
    let linux = crate::linux::named(&workspace, arguments)?;
    let arguments = linux.as_ref().unwrap_or(arguments);
    let wanted = Wanted::find(&workspace, arguments)?;
    let script = script_of(arguments)?;
    if let Some(mem) = arguments.guest_mem.filter(|mem| *mem < MIN_MEM) {
        return Err(Error::TooLittleGuestMem(mem));
    }
    let qemu = Qemu::find()?;
    summary.qemu = Some(qemu.version().to_string());
    qemu.expect_cpu(&arguments.common.cpu)?;
    if arguments.common.no_build {
        expect_built(&workspace, variant(arguments))?;
    } else {
        build(&workspace, variant(arguments), arguments.common.quiet)?;
    }
    let guest = wanted.load(&workspace, arguments)?;
    let plan = plan(&workspace, arguments, qemu, guest, script)?;
    summary.command = Some(plan.line());
    Ok(plan)
}

/// Fails if the folder that a file is to be written into is not there.
pub(crate) fn expect_folder(option: &'static str, path: Option<&Path>) -> Result<(), Error> {
    match path.and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) if !folder.is_dir() => {
            Err(Error::NoFolder { option, folder: folder.to_owned() })
        }
        _ => Ok(()),
    }
}

fn plan(
    workspace: &Workspace,
    arguments: &RunArgs,
    qemu: Qemu,
    guest: Guest,
    script: Option<Vec<Step>>,
) -> Result<Plan, Error> {
    let kernel = workspace.hyp_bin(variant(arguments));
    let hyp_size = crate::guest::hyp_footprint(&kernel)?;
    let mut words = Vec::new();
    words.extend(arguments.vcpus.map(|vcpus| format!("vcpus={vcpus}")));
    let restarts = arguments.restarts.or(arguments.no_reboot.then_some(0));
    words.extend(restarts.map(|restarts| format!("restarts={restarts}")));
    words.extend(arguments.common.blocks.then(|| "blocks".to_owned()));
    words.extend(arguments.hyp.scan.then(|| "scan".to_owned()));
    words.extend(arguments.measure.then(|| "measure".to_owned()));
    words.extend(arguments.hyp.churn.map(|churn| format!("churn={churn}")));
    words.extend(arguments.hyp.recover.as_ref().map(|recover| format!("recover={recover}")));
    words.extend(arguments.recover_limit.map(|limit| format!("recover-limit={limit}")));
    words.extend(arguments.recover_rate.map(|rate| format!("recover-rate={rate}")));
    words.extend(arguments.mask.map(|mask| format!("mask={mask}")));
    let manage = arguments.manage || guest.is_ours && !arguments.no_manage;
    words.extend(manage.then(|| "manage".to_owned()));
    let recover = arguments.hyp.recover.as_deref().and_then(Asked::parse);
    let mut machine = Machine {
        cpu: arguments.common.cpu.clone(),
        smp: smp(arguments),
        mem: arguments.mem.unwrap_or(DEFAULT_MEM),
        more: recover.map_or(0, |asked| asked.table_bytes()),
        no_reboot: restarts.is_some(),
        icount: arguments.hyp.icount,
        kernel,
        append: String::new(),
        ram: None,
        modules: guest.modules,
        extra: arguments.hyp.extra.clone(),
    };
    let addresses = match machine.place(hyp_size, guest.least_mem) {
        Err(crate::machine::MachineError::TooSmall { needed, .. }) if arguments.mem.is_none() => {
            machine.mem = needed;
            machine.place(hyp_size, guest.least_mem)?
        }
        placed => placed?,
    };
    // By itself the hypervisor gives half of what is free; an image may need more.
    let small = guest.least_mem > machine.room(hyp_size) / 2;
    let mem = arguments.guest_mem.or(small.then_some(guest.least_mem));
    words.extend(mem.map(|mem| format!("mem={}K", mem.div_ceil(1 << 12) << 2)));
    words.extend(arguments.hyp.hyp_append.clone());
    machine.append = words.join(" ");
    let elf = workspace.hyp_elf(variant(arguments));
    Ok(Plan { elf, qemu, machine, addresses, script, control_c: guest.control_c })
}

fn script_of(arguments: &RunArgs) -> Result<Option<Vec<Step>>, Error> {
    if let Some(path) = &arguments.script {
        let read = std::fs::read_to_string(path);
        let text =
            read.map_err(|source| script::ScriptError::Read { path: path.clone(), source })?;
        return Ok(Some(script::parse(&text)?));
    }
    let typed = !arguments.send.is_empty();
    Ok(typed.then(|| script::from_lines(&arguments.prompt, &arguments.send)))
}

fn variant(arguments: &RunArgs) -> Variant {
    match (arguments.trace.is_some(), arguments.common.selftest) {
        _ if arguments.measure => Variant::Measure,
        (true, _) => Variant::Debug,
        (_, true) => Variant::Selftest,
        _ => Variant::Plain,
    }
}

/// CPUs of the machine.
pub(crate) fn smp(arguments: &RunArgs) -> u32 {
    arguments.smp.or(arguments.vcpus).unwrap_or(DEFAULT_SMP)
}

/// Who types; says at the terminal how to end the run.
pub(crate) fn input(script: Option<Vec<Step>>, control_c: ControlC, quiet: bool) -> Input {
    if let Some(steps) = script {
        return Input::Script(steps);
    }
    if !quiet && io::stdin().is_terminal() {
        say(match control_c {
            ControlC::EndsTheRun => "Ctrl-C ends the run",
            ControlC::GoesToTheGuest => {
                "the keyboard is the guest's, Ctrl-C too; Ctrl-A x ends the run"
            }
        });
    }
    Input::Keyboard(control_c)
}

impl Plan {
    /// The line for a shell: without the report and the trace, which only a program reads.
    fn line(&self) -> String {
        shell_line(self.qemu.program(), &self.machine.arguments(&self.addresses))
    }

    fn play(
        mut self,
        arguments: &RunArgs,
        nonce: &str,
        input: Input,
        sink: &mut dyn Write,
        summary: &mut Summary,
    ) -> Exit {
        let separator = if self.machine.append.is_empty() { "" } else { " " };
        self.machine.append.push_str(&format!("{separator}report={nonce}"));
        if arguments.trace.is_some() {
            // One CPU's own order is all the order there is.
            let total = self.machine.icount || self.machine.smp == 1;
            let order = if total { Order::Total } else { Order::PerCpu };
            self.machine.append.push_str(&format!(" trace={order}"));
            let most = arguments.trace_max.map(|most| format!(" trace-max={most}"));
            self.machine.append.push_str(&most.unwrap_or_default());
        }
        let failed = |summary: &mut Summary, what: &Path, error: &dyn std::fmt::Display| {
            summary.message = Some(format!("{}: {error}", what.display()));
            Exit::NO_REPORT
        };
        let ram = arguments.trace.as_ref().map(|_| Ram::new(self.machine.mem, &self.elf));
        let ram = match ram.transpose() {
            Ok(ram) => ram,
            Err(error) => return failed(summary, Path::new("--trace"), &error),
        };
        self.machine.ram = ram.as_ref().map(Ram::path);
        let mut command = self.machine.command(&self.qemu, &self.addresses);
        if let Some(ram) = &ram {
            ram.lend(&mut command);
        }
        let outcome = session::run(&mut command, nonce, input, arguments.common.timeout, sink);
        let exit = match &outcome {
            Ok(outcome) => judge(outcome, summary),
            Err(error) => return failed(summary, self.qemu.program(), error),
        };
        let Some((ram, path)) = ram.zip(arguments.trace.as_ref()) else { return exit };
        let about = format!("{}, cpu {}, QEMU {}", summary.guest, summary.cpu, self.qemu.version());
        match ram.contents(nonce).and_then(|contents| trace::write(path, &contents, about)) {
            Ok(written) => {
                if !arguments.common.quiet || written.dropped != 0 {
                    say(&written.to_string());
                }
                summary.trace = Some(written);
                exit
            }
            Err(error) => {
                say(&format!("--trace {}: {error}", path.display()));
                if exit == Exit::OK { Exit::NO_REPORT } else { exit }
            }
        }
    }
}

/// What a run comes to.
fn judge(outcome: &Outcome, summary: &mut Summary) -> Exit {
    summary.started = Some(outcome.started);
    summary.seconds = outcome.elapsed.as_secs_f64();
    let report = outcome.reports.last().map(|line| read_report(line));
    if let Some(Ok((_, value))) = &report {
        summary.report = Some(value.clone());
    }
    let script = outcome.waiting_for.as_ref().map(|step| format!("; the script was at {step}"));
    let script = script.unwrap_or_default();
    let reported = |exit, message| Told { word: "report", exit, message };
    let unreported =
        |message| Told { word: "no-report", exit: Exit::NO_REPORT, message: Some(message) };
    let Told { word, exit, message } = match (&outcome.end, report) {
        (End::Exited(_) | End::Left, Some(Ok((report, _)))) => {
            let exit = Exit::from_report(report.exit_code.into());
            if exit == Exit::OK && outcome.waiting_for.is_some() {
                let message = format!("the guest ended before its time{script}");
                reported(Exit::VERDICT, Some(message))
            } else {
                reported(exit, None)
            }
        }
        (End::Exited(_) | End::Left, Some(Err(error))) => {
            unreported(format!("the hypervisor's report cannot be read: {error}"))
        }
        (End::Exited(status), None) => {
            let said = outcome.qemu_tail.trim().lines().last().unwrap_or_default();
            let said = if said.is_empty() { String::new() } else { format!(": {said}") };
            unreported(format!("QEMU ended without a report ({status}){said}{script}"))
        }
        (end @ End::TimedOut(_), _) => {
            let told = end.told();
            Told { message: told.message.map(|message| message + &script), ..told }
        }
        (end, _) => end.told(),
    };
    summary.ended = word;
    summary.message = message;
    if exit != Exit::OK {
        summary.console_tail = Some(outcome.console_tail.clone());
    }
    exit
}

fn read_report(line: &str) -> serde_json::Result<(Report, serde_json::Value)> {
    Ok((serde_json::from_str(line)?, serde_json::from_str(line)?))
}

/// A mark that no guest can guess.
pub fn nonce() -> String {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    if filled != Ok(bytes.len()) {
        // No kernel that runs QEMU lacks it; the time is a weaker secret, and still one.
        let time = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        bytes = time.as_nanos().to_le_bytes();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line of ours on standard error; a closed one is no reason to fail.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "hypctl: {text}");
}
