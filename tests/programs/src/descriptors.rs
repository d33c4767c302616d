//! Any 64 bits at any level: three statements of the format agree.
//!
//! `stage2` decodes with masks and says what *it* ever writes; hardware knows only valid and invalid. So the
//! comparison has two halves. What `stage2` takes for a leaf or a table must be one for hardware, with the same
//! address and attributes, and no reserved bit set; what it takes for anything else but Foreign must be invalid
//! for hardware. And what it makes on request must be read back as what was asked for, by all three.

use arbitrary::{Arbitrary, Unstructured};
use mmu_oracle::descriptor as oracle;
use stage2::descriptor::DescriptorError;
use stage2::{
    Attributes, Descriptor, Encoding, Leaf, Level, MemType, Note, Owner, Pa, View, Write,
};

use crate::format::{self, Kind, Machine, Meaning, Memory};

const LEVELS: [Level; 4] = [Level::L0, Level::L1, Level::L2, Level::L3];
/// Bits that `stage2` may set without hardware reading them: MANAGED and NON_OWNED.
const SOFTWARE: u64 = 0b11 << 56;

/// What the fuzzer chooses.
#[derive(Clone, Copy, Debug, Arbitrary)]
struct Input {
    level: u8,
    fwb: bool,
    xnx: bool,
    bits: u64,
    /// What is asked for: flags, memory type, write state.
    wanted: u16,
}

/// The fuzz target.
pub fn check(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    while !input.is_empty() {
        if let Ok(input) = Input::arbitrary(&mut input) {
            one(input);
        }
    }
}

fn one(input: Input) {
    let level = usize::from(input.level % 4);
    let machine = Machine { fwb: input.fwb, xnx: input.xnx };
    decode(input.bits, level, machine);
    // The states are few among 2^64 patterns: have them all, one bit flipped.
    let flip = 1u64.checked_shl(u32::from(input.wanted >> 8)).unwrap_or(0);
    for sound in states(input.bits, level, machine) {
        decode(sound.bits(), level, machine);
        decode(sound.bits() ^ flip, level, machine);
    }
    encode(&input, level, machine);
}

fn encoding(machine: Machine) -> Encoding {
    Encoding { fwb: machine.fwb, xnx: machine.xnx }
}

/// A descriptor of each state, its address or payload from `seed`.
fn states(seed: u64, level: usize, machine: Machine) -> Vec<Descriptor> {
    let at = LEVELS[level];
    let address = seed & 0x0000_ffff_ffff_f000;
    let attributes = wanted(seed as u16, machine);
    let owner = if seed >> 63 == 0 { Owner::Vm } else { Owner::Other };
    let block = address & !(at.slot_bytes() - 1);
    let leaf = Descriptor::leaf(at, Pa::new(block), &attributes, encoding(machine), owner).ok();
    let table = Descriptor::table(at, Pa::new(address)).ok();
    let note = Note::new(seed & Note::MAX).map(Descriptor::note);
    let busy = |live: Option<Descriptor>| live.and_then(Descriptor::to_busy);
    let drain = |live: Option<Descriptor>| live.and_then(|live| live.to_drain(at));
    let fixed = [Descriptor::EMPTY, Descriptor::DEAD].map(Some);
    let moving = leaf.and_then(|leaf| leaf.with_no_translation(at, true));
    let made = [leaf, table, note, busy(leaf), busy(table), drain(leaf), drain(table), moving];
    made.into_iter().chain(fixed).flatten().collect()
}

fn wanted(choice: u16, machine: Machine) -> Attributes {
    let bit = |n: u32| choice >> n & 1 != 0;
    let exec_el1 = bit(1);
    Attributes {
        read: bit(0),
        exec_el1,
        exec_el0: if machine.xnx { bit(2) } else { exec_el1 },
        accessed: bit(3),
        contiguous: bit(4),
        write: [Write::Denied, Write::Allowed, Write::Clean, Write::Dirty]
            [usize::from(choice >> 5 & 3)],
        mem: [MemType::Normal, MemType::NonCacheable, MemType::Device]
            [usize::from(choice >> 7 & 3) % 3],
    }
}

/// Everything that holds of 64 bits as they stand in a slot.
fn decode(bits: u64, level: usize, machine: Machine) {
    let at = LEVELS[level];
    let descriptor = Descriptor::from_bits(bits);
    let view = descriptor.view(at);
    let meaning = format::read(bits, level, machine);

    oracle_agrees(bits, level, meaning);
    assert_eq!(descriptor.bits(), bits);
    assert_eq!(descriptor.is_valid(), bits & 1 == 1);
    match view {
        View::Empty => assert_eq!(bits, 0),
        View::Drain(former) => {
            assert_eq!(former.descriptor(), descriptor, "drain remembers exactly what it says");
            assert!(former.is_table() || former.pa().is_aligned(at.slot_bytes()));
        }
        View::Dead => assert_eq!(descriptor, Descriptor::DEAD),
        View::Note(note) => assert_eq!(Descriptor::note(note), descriptor),
        View::Busy(live) => {
            assert!(matches!(live.view(at), View::Leaf(_) | View::Table(_)), "{live:?}");
            assert_eq!(live.to_busy(), Some(descriptor), "busy remembers exactly what it was");
        }
        View::Table(pa) => {
            assert_eq!(meaning, Meaning::Table { address: pa.get() });
            assert_eq!(Descriptor::table(at, pa), Ok(descriptor));
        }
        View::Leaf(leaf) => leaf_agrees(&leaf, bits, level, machine),
        View::Foreign(seen) => assert_eq!(seen, bits),
    }
    let live = matches!(view, View::Table(_) | View::Leaf(_));
    if !live && !matches!(view, View::Foreign(_)) {
        assert_eq!(meaning, Meaning::Invalid, "{view:?} must be invisible to a walk");
    }
    let table = if let View::Table(pa) = view { Some(pa) } else { None };
    assert_eq!(descriptor.as_table(at), table, "the short way down agrees with the long one");
    match descriptor.to_busy() {
        Some(busy) => {
            assert!(!busy.is_valid() && descriptor.is_valid());
            assert_eq!(live, busy.view(at) == View::Busy(descriptor));
        }
        None => assert!(!live, "{view:?} has no Busy"),
    }
}

/// The oracle's decoding, the second statement, against the manual's tables, the third.
fn oracle_agrees(bits: u64, level: usize, meaning: Meaning) {
    let seen = oracle::kind(bits, level as u8);
    match meaning {
        Meaning::Invalid => assert_eq!(seen, oracle::Kind::Fault),
        Meaning::Table { address } => assert_eq!(seen, oracle::Kind::Table(address)),
        Meaning::Leaf(leaf) => {
            assert_eq!(seen, oracle::Kind::Leaf(leaf.address));
            assert_eq!(format::LEAF_BYTES[level], 1 << oracle::shift(level as u8));
            assert_eq!(oracle::accessed(bits), leaf.accessed);
            assert_eq!(oracle::dirty(bits), leaf.dbm && leaf.write, "writable-dirty");
            assert_eq!(oracle::contiguous(bits), leaf.contiguous);
        }
    }
}

/// What `stage2` says of a leaf against what the manual's tables say of the bits.
fn leaf_agrees(leaf: &Leaf, bits: u64, level: usize, machine: Machine) {
    let at = LEVELS[level];
    let Meaning::Leaf(read) = format::read(bits, level, machine) else {
        panic!("{bits:#x} is no leaf at level {level}");
    };
    assert_eq!((leaf.pa().get(), leaf.level()), (read.address, at));
    assert_eq!(leaf.has_no_translation(), read.no_translation);
    assert_eq!(leaf.owner() == Owner::Other, bits >> 57 & 1 == 1);
    let moves = leaf.has_no_translation();
    let toggled = Descriptor::from_bits(bits).with_no_translation(at, !moves);
    assert_eq!(toggled.is_some(), at != Level::L3);
    if let Some(toggled) = toggled {
        assert_eq!(toggled.bits() ^ bits, 1 << 16);
        assert_eq!(toggled.with_no_translation(at, moves).map(Descriptor::bits), Some(bits));
    }
    let Some(attributes) = leaf.attributes(encoding(machine)) else {
        return;
    };
    says_the_same(&attributes, &read);
    assert_eq!(bits & format::reserved(level, machine), 0, "{bits:#x} sets a reserved bit");
    // All of it is said by its parts.
    let made = Descriptor::leaf(at, leaf.pa(), &attributes, encoding(machine), leaf.owner());
    let made = made.ok().and_then(|made| match moves {
        true => made.with_no_translation(at, true),
        false => Some(made),
    });
    assert_eq!(made.map(Descriptor::bits), Some(bits));
}

/// What `stage2` says of attributes is what the manual's tables say of the bits.
pub(crate) fn says_the_same(attributes: &Attributes, read: &format::Leaf) {
    let writes = (read.write, read.dbm);
    let expected = match attributes.write {
        Write::Denied => (false, false),
        Write::Allowed => (true, false),
        Write::Clean => (false, true),
        Write::Dirty => (true, true),
    };
    assert_eq!(writes, expected);
    assert_eq!(attributes.read, read.read);
    assert_eq!((attributes.exec_el1, attributes.exec_el0), read.execute);
    assert_eq!(attributes.accessed, read.accessed);
    assert_eq!(attributes.contiguous, read.contiguous);
    assert_eq!(read.shareability, 0b11, "Inner Shareable");
    let memory = match attributes.mem {
        MemType::Normal => Memory::WriteBack,
        MemType::NonCacheable => Memory::NonCacheable,
        MemType::Device => Memory::DevicenGnRE,
    };
    assert_eq!(memory, read.memory);
}

/// Asks for a leaf and a table at any address: made as asked, or refused for the reason given.
fn encode(input: &Input, level: usize, machine: Machine) {
    let (at, pa) = (LEVELS[level], Pa::new(input.bits));
    let mut attributes = wanted(input.wanted, machine);
    // Without FEAT_XNX, ask for what it cannot say as well.
    let split = !machine.xnx && input.wanted & 1 << 9 != 0;
    attributes.exec_el0 ^= split;
    let made = Descriptor::leaf(at, pa, &attributes, encoding(machine), Owner::Vm);
    let fits = |bytes: u64| input.bits < 1 << 48 && input.bits.is_multiple_of(bytes);
    match made {
        Ok(descriptor) => {
            assert!(!split && fits(format::LEAF_BYTES[level]));
            let Meaning::Leaf(read) = format::read(descriptor.bits(), level, machine) else {
                panic!("{descriptor:?} is no leaf");
            };
            assert_eq!(read.address, input.bits);
            says_the_same(&attributes, &read);
            let known = format::leaf_fields(level)
                .filter(|field| !matches!(field.name, "RES0" | "PBHA" | "AssuredOnly" | "NS"))
                .fold(0, |all, field| all | field.mask());
            assert_eq!(descriptor.bits() & !known, 0, "only fields that have a meaning are set");
        }
        Err(DescriptorError::Level { .. }) => assert_eq!(format::LEAF_BYTES[level], 0),
        Err(DescriptorError::Attributes(_)) => assert!(split),
        Err(DescriptorError::Address { .. }) => assert!(!fits(format::LEAF_BYTES[level])),
    }
    match Descriptor::table(at, pa) {
        Ok(table) => {
            assert!(level < 3 && fits(4096));
            assert_eq!(format::kind(table.bits(), level), Kind::Table);
            assert_eq!(table.bits() & !SOFTWARE, input.bits | 0b11);
        }
        Err(DescriptorError::Level { .. }) => assert_eq!(level, 3),
        Err(DescriptorError::Address { .. }) => assert!(!fits(4096)),
        Err(DescriptorError::Attributes(error)) => panic!("a table has no attributes: {error}"),
    }
    let note = Note::new(input.bits);
    assert_eq!(note.is_some(), input.bits >> 51 == 0);
    if let Some(note) = note {
        assert_eq!(format::kind(Descriptor::note(note).bits(), level), Kind::Invalid);
    }
}
