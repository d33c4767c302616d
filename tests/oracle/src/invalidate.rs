//! Which entries an invalidation is *required* to remove: operands exactly as C5.5 has them.
//!
//! What is not required to go stays. So nothing goes if the level hint or the granule is wrong
//! \[RSQXYZ, RXKMMX\], or if the base of a hinted range is unaligned \[D8.17.5.2, C5.5.22\]; the
//! last-level forms spare intermediate entries, a hint spares those at its level and below and leaves
//! of other levels \[C5.5.22\]; and a member of a contiguous run goes only by an address in its own
//! granule \[RLQLSD, IJQPNP\].

use crate::descriptor::{self, Kind, LEAF_LEVEL, shift};
use crate::event::Aim;
use crate::tlb::{EL2, Entry, Form};

/// Whether an invalidation must hit an entry of the VM that it is aimed at, or of EL2's own regime if it is aimed at that.
pub(crate) fn hits(aim: Aim, entry: &Entry, form: Form) -> bool {
    let stage2 = form == Form::Stage2;
    if aim.is_el2() != (entry.regime == EL2) {
        return false;
    }
    match aim {
        Aim::El2All => true,
        Aim::El2Va(operand) => address_hits(operand, va_page(operand), entry),
        Aim::All | Aim::Vm => true,
        Aim::VmStage1 => form == Form::Combined,
        Aim::Ipa(operand) => stage2 && address_hits(operand, page_ipa(operand), entry),
        Aim::IpaLast(operand) => {
            stage2 && entry.is_leaf() && address_hits(operand, page_ipa(operand), entry)
        }
        Aim::IpaRange(operand) => stage2 && range_hits(operand, entry),
        Aim::IpaRangeLast(operand) => stage2 && entry.is_leaf() && range_hits(operand, entry),
    }
}

/// The addresses that an invalidation by address is aimed at: first, and one past the last.
pub(crate) fn span(aim: Aim) -> Option<(u64, u64)> {
    match aim {
        Aim::Ipa(operand) | Aim::IpaLast(operand) => {
            let ipa = page_ipa(operand);
            Some((ipa, ipa + (1 << descriptor::GRANULE)))
        }
        Aim::IpaRange(operand) | Aim::IpaRangeLast(operand) => {
            let (base, bytes) = range_span(operand);
            Some((base, base + bytes))
        }
        Aim::El2Va(operand) => {
            let va = va_page(operand);
            Some((va, va + (1 << descriptor::GRANULE)))
        }
        Aim::VmStage1 | Aim::Vm | Aim::All | Aim::El2All => None,
    }
}

/// What a level hint spares: leaves of other levels, and tables that are not above the leaf.
fn level_hits(hint: u8, entry: &Entry) -> bool {
    match entry.kind() {
        Kind::Leaf(_) => entry.level == hint,
        Kind::Table(_) => entry.level < hint,
        Kind::Fault => false,
    }
}

const fn page_ipa(operand: u64) -> u64 {
    (operand & ((1 << 36) - 1)) << descriptor::GRANULE
}

/// `VAE2*`: bits 55:12 of the address in bits 43:0 of the operand.
const fn va_page(operand: u64) -> u64 {
    (operand & ((1 << 44) - 1)) << descriptor::GRANULE
}

/// The operand's hint stands in bits 47:44 of every form by address.
fn address_hits(operand: u64, ipa: u64, entry: &Entry) -> bool {
    let (start, end) = entry.span();
    let ttl = operand >> 44 & 0xf;
    let level = match (ttl >> 2, ttl & 0b11) {
        // No hint. Reserved values of the other granules count as none, too.
        (0, _) | (2 | 3, 0) => true,
        // With FEAT_LPA2 these two name levels, which are not the leaf's; only without it do they
        // count as no hint. A model of every machine relies on neither.
        (1, 0) | (2, 1) => false,
        (1, hint) => level_hits(hint as u8, entry),
        // Another granule than the tables'.
        _ => false,
    };
    level && start <= ipa && ipa < end
}

const fn range_span(operand: u64) -> (u64, u64) {
    let base = (operand & ((1 << 37) - 1)) << descriptor::GRANULE;
    let (num, scale) = (operand >> 39 & 0x1f, operand >> 44 & 0b11);
    (base, (num + 1) << (5 * scale + 1) << descriptor::GRANULE)
}

fn range_hits(operand: u64, entry: &Entry) -> bool {
    let (base, bytes) = range_span(operand);
    let (ttl, granule) = ((operand >> 37 & 0b11) as u8, operand >> 46 & 0b11);
    if granule != 1 {
        return false;
    }
    if ttl != 0 && ttl < LEAF_LEVEL && base & ((1 << shift(ttl)) - 1) != 0 {
        return false;
    }
    let (start, end) = entry.span();
    (ttl == 0 || level_hits(ttl, entry)) && start < base + bytes && base < end
}
