//! Seeded defects: each is one changed line of a protocol, and a named test must kill it.
//!
//! A test that passes says little until it has been seen to fail. The registry, `mutants.toml`, lists
//! defects that somebody could make, or shipped; for each it names the rule that is broken and the
//! test that shows it, by an assertion on behaviour.
//!
//! ```text
//!  mutants.toml ──▶ registry ──▶ source: finds each fragment in the syntax tree
//!                                  │
//!                   workspace: a copy of the packages, each fragment replaced by
//!                                  │   if crate::seeded::on(7) { mutated } else { original }
//!                   build: one build of the copy for all mutants, one more for each other cfg
//!                                  │
//!                   run: one process for each mutant, which an environment variable picks
//!                                  │
//!                   report ◀───────┘   killed, survived, hung, failed elsewhere
//! ```
//!
//! The sources stay clean: the switch exists in the copy only, so nothing that is released can contain
//! it. Since all mutants are in one build, a run costs what its test costs.
//!
//! A mutant is killed only if its test *fails*, by a panic with the text that the registry states,
//! after the seeded line was executed. A crash, another panic, or no end within the time are not kills:
//! they say that something is wrong, not that somebody would notice what.

pub mod build;
pub mod registry;
pub mod report;
pub mod run;
pub mod source;
pub mod stop;
pub mod workspace;

/// The environment variable that picks a mutant by its number, from 1. Unset: none.
pub const SWITCH: &str = "SEEDED_DEFECT_NUMBER";

/// What a process writes to its standard error when it first executes the mutant that was picked.
pub const REACHED: &str = "seeded defect reached";
