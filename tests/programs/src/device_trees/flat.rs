//! A device tree as a flat list of nodes, by the shortest reader that can be written.
//!
//! It is for blobs that the hypervisor's reader has accepted: what it trips over there, it panics on, and that is
//! a finding. It shares nothing with that reader, nor with the `fdt` crate.

use hyp_core::PaRange;
use hyp_core::fdt::{Conduit, Platform};

/// A node: its name with the unit address, and the place of its parent in the list.
pub(super) struct Node<'a> {
    pub(super) name: String,
    pub(super) parent: Option<usize>,
    properties: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Node<'a> {
    pub(super) fn value(&self, name: &str) -> Option<&'a [u8]> {
        self.properties.iter().find(|(known, _)| *known == name.as_bytes()).map(|(_, value)| *value)
    }

    fn cell(&self, name: &str) -> Option<u32> {
        self.value(name).map(|value| u32::from_be_bytes(value.try_into().expect("one cell")))
    }

    fn is_enabled(&self) -> bool {
        self.value("status").is_none_or(|status| status == b"okay\0" || status == b"ok\0")
    }

    /// Whether a component of a path means it: with or without the unit address.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.name.split('@').next() == Some(name)
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// All nodes in the order of the blob.
pub(super) fn nodes(blob: &[u8]) -> Vec<Node<'_>> {
    let (structure, strings) = (word(blob, 8), word(blob, 12));
    let (mut at, mut open, mut all) = (structure, Vec::<usize>::new(), Vec::<Node<'_>>::new());
    loop {
        let token = word(blob, at);
        at += 4;
        match token {
            1 => {
                let name = text(&blob[at..]);
                let parent = open.last().copied();
                open.push(all.len());
                let shown = String::from_utf8_lossy(name).into_owned();
                all.push(Node { name: shown, parent, properties: Vec::new() });
                at += (name.len() + 1).next_multiple_of(4);
            }
            2 => _ = open.pop(),
            3 => {
                let (len, name) = (word(blob, at), word(blob, at + 4));
                let property = (text(&blob[strings + name..]), &blob[at + 8..at + 8 + len]);
                all[*open.last().expect("a property is in a node")].properties.push(property);
                at += 8 + len.next_multiple_of(4);
            }
            4 => {}
            9 => return all,
            other => panic!("token {other}"),
        }
    }
}

/// Ranges of a node's `reg`, in the cells of its parent, or in two and two.
fn ranges(node: &Node<'_>, parent: &Node<'_>) -> Vec<PaRange> {
    let said = (parent.cell("#address-cells"), parent.cell("#size-cells"));
    let (address, size) = match said {
        (None, None) => (2, 2),
        (address, size) => (address.unwrap_or(2), size.unwrap_or(1)),
    };
    let bytes = |cells: u32| cells as usize * 4;
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
    let entries = node.value("reg").unwrap_or_default().chunks(bytes(address + size));
    entries
        .map(|entry| entry.split_at(bytes(address)))
        .map(|(start, len)| PaRange { start: number(start), end: number(start) + number(len) })
        .collect()
}

/// What the hypervisor's reader found is what the list says.
pub(super) fn agrees(blob: &[u8], platform: &Platform) {
    let all = nodes(blob);
    let root = &all[0];
    let children = |parent| all.iter().filter(move |node| node.parent == Some(parent));
    let chosen = all.iter().position(|node| node.parent == Some(0) && node.is_called("chosen"));

    let memory = children(0).filter(|node| node.value("device_type") == Some(b"memory\0"));
    let mut ram: Vec<PaRange> =
        memory.filter(|node| node.is_enabled()).flat_map(|node| ranges(node, root)).collect();
    ram.retain(|range| !range.is_empty());
    let bytes =
        |all: &[PaRange]| all.iter().fold(0, |sum: u128, range| sum + u128::from(range.len()));
    let covered = |range: &PaRange| {
        platform.ram.iter().any(|ram| ram.start <= range.start && range.end <= ram.end)
    };
    assert!(ram.iter().all(covered), "all RAM is found");
    ram.sort_unstable();
    ram.dedup();
    let apart = ram.windows(2).all(|pair| pair[0].end <= pair[1].start);
    assert!(!apart || bytes(&ram) == bytes(&platform.ram), "and nothing but RAM");

    let bootargs = chosen.and_then(|at| all[at].value("bootargs"));
    let bootargs = bootargs.map_or(&b""[..], |line| &line[..line.len() - 1]);
    assert_eq!(platform.bootargs.as_bytes(), bootargs);

    let module = |node: &&Node<'_>| {
        let list = node.value("compatible").unwrap_or_default();
        list.split(|byte| *byte == 0).any(|item| item == b"multiboot,module")
    };
    let modules = chosen.map_or(0, |chosen| children(chosen).filter(module).count());
    assert_eq!(platform.modules.len(), modules);

    let psci: &[u8] = match platform.psci {
        Conduit::Smc => b"smc\0",
        Conduit::Hvc => b"hvc\0",
    };
    assert!(
        children(0).any(|node| node.value("method") == Some(psci)),
        "PSCI is called as the tree says"
    );
    assert!(
        all.iter().any(|node| {
            let start = platform.uart.start.to_be_bytes();
            node.value("reg")
                .is_some_and(|reg| reg.starts_with(&start) || reg.starts_with(&start[4..]))
        }),
        "the UART's address stands in the tree"
    );
}
