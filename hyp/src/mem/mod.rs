//! The hypervisor's memory.
//!
//! | file | what |
//! | --- | --- |
//! | `image` | where the linker put what |
//! | `heap` | small things, from a fixed arena in the image |
//! | `frames` | all RAM that nobody else has, in 4 KiB frames, behind one lock; what is known of each frame |
//! | `cache` | a CPU's own stock of zeroed frames: the only source the fault path has |
//! | `tables` | the same stock as the `Memory` of crate `stage2` |
//! | `clean` | data cache maintenance by address |
//! | `el2_map` | EL2's own translation: identity, W^X, guard pages |

pub(crate) mod cache;
pub(crate) mod clean;
pub(crate) mod el2_map;
pub(crate) mod frames;
pub(crate) mod heap;
pub(crate) mod image;
pub(crate) mod tables;

/// Bytes in a page.
pub(crate) const PAGE: u64 = 4096;
