//! The protocols of crate `stage2` under two model checkers.
//!
//! **Loom** executes every interleaving of a small case, and for each load every value that the C11
//! memory model permits, so a memory order that is too weak shows. **Shuttle** executes random
//! interleavings of larger cases, sequentially consistent. Both run the code of `stage2` itself:
//! its atomics are theirs in these builds (`--cfg loom`, `--cfg shuttle`), and without a cfg this
//! crate is empty. The oracle judges every execution; its state is invisible to loom, so that it
//! adds no order that hardware does not have.
//!
//! * `world`: one VM on a machine whose memory is dirty: a table page that is seen before it was
//!   zeroed, or a frame before it was filled, reads as rubbish.
//! * `guest`: what a PE's hardware does meanwhile.
//! * `el2`: what a PE reaches at EL2 by way of EL2's window.
//! * `ranges`: the operations on ranges, as a PE does them.
//! * `protocol`: the cases. Each is a function that ends in assertions on behaviour, and names the
//!   outcome that it came to.
//! * `protocol::violations` and `protocol::standstill` are without a VM: the ring and the pause of crate `hyp-core`, made of the same atomics.
//! * `check`: runs a case under the checker of this build, counts, and insists on every outcome.
//!
//! `docs/src/models.md` has what is modelled, what is not, and the counts.

#![cfg(any(loom, shuttle))]

#[cfg(loom)]
#[path = "check/exhaustive.rs"]
pub mod check;
#[cfg(all(shuttle, not(loom)))]
#[path = "check/random.rs"]
pub mod check;
pub mod el2;
pub mod guest;
pub mod outcome;
pub mod protocol;
pub mod ranges;
pub mod world;

/// The checker's threads and atomics.
pub(crate) mod sched {
    #[cfg(loom)]
    pub(crate) use loom::thread;
    #[cfg(all(shuttle, not(loom)))]
    pub(crate) use shuttle::thread;
    pub(crate) use stage2::sync as atomic;
}
