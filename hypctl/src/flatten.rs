//! From ELF to what a boot loader copies: the PT_LOAD segments, laid out by physical address.
//!
//! Byte for byte what `objcopy -O binary` gives. The zero-initialised tail is not part of it; an
//! arm64 Image header says how much memory is needed.

use object::Endianness;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

/// The most that a flat image may hold, in bytes: a stray segment far away is a linker script
/// mistake and not a reason to write gigabytes.
const FLAT_MAX: u64 = 64 << 20;

/// Why an ELF cannot be flattened.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// It cannot be parsed.
    #[error("not a readable ELF: {0}")]
    Parse(#[from] object::read::Error),
    /// There is nothing to load.
    #[error("no PT_LOAD segment with content")]
    Empty,
    /// The segments are too far apart.
    #[error(
        "the segments span {span:#x} bytes from {start:#x}; at most {FLAT_MAX:#x} are sensible"
    )]
    Span {
        /// Lowest physical address.
        start: u64,
        /// Bytes from the lowest to the highest.
        span: u64,
    },
}

/// The flat image of `elf`, which starts at the lowest physical address of its segments.
pub fn flatten(elf: &[u8]) -> Result<Vec<u8>, FlattenError> {
    let header = FileHeader64::<Endianness>::parse(elf)?;
    let endian = header.endian()?;
    let mut pieces = Vec::new();
    for segment in header.program_headers(endian, elf)? {
        if segment.p_type(endian) != PT_LOAD || segment.p_filesz(endian) == 0 {
            continue;
        }
        let data = segment.data(endian, elf).map_err(|()| FlattenError::Empty)?;
        pieces.push((segment.p_paddr(endian), data));
    }
    let start = pieces.iter().map(|(at, _)| *at).min().ok_or(FlattenError::Empty)?;
    let end = pieces.iter().map(|(at, data)| at.saturating_add(data.len() as u64)).max();
    let span = end.unwrap_or(start) - start;
    if span > FLAT_MAX {
        return Err(FlattenError::Span { start, span });
    }
    let mut flat = vec![0; span as usize];
    for (at, data) in pieces {
        let at = (at - start) as usize;
        flat[at..at + data.len()].copy_from_slice(data);
    }
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF of nothing but a header, program headers and their content.
    fn elf(segments: &[(u32, u64, &[u8])]) -> Vec<u8> {
        let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
        out.resize(16, 0);
        out.extend([2u16, 183].iter().flat_map(|field| field.to_le_bytes()));
        out.extend(1u32.to_le_bytes());
        out.extend([0u64, 64, 0].iter().flat_map(|field| field.to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        let count = segments.len() as u16;
        out.extend([64u16, 56, count, 64, 0, 0].iter().flat_map(|field| field.to_le_bytes()));
        let mut offset = 64 + 56 * segments.len() as u64;
        for (kind, at, data) in segments {
            let size = data.len() as u64;
            out.extend([*kind, 5].iter().flat_map(|field| field.to_le_bytes()));
            let fields = [offset, !*at, *at, size, size + 0x1000, 8];
            out.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
            offset += size;
        }
        for (_, _, data) in segments {
            out.extend_from_slice(data);
        }
        out
    }

    #[test]
    fn segments_land_at_their_physical_addresses_with_zeros_between() {
        let elf = elf(&[(1, 0x4000_0006, b"cd"), (4, 0, b"note"), (1, 0x4000_0000, b"ab")]);
        assert_eq!(flatten(&elf).unwrap(), b"ab\0\0\0\0cd");
    }

    #[test]
    fn what_cannot_be_flattened_is_an_error() {
        assert!(matches!(flatten(b"MZ"), Err(FlattenError::Parse(_))));
        assert!(matches!(flatten(&elf(&[(4, 0, b"note")])), Err(FlattenError::Empty)));
        let far = elf(&[(1, 0, b"a"), (1, 1 << 40, b"b")]);
        assert!(matches!(flatten(&far), Err(FlattenError::Span { start: 0, .. })));
    }
}
