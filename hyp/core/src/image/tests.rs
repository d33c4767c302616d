//! Images: what they are recognised as, and where they go.

use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const BASE: u64 = map::RAM_BASE + map::IMAGE_OFFSET;

/// The first bytes of an arm64 `Image`.
fn arm64(text_offset: u64, image_size: u64, flags: u64) -> Vec<u8> {
    let mut head = b"MZ\0\x91\0\0\0\x14".to_vec();
    for field in [text_offset, image_size, flags, 0, 0, 0] {
        head.extend(field.to_le_bytes());
    }
    head.extend(*b"ARMd\0\0\0\0");
    head
}

#[test]
fn an_arm64_image_goes_to_its_offset_and_keeps_room_for_its_bss() {
    let head = arm64(0, 40 * MIB, 0xa);
    let layout = place(&head, 35 * MIB, None, 128 * MIB).unwrap();
    assert_eq!(layout.image, IpaRange::from_len(BASE, 35 * MIB).unwrap());
    assert_eq!(layout.footprint, IpaRange::from_len(BASE, 40 * MIB).unwrap());
    assert_eq!(layout.entry, BASE);
    assert_eq!(layout.dtb, IpaRange::from_len(map::RAM_BASE, map::DTB_SPACE).unwrap());
    let old = place(&arm64(0x8_0000, 0, 0), MIB, None, 128 * MIB).unwrap();
    assert_eq!(old.entry, BASE + 0x8_0000);
    assert_eq!(old.footprint, old.image, "an old image does not say its size");
}

#[test]
fn a_raw_binary_is_entered_at_its_first_byte() {
    let layout = place(&[0x14; 4], 700_000, None, 64 * MIB).unwrap();
    assert_eq!((layout.entry, layout.image.len()), (BASE, 700_000));
}

#[test]
fn the_ramdisk_follows_at_the_next_two_mebibytes() {
    let layout = place(&[0x14; 4], MIB + 1, Some(5 * MIB), 64 * MIB).unwrap();
    assert_eq!(layout.ramdisk, IpaRange::from_len(BASE + 2 * MIB, 5 * MIB));
}

#[test]
fn what_cannot_be_started_is_named_with_advice() {
    let cases: [(&[u8], &str); 9] = [
        (b"\x7fELF\x02\x01", "an ELF file; flatten it first"),
        (b"\x1f\x8b\x08\0", "compressed by gzip; unpack it first"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
        (b"MZ\0\0zimg\0\0", "a compressed EFI kernel (zboot); take the Image out"),
        (b"MZ\x90\0", "an EFI program"),
        (b"\x27\x05\x19\x56", "a U-Boot legacy image"),
        (b"\xd0\x0d\xfe\xed", "a flattened tree (device tree or U-Boot FIT)"),
        (b"070701", "a cpio archive; give it as the ramdisk"),
        (b"\xfd7zXZ\0", "compressed by xz"),
    ];
    for (head, words) in cases {
        let error = place(head, 100, None, 64 * MIB).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = place(&arm64(0, 0, 1), 100, None, 64 * MIB).unwrap_err();
    assert_eq!(error, ImageError::BigEndian);
}

#[test]
fn too_small_a_memory_is_told_with_what_is_needed() {
    let error = place(&arm64(0, 40 * MIB, 0xa), 35 * MIB, None, 32 * MIB).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the guest needs 42 MiB of RAM to hold the image (up to 0x42a00000), but has 32 MiB"
    );
    let error = place(&[0x14; 4], MIB, Some(64 * MIB), 64 * MIB).unwrap_err();
    assert!(matches!(error, ImageError::TooSmall { what: "the image and the ramdisk", .. }));
    assert!(place(&[0x14; 4], 6 * MIB + 1, None, 8 * MIB).is_err(), "one byte more");
    assert!(place(&[0x14; 4], 6 * MIB, None, 8 * MIB).is_ok(), "exactly full");
}

#[test]
fn empty_and_absurd_images_are_refused() {
    assert_eq!(place(&[], 0, None, 64 * MIB), Err(ImageError::Empty));
    assert_eq!(place(&[0; 4], 4, Some(0), 64 * MIB), Err(ImageError::EmptyRamdisk));
    let cases = [(!0xfff, 0), (0, u64::MAX), (0x8_0000, u64::MAX - BASE)];
    for (text_offset, size) in cases {
        assert!(place(&arm64(text_offset, size, 0), 100, None, 64 * MIB).is_err());
    }
    assert_eq!(place(&arm64(1, 0, 0), 100, None, 64 * MIB), Err(ImageError::TextOffset(1)));
}

proptest! {
    #[test]
    fn whatever_is_placed_is_inside_and_apart(
        header in any::<Option<(u64, u64, u64)>>(), shift in 0..64_u32, len: u64, ramdisk: Option<u64>,
        mem in 0..1_u64 << 40, short in 0..64_u32,
    ) {
        let head = match header {
            Some((offset, size, flags)) => arm64((offset >> shift) & !0xfff, size >> shift, flags & !1),
            None => [0x14; 64].to_vec(),
        };
        let ramdisk = ramdisk.map(|bytes| bytes >> short);
        if let Ok(layout) = place(&head, len >> shift, ramdisk, mem) {
            prop_assert!(layout.ram.contains_range(&layout.footprint));
            prop_assert!(layout.footprint.contains_range(&layout.image));
            prop_assert!(!layout.footprint.overlaps(&layout.dtb));
            prop_assert_eq!(layout.image.len(), len >> shift);
            if let Some(ramdisk) = layout.ramdisk {
                prop_assert!(layout.ram.contains_range(&ramdisk));
                prop_assert!(!ramdisk.overlaps(&layout.footprint));
                prop_assert_eq!(ramdisk.start % UNIT, 0);
            }
        }
    }

    #[test]
    fn any_head_is_recognised_as_something(head in proptest::collection::vec(any::<u8>(), 0..80)) {
        prop_assert!(!Format::of(&head).to_string().is_empty());
    }
}
