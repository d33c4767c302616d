//! Trees for the tests: shaped like those of QEMU's `virt`, made anew each time.

use std::string::{String, ToString};
use std::vec::Vec;

use vm_fdt::{FdtReserveEntry, FdtWriter};

/// What varies from test to test.
#[derive(Clone)]
pub(super) struct Tree {
    pub(super) memreserve: Vec<(u64, u64)>,
    pub(super) memory: Vec<(u64, u64, Option<&'static str>)>,
    pub(super) reserved_memory: Vec<(&'static str, u64, u64)>,
    pub(super) cpus: Vec<u32>,
    pub(super) uarts: Vec<(&'static str, u64)>,
    pub(super) gic: bool,
    pub(super) psci: Option<&'static str>,
    pub(super) stdout: Option<&'static str>,
    pub(super) modules: Vec<Module>,
}

/// A node below `/chosen`.
#[derive(Clone)]
pub(super) struct Module {
    start: u64,
    len: u64,
    compatible: Vec<String>,
    bootargs: Option<&'static str>,
    pub(super) manage: bool,
    /// Properties that are cells.
    pub(super) cells: Vec<(&'static str, Vec<u32>)>,
}

pub(super) fn module(
    start: u64,
    len: u64,
    compatible: &[&str],
    bootargs: Option<&'static str>,
) -> Module {
    let compatible = compatible.iter().map(ToString::to_string).collect();
    Module { start, len, compatible, bootargs, manage: false, cells: Vec::new() }
}

/// `-M virt,virtualization=on,gic-version=3 -smp 2 -m 512`.
pub(super) fn virt() -> Tree {
    Tree {
        memreserve: Vec::new(),
        memory: [(0x4000_0000, 0x2000_0000, None)].into(),
        reserved_memory: Vec::new(),
        cpus: [0, 1].into(),
        uarts: [("pl011@9000000", 0x900_0000)].into(),
        gic: true,
        psci: Some("smc"),
        stdout: Some("/pl011@9000000"),
        modules: Vec::new(),
    }
}

impl Tree {
    pub(super) fn build(&self) -> Vec<u8> {
        self.write().unwrap()
    }

    fn write(&self) -> Result<Vec<u8>, vm_fdt::Error> {
        let reserve = |&(start, len): &(u64, u64)| FdtReserveEntry::new(start, len);
        let reserve: Result<Vec<_>, _> = self.memreserve.iter().map(reserve).collect();
        let mut fdt = FdtWriter::new_with_mem_reserv(&reserve?)?;
        let root = fdt.begin_node("")?;
        fdt.property_u32("interrupt-parent", 0x8002)?;
        fdt.property_string("model", "linux,dummy-virt")?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_string("compatible", "linux,dummy-virt")?;
        self.write_firmware(&mut fdt)?;
        self.write_memory(&mut fdt)?;
        self.write_devices(&mut fdt)?;
        self.write_cpus(&mut fdt)?;
        self.write_chosen(&mut fdt)?;
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn write_firmware(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        if let Some(method) = self.psci {
            let node = fdt.begin_node("psci")?;
            fdt.property_u32("cpu_on", 0xc400_0003)?;
            fdt.property_string("method", method)?;
            let kinds = ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"];
            fdt.property_string_list("compatible", kinds.map(String::from).to_vec())?;
            fdt.end_node(node)?;
        }
        Ok(())
    }

    fn write_memory(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        for &(start, len, status) in &self.memory {
            let node = fdt.begin_node(&std::format!("memory@{start:x}"))?;
            fdt.property_array_u64("reg", &[start, len])?;
            if let Some(status) = status {
                fdt.property_string("status", status)?;
            }
            fdt.property_string("device_type", "memory")?;
            fdt.end_node(node)?;
        }
        if !self.reserved_memory.is_empty() {
            let parent = fdt.begin_node("reserved-memory")?;
            fdt.property_u32("#size-cells", 2)?;
            fdt.property_u32("#address-cells", 2)?;
            fdt.property_null("ranges")?;
            for &(name, start, len) in &self.reserved_memory {
                let node = fdt.begin_node(name)?;
                fdt.property_array_u64("reg", &[start, len])?;
                fdt.end_node(node)?;
            }
            fdt.end_node(parent)?;
        }
        Ok(())
    }

    fn write_devices(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        let bus = fdt.begin_node("platform-bus@c000000")?;
        fdt.property_u32("#size-cells", 1)?;
        fdt.property_u32("#address-cells", 1)?;
        fdt.property_array_u32("ranges", &[0, 0, 0xc00_0000, 0x200_0000])?;
        fdt.end_node(bus)?;
        if self.gic {
            let node = fdt.begin_node("intc@8000000")?;
            fdt.property_u32("phandle", 0x8002)?;
            fdt.property_array_u64("reg", &[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000])?;
            fdt.property_u32("#redistributor-regions", 1)?;
            fdt.property_string("compatible", "arm,gic-v3")?;
            fdt.property_null("ranges")?;
            fdt.property_u32("#size-cells", 2)?;
            fdt.property_u32("#address-cells", 2)?;
            fdt.property_null("interrupt-controller")?;
            fdt.property_u32("#interrupt-cells", 3)?;
            fdt.end_node(node)?;
        }
        for &(name, start) in &self.uarts {
            let node = fdt.begin_node(name)?;
            fdt.property_array_u32("interrupts", &[0, 1, 4])?;
            fdt.property_array_u64("reg", &[start, 0x1000])?;
            let kinds = ["arm,pl011", "arm,primecell"];
            fdt.property_string_list("compatible", kinds.map(String::from).to_vec())?;
            fdt.end_node(node)?;
        }
        Ok(())
    }

    fn write_cpus(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        let parent = fdt.begin_node("cpus")?;
        fdt.property_u32("#size-cells", 0)?;
        fdt.property_u32("#address-cells", 1)?;
        let map = fdt.begin_node("cpu-map")?;
        fdt.end_node(map)?;
        for (index, &number) in self.cpus.iter().enumerate() {
            // Named by place, so that a test can give two the same number.
            let node = fdt.begin_node(&std::format!("cpu@{index:x}"))?;
            fdt.property_u32("reg", number)?;
            fdt.property_string("enable-method", "psci")?;
            fdt.property_string("compatible", "arm,cortex-a76")?;
            fdt.property_string("device_type", "cpu")?;
            fdt.end_node(node)?;
        }
        fdt.end_node(parent)
    }

    fn write_chosen(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        let node = fdt.begin_node("aliases")?;
        fdt.property_string("serial0", "/pl011@9000000")?;
        fdt.end_node(node)?;
        let parent = fdt.begin_node("chosen")?;
        if let Some(path) = self.stdout {
            fdt.property_string("stdout-path", path)?;
        }
        fdt.property_string("bootargs", "vcpus=2 mem=64M")?;
        for module in &self.modules {
            // QEMU writes no #address-cells here.
            let node = fdt.begin_node(&std::format!("module@0x{:x}", module.start))?;
            if let Some(bootargs) = module.bootargs {
                fdt.property_string("bootargs", bootargs)?;
            }
            if module.manage {
                fdt.property_null("stage2,manage")?;
            }
            for (property, cells) in &module.cells {
                fdt.property_array_u32(property, cells)?;
            }
            fdt.property_string_list("compatible", module.compatible.clone())?;
            fdt.property_array_u64("reg", &[module.start, module.len])?;
            fdt.end_node(node)?;
        }
        fdt.end_node(parent)
    }
}

/// Blanks a node without children: all its words become NOP, as libfdt does it.
pub(super) fn blank(blob: &[u8], name: &str) -> Vec<u8> {
    let mut blob = blob.to_vec();
    let mut wanted = Vec::from(1_u32.to_be_bytes());
    wanted.extend_from_slice(name.as_bytes());
    wanted.push(0);
    let start = blob.windows(wanted.len()).position(|window| window == wanted).unwrap();
    let words = blob[start..].chunks_exact(4).skip(1);
    let mut end = start + 4;
    for word in words {
        end += 4;
        if word == 2_u32.to_be_bytes() {
            break;
        }
    }
    for word in blob[start..end].chunks_exact_mut(4) {
        word.copy_from_slice(&4_u32.to_be_bytes());
    }
    blob
}
