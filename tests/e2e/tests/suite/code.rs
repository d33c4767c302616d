//! The machine code of the release image keeps the protocol's promises.

use e2e::disassembly::Program;
use e2e::images;
use hypctl::workspace::Variant;

/// The strict-empty install; never inlined, so that it can be read here.
const INSTALL: &str = "Slot::try_set";

fn program() -> Program {
    Program::read(&images().hyp_elf(Variant::Plain))
}

#[test]
fn try_set_is_a_load_exclusive_store_exclusive_loop() {
    for function in program().functions(INSTALL) {
        function.is_exclusive_loop();
    }
}

#[test]
fn try_set_calls_nothing() {
    for function in program().functions(INSTALL) {
        function.calls_nothing();
    }
}

#[test]
fn no_helper_chooses_the_atomics_at_run_time() {
    let symbols = program().symbols();
    assert!(symbols.len() > 100, "only {} symbols: stripped?", symbols.len());
    let helpers = ["__aarch64_cas", "__aarch64_swp", "__aarch64_ld", "__sync_", "__atomic_"];
    let found: Vec<_> = symbols
        .iter()
        .filter(|name| helpers.iter().any(|helper| name.starts_with(helper)))
        .collect();
    assert!(found.is_empty(), "outline atomics in the image: {found:?}");
}
