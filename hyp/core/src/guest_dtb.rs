//! The device tree that a guest is given.
//!
//! It describes exactly what the VM has: RAM, its virtual CPUs with PSCI over HVC, a GICv3 with a redistributor for each of
//! them, the generic timer, one PL011 with its clock, and `/chosen` with console, boot arguments and ramdisk. Node names
//! and addresses are those of QEMU's `virt`, so that programs built for it find what they look for.
//!
//! The GIC has neither an ITS nor LPIs, so nothing is said of them. Of the timers a guest has the virtual and the physical one
//! of EL1. The binding tells interrupts of a timer by their places, the secure one's first: its place is filled, its timer
//! is not there for EL1. The flash node is optional: the window behaves as zeroes, and only a program that looks
//! for a flash device should be told of one.

#[cfg(test)]
mod tests;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

use hyp_abi::{MAX_VCPUS, interrupt, map};
use vm_fdt::FdtWriter;

use crate::mmio::Window;
use crate::range::IpaRange;

/// The UART's clock in Hz; baud rates mean nothing here, but drivers divide by it.
const UART_CLOCK: u32 = 24_000_000;
/// The clock's phandle.
const CLOCK_PHANDLE: u32 = 1;
/// The interrupt controller's phandle.
const GIC_PHANDLE: u32 = 2;
/// INTID of the secure EL1 timer, which a guest does not have.
const SECURE_TIMER: u32 = 29;
/// What an interrupt's third cell says: level-sensitive, active high.
const LEVEL_HIGH: u32 = 4;
/// The longest boot arguments that are passed on, in bytes: what Linux takes (COMMAND_LINE_SIZE).
pub const MAX_BOOTARGS: usize = 2048;

/// What the guest is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestTree<'a> {
    /// Virtual CPUs.
    pub vcpus: usize,
    /// RAM.
    pub ram: IpaRange,
    /// The initial ramdisk.
    pub ramdisk: Option<IpaRange>,
    /// Boot arguments.
    pub bootargs: &'a str,
    /// Whether the flash window is described.
    pub flash: bool,
}

/// Why a guest's tree cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestTreeError {
    /// No virtual CPU, or more than there can be.
    #[error("a guest has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(usize),
    /// Boot arguments that are too long.
    #[error("the guest's boot arguments have {0} bytes; at most {MAX_BOOTARGS} can be passed on")]
    BootargsTooLong(usize),
    /// The tree does not fit where it goes.
    #[error("the guest's device tree has {0} bytes; there is room for {space}", space = map::DTB_SPACE)]
    TooLarge(usize),
    /// The writer refused; for boot arguments with a NUL in them.
    #[error("the guest's device tree cannot be written: {0}")]
    Write(vm_fdt::Error),
}

impl From<vm_fdt::Error> for GuestTreeError {
    fn from(error: vm_fdt::Error) -> Self {
        Self::Write(error)
    }
}

/// Makes the tree: a blob of at most [`map::DTB_SPACE`] bytes.
///
/// # Errors
/// [`GuestTreeError`], see there.
pub fn build(guest: &GuestTree<'_>) -> Result<Vec<u8>, GuestTreeError> {
    if !(1..=MAX_VCPUS).contains(&guest.vcpus) {
        return Err(GuestTreeError::Vcpus(guest.vcpus));
    }
    if guest.bootargs.len() > MAX_BOOTARGS {
        return Err(GuestTreeError::BootargsTooLong(guest.bootargs.len()));
    }
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "stage-2 guest")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC_PHANDLE)?;
    chosen(&mut fdt, guest)?;
    memory(&mut fdt, guest)?;
    cpus(&mut fdt, guest)?;
    firmware(&mut fdt)?;
    gic(&mut fdt, guest)?;
    timer(&mut fdt)?;
    uart(&mut fdt)?;
    if guest.flash {
        flash(&mut fdt)?;
    }
    fdt.end_node(root)?;
    let blob = fdt.finish()?;
    if blob.len() as u64 > map::DTB_SPACE {
        return Err(GuestTreeError::TooLarge(blob.len()));
    }
    Ok(blob)
}

fn uart_name() -> String {
    format!("pl011@{:x}", map::UART_BASE)
}

fn reg(fdt: &mut FdtWriter, range: IpaRange) -> Result<(), vm_fdt::Error> {
    fdt.property_array_u64("reg", &[range.start, range.len()])
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn chosen(fdt: &mut FdtWriter, guest: &GuestTree<'_>) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("stdout-path", &format!("/{}", uart_name()))?;
    fdt.property_string("bootargs", guest.bootargs)?;
    if let Some(ramdisk) = guest.ramdisk {
        fdt.property_u64("linux,initrd-start", ramdisk.start)?;
        fdt.property_u64("linux,initrd-end", ramdisk.end)?;
    }
    fdt.end_node(node)
}

fn memory(fdt: &mut FdtWriter, guest: &GuestTree<'_>) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node(&format!("memory@{:x}", guest.ram.start))?;
    fdt.property_string("device_type", "memory")?;
    reg(fdt, guest.ram)?;
    fdt.end_node(node)
}

fn cpus(fdt: &mut FdtWriter, guest: &GuestTree<'_>) -> Result<(), vm_fdt::Error> {
    let parent = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for vcpu in 0..guest.vcpus as u32 {
        let node = fdt.begin_node(&format!("cpu@{vcpu:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_u32("reg", vcpu)?;
        fdt.property_string("enable-method", "psci")?;
        fdt.end_node(node)?;
    }
    fdt.end_node(parent)
}

fn firmware(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("psci")?;
    let versions = ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"];
    fdt.property_string_list("compatible", strings(&versions))?;
    fdt.property_string("method", "hvc")?;
    // For drivers of "arm,psci", which do not know the numbers.
    fdt.property_u32("cpu_on", smccc::psci::PSCI_CPU_ON_64)?;
    fdt.property_u32("cpu_off", smccc::psci::PSCI_CPU_OFF)?;
    fdt.end_node(node)
}

/// The cells of a level-sensitive interrupt: kind (0: SPI, 1: PPI), number within the kind, flags.
fn level(intid: u32) -> [u32; 3] {
    match intid.checked_sub(interrupt::FIRST_SPI) {
        Some(spi) => [0, spi, LEVEL_HIGH],
        None => [1, intid.saturating_sub(interrupt::FIRST_PPI), LEVEL_HIGH],
    }
}

fn gic(fdt: &mut FdtWriter, guest: &GuestTree<'_>) -> Result<(), vm_fdt::Error> {
    let redistributors = map::GICR_STRIDE.saturating_mul(guest.vcpus as u64);
    let node = fdt.begin_node(&format!("intc@{:x}", map::GICD_BASE))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_array_u64(
        "reg",
        &[map::GICD_BASE, map::GICD_SIZE, map::GICR_BASE, redistributors],
    )?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_phandle(GIC_PHANDLE)?;
    fdt.end_node(node)
}

fn timer(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let interrupts = [SECURE_TIMER, interrupt::PHYSICAL_TIMER, interrupt::VIRTUAL_TIMER].map(level);
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

fn uart(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", UART_CLOCK)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(CLOCK_PHANDLE)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node(&uart_name())?;
    fdt.property_string_list("compatible", strings(&["arm,pl011", "arm,primecell"]))?;
    reg(fdt, Window::Uart.range())?;
    fdt.property_array_u32("interrupts", &level(interrupt::UART))?;
    fdt.property_array_u32("clocks", &[CLOCK_PHANDLE, CLOCK_PHANDLE])?;
    fdt.property_string_list("clock-names", vec!["uartclk".into(), "apb_pclk".into()])?;
    fdt.end_node(node)
}

/// Two banks of half the window each, as `virt` has them.
fn flash(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let IpaRange { start, .. } = Window::Flash.range();
    let bank = map::FLASH_SIZE.wrapping_shr(1);
    let node = fdt.begin_node(&format!("flash@{start:x}"))?;
    fdt.property_string("compatible", "cfi-flash")?;
    fdt.property_u32("bank-width", 4)?;
    fdt.property_array_u64("reg", &[start, bank, start.saturating_add(bank), bank])?;
    fdt.end_node(node)
}
