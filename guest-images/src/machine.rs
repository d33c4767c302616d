//! What the device tree says about the machine, and RAM to work on.
//!
//! The tree's address comes in x0. An ELF file started by plain QEMU gets x0 = 0 and finds the tree
//! at the bottom of RAM. The guest trusts its tree (its own hypervisor made it) and fails with a
//! sentence where something that it needs is missing.

use core::ops::Range;

use fdt::Fdt;
use hyp_abi::MAX_VCPUS;
use hyp_abi::map::RAM_BASE;

use crate::{MIB2, fail};

unsafe extern "C" {
    static __image_end: u8;
}

/// The first four bytes of a flattened device tree.
const MAGIC: [u8; 4] = [0xd0, 0x0d, 0xfe, 0xed];

/// What the guest runs on.
pub struct Machine {
    /// Guest RAM, IPA.
    pub ram: Range<usize>,
    /// The command line.
    pub bootargs: &'static str,
    /// MPIDRs of the vCPUs, in the tree's order; the first is the boot vCPU.
    mpidrs: [u64; MAX_VCPUS],
    vcpus: usize,
}

impl Machine {
    /// Reads the device tree at `tree`, or at the bottom of RAM when there is none.
    pub(crate) fn discover(tree: usize) -> Self {
        let at = [tree, RAM_BASE as usize].into_iter().find(|&at| has_magic(at));
        let Some(at) = at else { fail!("no device tree at {tree:#x} (x0), nor at {RAM_BASE:#x}") };
        // SAFETY: 1. the magic is there, so the hypervisor put a tree there; 2. its memory is never
        // written by a guest: an arena begins behind the image.
        let parsed = unsafe { Fdt::from_ptr(at as *const u8) };
        let tree = match parsed {
            Ok(tree) => tree,
            Err(error) => fail!("the device tree at {at:#x} is not one: {error:?}"),
        };
        let region = tree.find_node("/memory").and_then(|node| node.reg()?.next());
        let Some(region) = region else { fail!("the device tree has no memory node") };
        let base = region.starting_address as usize;
        let mut machine = Self {
            ram: base..base + region.size.unwrap_or(0),
            bootargs: tree
                .find_node("/chosen")
                .and_then(|node| node.property("bootargs")?.as_str())
                .unwrap_or(""),
            mpidrs: [0; MAX_VCPUS],
            vcpus: 0,
        };
        for cpu in tree.cpus().take(MAX_VCPUS) {
            machine.mpidrs[machine.vcpus] = cpu.ids().first() as u64;
            machine.vcpus += 1;
        }
        machine
    }

    /// MPIDR affinity values of the vCPUs; the boot vCPU is the first.
    pub fn vcpus(&self) -> &[u64] {
        &self.mpidrs[..self.vcpus]
    }

    /// RAM behind the image that nobody has touched, in whole 2 MiB blocks.
    pub fn arena(&self) -> Arena {
        let end = image_end();
        Arena { free: end.next_multiple_of(MIB2)..self.ram.end & !(MIB2 - 1) }
    }

    /// The command line as `key=value` words; fails on a key that is not in `known`.
    pub fn args(&self, known: &[&str]) -> Args {
        for word in self.bootargs.split_ascii_whitespace() {
            let key = word.split_once('=').map(|(key, _)| key);
            if !key.is_some_and(|key| known.contains(&key)) {
                fail!("unknown argument `{word}`; known: key=value with key one of {known:?}");
            }
        }
        Args(self.bootargs)
    }
}

/// The first page behind the image, its data and the stacks. Up to the arena nobody touches what follows.
pub fn image_end() -> usize {
    (&raw const __image_end) as usize
}

fn has_magic(at: usize) -> bool {
    // Address 0 is the flash area, readable and never a tree.
    // SAFETY: 1. both candidates are inside the identity map; 2. bytes have no invalid value.
    at != 0 && unsafe { (at as *const [u8; 4]).read_volatile() } == MAGIC
}

/// A checked command line.
#[derive(Clone, Copy)]
pub struct Args(&'static str);

impl Args {
    /// The last value given for `key`.
    pub fn get(&self, key: &str) -> Option<&'static str> {
        let pairs = self.0.split_ascii_whitespace().filter_map(|word| word.split_once('='));
        pairs.filter(|pair| pair.0 == key).map(|pair| pair.1).next_back()
    }

    /// The value of `key` as a number, decimal or `0x`; fails when it is none.
    pub fn number(&self, key: &str, default: usize) -> usize {
        let Some(text) = self.get(key) else {
            return default;
        };
        let parsed = match text.strip_prefix("0x") {
            Some(hex) => usize::from_str_radix(hex, 16),
            None => text.parse(),
        };
        match parsed {
            Ok(number) => number,
            Err(_) => fail!("`{key}={text}`: the value is not a number"),
        }
    }
}

/// Never-touched RAM, handed out from the bottom and never taken back.
pub struct Arena {
    free: Range<usize>,
}

impl Arena {
    /// Takes `len` bytes at a multiple of `align`, a power of two; fails when there is no such room.
    pub fn take(&mut self, len: usize, align: usize) -> usize {
        let start = self.free.start.next_multiple_of(align);
        match start.checked_add(len) {
            Some(end) if end <= self.free.end => {
                self.free.start = end;
                start
            }
            _ => fail!(
                "not enough RAM: {len:#x} bytes at a multiple of {align:#x} wanted, {:#x}-{:#x} free",
                self.free.start,
                self.free.end
            ),
        }
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.free.end.saturating_sub(self.free.start)
    }
}
