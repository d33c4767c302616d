//! Recovery windows: ranges of guest-physical addresses at which the guest has no memory, and what becomes of an access there.
//!
//! | part | what it is |
//! | --- | --- |
//! | [`Asked`] | what a person, or the device tree, asks for: read, not yet judged |
//! | [`Windows`] | what a VM has: judged against its [`Map`], immutable; a change makes new ones |
//! | [`Quota`], [`Meter`] | how many violations are recovered before the VM is stopped, and how many have been |
//!
//! A window is all RAM or has no RAM in it, and never an address of a device's. In RAM it says what becomes of what is not mapped; what
//! is mapped there stays. Addresses that are neither RAM nor a device's nor in a window have the VM's default, which is
//! [`Recovery::Stop`] unless something else was asked for.

mod meter;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use hyp_abi::call::{
    RECOVER_INJECT, RECOVER_MAX, RECOVER_MAX_BYTES, RECOVER_SCRATCH, RECOVER_STOP,
};
pub use meter::{Meter, Past, Quota};
pub use stage2::fault::Recovery;

use crate::config::parse_size;
use crate::patches::{Over, PatchError, Patches};
use crate::range::{Bytes, IpaRange, PAGE_SIZE};

/// Table pages of stage 2 that scratch pages may take outside of RAM: as many as 4 GiB need. Where an access would take more, it is as
/// with [`Recovery::Inject`].
pub const SCRATCH_TABLES: u64 = (4 << 30) / SPAN + 64;

/// What a table of pages translates, in bytes.
const SPAN: u64 = 2 << 20;

/// A policy by its number in the call RECOVER and in the device tree, if there is one.
#[must_use]
pub const fn by_number(number: u64) -> Option<Recovery> {
    match number {
        RECOVER_SCRATCH => Some(Recovery::Scratch),
        RECOVER_INJECT => Some(Recovery::Inject),
        RECOVER_STOP => Some(Recovery::Stop),
        _ => None,
    }
}

/// A policy by its word on the command line, if there is one.
#[must_use]
pub fn by_word(word: &str) -> Option<Recovery> {
    match word {
        "scratch" => Some(Recovery::Scratch),
        "inject" => Some(Recovery::Inject),
        "stop" => Some(Recovery::Stop),
        _ => None,
    }
}

/// What [`Asked::parse`] reads, for the sentence that refuses anything else.
pub const WANTED: &str = "POLICY or POLICY@START+SIZE with commas between them, such as inject,scratch@0x50000000+16M; a policy is \
                          scratch, inject or stop, and one at most stands alone";

/// What is asked for a VM, before it is known what its addresses are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// What becomes of an access to an address that is nothing.
    pub default: Option<Recovery>,
    /// Windows.
    pub windows: Vec<(IpaRange, Recovery)>,
    /// Violations that are recovered in all.
    pub limit: Option<u64>,
    /// And in a second.
    pub rate: Option<u32>,
}

impl Asked {
    /// Reads `POLICY[@START+SIZE][,…]`: without an address it is the default. An address is decimal or, after `0x`, hexadecimal; a size
    /// is as for memory, such as `64K`, or a number likewise, in bytes.
    ///
    /// `None` if it cannot be read, or has two defaults.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        let mut asked = Self::default();
        for item in value.split(',') {
            match item.split_once('@') {
                None if asked.default.is_none() => asked.default = Some(by_word(item)?),
                None => return None,
                Some((policy, place)) => {
                    let (start, size) = place.split_once('+')?;
                    let size = parse_size(size).or_else(|| address(size))?;
                    let range = IpaRange::from_len(address(start)?, size)?;
                    asked.windows.push((range, by_word(policy)?));
                }
            }
        }
        Some(asked)
    }

    /// What this says, and where it says nothing what `other` says: the default, the windows, the limit and the rate each for itself.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            default: self.default.or(other.default),
            windows: if self.windows.is_empty() { other.windows } else { self.windows },
            limit: self.limit.or(other.limit),
            rate: self.rate.or(other.rate),
        }
    }

    /// The first address that is behind all windows.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.windows.iter().map(|(window, _)| window.end).max().unwrap_or(0)
    }

    /// What tables may take because of what is asked for, in bytes: those of stage 2, and of EL2's window for windows. No more than
    /// windows may have takes any: what is larger will be refused, and windows in RAM need no tables that RAM does not.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        let lengths = self.windows.iter().map(|(window, _)| window.len());
        let bytes = lengths.fold(0, u64::saturating_add).min(RECOVER_MAX_BYTES);
        let edges = 4_u64.saturating_mul(self.windows.len().min(RECOVER_MAX) as u64);
        let spans = (bytes / SPAN).saturating_add(edges);
        let others = if self.default == Some(Recovery::Scratch) { SCRATCH_TABLES } else { 0 };
        spans.saturating_mul(2).saturating_add(others).saturating_mul(PAGE_SIZE)
    }

    /// How many violations are recovered.
    #[must_use]
    pub fn quota(&self) -> Quota {
        let Quota { in_all, a_second } = Quota::DEFAULT;
        Quota { in_all: self.limit.unwrap_or(in_all), a_second: self.rate.unwrap_or(a_second) }
    }

    /// The windows of a VM with these addresses.
    ///
    /// # Errors
    /// [`WindowError`]: two overlap, or one does not fit into the map.
    pub fn windows(&self, map: &Map<'_>) -> Result<Windows, WindowError> {
        let mut all = Windows::new();
        for &(window, policy) in &self.windows {
            if let Some((other, _)) = all.all().find(|(other, _)| other.overlaps(&window)) {
                return Err(WindowError::Overlap { window, other });
            }
            all = all.with(window, Some(policy), map)?;
        }
        Ok(all)
    }
}

/// A number of bytes: decimal or, after `0x`, hexadecimal. Digits and nothing else.
fn address(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

/// What a VM's guest-physical addresses are, windows apart.
#[derive(Clone, Copy, Debug)]
pub struct Map<'a> {
    /// RAM.
    pub ram: IpaRange,
    /// Devices.
    pub devices: &'a [IpaRange],
    /// The first address that the VM does not have.
    pub end: u64,
}

/// The recovery windows of a VM: at most [`RECOVER_MAX`], or one more while one is replaced by parts, apart, and outside of RAM at most [`RECOVER_MAX_BYTES`].
#[derive(Debug, Default)]
pub struct Windows {
    list: Patches<Recovery>,
}

/// Why there is no such window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// No whole pages, or none at all.
    #[error("a recovery window is whole pages of 4 KiB, and {0} is not")]
    NotPages(IpaRange),
    /// Beyond the VM's addresses.
    #[error("the recovery window {window} is beyond the VM's addresses, which end at {end:#x}")]
    Beyond {
        /// The window.
        window: IpaRange,
        /// The first address that the VM does not have.
        end: u64,
    },
    /// A part of it is RAM and another is not.
    #[error("of the recovery window {window} a part is RAM, which is {ram}: all of it, or nothing")]
    PartlyRam {
        /// The window.
        window: IpaRange,
        /// RAM.
        ram: IpaRange,
    },
    /// It has addresses of a device's.
    #[error("the recovery window {window} has addresses of the device at {device}")]
    Device {
        /// The window.
        window: IpaRange,
        /// The device.
        device: IpaRange,
    },
    /// Two are asked for that overlap.
    #[error("the recovery windows {window} and {other} overlap")]
    Overlap {
        /// The window.
        window: IpaRange,
        /// The other.
        other: IpaRange,
    },
    /// More than there may be.
    #[error("{wanted} recovery windows are too many: {RECOVER_MAX} may be")]
    TooMany {
        /// As many as there would be.
        wanted: usize,
    },
    /// Larger than they may be.
    #[error("recovery windows of {} outside of RAM are too large: {} may be", Bytes(*.bytes), Bytes(RECOVER_MAX_BYTES))]
    TooLarge {
        /// What they would have outside of RAM, in bytes.
        bytes: u64,
    },
    /// There is no memory for the list.
    #[error("no memory for a list of {0} recovery windows")]
    NoMemory(usize),
}

impl From<PatchError> for WindowError {
    fn from(error: PatchError) -> Self {
        match error {
            PatchError::TooMany { wanted, .. } => Self::TooMany { wanted },
            PatchError::NoMemory(wanted) => Self::NoMemory(wanted),
        }
    }
}

impl Windows {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { list: Patches::new() }
    }

    /// The same, but for `window`: it has this policy, or is none.
    ///
    /// # Errors
    /// [`WindowError`]: the window does not fit into the map, or there would be too many.
    pub fn with(
        &self,
        window: IpaRange,
        policy: Option<Recovery>,
        map: &Map<'_>,
    ) -> Result<Self, WindowError> {
        self.with_most(window, policy, map, RECOVER_MAX)
    }

    /// The same, but for a part of a window that has yet to follow: what it replaces may be one window more until then.
    ///
    /// # Errors
    /// [`WindowError`], as of [`with`](Self::with).
    pub fn with_part(
        &self,
        part: IpaRange,
        policy: Option<Recovery>,
        map: &Map<'_>,
    ) -> Result<Self, WindowError> {
        self.with_most(part, policy, map, RECOVER_MAX + 1)
    }

    fn with_most(
        &self,
        window: IpaRange,
        policy: Option<Recovery>,
        map: &Map<'_>,
        most: usize,
    ) -> Result<Self, WindowError> {
        let is_aligned = (window.start | window.end).is_multiple_of(PAGE_SIZE);
        if window.is_empty() || !is_aligned {
            return Err(WindowError::NotPages(window));
        }
        if window.end > map.end {
            return Err(WindowError::Beyond { window, end: map.end });
        }
        if map.ram.overlaps(&window) && !map.ram.contains_range(&window) {
            return Err(WindowError::PartlyRam { window, ram: map.ram });
        }
        if let Some(&device) = map.devices.iter().find(|device| device.overlaps(&window)) {
            return Err(WindowError::Device { window, device });
        }
        let new = Self { list: self.list.with(window, policy, most)? };
        // A window that touches another of its policy is one with it, also over an edge of RAM.
        let outside = |(window, _): (IpaRange, Recovery)| {
            window.len().saturating_sub(window.intersection(&map.ram).map_or(0, |ram| ram.len()))
        };
        let bytes = new.all().map(outside).fold(0, u64::saturating_add);
        if bytes > RECOVER_MAX_BYTES { Err(WindowError::TooLarge { bytes }) } else { Ok(new) }
    }

    /// The same again.
    ///
    /// # Errors
    /// [`WindowError::NoMemory`].
    pub fn again(&self) -> Result<Self, WindowError> {
        Ok(Self { list: self.list.again()? })
    }

    /// What becomes of an access to an address; `None` outside of all windows.
    #[inline]
    #[must_use]
    pub fn at(&self, address: u64) -> Option<Recovery> {
        self.list.at(address).copied()
    }

    /// The window that has an address, and its policy; outside of all windows what lies between them.
    #[must_use]
    pub fn around(&self, address: u64) -> (IpaRange, Option<Recovery>) {
        let (range, policy) = self.list.around(address);
        (range, policy.copied())
    }

    /// Whether a range that is not empty has an address of a window.
    #[must_use]
    pub fn touch(&self, range: IpaRange) -> bool {
        self.list.over(range) != Over::Rest
    }

    /// Whether every address of a range that is not empty is in a window, whichever.
    #[must_use]
    pub fn cover(&self, range: IpaRange) -> bool {
        let reached = self.all().fold(range.start, |reached, (window, _)| {
            if window.contains(reached) { window.end } else { reached }
        });
        reached >= range.end
    }

    /// The largest part of a range that is outside of all windows.
    #[must_use]
    pub fn largest_gap(&self, within: IpaRange) -> Option<IpaRange> {
        self.list.largest_gap(&[within])
    }

    /// All of them, sorted; of two that touch the policies differ.
    pub fn all(&self) -> impl Iterator<Item = (IpaRange, Recovery)> {
        self.list.iter()
    }
}
