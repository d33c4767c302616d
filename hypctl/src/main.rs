//! `hypctl`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hypctl::main()
}
