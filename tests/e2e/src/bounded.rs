//! A command that ends: by itself, or by the harness when its time is up.

use std::io::{self, Read, Write};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use hypctl::process::Leashed;

/// What a command did.
#[derive(Debug)]
pub struct Ended {
    /// Its status; `None` if its time was up.
    pub status: Option<ExitStatus>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub elapsed: Duration,
}

/// Runs `command` with `input` on its standard input, for at most `bound`. The input stays open
/// until the end: QEMU and `hypctl` both take its closing as a person who went away.
pub fn run(command: &mut Command, input: &[u8], bound: Duration) -> io::Result<Ended> {
    let started = Instant::now();
    let mut child = Leashed::spawn(command)?;
    let (mut stdin, stdout, stderr) =
        child.take_pipes().ok_or_else(|| io::Error::other("no pipes"))?;
    std::thread::scope(|scope| {
        let stdout = scope.spawn(move || read_all(stdout));
        let stderr = scope.spawn(move || read_all(stderr));
        // A program that ends without reading is no failure here.
        let _ = stdin.write_all(input).and_then(|()| stdin.flush());
        let status = child.wait(bound)?;
        let elapsed = started.elapsed();
        child.kill();
        let text = |bytes: std::thread::Result<Vec<u8>>| {
            String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
        };
        Ok(Ended { status, stdout: text(stdout.join()), stderr: text(stderr.join()), elapsed })
    })
}

fn read_all(mut pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = pipe.read_to_end(&mut bytes);
    bytes
}
