//! Reading nodes of a checked tree: the `fdt` crate walks, the decoding is ours.
//!
//! Its own helpers are not used for values: they expect lengths that nobody has checked (`#address-cells`
//! of two bytes panics), and they take a node's cells from its parent even where the binding says
//! otherwise. Everything here returns an error for a value of the wrong form.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ::fdt::node::FdtNode;

use super::error::FdtError;
use crate::range::PaRange;

/// The most `reg` entries that one node may have.
const MAX_REGS: usize = 64;

/// How a node's children write addresses and sizes, in 32-bit cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cells {
    pub(super) address: u32,
    pub(super) size: u32,
}

impl Cells {
    /// Two each: what QEMU's root has, and what its module nodes are written in.
    pub(super) const TWO: Self = Self { address: 2, size: 2 };
}

/// A node, with what its parents say about it.
#[derive(Clone, Copy)]
pub(super) struct Node<'b, 'a> {
    inner: FdtNode<'b, 'a>,
    /// How its own `reg` is written.
    cells: Option<Cells>,
    /// Whether its addresses are physical ones: every bus above maps one to one.
    mapped: bool,
    is_root: bool,
}

impl<'b, 'a> Node<'b, 'a> {
    /// The root.
    pub(super) fn root(tree: &'b ::fdt::Fdt<'a>) -> Option<Self> {
        let inner = tree.all_nodes().next()?;
        Some(Self { inner, cells: None, mapped: true, is_root: true })
    }

    /// Its name with the unit address, for messages.
    pub(super) fn name(&self) -> String {
        if self.is_root { "/".to_string() } else { self.inner.name.to_string() }
    }

    /// The name before the `@`.
    pub(super) fn base_name(&self) -> &'a str {
        self.inner.name.split('@').next().unwrap_or_default()
    }

    /// Whether a path component means this node: with or without the unit address.
    pub(super) fn is_called(&self, component: &str) -> bool {
        self.inner.name == component || self.base_name() == component
    }

    /// Whether addresses below the buses above this node are physical ones.
    pub(super) fn is_mapped(&self) -> bool {
        self.mapped
    }

    /// The raw value of a property; the first one of that name counts.
    pub(super) fn value(&self, property: &str) -> Option<&'a [u8]> {
        self.inner.property(property).map(|property| property.value)
    }

    fn bad(&self, property: &'static str, len: usize, wanted: &'static str) -> FdtError {
        FdtError::BadProperty { node: self.name(), property, len, wanted }
    }

    /// A one-cell number.
    pub(super) fn u32(&self, property: &'static str) -> Result<Option<u32>, FdtError> {
        let Some(value) = self.value(property) else {
            return Ok(None);
        };
        let bytes = value.try_into().map_err(|_| self.bad(property, value.len(), "one cell"))?;
        Ok(Some(u32::from_be_bytes(bytes)))
    }

    /// A string: printable ASCII, terminated.
    pub(super) fn string(&self, property: &'static str) -> Result<Option<&'a str>, FdtError> {
        let Some(value) = self.value(property) else {
            return Ok(None);
        };
        let text = value
            .split_last()
            .filter(|(end, _)| **end == 0)
            .and_then(|(_, text)| core::str::from_utf8(text).ok())
            .filter(|text| text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        text.map(Some).ok_or_else(|| self.bad(property, value.len(), "a printable string"))
    }

    /// Whether one of the strings of `compatible` is `wanted`. The order carries no meaning here.
    pub(super) fn is_compatible(&self, wanted: &str) -> bool {
        self.value("compatible")
            .is_some_and(|list| list.split(|&byte| byte == 0).any(|item| item == wanted.as_bytes()))
    }

    /// Whether the node is in use: no `status`, or `okay`.
    pub(super) fn is_enabled(&self) -> bool {
        self.value("status").is_none_or(|status| matches!(status, b"okay\0" | b"ok\0"))
    }

    /// How this node's children write `reg`, if it says so.
    pub(super) fn own_cells(&self) -> Result<Option<Cells>, FdtError> {
        let (address, size) = (self.u32("#address-cells")?, self.u32("#size-cells")?);
        // The specification's defaults are 2 and 1.
        Ok((address.is_some() || size.is_some())
            .then(|| Cells { address: address.unwrap_or(2), size: size.unwrap_or(1) }))
    }

    /// The children.
    pub(super) fn children(&self) -> Result<impl Iterator<Item = Self> + use<'b, 'a>, FdtError> {
        let cells = self.own_cells()?;
        let one_to_one = self.value("ranges").is_some_and(<[u8]>::is_empty);
        let mapped = self.mapped && (self.is_root || one_to_one);
        Ok(self.inner.children().map(move |inner| Self { inner, cells, mapped, is_root: false }))
    }

    /// The child that a path component means.
    pub(super) fn child(&self, component: &str) -> Result<Option<Self>, FdtError> {
        Ok(self.children()?.find(|child| child.is_called(component)))
    }

    /// The node at an absolute path.
    pub(super) fn at(self, path: &str) -> Result<Option<Self>, FdtError> {
        let mut node = self;
        for component in path.split('/').filter(|component| !component.is_empty()) {
            match node.child(component)? {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// Numbers of `reg`, as (address, size), written in `cells`.
    fn pairs(&self, cells: Cells) -> Result<Vec<(u64, u64)>, FdtError> {
        let Cells { address, size } = cells;
        if !matches!(address, 1 | 2) || size > 2 {
            return Err(FdtError::Cells { node: self.name(), address, size });
        }
        let value = self
            .value("reg")
            .ok_or_else(|| FdtError::MissingProperty { node: self.name(), property: "reg" })?;
        let (address, size) = (address.saturating_mul(4) as usize, size.saturating_mul(4) as usize);
        let entry = address.saturating_add(size);
        if value.is_empty() || !value.len().is_multiple_of(entry) {
            return Err(self.bad("reg", value.len(), "a list of address and size cells"));
        }
        if value.len().checked_div(entry).is_none_or(|entries| entries > MAX_REGS) {
            return Err(FdtError::TooMany { what: "reg entries in a node", max: MAX_REGS });
        }
        Ok(value
            .chunks_exact(entry)
            .map(|entry| {
                let (address, size) = entry.split_at_checked(address).unwrap_or((entry, &[]));
                (number(address), number(size))
            })
            .collect())
    }

    /// Entries of an address, a size and a number, in five cells; none if there is no such property.
    pub(super) fn windows(
        &self,
        property: &'static str,
    ) -> Result<impl Iterator<Item = (u64, u64, u64)> + use<'a>, FdtError> {
        const CELL: usize = 4;
        let value = self.value(property).unwrap_or_default();
        if !value.len().is_multiple_of(5 * CELL) {
            return Err(self.bad(property, value.len(), "entries of five cells"));
        }
        Ok(value.chunks_exact(5 * CELL).map(|entry| {
            let (start, rest) = entry.split_at_checked(2 * CELL).unwrap_or_default();
            let (size, policy) = rest.split_at_checked(2 * CELL).unwrap_or_default();
            (number(start), number(size), number(policy))
        }))
    }

    /// `reg` as a list of identifiers (CPUs): an address and no size.
    pub(super) fn identifiers(&self) -> Result<Vec<u64>, FdtError> {
        let cells = self.cells.unwrap_or(Cells { address: 2, size: 1 });
        Ok(self.pairs(cells)?.into_iter().map(|(address, _)| address).collect())
    }

    /// `reg` as physical ranges, in the parent's cells or, where that says nothing, in `default`.
    pub(super) fn ranges(&self, default: Cells) -> Result<Vec<PaRange>, FdtError> {
        self.pairs(self.cells.unwrap_or(default))?
            .into_iter()
            .map(|(start, size)| {
                PaRange::from_len(start, size).ok_or_else(|| FdtError::Overflow {
                    node: self.name(),
                    start,
                    size,
                })
            })
            .collect()
    }
}

/// A big-endian number of up to 8 bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0_u64, |sum, &byte| sum.wrapping_shl(8) | u64::from(byte))
}
