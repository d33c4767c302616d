//! The end-to-end tests: `cargo test -p e2e`, or `./just test-qemu`.
//!
//! | module | what it shows |
//! | --- | --- |
//! | `guests` | our guests pass, on every CPU model and with 1, 2 and 4 vCPUs |
//! | `schedule` | more vCPUs than CPUs take turns, and nothing of EL2's is held when one ends |
//! | `scan` | RAM that lies in pages anywhere becomes blocks, when the guest asks and on idle CPUs |
//! | `irqs` | the interrupt controller as guests see it, and input by interrupt |
//! | `churn` | guests keep every word under a manager that changes how their memory is kept all the time |
//! | `calls` | calls that change memory: who may make them, and what they promise |
//! | `wild` | what a guest does wrong ends in a diagnosis, or is emulated; nothing else |
//! | `violations` | the log of violations says what hardware says, and none is missing in it |
//! | `uboot` | an unmodified program runs, and answers |
//! | `linux` | Debian's kernels come up on every CPU model, run a script and power off; what cannot come up is refused |
//! | `usage` | mistakes at the prompt are sentences, and QEMU is not started |
//! | `recover` | the recovery suite, every scenario on every CPU model |
//! | `refusals` | machines that the hypervisor must refuse, with both sides named |
//! | `images` | the image alone, by plain QEMU lines |
//! | `leftovers` | no end of `hypctl` leaves a QEMU behind |
//! | `terminal` | keyboard and terminal, on a pseudo terminal |
//! | `caches` | what caches and errata lead to, and where nothing needs to be done |
//! | `code` | the machine code keeps the protocol's promises |
//! | `traces` | what the debug build records is whole, and the oracle finds nothing in it |
//! | `crashes` | EL2's guard pages, W^X and crash dump do what they are for |
//! | `cost` | what EL2's work costs, in instructions and flushes: a populate fault, splitting and collapsing 1 GiB |

mod caches;
mod calls;
mod churn;
mod code;
mod cost;
mod crashes;
mod dirtier;
mod guests;
mod images;
mod irqs;
mod leftovers;
mod linux;
mod recover;
mod refusals;
mod scan;
mod schedule;
mod terminal;
mod traces;
mod uboot;
mod usage;
mod violations;
mod wild;
mod window;
