//! `hypctl` as the tests start it.

use std::process::ExitCode;

fn main() -> ExitCode {
    hypctl::main()
}
