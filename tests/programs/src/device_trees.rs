//! Any device tree: an error or a machine, and then a layout, a configuration and a guest that fit in it.
//!
//! The input is either a blob (it starts with the magic; what follows the tree is choices), or a list of edits
//! to one of the real trees of QEMU in `seeds/`, so that a few bytes reach deep. What comes out is held against a
//! reader of its own (`flat.rs`) and against what the documentation of each step promises.

mod flat;

use arbitrary::{Arbitrary, Unstructured};
use hyp_abi::{MAX_VCPUS, map};
use hyp_core::config::{Bounds, Config, MIN_MEM, Nonce, Request};
use hyp_core::fdt::{self, Conduit, MAX_ENTRIES, ModuleKind, Platform};
use hyp_core::guest_dtb::{self, GuestTree};
use hyp_core::layout::{self, Layout};
use hyp_core::{IpaRange, PaRange, image};

/// Real trees, as QEMU wrote them; space between the blocks taken out. `reserved` is `virt` with memory reserved in
/// both ways and a disabled memory node; the last two have no PSCI node.
pub const SEEDS: [&[u8]; 8] = [
    include_bytes!("../seeds/virt.dtb"),
    include_bytes!("../seeds/guest.dtb"),
    include_bytes!("../seeds/numa.dtb"),
    include_bytes!("../seeds/gicv2.dtb"),
    include_bytes!("../seeds/nops.dtb"),
    include_bytes!("../seeds/reserved.dtb"),
    include_bytes!("../seeds/versal.dtb"),
    include_bytes!("../seeds/secure.dtb"),
];

const MAGIC: [u8; 4] = 0xd00d_feed_u32.to_be_bytes();
const PAGE: u64 = 4096;

/// What lies in memory besides what the tree says, and what the guest is.
#[derive(Clone, Debug, Default, Arbitrary)]
struct Choices {
    /// The hypervisor's image: offset into the first RAM range in 64 KiB, or an address.
    image: (u16, u32),
    image_is_address: Option<u64>,
    /// Offset of the tree itself, likewise.
    tree: (u16, u32),
    cpus: u8,
    overhead: u32,
    can_measure: bool,
    can_trace: bool,
    head: [u8; 24],
    text_offset: u64,
    image_size: u64,
    len: u64,
    ramdisk: Option<u64>,
}

/// One change to a real tree.
#[derive(Clone, Copy, Debug, Arbitrary)]
enum Edit {
    /// A 32-bit word, big-endian, at four times this offset.
    Word { at: u16, value: u32 },
    /// A bit.
    Flip { at: u16, bit: u8 },
    /// A byte.
    Byte { at: u16, value: u8 },
    /// One word copied over another.
    Copy { from: u16, to: u16 },
    /// Everything from here on is cut off.
    Cut { at: u16 },
}

/// How far an input came. A corpus that only tests refusals would test little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reached {
    /// No tree that can be used.
    Refused,
    /// A machine, but no memory layout.
    Machine,
    /// A layout, but no guest as asked for.
    Layout,
    /// A guest that has a place, but cannot be told.
    Place,
    /// A guest with its own tree.
    Guest,
}

/// The fuzz target.
pub fn check(bytes: &[u8]) {
    let _ = reach(bytes);
}

/// The fuzz target, and how far it came.
///
/// # Panics
/// On any finding.
pub fn reach(bytes: &[u8]) -> Reached {
    if bytes.starts_with(&MAGIC) {
        let size = fdt::claimed_size(bytes).unwrap_or(bytes.len()).min(bytes.len());
        let choices = Choices::arbitrary(&mut Unstructured::new(&bytes[size..]));
        return machine(bytes, &choices.unwrap_or_default());
    }
    let mut input = Unstructured::new(bytes);
    let seed = usize::from(u8::arbitrary(&mut input).unwrap_or(0));
    let choices = Choices::arbitrary(&mut input).unwrap_or_default();
    let mut blob = SEEDS[seed % SEEDS.len()].to_vec();
    while !input.is_empty() && !blob.is_empty() {
        match Edit::arbitrary(&mut input) {
            Ok(edit) => apply(edit, &mut blob),
            Err(_) => break,
        }
    }
    machine(&blob, &choices)
}

fn apply(edit: Edit, blob: &mut Vec<u8>) {
    let len = blob.len();
    let word = |at: u16| (usize::from(at) * 4) % len.max(4).next_multiple_of(4) / 4 * 4;
    match edit {
        Edit::Word { at, value } => {
            if let Some(place) = blob.get_mut(word(at)..word(at) + 4) {
                place.copy_from_slice(&value.to_be_bytes());
            }
        }
        Edit::Flip { at, bit } => blob[usize::from(at) % len] ^= 1 << (bit % 8),
        Edit::Byte { at, value } => blob[usize::from(at) % len] = value,
        Edit::Copy { from, to } => {
            let (from, to) = (word(from), word(to));
            if from + 4 <= len && to + 4 <= len {
                blob.copy_within(from..from + 4, to);
            }
        }
        Edit::Cut { at } => blob.truncate(usize::from(at) % len),
    }
}

/// From the blob to a guest, as the hypervisor goes.
fn machine(blob: &[u8], choices: &Choices) -> Reached {
    let salvaged = fdt::salvage(blob);
    let platform = match fdt::parse(blob) {
        Ok(platform) => platform,
        Err(error) => return sentence(&error, Reached::Refused),
    };
    assert_eq!(salvaged.uart, Some(platform.uart), "what can be read can be salvaged");
    assert_eq!(salvaged.psci, Some(platform.psci));
    assert_eq!(salvaged.bootargs.unwrap_or_default(), platform.bootargs);
    is_sound(&platform);
    flat::agrees(blob, &platform);

    let ram = platform.ram[0];
    let within = |(offset, len): (u16, u32)| {
        let start = ram.start.saturating_add(u64::from(offset) << 16);
        PaRange { start, end: start.saturating_add(u64::from(len)) }
    };
    let image = match choices.image_is_address {
        Some(start) => PaRange { start, end: start.saturating_add(u64::from(choices.image.1)) },
        None => within(choices.image),
    };
    let tree = within(choices.tree);
    match layout::plan(&platform, image, tree) {
        Ok(layout) => {
            is_apart(&platform, &layout, image, tree);
            guest(&platform, &layout, choices)
        }
        Err(error) => sentence(&error, Reached::Machine),
    }
}

/// An error is one sentence, however hostile the names in it.
fn sentence(error: &dyn core::fmt::Display, reached: Reached) -> Reached {
    let text = error.to_string();
    let fit = text.len() < 1 << 14 && text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    assert!(fit && !text.is_empty(), "{text:?}");
    reached
}

fn is_sound(platform: &Platform) {
    assert!(platform.ram.iter().all(|range| range.start < range.end));
    assert!(platform.ram.windows(2).all(|pair| pair[0].end < pair[1].start), "sorted and apart");
    assert!((1..=MAX_ENTRIES).contains(&platform.ram.len()));
    assert!((1..=MAX_ENTRIES).contains(&platform.cpus.len()));
    assert!(platform.reserved.len() <= MAX_ENTRIES && platform.modules.len() <= MAX_ENTRIES);
    let mut cpus: Vec<u64> = platform.cpus.iter().map(|cpu| cpu.mpidr).collect();
    assert!(cpus.iter().all(|mpidr| mpidr & !0xff_00ff_ffff == 0));
    cpus.sort_unstable();
    assert!(cpus.windows(2).all(|pair| pair[0] != pair[1]), "two CPUs with one MPIDR");
    assert!(!platform.uart.is_empty());
    assert!(platform.gic.is_none_or(|gic| !gic.dist.is_empty() && !gic.redist.is_empty()));
    assert!(platform.modules.iter().all(|module| !module.range.is_empty()));
}

/// Free memory is whole pages of RAM that nothing else touches, and all of them.
fn is_apart(platform: &Platform, layout: &Layout, image: PaRange, tree: PaRange) {
    let modules = platform.modules.iter().map(|module| module.range);
    let reserved = platform.reserved.iter().map(|named| named.value);
    let placed: Vec<PaRange> = [image, tree].into_iter().chain(modules).collect();
    for (at, one) in placed.iter().enumerate() {
        assert!(platform.ram.iter().any(|ram| ram.start <= one.start && one.end <= ram.end));
        let clash = placed[at + 1..].iter().any(|two| one.start < two.end && two.start < one.end);
        assert!(!clash, "{one} is not alone");
    }
    let taken: Vec<PaRange> = placed.into_iter().chain(reserved).collect();
    assert!(!layout.free.is_empty());
    assert!(layout.free.windows(2).all(|pair| pair[0].end <= pair[1].start), "sorted and apart");
    for free in &layout.free {
        assert!(free.start < free.end && free.start % PAGE == 0 && free.end % PAGE == 0, "{free}");
        assert!(platform.ram.iter().any(|ram| ram.start <= free.start && free.end <= ram.end));
        let touched =
            taken.iter().find(|t| !t.is_empty() && t.start < free.end && free.start < t.end);
        assert_eq!(touched, None, "{free} is not free");
    }
    // Nothing is withheld: the pages at each edge of what is taken are free, unless something touches them.
    let is_free = |page: u64| layout.free.iter().any(|f| f.start <= page && page < f.end);
    let edges = taken.iter().chain(&platform.ram).flat_map(|range| {
        [range.start.wrapping_sub(PAGE), range.start, range.end.wrapping_sub(1), range.end]
    });
    for page in edges.map(|address| address & !(PAGE - 1)) {
        let Some(end) = page.checked_add(PAGE) else { continue };
        let ram = platform.ram.iter().any(|ram| ram.start <= page && end <= ram.end);
        let touched = taken.iter().any(|t| !t.is_empty() && t.start < end && page < t.end);
        assert_eq!(is_free(page), ram && !touched, "page {page:#x}");
    }
    assert_eq!(
        layout.free_bytes(),
        layout.free.iter().fold(0, |sum: u64, free| sum.saturating_add(free.end - free.start))
    );
}

/// The command line and the guest that it asks for.
fn guest(platform: &Platform, layout: &Layout, choices: &Choices) -> Reached {
    let line = &platform.bootargs;
    let bounds = Bounds {
        cpus: usize::from(choices.cpus),
        free: layout.free_bytes(),
        overhead: u64::from(choices.overhead),
        can_measure: choices.can_measure,
        can_trace: choices.can_trace,
    };
    let config = match Request::parse(line).and_then(|request| request.resolve(&bounds)) {
        Ok(config) => config,
        Err(error) => return sentence(&error, Reached::Layout),
    };
    let Config { vcpus, mem, restarts, ref report, blocks, scan, manage, bbm, .. } = config;
    let Config { measure, trace, .. } = config;
    assert!(bounds.cpus > 0 && (1..=MAX_VCPUS).contains(&vcpus));
    assert!(
        mem >= MIN_MEM && mem % PAGE == 0 && mem <= bounds.free.saturating_sub(bounds.overhead)
    );
    assert!(measure <= bounds.can_measure && trace.is_some() <= bounds.can_trace);
    assert!(restarts.is_none() || line.contains("restarts="));
    let given = |wanted| line.split_ascii_whitespace().any(|word| word == wanted);
    assert_eq!((blocks, scan, manage), (given("blocks"), given("scan"), given("manage")));
    let asked = |level| line.split_ascii_whitespace().any(|word| word == format!("bbm={level}"));
    assert_eq!(bbm, (0..=2).find(|level| asked(*level)));
    assert_eq!(*report, Nonce::find(line), "a good line's nonce is found in it");

    let size = |kind| match platform.module(kind) {
        Ok(module) => module.map(|module| module.range.len()),
        Err(error) => {
            sentence(&error, Reached::Layout);
            None
        }
    };
    let ramdisk = size(ModuleKind::Ramdisk).or(choices.ramdisk);
    let mut head = [0; image::HEAD];
    head[..24].copy_from_slice(&choices.head);
    head[8..16].copy_from_slice(&choices.text_offset.to_le_bytes());
    head[16..24].copy_from_slice(&choices.image_size.to_le_bytes());
    if choices.can_measure {
        head[56..60].copy_from_slice(b"ARMd");
    }
    let len = size(ModuleKind::Kernel).unwrap_or(choices.len);
    let place = match image::place(&head, len, ramdisk, mem) {
        Ok(place) => place,
        Err(error) => return sentence(&error, Reached::Layout),
    };
    let mut parts = vec![place.dtb, place.footprint];
    parts.extend(place.ramdisk);
    assert_eq!(place.ram, IpaRange { start: map::RAM_BASE, end: map::RAM_BASE + mem });
    for (at, part) in parts.iter().enumerate() {
        assert!(place.ram.start <= part.start && part.end <= place.ram.end, "{part} is in RAM");
        assert!(parts[at + 1..].iter().all(|other| part.end <= other.start), "{part} is alone");
    }
    assert!(place.footprint.start == place.image.start && place.image.end <= place.footprint.end);
    assert_eq!((place.image.len(), place.entry), (len, place.image.start));
    assert_eq!(place.ramdisk.map(|range| range.len()), ramdisk);
    told(platform, vcpus, &place, choices.can_measure)
}

/// What the guest is told is what it has, read back by the hypervisor's own reader.
fn told(platform: &Platform, vcpus: usize, place: &image::GuestLayout, flash: bool) -> Reached {
    let bootargs = platform.modules.first().map_or("", |module| &module.bootargs);
    let tree = GuestTree { vcpus, ram: place.ram, ramdisk: place.ramdisk, bootargs, flash };
    let blob = match guest_dtb::build(&tree) {
        Ok(blob) => blob,
        Err(error) => return sentence(&error, Reached::Place),
    };
    assert!(blob.len() as u64 <= map::DTB_SPACE);
    let told = fdt::parse(&blob).expect("a guest's tree can be read");
    assert_eq!(told.ram, [PaRange { start: place.ram.start, end: place.ram.end }]);
    assert!(told.cpus.iter().enumerate().all(|(at, cpu)| cpu.mpidr == at as u64));
    assert_eq!((told.cpus.len(), told.psci), (vcpus, Conduit::Hvc));
    let gic = told.gic.expect("each guest has one");
    assert_eq!(gic.redist.len(), map::GICR_STRIDE * vcpus as u64);
    assert_eq!((told.uart.start, told.uart.len()), (map::UART_BASE, map::UART_SIZE));
    assert_eq!(told.bootargs, bootargs);
    assert!(told.modules.is_empty() && told.reserved.is_empty());
    let nodes = flat::nodes(&blob);
    let chosen = nodes.iter().find(|node| node.name == "chosen").expect("/chosen");
    let number = |name| {
        let bytes = chosen.value(name)?;
        Some(u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
    };
    let ramdisk = number("linux,initrd-start").zip(number("linux,initrd-end"));
    assert_eq!(ramdisk, place.ramdisk.map(|range| (range.start, range.end)));
    assert_eq!(nodes.iter().any(|node| node.is_called("flash")), flash);
    flat::agrees(&blob, &told);
    Reached::Guest
}
