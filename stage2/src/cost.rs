//! Which form a flush takes: page by page, by ranges, or all of the VM.
//!
//! The unit is one broadcast invalidation by IPA: one message to all PEs, and its share of the wait in
//! the DSB behind. In that unit:
//!
//! | form | costs | why |
//! | --- | --- | --- |
//! | `IPAS2E1IS`, one leaf | 1 | the unit |
//! | `RIPAS2E1IS`, a range | 1 | one message, too; what PEs do about it is theirs |
//! | then `VMALLE1IS` and its DSB | 2 | one message, and one more wait for all PEs |
//! | `VMALLS12E1IS` instead of all these | 1 + 513 | one message; then the guest misses what the VM had left in the stage-2 TLBs |
//!
//! The last number is the weight of the refill. By IPA, too, all *combined* entries go, with `VMALLE1IS`. What
//! `VMALLS12E1IS` takes beyond that are stage-2 entries outside the range, without which each refill
//! of a combined entry walks stage 2 as well. A TLB holds a thousand or two (1280 in a Cortex-A76, by its
//! technical reference manual), and a walk whose descriptors are in a cache costs less than a message that all
//! PEs answer: half of it, here. **This weight is an assumption**, to be replaced by a measurement on the machine
//! in question. For that, and for comparisons, a form can be [`Pinned`].
//!
//! So all of the VM goes where by IPA it would take more than 512 invalidations. That bounds the
//! time of a flush, too: with ranges 512 instructions reach beyond any IPA size, without them they are
//! 2 MiB of pages. Linux draws the line at the same number for processes (`MAX_DVM_OPS`).
//!
//! Where there are ranges, they never cost more than pages: a single page left over gets an invalidation of
//! its own.

use crate::addr::IpaRange;
use crate::features::Caps;
use crate::tlbi::{LeafLevel, by_ipa};

/// An invalidation by IPA, of a leaf or of a range.
const BY_IPA: usize = 1;
/// `VMALLE1IS` and the DSB that it needs.
const COMBINED: usize = 2;
/// `VMALLS12E1IS`.
const WHOLE: usize = 1;
/// What a guest walks again after `VMALLS12E1IS` that it would not have after `VMALLE1IS`.
const REFILL: usize = 513;

/// A form that every flush of a VM takes, whatever it costs: for measurements.
///
/// The bound on the time of a flush does not hold then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// One invalidation for each leaf, or for each page where the leaves' level is not known.
    PerPage,
    /// By ranges where the machine has them.
    Range,
    /// All of the VM.
    Vmid,
}

/// What a flush is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Invalidations by IPA on a machine with these capabilities.
    ByIpa(Caps),
    /// All of the VM.
    Vmid,
}

/// The form for a flush of `ranges`, whose leaves are of `level`, on a machine with `caps`.
pub(crate) fn choose(
    pinned: Option<Pinned>,
    ranges: impl Iterator<Item = IpaRange>,
    level: LeafLevel,
    caps: Caps,
) -> Form {
    match pinned {
        Some(Pinned::Vmid) => Form::Vmid,
        Some(Pinned::PerPage) => Form::ByIpa(caps - Caps::TLBI_RANGE),
        Some(Pinned::Range) => Form::ByIpa(caps),
        None => {
            let most = (WHOLE + REFILL - COMBINED) / BY_IPA;
            let mut each = ranges.flat_map(|range| by_ipa(range, level, caps));
            // Counted no further than that: there may be millions.
            if each.nth(most).is_some() { Form::Vmid } else { Form::ByIpa(caps) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Ipa;
    use crate::flush::tests::Rig;
    use crate::tlbi::Tlbi;

    /// How many invalidations of each form a flush of so many pages takes: by page, by range, of all.
    fn forms(pinned: Option<Pinned>, caps: Caps, pages: u64) -> [usize; 3] {
        let rig = Rig::new();
        let mut tlb = rig.tlb(caps);
        tlb.pinned = pinned;
        let _ = tlb.reduce(IpaRange::new(Ipa::new(0x1000), pages << 12).unwrap(), LeafLevel::L3);
        let log = rig.host.take_log();
        let count = |form: fn(&Tlbi) -> bool| {
            let ops = log.iter().filter_map(|event| match event {
                crate::arch::host::Event::Tlbi(op, _) => Some(op),
                _ => None,
            });
            ops.filter(|op| form(op)).count()
        };
        [
            count(|op| matches!(op, Tlbi::Ipas2e1Is(_))),
            count(|op| matches!(op, Tlbi::Ripas2e1Is(_))),
            count(|op| matches!(op, Tlbi::Vmalls12e1Is)),
        ]
    }

    #[test]
    fn a_pinned_form_is_the_only_one() {
        let all = Caps::TLBI_RANGE | Caps::TTL;
        for caps in [Caps::empty(), all] {
            for pages in [1, 2, 7, 512, 513, 5000] {
                let per_page = [pages as usize, 0, 0];
                assert_eq!(forms(Some(Pinned::PerPage), caps, pages), per_page, "{pages}");
                assert_eq!(forms(Some(Pinned::Vmid), caps, pages), [0, 0, 1], "{pages}");
            }
        }
        assert_eq!(forms(Some(Pinned::Range), all, 7), [1, 1, 0], "and an odd page");
        assert_eq!(forms(Some(Pinned::Range), all, 512), [0, 1, 0]);
        assert_eq!(forms(Some(Pinned::Range), Caps::empty(), 600), [600, 0, 0], "it has none");
    }

    #[test]
    fn without_a_pin_the_cheapest_is_taken() {
        assert_eq!(forms(None, Caps::empty(), 512), [512, 0, 0]);
        assert_eq!(forms(None, Caps::empty(), 513), [0, 0, 1]);
        assert_eq!(forms(None, Caps::TLBI_RANGE, 5000)[2], 0);
    }
}
