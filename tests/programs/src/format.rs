//! Stage-2 descriptors as the manual's tables have them, for a comparison with code that computes.
//!
//! A third statement of the format, beside `stage2` and the oracle: rows are copied from tables D8-51, D8-53 and
//! D8-55 (fields), D8-76 to D8-78 (permissions), D8-96, D8-100 and D8-101 (memory types), for the 4 KiB granule,
//! VTCR_EL2.DS = 0, direct permissions. [`read`] looks things up and computes nothing, so that it cannot share an
//! idea with the code that it judges.

/// A field: bits `high:low`.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// As the table calls it.
    pub name: &'static str,
    high: u32,
    low: u32,
}

const fn field(name: &'static str, high: u32, low: u32) -> Field {
    Field { name, high, low }
}

impl Field {
    /// What the field holds.
    #[must_use]
    pub const fn of(&self, bits: u64) -> u64 {
        bits << (63 - self.high) >> (63 - self.high + self.low)
    }

    /// The field's bits.
    #[must_use]
    pub const fn mask(&self) -> u64 {
        u64::MAX << (63 - self.high) >> (63 - self.high + self.low) << self.low
    }
}

/// Table D8-51, row \[47:12\]: the next table.
pub const TABLE_ADDRESS: Field = field("NLTA", 47, 12);

/// Table D8-51.
pub const TABLE: &[Field] = &[
    field("RES0", 63, 63),
    field("RES0", 62, 59),
    field("IGNORED", 58, 51),
    field("RES0", 50, 50),
    field("RES0", 49, 48),
    TABLE_ADDRESS,
    field("IGNORED", 11, 11),
    field("IGNORED", 10, 10),
    field("IGNORED", 9, 8),
    field("IGNORED", 7, 2),
    field("Table", 1, 1),
    field("Valid", 0, 0),
];

/// The upper half of table D8-53, which blocks and pages share.
const UPPER: [Field; 11] = [
    field("RES0", 63, 63),
    field("PBHA", 62, 60),
    field("PBHA", 59, 59),
    field("AssuredOnly", 58, 58),
    field("software", 57, 56),
    field("NS", 55, 55),
    field("XN", 54, 53),
    field("Contiguous", 52, 52),
    field("DBM", 51, 51),
    field("RES0", 50, 50),
    field("RES0", 49, 48),
];

/// The lower half.
const LOWER: [Field; 7] = [
    field("FnXS", 11, 11),
    field("AF", 10, 10),
    field("SH", 9, 8),
    field("S2AP", 7, 6),
    field("MemAttr", 5, 2),
    field("Type", 1, 1),
    field("Valid", 0, 0),
];

/// Where the output address stands, by level: table D8-53, rows Block\[47:17\] to Page\[47:12\].
const OUTPUT: [&[Field]; 4] = [
    &[],
    &[field("OAB", 47, 30), field("RES0", 29, 17), field("nT", 16, 16), field("RES0", 15, 12)],
    &[field("OAB", 47, 21), field("RES0", 20, 17), field("nT", 16, 16), field("RES0", 15, 12)],
    &[field("OAB", 47, 12)],
];

/// Bytes that a leaf of each level maps; none at level 0.
pub const LEAF_BYTES: [u64; 4] = [0, 0x4000_0000, 0x20_0000, 0x1000];

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Translation fault.
    Invalid,
    /// Points to the next level.
    Table,
    /// Block or page.
    Leaf,
}

/// By level, what bits 1:0 mean: table D8-48 with the 4 KiB granule; a level 0 block needs DS = 1.
const KINDS: [[Kind; 4]; 4] = [
    [Kind::Invalid, Kind::Invalid, Kind::Invalid, Kind::Table],
    [Kind::Invalid, Kind::Leaf, Kind::Invalid, Kind::Table],
    [Kind::Invalid, Kind::Leaf, Kind::Invalid, Kind::Table],
    [Kind::Invalid, Kind::Invalid, Kind::Invalid, Kind::Leaf],
];

/// A memory type, as far as the tables tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Device-nGnRE.
    DevicenGnRE,
    /// Normal, non-cacheable inner and outer.
    NonCacheable,
    /// Normal, write-back inner and outer.
    WriteBack,
    /// Another one, or reserved.
    Other,
}

use Memory::{DevicenGnRE, NonCacheable, Other, WriteBack};

/// Table D8-96, MemAttr\[3:0\] without FWB.
const MEM_ATTR: [Memory; 16] = [
    Other,        // Device-nGnRnE
    DevicenGnRE,  //
    Other,        // Device-nGRE
    Other,        // Device-GRE
    Other,        // NoTagAccess, or reserved
    NonCacheable, // outer and inner
    Other,        // outer Non-cacheable, inner Write-Through
    Other,        // outer Non-cacheable, inner Write-Back
    Other,        // reserved
    Other,        // outer Write-Through, inner Non-cacheable
    Other,        // outer Write-Through, inner Write-Through
    Other,        // outer Write-Through, inner Write-Back
    Other,        // reserved
    Other,        // outer Write-Back, inner Non-cacheable
    Other,        // outer Write-Back, inner Write-Through
    WriteBack,    // outer and inner
];

/// Tables D8-100 and D8-101, MemAttr\[3:0\] with FWB, where bit 3 is RES0 without FEAT_MTE_PERM: what a guest that
/// asks for Write-Back gets.
const MEM_ATTR_FWB: [Memory; 16] = [
    Other,        // Device-nGnRnE
    DevicenGnRE,  //
    Other,        // Device-nGRE
    Other,        // Device-GRE
    Other,        // reserved
    NonCacheable, //
    WriteBack,    // whatever stage 1 says
    Other,        // as stage 1 says
    Other,
    Other,
    Other,
    Other,
    Other,
    Other,
    Other,
    Other, // RES0 is 1
];

/// Who may execute, (EL1, EL0), by XN\[1:0\].
/// Table D8-78 with FEAT_XNX.
const EXECUTE_XNX: [(bool, bool); 4] = [(true, true), (false, true), (false, false), (true, false)];
/// Table D8-77 without: XN is bit 54.
const EXECUTE: [(bool, bool); 4] = [(true, true), (true, true), (false, false), (false, false)];

/// Table D8-76, (read, write) by S2AP.
const ACCESS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

/// The machine, as far as the tables ask.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// HCR_EL2.FWB.
    pub fwb: bool,
    /// FEAT_XNX.
    pub xnx: bool,
}

/// What a leaf says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Output address.
    pub address: u64,
    /// Loads.
    pub read: bool,
    /// Stores.
    pub write: bool,
    /// Instruction fetch at EL1 and EL0.
    pub execute: (bool, bool),
    /// Memory type.
    pub memory: Memory,
    /// Shareability, as encoded.
    pub shareability: u64,
    /// Access flag.
    pub accessed: bool,
    /// Dirty bit modifier.
    pub dbm: bool,
    /// Contiguous.
    pub contiguous: bool,
    /// nT.
    pub no_translation: bool,
}

/// What hardware makes of 64 bits at a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Translation fault; bits 63:1 are IGNORED (table D8-55).
    Invalid,
    /// The next table.
    Table {
        /// Its address.
        address: u64,
    },
    /// A block or page.
    Leaf(Leaf),
}

/// Fields of a leaf at a level.
pub fn leaf_fields(level: usize) -> impl Iterator<Item = &'static Field> {
    UPPER.iter().chain(OUTPUT[level]).chain(LOWER.iter())
}

/// The kind of 64 bits at a level.
#[must_use]
pub fn kind(bits: u64, level: usize) -> Kind {
    KINDS[level][(bits & 0b11) as usize]
}

fn get(mut fields: impl Iterator<Item = &'static Field>, name: &str, bits: u64) -> u64 {
    fields.find(|field| field.name == name).map_or(0, |field| field.of(bits))
}

/// What hardware makes of 64 bits at a level.
#[must_use]
pub fn read(bits: u64, level: usize, machine: Machine) -> Meaning {
    let leaf = |name: &str| get(leaf_fields(level), name, bits);
    match kind(bits, level) {
        Kind::Invalid => Meaning::Invalid,
        Kind::Table => Meaning::Table { address: TABLE_ADDRESS.of(bits) * 4096 },
        Kind::Leaf => {
            let (read, write) = ACCESS[leaf("S2AP") as usize];
            let execute = if machine.xnx { EXECUTE_XNX } else { EXECUTE };
            let memory = if machine.fwb { MEM_ATTR_FWB } else { MEM_ATTR };
            Meaning::Leaf(Leaf {
                address: leaf("OAB") * LEAF_BYTES[level],
                read,
                write,
                execute: execute[leaf("XN") as usize],
                memory: memory[leaf("MemAttr") as usize],
                shareability: leaf("SH"),
                accessed: leaf("AF") == 1,
                dbm: leaf("DBM") == 1,
                contiguous: leaf("Contiguous") == 1,
                no_translation: leaf("nT") == 1,
            })
        }
    }
}

/// Bits that are RES0 at a level, if it is a leaf there.
#[must_use]
pub fn reserved(level: usize, machine: Machine) -> u64 {
    let res0 = leaf_fields(level).filter(|field| field.name == "RES0").map(Field::mask);
    // Conditions of table D8-53: bit 53 without FEAT_XNX, bit 5 with FWB.
    let xn0 = if machine.xnx { 0 } else { 1 << 53 };
    let mem3 = if machine.fwb { 1 << 5 } else { 0 };
    res0.fold(xn0 | mem3, |all, mask| all | mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of the 64 bits stands in one row of each table.
    #[test]
    fn the_tables_cover_every_bit_once() {
        let once = |fields: &mut dyn Iterator<Item = &'static Field>| {
            fields.fold(0, |seen: u64, field| {
                assert_eq!(seen & field.mask(), 0, "{}", field.name);
                seen | field.mask()
            })
        };
        assert_eq!(once(&mut TABLE.iter()), u64::MAX);
        (1..=3).for_each(|level| assert_eq!(once(&mut leaf_fields(level)), u64::MAX, "{level}"));
    }
}
