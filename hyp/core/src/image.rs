//! What a guest image is, and where it goes in guest RAM.
//!
//! Used twice on the same file: on the host before QEMU starts, so that a mistake is a sentence at the
//! prompt, and by the hypervisor, which trusts nobody.
//!
//! ```text
//! RAM_BASE                      guest device tree, DTB_SPACE bytes (U-Boot looks here; Linux is told in x0)
//! RAM_BASE + IMAGE_OFFSET       + text_offset: the image; entry at its first byte
//! next 2 MiB after image_size   initial ramdisk, if there is one
//! ```
//!
//! Two forms can be started: an arm64 `Image` (header at byte 0, described in the kernel's
//! `Documentation/arch/arm64/booting.rst`), and a raw binary without a header, entered at its first byte,
//! which is what U-Boot and our own guests are. Everything that is recognised as something else (ELF, a
//! compressed kernel, U-Boot's containers) is refused by name: started as raw code it would only crash.

#[cfg(test)]
mod tests;

use core::fmt;

use hyp_abi::map;

use crate::range::{Bytes, IpaRange, PAGE_SIZE, align_up};

/// How many bytes of an image [`Format::of`] looks at.
pub const HEAD: usize = 64;

/// Alignment of the image's base and of the ramdisk, in bytes.
const UNIT: u64 = 2 << 20;

/// The fields of an arm64 `Image` header that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arm64Header {
    /// Load offset from a 2 MiB aligned base, in bytes.
    pub text_offset: u64,
    /// Bytes the image occupies when it runs, with its zeroed data; 0 in images before Linux 3.17.
    pub image_size: u64,
    /// Bit 0: big endian; bits 2:1: page size; bit 3: may lie anywhere.
    pub flags: u64,
}

impl Arm64Header {
    fn read(head: &[u8]) -> Option<Self> {
        let long = |at: usize| {
            let end = at.checked_add(8)?;
            Some(u64::from_le_bytes(head.get(at..end)?.try_into().ok()?))
        };
        (head.get(56..60)? == b"ARMd").then_some(Self {
            text_offset: long(8)?,
            image_size: long(16)?,
            flags: long(24)?,
        })
    }

    /// Whether the kernel is a big-endian one.
    #[must_use]
    pub const fn is_big_endian(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// What a blob is, as far as its first [`HEAD`] bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// An arm64 `Image`.
    Arm64(Arm64Header),
    /// None of the known ones: taken for code.
    Raw,
    /// An ELF file.
    Elf,
    /// Compressed, by the program of this name.
    Compressed(&'static str),
    /// A kernel that unpacks itself under EFI.
    EfiZboot,
    /// Some other EFI program.
    Efi,
    /// U-Boot's legacy container.
    UImage,
    /// A flattened tree: a device tree or U-Boot's container (FIT).
    FlatTree,
    /// A cpio archive, which is a ramdisk.
    Cpio,
}

impl Format {
    /// Looks at the first bytes of a blob; [`HEAD`] of them, or all when there are fewer.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        if let Some(header) = Arm64Header::read(head) {
            return Self::Arm64(header);
        }
        let known: [(&[u8], Self); 13] = [
            (b"\x7fELF", Self::Elf),
            (b"\x1f\x8b", Self::Compressed("gzip")),
            (b"\xfd7zXZ\0", Self::Compressed("xz")),
            (b"\x28\xb5\x2f\xfd", Self::Compressed("zstd")),
            (b"BZh", Self::Compressed("bzip2")),
            (b"\x04\x22\x4d\x18", Self::Compressed("lz4")),
            (b"\x02\x21\x4c\x18", Self::Compressed("lz4")),
            (b"\x89LZO", Self::Compressed("lzop")),
            (b"MZ\0\0zimg", Self::EfiZboot),
            (b"MZ", Self::Efi),
            (b"\x27\x05\x19\x56", Self::UImage),
            (b"\xd0\x0d\xfe\xed", Self::FlatTree),
            (b"07070", Self::Cpio),
        ];
        known
            .into_iter()
            .find_map(|(magic, format)| head.starts_with(magic).then_some(format))
            .unwrap_or(Self::Raw)
    }

    /// What to do instead, for a format that cannot be started.
    fn advice(&self) -> &'static str {
        match self {
            Self::Arm64(_) | Self::Raw => "it can be started",
            Self::Elf => "flatten it first: objcopy -O binary IN OUT",
            Self::Compressed(_) => "unpack it first",
            Self::EfiZboot => "take the Image out of it, or build with CONFIG_EFI_ZBOOT=n",
            Self::Efi => "only an Image or a raw binary can be started",
            Self::UImage | Self::FlatTree => "take the kernel out of the container",
            Self::Cpio => "give it as the ramdisk, not as the kernel",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arm64(_) => f.write_str("an arm64 Image"),
            Self::Raw => f.write_str("a raw binary"),
            Self::Elf => f.write_str("an ELF file"),
            Self::Compressed(by) => write!(f, "compressed by {by}"),
            Self::EfiZboot => f.write_str("a compressed EFI kernel (zboot)"),
            Self::Efi => f.write_str("an EFI program"),
            Self::UImage => f.write_str("a U-Boot legacy image"),
            Self::FlatTree => f.write_str("a flattened tree (device tree or U-Boot FIT)"),
            Self::Cpio => f.write_str("a cpio archive"),
        }
    }
}

/// Why an image cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No byte in it.
    #[error("the guest image is empty")]
    Empty,
    /// No byte in the ramdisk.
    #[error("the initial ramdisk is empty")]
    EmptyRamdisk,
    /// A format that is not started.
    #[error("the guest image is {0}; {advice}", advice = .0.advice())]
    Format(Format),
    /// A kernel for the other byte order.
    #[error("the guest image is a big-endian kernel; only little-endian ones can be started")]
    BigEndian,
    /// A load offset that nothing can be made of.
    #[error("the guest image asks for load offset {0:#x}, which is not a multiple of 4 KiB")]
    TextOffset(u64),
    /// Too large for the guest's RAM.
    #[error(
        "the guest needs {} of RAM to hold {what} (up to {end:#x}), but has {}",
        Bytes(*.need), Bytes(*.mem)
    )]
    TooSmall {
        /// What does not fit.
        what: &'static str,
        /// First IPA after it.
        end: u64,
        /// RAM needed, in bytes.
        need: u64,
        /// RAM there is, in bytes.
        mem: u64,
    },
    /// A size that no memory has.
    #[error("the guest image claims {0:#x} bytes")]
    Absurd(u64),
}

/// Where a guest's parts lie in its RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLayout {
    /// All of RAM.
    pub ram: IpaRange,
    /// Space for the device tree.
    pub dtb: IpaRange,
    /// The image's bytes, as many as the file has.
    pub image: IpaRange,
    /// What the running image occupies; starts where `image` does.
    pub footprint: IpaRange,
    /// The first instruction.
    pub entry: u64,
    /// The ramdisk's bytes.
    pub ramdisk: Option<IpaRange>,
}

/// Places a guest in `mem` bytes of RAM. `head` is the image's first [`HEAD`] bytes (or all of it), `len`
/// its length, `ramdisk` the length of the initial ramdisk.
///
/// # Errors
/// [`ImageError`]: the image is of a form that is not started, or RAM is too small.
pub fn place(
    head: &[u8],
    len: u64,
    ramdisk: Option<u64>,
    mem: u64,
) -> Result<GuestLayout, ImageError> {
    if len == 0 || head.is_empty() {
        return Err(ImageError::Empty);
    }
    let (text_offset, size) = match Format::of(head) {
        Format::Raw => (0, len),
        Format::Arm64(header) if header.is_big_endian() => return Err(ImageError::BigEndian),
        Format::Arm64(header) if !header.text_offset.is_multiple_of(PAGE_SIZE) => {
            return Err(ImageError::TextOffset(header.text_offset));
        }
        Format::Arm64(header) => (header.text_offset, header.image_size.max(len)),
        other => return Err(ImageError::Format(other)),
    };
    let ram = IpaRange::from_len(map::RAM_BASE, mem).ok_or(ImageError::Absurd(mem))?;
    let dtb = IpaRange { start: ram.start, end: ram.start.saturating_add(map::DTB_SPACE) };

    let base = map::RAM_BASE.saturating_add(map::IMAGE_OFFSET);
    let start = base.checked_add(text_offset).ok_or(ImageError::TextOffset(text_offset))?;
    let footprint = IpaRange::from_len(start, size).ok_or(ImageError::Absurd(size))?;
    fits("the image", footprint, ram)?;
    let image = IpaRange { start, end: start.saturating_add(len) };

    let ramdisk = match ramdisk {
        None => None,
        Some(0) => return Err(ImageError::EmptyRamdisk),
        Some(bytes) => {
            let start = align_up(footprint.end, UNIT).ok_or(ImageError::Absurd(size))?;
            let range = IpaRange::from_len(start, bytes).ok_or(ImageError::Absurd(bytes))?;
            fits("the image and the ramdisk", range, ram)?;
            Some(range)
        }
    };
    Ok(GuestLayout { ram, dtb, image, footprint, entry: start, ramdisk })
}

fn fits(what: &'static str, range: IpaRange, ram: IpaRange) -> Result<(), ImageError> {
    if range.end <= ram.end {
        return Ok(());
    }
    let need = range.end.saturating_sub(ram.start);
    Err(ImageError::TooSmall { what, end: range.end, need, mem: ram.len() })
}
