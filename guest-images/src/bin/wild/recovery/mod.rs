//! Accesses to a *recovery window*: addresses where there is no memory, and where that is not the end.
//!
//! | file | what |
//! | --- | --- |
//! | `kinds.rs` | every kind of access on the scratch page, one page of the window for each |
//! | `wide.rs` | accesses that reach over an edge: of a page, of RAM, of the VM's addresses |
//! | `walks.rs` | stage-1 tables in the window, and code |
//! | `aborts.rs` | the policy `inject`: what the guest's own handlers find |
//! | `windows.rs` | windows that the guest declares itself; several policies at once |
//! | `crowd.rs` | several vCPUs at one page |
//! | `changes.rs` | memory around holes that changes meanwhile |
//! | `floods.rs` | very many violations |
//! | `tables.rs` | more holes than scratch may have tables for |
//! | `told.rs` | when a violation is told |
//! | `lives.rs` | what the next VM finds |
//! | `el2.rs` | EL2 reaches for the guest's memory itself |
//! | `logged.rs` | accesses whose records are known |
//!
//! The window of most cases begins where RAM ends and is [`BYTES`] long, which `hypctl recover` tells the hypervisor. What the
//! guest cannot see, such as how many violations were recorded, is judged there.

pub(crate) mod aborts;
pub(crate) mod changes;
pub(crate) mod crowd;
pub(crate) mod el2;
pub(crate) mod floods;
pub(crate) mod kinds;
pub(crate) mod lives;
pub(crate) mod logged;
pub(crate) mod tables;
pub(crate) mod told;
pub(crate) mod walks;
pub(crate) mod wide;
pub(crate) mod windows;

use guest_rt::{Machine, PAGE, call, check_eq, fail};
use hyp_abi::call::Stat;

/// Bytes of the window.
const BYTES: usize = 16 << 20;
/// What a scratch page is filled with.
const PATTERN: u64 = 0x5c5c_5c5c_5c5c_5c5c;

/// Pages of the window, each handed out once.
struct Hole {
    next: usize,
    end: usize,
}

impl Hole {
    /// The window, which begins behind RAM.
    fn of(machine: &Machine) -> Self {
        Self { next: machine.ram.end, end: machine.ram.end + BYTES }
    }

    /// So many pages, one behind the other, that nobody has touched.
    fn take(&mut self, pages: usize) -> usize {
        let start = self.next;
        self.next += pages * PAGE;
        if self.next > self.end {
            fail!("the window has no {pages} pages left");
        }
        start
    }
}

/// What the hypervisor has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    recovered: u64,
    scratched: u64,
    injected: u64,
}

impl Counts {
    fn now() -> Self {
        let [recovered, scratched, injected] =
            [Stat::Recovered, Stat::Scratched, Stat::Injected].map(stat);
        Self { recovered, scratched, injected }
    }

    /// What was counted since.
    fn since(self) -> Self {
        let now = Self::now();
        Self {
            recovered: now.recovered - self.recovered,
            scratched: now.scratched - self.scratched,
            injected: now.injected - self.injected,
        }
    }
}

/// A counter of the hypervisor.
fn stat(which: Stat) -> u64 {
    call::stat(which).unwrap_or_else(|| fail!("no hypervisor"))
}

/// Runs `f`, in which so many pages have to get the scratch page, each by one violation.
fn recovers<T>(what: &str, pages: u64, f: impl FnOnce() -> T) -> T {
    let before = Counts::now();
    let value = f();
    let wanted = Counts { recovered: pages, scratched: pages, injected: 0 };
    check_eq!(before.since(), wanted, "counts of {what}");
    value
}

/// Runs `f`, in which so many accesses have to be aborts.
fn injects<T>(what: &str, accesses: u64, f: impl FnOnce() -> T) -> T {
    let before = Counts::now();
    let value = f();
    let wanted = Counts { recovered: 0, scratched: 0, injected: accesses };
    check_eq!(before.since(), wanted, "counts of {what}");
    value
}
