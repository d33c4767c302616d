//! A shape for every machine and size, or a refusal with the numbers.

use super::*;
use crate::Errata;
use crate::features::{Bbm, pa_bits_of};

fn machine(pa_bits: u32, caps: Caps) -> Features {
    Features { caps: caps | Caps::GRANULE_4K, bbm: Bbm::Level0, pa_bits, errata: Errata::empty() }
}

/// The architecture's own check, independent of the code above: what a walk from `start` with
/// `tables` concatenated tables can resolve, and which start levels PARange permits.
fn is_legal(g: &Geometry, pa_bits: u32) -> bool {
    let one_table = match g.start() {
        Level::L0 => 48,
        Level::L1 => 39,
        Level::L2 => 30,
        Level::L3 => 21,
    };
    let covers = (1u64 << one_table) * g.root_tables() as u64 >= 1 << g.ipa_bits();
    let no_waste =
        g.root_tables() == 1 || (1u64 << one_table) * g.root_tables() as u64 == 1 << g.ipa_bits();
    covers && no_waste && g.root_tables() <= 16 && (g.start() != Level::L0 || pa_bits >= 44)
}

#[test]
fn every_pa_range_and_ipa_size_is_legal_or_refused() {
    for pa_range in 0..=15 {
        let Some(pa_bits) = pa_bits_of(pa_range) else {
            continue;
        };
        for ipa_bits in 0..=64 {
            let shape = Geometry::new(ipa_bits, &machine(pa_bits, Caps::empty()), HwUpdate::Off);
            match shape {
                Ok(g) => {
                    assert!(is_legal(&g, pa_bits), "{ipa_bits} of {pa_bits}: {g:?}");
                    assert!((MIN_IPA_BITS..=pa_bits).contains(&ipa_bits));
                    assert!(g.contains(Ipa::new((1 << ipa_bits) - 1)));
                    assert!(!g.contains(Ipa::new(1 << ipa_bits)));
                }
                Err(GeometryError::IpaBits { wanted }) => {
                    assert!(!(MIN_IPA_BITS..=MAX_IPA_BITS).contains(&wanted));
                }
                Err(GeometryError::ExceedsPa { wanted, pa_bits }) => assert!(wanted > pa_bits),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn vtcr_fields_stand_where_the_manual_puts_them() {
    for pa_range in 0..=6 {
        let pa_bits = pa_bits_of(pa_range).unwrap();
        for ipa_bits in MIN_IPA_BITS..=pa_bits {
            for (hw_update, ha_hd) in
                [(HwUpdate::Off, 0b00), (HwUpdate::Access, 0b01), (HwUpdate::AccessAndDirty, 0b11)]
            {
                for (vmid16, vs) in [(Caps::empty(), 0), (Caps::VMID16, 1)] {
                    let caps = Caps::HW_ACCESS | Caps::HW_DIRTY | vmid16;
                    let g = Geometry::new(ipa_bits, &machine(pa_bits, caps), hw_update).unwrap();
                    let v = g.vtcr();
                    assert_eq!(v & 0x3f, u64::from(64 - ipa_bits), "T0SZ");
                    assert_eq!(v >> 6 & 3, 2 - g.start() as u64, "SL0");
                    assert_eq!(v >> 8 & 0xff, 0b00_11_01_01, "TG0, SH0, ORGN0, IRGN0");
                    assert_eq!(v >> 16 & 7, pa_range.min(5), "PS");
                    assert_eq!(v >> 19, 1 << 12 | ha_hd << 2 | vs, "RES1, HD, HA, VS, no more");
                }
            }
        }
    }
}

/// A PE that lacks something makes all PEs do without: VTCR_EL2 may be cached in a TLB, so it is the same on all.
#[test]
fn unlike_pes_get_one_vtcr_that_all_of_them_understand() {
    let big = machine(48, Caps::VMID16 | Caps::HW_ACCESS | Caps::HW_DIRTY);
    let little = machine(40, Caps::HW_ACCESS);
    let of = |features: Features| Geometry::new(40, &features, HwUpdate::Access).unwrap();
    let together = of(big.and(little));
    assert_eq!(together, of(little.and(big)), "in whatever order they come up");
    assert_eq!(together.vtcr() >> 16 & 7, 2, "PS is the smaller PARange: 40 bits");
    assert_eq!(together.vtcr() >> 19 & 1, 0, "VS: 8-bit VMIDs");
    let dirty = Geometry::new(40, &big.and(little), HwUpdate::AccessAndDirty);
    assert!(dirty.is_err(), "HD is for machines all of whose PEs have it");
    let broken = big.with_errata(Errata::NO_HW_DIRTY);
    let dirty = Geometry::new(40, &big.and(broken), HwUpdate::AccessAndDirty);
    assert!(dirty.is_err(), "and not where one of them has it wrong");
    assert!(Geometry::new(48, &big.and(little), HwUpdate::Off).is_err(), "48-bit IPAs either");
}

/// Tables D8-21 to D8-23, read off.
#[test]
fn each_ipa_size_has_the_shape_of_the_table() {
    for bits in MIN_IPA_BITS..=MAX_IPA_BITS {
        let g = Geometry::new(bits, &machine(48, Caps::empty()), HwUpdate::Off).unwrap();
        let expected = match bits {
            25..=30 => (Level::L2, 1),
            31 => (Level::L2, 2),
            32 => (Level::L2, 4),
            33 => (Level::L2, 8),
            34 => (Level::L2, 16),
            35..=39 => (Level::L1, 1),
            40 => (Level::L1, 2),
            41 => (Level::L1, 4),
            42 => (Level::L1, 8),
            43 => (Level::L1, 16),
            _ => (Level::L0, 1),
        };
        assert_eq!((g.start(), g.root_tables()), expected, "{bits}");
    }
}

#[test]
fn machines_that_do_not_exist_are_refused() {
    let odd = machine(39, Caps::empty());
    let made = Geometry::new(32, &odd, HwUpdate::Off);
    assert_eq!(made, Err(GeometryError::PaBits { bits: 39 }), "no PARange says 39 bits");
    let no_granule = Features { caps: Caps::empty(), ..machine(40, Caps::empty()) };
    let made = Geometry::new(32, &no_granule, HwUpdate::Off);
    assert_eq!(made, Err(GeometryError::NoGranule4K), "the granule is not there");
}

#[test]
fn hardware_updates_need_the_hardware() {
    let none = machine(40, Caps::empty());
    assert_eq!(
        Geometry::new(40, &none, HwUpdate::Access),
        Err(GeometryError::NoHwUpdate { wanted: HwUpdate::Access })
    );
    let access = machine(40, Caps::HW_ACCESS);
    assert!(Geometry::new(40, &access, HwUpdate::Access).is_ok());
    assert!(Geometry::new(40, &access, HwUpdate::AccessAndDirty).is_err());
}

#[test]
fn concatenated_root_pages_follow_the_top_bits() {
    let g = Geometry::new(40, &machine(40, Caps::empty()), HwUpdate::Off).unwrap();
    assert_eq!((g.start(), g.root_tables(), g.root_bytes()), (Level::L1, 2, 8192));
    let root = Pa::new(0x8000_0000);
    assert_eq!(g.root_page(root, Ipa::new(0)), root);
    assert_eq!(g.root_page(root, Ipa::new((1 << 39) - 1)), root);
    assert_eq!(g.root_page(root, Ipa::new(1 << 39)), Pa::new(0x8000_1000));
}
