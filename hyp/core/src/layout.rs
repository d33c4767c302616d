//! Which memory is free: RAM minus everything that already lies in it.
//!
//! Each part is checked before anything is handed out: the hypervisor's image, the device tree and the
//! modules must lie inside RAM and apart from each other, and neither image nor module may lie in memory
//! that the tree reserves. The error names both sides. (The tree itself may be listed as reserved: some
//! boot loaders do.)
//!
//! Free ranges are whole pages, sorted and apart: a page that anything touches is not free.

#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;

use crate::fdt::Platform;
use crate::range::{Named, PaRange};

/// Why the machine's memory cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// Two things in the same place.
    #[error("{first} overlaps {second}")]
    Overlap {
        /// One.
        first: Named<PaRange>,
        /// The other.
        second: Named<PaRange>,
    },
    /// Something that has to lie in RAM does not.
    #[error("{what} is not inside RAM ({ram})")]
    OutsideRam {
        /// The thing.
        what: Named<PaRange>,
        /// All RAM ranges, for the message.
        ram: String,
    },
    /// Something that has to hold bytes is empty.
    #[error("{0} holds nothing")]
    Empty(Named<PaRange>),
    /// Nothing is free.
    #[error("no page of RAM is free ({ram})")]
    NoFreeRam {
        /// All RAM ranges, for the message.
        ram: String,
    },
}

/// What is free, and what is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Free memory: whole pages, sorted, apart, not empty.
    pub free: Vec<PaRange>,
    /// What RAM is occupied by: sorted by address, for the boot log.
    pub used: Vec<Named<PaRange>>,
}

impl Layout {
    /// All free memory, in bytes.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free.iter().fold(0, |sum, range| sum.saturating_add(range.len()))
    }
}

/// Computes the layout. `image` is the hypervisor with its zeroed data and stacks, `tree` the device
/// tree's blob.
///
/// # Errors
/// [`LayoutError`], see there.
pub fn plan(platform: &Platform, image: PaRange, tree: PaRange) -> Result<Layout, LayoutError> {
    let mut placed = Vec::new();
    placed.push(Named::new("the hypervisor's image", image));
    placed.push(Named::new("the device tree", tree));
    for module in &platform.modules {
        placed.push(Named::new(alloc::format!("the {} module", module.kind), module.range));
    }
    for (index, first) in placed.iter().enumerate() {
        if first.value.is_empty() {
            return Err(LayoutError::Empty(first.clone()));
        }
        let inside = platform.ram.iter().any(|ram| ram.contains_range(&first.value));
        if !inside {
            return Err(LayoutError::OutsideRam { what: first.clone(), ram: list(&platform.ram) });
        }
        let may_be_reserved = index == 1;
        let reserved = platform.reserved.iter().filter(|_| !may_be_reserved);
        let others = placed.iter().skip(index.saturating_add(1)).chain(reserved);
        if let Some(second) = others.into_iter().find(|other| other.value.overlaps(&first.value)) {
            return Err(LayoutError::Overlap { first: first.clone(), second: second.clone() });
        }
    }

    let mut used: Vec<_> = placed.into_iter().chain(platform.reserved.iter().cloned()).collect();
    used.retain(|item| platform.ram.iter().any(|ram| ram.overlaps(&item.value)));
    used.sort_by_key(|item| item.value);
    let free = subtract(&platform.ram, &used);
    if free.is_empty() {
        return Err(LayoutError::NoFreeRam { ram: list(&platform.ram) });
    }
    Ok(Layout { free, used })
}

/// The whole pages of `ram` that nothing in `used` (sorted by start) touches.
fn subtract(ram: &[PaRange], used: &[Named<PaRange>]) -> Vec<PaRange> {
    let mut free = Vec::new();
    for range in ram {
        let range = range.shrink_to_pages();
        let mut cursor = range.start;
        for item in used.iter().filter(|item| !item.value.is_empty()) {
            // Past the last page of the address space there is nothing to keep free.
            let hole = item
                .value
                .grow_to_pages()
                .unwrap_or(PaRange { start: item.value.start & !0xfff, end: u64::MAX });
            if hole.start >= range.end || hole.end <= cursor {
                continue;
            }
            if hole.start > cursor {
                free.push(PaRange { start: cursor, end: hole.start });
            }
            cursor = hole.end;
        }
        if cursor < range.end {
            free.push(PaRange { start: cursor, end: range.end });
        }
    }
    free
}

fn list(ranges: &[PaRange]) -> String {
    let mut text = String::new();
    for range in ranges {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&alloc::format!("{range}"));
    }
    text
}
