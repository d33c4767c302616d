//! QEMU without `hypctl`: for what a user may type, and for machines that `hypctl` would not make.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hyp_abi::map::{IMAGE_OFFSET, RAM_BASE};
use hypctl::console::Console;
use serde_json::json;

use crate::run::Run;
use crate::{bounded, host};

/// The mark of the report for runs that ask for one: `report=` and this.
pub const NONCE: &str = "feedfacecafebeef0123456789abcdef";

/// How long such a run may take.
const BOUND: Duration = Duration::from_secs(60);

/// A machine with 512 MiB that starts `kernel`; `arguments` follow on the command line and may
/// change it.
#[track_caller]
pub fn qemu<S: AsRef<OsStr>>(kernel: &Path, arguments: impl IntoIterator<Item = S>) -> Run {
    let mut command = machine("virtualization=on");
    command.arg("-kernel").arg(kernel).args(arguments);
    ran(command)
}

/// A machine without EL2 that starts the guest `image`: nobody is below it. It finds QEMU's device tree where RAM begins.
#[track_caller]
pub fn guest(image: &Path) -> Run {
    let mut command = machine("virtualization=off");
    let (file, at) = (image.display(), RAM_BASE + IMAGE_OFFSET);
    command.arg("-device").arg(format!("loader,file={file},addr={at:#x},cpu-num=0"));
    ran(command)
}

fn machine(virtualization: &str) -> Command {
    let mut command = Command::new(hypctl::qemu::PROGRAM);
    command.args(["-M", &format!("virt,{virtualization},gic-version=3,dtb-randomness=off")]);
    command.args(["-cpu", "max", "-smp", "2", "-m", "512M", "-nic", "none", "-nographic"]);
    command
}

#[track_caller]
fn ran(mut command: Command) -> Run {
    let _host = host::shared();
    let mut ended = bounded::run(&mut command, b"", BOUND).unwrap();
    let mut console = Console::new(NONCE);
    let mut text = console.feed(ended.stdout.as_bytes());
    text.extend(console.finish());
    ended.stdout = String::from_utf8_lossy(&text).into_owned();
    let summary = console.reports().last().map(|line| {
        let report: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        json!({ "exit_code": 0, "ended": "report", "report": report }).to_string()
    });
    Run::new(&command, ended, summary)
}
