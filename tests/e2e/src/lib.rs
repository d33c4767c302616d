//! What the end-to-end tests are written with.
//!
//! A test is one sentence: a [`Scenario`] (which guest, which machine, what is typed) that runs
//! through `hypctl` as a user would start it, and expectations on the [`Run`] that comes of it.
//! [`disassembly`] looks at the image instead of running it.
//!
//! Three promises hold for every run: it ends ([`bounded`]), its console is in the message of a
//! failing expectation, and what it needs (QEMU, a CPU model, U-Boot) fails it by name when
//! missing; nothing is ever skipped.

pub mod bounded;
pub mod disassembly;
pub mod host;
pub mod keyboard;
pub mod plain;
pub mod run;
pub mod scenario;
pub mod trace;

/// The CPU models that together take every path of the hypervisor.
pub use hypctl::qemu::TESTED_CPUS;
pub use run::Run;
pub use scenario::{Scenario, debug_images, hypctl, image, images, selftest_images};
pub use trace::Trace;

/// One test for each of the tested CPU models: `on_every_cpu!(name, |cpu| …)` makes
/// `name::max`, `name::neoverse_n2`, `name::cortex_a76` and `name::cortex_a53`.
#[macro_export]
macro_rules! on_every_cpu {
    ($name:ident, |$cpu:ident| $body:expr) => {
        mod $name {
            use super::*;

            fn check($cpu: &str) {
                $body;
            }

            #[test]
            fn max() {
                check("max");
            }

            #[test]
            fn neoverse_n2() {
                check("neoverse-n2");
            }

            #[test]
            fn cortex_a76() {
                check("cortex-a76");
            }

            #[test]
            fn cortex_a53() {
                check("cortex-a53");
            }
        }
    };
}
