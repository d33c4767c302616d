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
    Barrier, Contents, HEAD_BYTES, Head, Invalidation, Order, Record, Setup, TraceError, What,
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
        What::Write { slot, old, new, atomic } => {
            // Every store of the library has release order.
            return (Event::Write { pe, slot, new, atomic, relaxed: false }, Some(old));
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
            };
            Event::Tlbi { pe, scope, aim }
        }
        What::Published => Event::Published { pe },
        What::AllocTable { table } => Event::AllocTable { pe, table },
        What::FreeTable { table } => Event::FreeTable { pe, table },
        What::FreeFrame { frame, bytes } => Event::FreeFrame { pe, frame, bytes },
        What::Flushed { vmid, range } => {
            Event::Flushed { pe, vmid, span: range.map(|(ipa, bytes)| Span { ipa, bytes }) }
        }
    };
    (event, None)
}
