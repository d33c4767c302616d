//! Proves a blob well-formed before the `fdt` crate sees it.
//!
//! `fdt` 0.1.5 panics on malformed trees: it slices by the header's offsets, asserts that nodes balance,
//! recurses as deep as nodes nest, and unwraps names. It also loses its place at a NOP token before a
//! property or between nodes, and QEMU writes those (it blanks the `/memory` and `/psci` nodes of a tree
//! given by `-dtb`). So each thing that it takes for granted is checked here, with bounds, in one
//! pass over the tokens and without recursion; and a tree with NOPs is rewritten without them.
//!
//! What holds of a [`Checked`] blob:
//! 1. header, reservation, structure and strings blocks lie inside `totalsize`, which lies inside the blob;
//! 2. the reservations end with a zero entry;
//! 3. one root; every node that begins ends, at most [`MAX_DEPTH`] deep; properties come before children;
//! 4. every name is printable ASCII, terminated, and at most [`MAX_NAME`] bytes; only the root's is empty;
//! 5. every property's value lies inside the structure block;
//! 6. there is no NOP, and at most [`MAX_TOKENS`] other tokens: reading takes a bounded time.

use alloc::borrow::Cow;
use alloc::vec::Vec;

use super::error::{FdtError, StructureFault};

/// The largest tree that is read, in bytes. QEMU makes trees of 1 MiB, mostly empty, and doubles the size
/// of one that it is given by `-dtb`.
pub const MAX_SIZE: usize = 8 << 20;
/// How deep nodes may nest, the root included.
pub const MAX_DEPTH: usize = 16;
/// The longest name of a node or property, in bytes.
pub const MAX_NAME: usize = 255;
/// The most nodes and properties together (their ends count as well). Real trees have a few thousand.
pub const MAX_TOKENS: usize = 1 << 16;

const MAGIC: u32 = 0xd00d_feed;
const HEADER: usize = 40;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// A blob of which the list above holds.
pub(super) struct Checked<'a>(Cow<'a, [u8]>);

impl Checked<'_> {
    /// The bytes: header to `totalsize`.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The header fields that matter, as read.
struct Header {
    total: usize,
    structure: Block,
    strings: Block,
    reservations: u32,
}

#[derive(Clone, Copy)]
struct Block {
    name: &'static str,
    start: u32,
    size: u32,
}

impl Block {
    fn of<'a>(&self, blob: &'a [u8]) -> Result<&'a [u8], FdtError> {
        let start = self.start as usize;
        start
            .checked_add(self.size as usize)
            .and_then(|end| blob.get(start..end))
            .filter(|_| start >= HEADER)
            .ok_or(FdtError::Block {
                block: self.name,
                start: self.start,
                size: self.size,
                total: blob.len(),
            })
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    let end = offset.checked_add(4)?;
    Some(u32::from_be_bytes(bytes.get(offset..end)?.try_into().ok()?))
}

fn header(blob: &[u8]) -> Result<Header, FdtError> {
    let field = |index: usize| {
        word(blob, index.saturating_mul(4))
            .ok_or(FdtError::Truncated { need: HEADER, have: blob.len() })
    };
    let magic = field(0)?;
    if magic != MAGIC {
        return Err(FdtError::Magic(magic));
    }
    let total = field(1)? as usize;
    let (version, compatible) = (field(5)?, field(6)?);
    // The last field, so that a header cut short is noticed before anything is judged.
    let structure = Block { name: "structure", start: field(2)?, size: field(9)? };
    let strings = Block { name: "strings", start: field(3)?, size: field(8)? };
    if version < 17 || compatible > 17 {
        return Err(FdtError::Version { version, compatible });
    }
    if total > MAX_SIZE {
        return Err(FdtError::TooLarge { size: total, max: MAX_SIZE });
    }
    if total < HEADER || total > blob.len() {
        return Err(FdtError::Truncated { need: total.max(HEADER), have: blob.len() });
    }
    Ok(Header { total, structure, strings, reservations: field(4)? })
}

/// The size that a blob's header claims, in bytes, when it has the magic and the claim is within
/// [`MAX_SIZE`]: how much to map before [`parse`](super::parse) can be given all of it. `head` is the
/// first 8 bytes or more.
pub fn claimed_size(head: &[u8]) -> Result<usize, FdtError> {
    let short = FdtError::Truncated { need: 8, have: head.len() };
    let magic = word(head, 0).ok_or_else(|| short.clone())?;
    if magic != MAGIC {
        return Err(FdtError::Magic(magic));
    }
    let size = word(head, 4).ok_or(short)? as usize;
    if size > MAX_SIZE {
        return Err(FdtError::TooLarge { size, max: MAX_SIZE });
    }
    if size < HEADER {
        return Err(FdtError::Truncated { need: HEADER, have: size });
    }
    Ok(size)
}

/// Checks `blob` and gives back what the `fdt` crate may read.
pub(super) fn check(blob: &[u8]) -> Result<Checked<'_>, FdtError> {
    let header = header(blob)?;
    let tree = blob
        .get(..header.total)
        .ok_or(FdtError::Truncated { need: header.total, have: blob.len() })?;
    let reservations = reservations(tree, header.reservations)?;
    let structure = header.structure.of(tree)?;
    let strings = header.strings.of(tree)?;
    let tokens = Tokens { structure, strings, base: header.structure.start as usize };
    if tokens.check()? {
        return Ok(Checked(Cow::Borrowed(tree)));
    }
    Ok(Checked(Cow::Owned(without_nops(reservations, &tokens)?)))
}

/// The memory reservation block, up to and with the entry that ends it.
fn reservations(tree: &[u8], start: u32) -> Result<&[u8], FdtError> {
    let entries = tree.get(start as usize..).filter(|_| start as usize >= HEADER);
    entries
        .and_then(|entries| {
            let ends = |entry: &[u8]| entry.iter().all(|&byte| byte == 0);
            let last = entries.chunks_exact(16).position(ends)?;
            entries.get(..last.checked_add(1)?.checked_mul(16)?)
        })
        .ok_or(FdtError::Block { block: "memory reservation", start, size: 16, total: tree.len() })
}

/// The structure block as a sequence of tokens.
struct Tokens<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    /// Offset of the block in the blob, for messages.
    base: usize,
}

enum Token {
    Begin,
    EndNode,
    Property,
    Nop,
    End,
}

impl Tokens<'_> {
    fn fault(&self, offset: usize, what: StructureFault) -> FdtError {
        FdtError::Structure { offset: self.base.saturating_add(offset), what }
    }

    /// The token at `offset`, checked by itself, and the offset of the next.
    fn next(&self, offset: usize, is_root: bool) -> Result<(Token, usize), FdtError> {
        let fault = |what| self.fault(offset, what);
        let ends = || fault(StructureFault::EndsEarly);
        let body = offset.checked_add(4).ok_or_else(ends)?;
        let (token, end) = match word(self.structure, offset).ok_or_else(ends)? {
            BEGIN_NODE => {
                let name = self.structure.get(body..).ok_or_else(ends)?;
                let len = name_len(name, is_root).ok_or_else(|| fault(StructureFault::Name))?;
                (Token::Begin, body.checked_add(len).and_then(|end| end.checked_add(1)))
            }
            PROP => {
                let len = word(self.structure, body).ok_or_else(ends)?;
                let name = body.checked_add(4).and_then(|at| word(self.structure, at));
                let name = name.ok_or_else(ends)?;
                let text = self.strings.get(name as usize..);
                let text = text.ok_or_else(|| fault(StructureFault::NameOffset(name)))?;
                name_len(text, false).ok_or_else(|| fault(StructureFault::Name))?;
                let end = body.checked_add(8).and_then(|at| at.checked_add(len as usize));
                let end = end.filter(|&end| end <= self.structure.len());
                (
                    Token::Property,
                    Some(end.ok_or_else(|| fault(StructureFault::PropertyLength(len)))?),
                )
            }
            END_NODE => (Token::EndNode, Some(body)),
            NOP => (Token::Nop, Some(body)),
            END => (Token::End, Some(body)),
            other => return Err(fault(StructureFault::Token(other))),
        };
        let end = end.and_then(|end| end.checked_next_multiple_of(4)).ok_or_else(ends)?;
        Ok((token, end))
    }

    /// Walks the whole block. Gives whether it is free of NOPs.
    fn check(&self) -> Result<bool, FdtError> {
        let (mut offset, mut depth, mut clean) = (0, 0_usize, true);
        let (mut seen_root, mut in_head) = (false, false);
        let mut count = 0_usize;
        loop {
            let (token, next) = self.next(offset, depth == 0)?;
            let fault = |what| Err(self.fault(offset, what));
            if !matches!(token, Token::Nop) {
                count = count.saturating_add(1);
            }
            match token {
                _ if count > MAX_TOKENS => return fault(StructureFault::TooMany(MAX_TOKENS)),
                Token::Nop => clean = false,
                Token::Begin if depth == 0 && seen_root => {
                    return fault(StructureFault::SecondRoot);
                }
                Token::Begin if depth >= MAX_DEPTH => {
                    return fault(StructureFault::TooDeep(MAX_DEPTH));
                }
                Token::Begin => {
                    depth = depth.saturating_add(1);
                    seen_root = true;
                    in_head = true;
                }
                Token::Property if !in_head => return fault(StructureFault::StrayProperty),
                Token::Property => {}
                Token::EndNode if depth == 0 => return fault(StructureFault::Unbalanced),
                Token::EndNode => {
                    depth = depth.saturating_sub(1);
                    in_head = false;
                }
                Token::End if depth != 0 || !seen_root => return fault(StructureFault::EndInside),
                Token::End => return Ok(clean),
            }
            offset = next;
        }
    }
}

/// Length of the terminated name at the start of `text`, if it is one.
fn name_len(text: &[u8], may_be_empty: bool) -> Option<usize> {
    let len = text.iter().take(MAX_NAME.saturating_add(1)).position(|&byte| byte == 0)?;
    let printable = text.get(..len)?.iter().all(u8::is_ascii_graphic);
    (printable && (len != 0 || may_be_empty)).then_some(len)
}

/// A tree of the same content without NOP tokens, and without whatever lies between the blocks: QEMU's
/// trees are a few KiB of content in MiBs of space, and this one goes to the heap.
fn without_nops(reservations: &[u8], tokens: &Tokens<'_>) -> Result<Vec<u8>, FdtError> {
    let mut structure = Vec::with_capacity(tokens.structure.len());
    let mut offset = 0;
    loop {
        // Names were checked in the first pass; empty ones are fine here.
        let (token, next) = tokens.next(offset, true)?;
        if !matches!(token, Token::Nop) {
            structure.extend_from_slice(tokens.structure.get(offset..next).unwrap_or_default());
        }
        offset = next;
        if matches!(token, Token::End) {
            break;
        }
    }
    let blocks = [reservations, &structure, tokens.strings];
    let [at_reservations, at_structure, at_strings, total] =
        [0, 1, 2, 3].map(|count| blocks.iter().take(count).map(|block| block.len()).sum());
    let at = |offset: usize| offset.saturating_add(HEADER);
    let fields: [usize; HEADER / 4] = [
        MAGIC as usize,
        at(total),
        at(at_structure),
        at(at_strings),
        at(at_reservations),
        17,
        16,
        0,
        tokens.strings.len(),
        structure.len(),
    ];
    let mut copy = Vec::with_capacity(at(total));
    copy.extend(fields.iter().flat_map(|&field| (field as u32).to_be_bytes()));
    copy.extend(blocks.into_iter().flatten());
    Ok(copy)
}
