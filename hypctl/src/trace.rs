//! `hypctl run --trace`: where the hypervisor's trace is kept, and how it comes out.
//!
//! The hypervisor's debug build records into a buffer of its own image, that is, into the machine's RAM. QEMU
//! gets a memory file of ours for that RAM ([`Ram`]): shared, without a name, and gone with the last of
//! us, so that nothing is left behind and no folder can be full. When QEMU has ended, whatever ended it, the
//! buffer is read from the file: no monitor has to answer and no guest has to cooperate. It needs
//! `memory-backend-file`, which QEMU has had since before 5.0.
//!
//! The buffer is found by its symbol in the image's ELF, and the run's nonce stands in it: a buffer of
//! another build or another run is an error, not a trace.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, io};

use hyp_core::trace::{
    Access, Barrier, Contents, HEAD_BYTES, Head, Invalidation, Order, Record, Setup, TraceError,
    What,
};
use mmu_oracle::event::{Aim, Dsb, Event, Scope, Span};
use mmu_oracle::model::Machine;
use mmu_oracle::recorded::{self, Header};
use object::{Object, ObjectSymbol};
use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;
use serde::Serialize;

use crate::machine::RAM_BASE;

/// The buffer's symbol in the image.
const SYMBOL: &str = "HYP_TRACE";
/// `VTCR_EL2.HA` and `HD`.
const HARDWARE_ACCESS: u64 = 1 << 21;
const HARDWARE_DIRTY: u64 = 1 << 22;

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum NoTrace {
    /// The memory file, or the trace's file.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The image was not built to trace.
    #[error("{}: no symbol {SYMBOL}: build it again", .0.display())]
    NoBuffer(PathBuf),
    /// The buffer holds none.
    #[error("{0}")]
    Buffer(#[from] TraceError),
}

/// What was written, for the summary.
#[derive(Clone, Debug, Serialize)]
pub struct Written {
    /// The file.
    pub file: PathBuf,
    /// Events in it.
    pub events: usize,
    /// Events that found no room.
    pub dropped: u64,
    /// `total` or `per-pe`.
    pub order: String,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, events, dropped, order } = self;
        write!(f, "trace: {events} events, order {order}: {}", file.display())?;
        if *dropped != 0 {
            write!(f, "; truncated: {dropped} more found no room")?;
        }
        Ok(())
    }
}

/// The machine's RAM, in a file that only we and QEMU can reach.
#[derive(Debug)]
pub struct Ram {
    file: File,
    buffer: u64,
}

impl Ram {
    /// RAM of `bytes` bytes for the hypervisor whose ELF is `elf`.
    pub fn new(bytes: u64, elf: &Path) -> Result<Self, NoTrace> {
        let buffer = buffer(elf)?;
        let file = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC);
        let file = File::from(file.map_err(io::Error::from)?);
        file.set_len(bytes)?;
        Ok(Self { file, buffer })
    }

    /// The path under which a command that was lent the file finds it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Lets `command` inherit the file.
    pub fn lend(&self, command: &mut Command) {
        let number = self.file.as_raw_fd();
        let in_child = move || {
            // SAFETY: (1) the number was open when the command was made; should the file be closed by
            // now, the call fails and so does the spawn.
            let inherited = unsafe { BorrowedFd::borrow_raw(number) };
            rustix::io::fcntl_setfd(inherited, FdFlags::empty())?;
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec.
        // 1. It makes one system call that is async-signal-safe (fcntl).
        // 2. It neither allocates nor takes a lock, and touches no memory shared with other threads.
        unsafe { command.pre_exec(in_child) };
    }

    /// What the hypervisor recorded in the run with this nonce. QEMU has ended.
    pub fn contents(&self, nonce: &str) -> Result<Contents, NoTrace> {
        let mut bytes = vec![0; HEAD_BYTES];
        self.file.read_exact_at(&mut bytes, self.buffer)?;
        let head = Head::read(&bytes, nonce)?;
        let used = usize::try_from(head.used()).map_err(io::Error::other)?;
        bytes.resize(used, 0);
        self.file.read_exact_at(&mut bytes, self.buffer)?;
        Ok(Contents::read(&bytes, nonce)?)
    }
}

/// Where in RAM the buffer of an image lies.
fn buffer(elf: &Path) -> Result<u64, NoTrace> {
    let bytes = std::fs::read(elf)?;
    let file = object::File::parse(&*bytes).map_err(io::Error::other)?;
    let symbol = file.symbol_by_name(SYMBOL);
    let offset = symbol.and_then(|symbol| symbol.address().checked_sub(RAM_BASE));
    offset.ok_or_else(|| NoTrace::NoBuffer(elf.to_owned()))
}

/// Writes a trace as JSON lines. `source` says what was recorded.
pub fn write(path: &Path, contents: &Contents, source: String) -> Result<Written, NoTrace> {
    let mut header = Header::new(order(contents.head.setup.order), machine(&contents.head.setup));
    header.dropped = contents.head.dropped;
    header.incomplete = contents.incomplete;
    header.source = Some(source);
    let mut text = header.to_line().map_err(io::Error::other)?;
    text.push('\n');
    for record in &contents.records {
        let (event, old) = event(record);
        text.push_str(&recorded::to_line(&event, old).map_err(io::Error::other)?);
        text.push('\n');
    }
    crate::atomic::write(path, text.as_bytes())?;
    Ok(Written {
        file: path.to_owned(),
        events: contents.records.len(),
        dropped: header.dropped,
        order: contents.head.setup.order.to_string(),
    })
}

fn order(order: Order) -> recorded::Order {
    match order {
        Order::Total => recorded::Order::Total,
        Order::PerCpu => recorded::Order::PerPe,
    }
}

fn machine(setup: &Setup) -> Machine {
    Machine {
        pes: setup.cpus as usize,
        start_level: setup.start_level as u8,
        root_pages: setup.root_pages,
        bbm: setup.bbm as u8,
        hw_access: setup.vtcr & HARDWARE_ACCESS != 0,
        hw_dirty: setup.vtcr & HARDWARE_DIRTY != 0,
        dead: Some(setup.dead),
    }
}

/// A record in the oracle's words, and what a written descriptor held before.
fn event(record: &Record) -> (Event, Option<u64>) {
    let pe = usize::from(record.cpu);
    let event = match record.what {
        What::SetVttbr { value } => Event::SetVttbr { pe, value },
        What::Synchronized => Event::Isb { pe },
        What::Write { slot, old, new, by } => {
            let (atomic, relaxed) = (by == Access::Atomic, by == Access::Relaxed);
            return (Event::Write { pe, slot, new, atomic, relaxed }, Some(old));
        }
        What::Dsb(barrier) => {
            let kind = match barrier {
                Barrier::IshSt => Dsb::IshSt,
                Barrier::Ish => Dsb::Ish,
                Barrier::Nsh => Dsb::Nsh,
            };
            Event::Dsb { pe, kind }
        }
        What::Tlbi(invalidation, operand) => {
            let (scope, aim) = match invalidation {
                Invalidation::Ipas2e1Is => (Scope::Is, Aim::Ipa(operand)),
                Invalidation::Ripas2e1Is => (Scope::Is, Aim::IpaRange(operand)),
                Invalidation::Ipas2e1 => (Scope::Local, Aim::Ipa(operand)),
                Invalidation::Vmalle1Is => (Scope::Is, Aim::VmStage1),
                Invalidation::Vmalle1 => (Scope::Local, Aim::VmStage1),
                Invalidation::Vmalls12e1Is => (Scope::Is, Aim::Vm),
                Invalidation::Alle1Is => (Scope::Is, Aim::All),
                Invalidation::Vmalls12e1 => (Scope::Local, Aim::Vm),
                Invalidation::Vae2Is => (Scope::Is, Aim::El2Va(operand)),
                Invalidation::Alle2Is => (Scope::Is, Aim::El2All),
            };
            Event::Tlbi { pe, scope, aim }
        }
        What::Lent { vmid } => Event::ReuseVmid { pe, vmid },
        What::Locked { table } => Event::Lock { pe, table },
        What::Unlocked { table } => Event::Unlock { pe, table },
        What::Published => Event::Published { pe },
        What::AllocTable { table } => Event::AllocTable { pe, table },
        What::FreeTable { table } => Event::FreeTable { pe, table },
        What::FreeFrame { frame, bytes } => Event::FreeFrame { pe, frame, bytes },
        What::Flushed { vmid, range } => {
            Event::Flushed { pe, vmid, span: range.map(|(ipa, bytes)| Span { ipa, bytes }) }
        }
        What::El2Root { root } => Event::El2Root { pe, root },
        What::El2Flushed => Event::El2Flushed { pe },
    };
    (event, None)
}

#[cfg(test)]
mod tests {
    use mmu_oracle::recorded::Recording;

    use super::*;

    /// A trace of these steps, all of CPU 1.
    fn contents(steps: &[What]) -> Contents {
        let setup = Setup {
            order: Order::PerCpu,
            cpus: 4,
            start_level: 2,
            root_pages: 8,
            bbm: 2,
            vtcr: HARDWARE_ACCESS,
            dead: 6,
        };
        let head = Head { setup, records: steps.len() as u64, dropped: 5 };
        let records = steps.iter().map(|what| Record { cpu: 1, what: *what }).collect();
        Contents { head, records, incomplete: 2 }
    }

    fn read_back(contents: &Contents) -> Recording {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.jsonl");
        let written = write(&path, contents, "a test".to_owned()).unwrap();
        assert_eq!((written.events, written.dropped), (contents.records.len(), 5));
        assert_eq!(
            written.to_string(),
            format!(
                "trace: {} events, order per-pe: {}; truncated: 5 more found no room",
                written.events,
                path.display()
            )
        );
        Recording::read(&*std::fs::read(&path).unwrap(), |_| {}).unwrap()
    }

    #[test]
    fn the_header_says_what_the_machine_was() {
        let header = read_back(&contents(&[])).header;
        let Machine { pes, start_level, root_pages, bbm, hw_access, hw_dirty, dead } =
            header.machine;
        assert_eq!((pes, start_level, root_pages, bbm), (4, 2, 8, 2));
        assert_eq!((hw_access, hw_dirty, dead), (true, false, Some(6)));
        assert_eq!((header.order, header.dropped), (recorded::Order::PerPe, 5));
        assert_eq!((header.incomplete, header.source.as_deref()), (2, Some("a test")));
    }

    #[test]
    fn every_kind_of_record_becomes_its_event() {
        let is = Scope::Is;
        let tlbi = |scope, aim| Event::Tlbi { pe: 1, scope, aim };
        let span = Some(Span { ipa: 0x5000, bytes: 0x2000 });
        let pairs = [
            (What::SetVttbr { value: 1 << 48 }, Event::SetVttbr { pe: 1, value: 1 << 48 }),
            (What::Synchronized, Event::Isb { pe: 1 }),
            (
                What::Write { slot: 8, old: 2, new: 3, by: Access::Store },
                Event::Write { pe: 1, slot: 8, new: 3, atomic: false, relaxed: false },
            ),
            (What::Dsb(Barrier::IshSt), Event::Dsb { pe: 1, kind: Dsb::IshSt }),
            (What::Dsb(Barrier::Ish), Event::Dsb { pe: 1, kind: Dsb::Ish }),
            (What::Dsb(Barrier::Nsh), Event::Dsb { pe: 1, kind: Dsb::Nsh }),
            (What::Tlbi(Invalidation::Ipas2e1Is, 7), tlbi(is, Aim::Ipa(7))),
            (What::Tlbi(Invalidation::Ripas2e1Is, 7), tlbi(is, Aim::IpaRange(7))),
            (What::Tlbi(Invalidation::Ipas2e1, 7), tlbi(Scope::Local, Aim::Ipa(7))),
            (What::Tlbi(Invalidation::Vmalle1Is, 0), tlbi(is, Aim::VmStage1)),
            (What::Tlbi(Invalidation::Vmalle1, 0), tlbi(Scope::Local, Aim::VmStage1)),
            (What::Tlbi(Invalidation::Vmalls12e1Is, 0), tlbi(is, Aim::Vm)),
            (What::Tlbi(Invalidation::Alle1Is, 0), tlbi(is, Aim::All)),
            (What::Tlbi(Invalidation::Vmalls12e1, 0), tlbi(Scope::Local, Aim::Vm)),
            (What::Tlbi(Invalidation::Vae2Is, 7), tlbi(is, Aim::El2Va(7))),
            (What::Tlbi(Invalidation::Alle2Is, 0), tlbi(is, Aim::El2All)),
            (What::El2Root { root: 0x8000 }, Event::El2Root { pe: 1, root: 0x8000 }),
            (What::El2Flushed, Event::El2Flushed { pe: 1 }),
            (What::AllocTable { table: 0x1000 }, Event::AllocTable { pe: 1, table: 0x1000 }),
            (What::FreeTable { table: 0x1000 }, Event::FreeTable { pe: 1, table: 0x1000 }),
            (
                What::FreeFrame { frame: 0x3000, bytes: 0x1000 },
                Event::FreeFrame { pe: 1, frame: 0x3000, bytes: 0x1000 },
            ),
            (What::Published, Event::Published { pe: 1 }),
            (
                What::Flushed { vmid: 9, range: Some((0x5000, 0x2000)) },
                Event::Flushed { pe: 1, vmid: 9, span },
            ),
            (What::Flushed { vmid: 9, range: None }, Event::Flushed { pe: 1, vmid: 9, span: None }),
            (What::Lent { vmid: 9 }, Event::ReuseVmid { pe: 1, vmid: 9 }),
        ];
        let steps: Vec<_> = pairs.iter().map(|(what, _)| *what).collect();
        let recording = read_back(&contents(&steps));
        for (line, (what, event)) in recording.lines.iter().zip(&pairs) {
            assert_eq!(&line.event, event, "{what:?}");
            assert_eq!(line.old, matches!(what, What::Write { .. }).then_some(2), "{what:?}");
        }
        assert_eq!(recording.lines.len(), pairs.len());
    }

    /// The file is QEMU's to map and ours to read, whatever becomes of QEMU.
    #[test]
    fn a_command_writes_into_the_memory_that_it_was_lent() {
        let file = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        let ram = Ram { file: file.into(), buffer: 4 };
        ram.file.set_len(64).unwrap();
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("printf 'hello' 1<>{}", ram.path().display()));
        ram.lend(&mut command);
        assert!(command.status().unwrap().success());
        let mut bytes = [0; 6];
        ram.file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"hello\0");
        // It is no trace, and shorter than one.
        assert!(matches!(ram.contents("0123456789abcdef"), Err(NoTrace::Io(_))));
        ram.file.set_len(1 << 20).unwrap();
        let error = ram.contents("0123456789abcdef").unwrap_err();
        assert!(matches!(error, NoTrace::Buffer(TraceError::NotBegun)), "{error}");
    }

    #[test]
    fn an_image_without_a_buffer_is_named() {
        let own = std::env::current_exe().unwrap();
        let error = Ram::new(1 << 20, &own).unwrap_err().to_string();
        assert!(error.contains("no symbol HYP_TRACE: build it again"), "{error}");
        assert!(Ram::new(1 << 20, Path::new("/nonexistent")).is_err());
    }
}
