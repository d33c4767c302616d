//! The VM's region map: what each guest-physical address is, as policy.
//!
//! Immutable once built, sorted by address, without overlaps; a fault handler reads it under a
//! guard and a change publishes a whole new map. Guest RAM is nothing but a region until a fault
//! populates it.

use core::fmt;

use crate::addr::{Ipa, IpaRange};
use crate::attr::{MemType, Prot};

/// What backs a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backing {
    /// RAM: the first access to a page finds its slot Empty and populates it.
    Ram {
        /// What the guest may do with it.
        prot: Prot,
        /// How it behaves.
        mem: MemType,
    },
    /// Never mapped: every access faults and goes to a device model. The number is the caller's.
    Emulated(u16),
}

/// A range of guest-physical addresses with one backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where.
    pub range: IpaRange,
    /// What.
    pub backing: Backing,
    /// A word for people: "ram", "uart".
    pub name: &'static str,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.range)
    }
}

/// Two regions share an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The lower of the two.
    pub first: Region,
    /// The other.
    pub second: Region,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "regions {} and {} overlap", self.first, self.second)
    }
}

impl core::error::Error for Overlap {}

/// All regions of a VM. `R` is what holds them: an array, a slice, a `Vec`.
#[derive(Clone, Debug)]
pub struct RegionMap<R> {
    regions: R,
}

impl<R: AsRef<[Region]> + AsMut<[Region]>> RegionMap<R> {
    /// Sorts `regions` and checks that they are disjoint.
    ///
    /// # Errors
    /// [`Overlap`] names two that are not.
    pub fn new(mut regions: R) -> Result<Self, Overlap> {
        regions.as_mut().sort_unstable_by_key(|region| region.range.start());
        for pair in regions.as_ref().windows(2) {
            if let [first, second] = pair
                && first.range.overlaps(&second.range)
            {
                return Err(Overlap { first: *first, second: *second });
            }
        }
        Ok(Self { regions })
    }
}

impl<R: AsRef<[Region]>> RegionMap<R> {
    /// The region that holds `ipa`. Binary search: no allocation, no lock.
    #[inline]
    #[must_use]
    pub fn find(&self, ipa: Ipa) -> Option<&Region> {
        let regions = self.regions.as_ref();
        let after = regions.partition_point(|region| region.range.start() <= ipa);
        let region = regions.get(after.checked_sub(1)?)?;
        region.range.contains(ipa).then_some(region)
    }

    /// All regions in order of address.
    #[must_use]
    pub fn all(&self) -> &[Region] {
        self.regions.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, pages: u64, name: &'static str) -> Region {
        Region {
            range: IpaRange::new(Ipa::new(start), pages * 4096).unwrap(),
            backing: Backing::Emulated(0),
            name,
        }
    }

    #[test]
    fn find_meets_both_edges_and_the_gaps() {
        let map = RegionMap::new([
            region(0x4000, 2, "b"),
            region(0x1000, 1, "a"),
            region(0x6000, 1, "c"),
        ])
        .unwrap();
        let name = |ipa| map.find(Ipa::new(ipa)).map(|r| r.name);
        assert_eq!(name(0xfff), None);
        assert_eq!(name(0x1000), Some("a"));
        assert_eq!(name(0x1fff), Some("a"));
        assert_eq!(name(0x2000), None);
        assert_eq!(name(0x5fff), Some("b"));
        assert_eq!(name(0x6000), Some("c"));
        assert_eq!(name(u64::MAX), None);
    }

    #[test]
    fn overlap_names_both() {
        let error =
            RegionMap::new([region(0x4000, 2, "ram"), region(0x5000, 1, "uart")]).unwrap_err();
        assert_eq!(error.to_string(), "regions ram 0x4000-0x5fff and uart 0x5000-0x5fff overlap");
    }

    #[test]
    fn an_empty_map_finds_nothing() {
        assert_eq!(RegionMap::new([]).unwrap().find(Ipa::new(0)), None);
    }
}
