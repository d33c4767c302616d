//! The guest physical address map: where things lie in IPA space. The addresses are those of QEMU's
//! `virt` machine, so that programs built for it run unmodified.

/// First byte of guest RAM.
pub const RAM_BASE: u64 = 0x4000_0000;

/// Distance from [`RAM_BASE`] to the place where a guest image without a wish of its own is loaded, in bytes.
pub const IMAGE_OFFSET: u64 = 0x20_0000;

/// Bytes set aside at [`RAM_BASE`] for the guest's device tree.
pub const DTB_SPACE: u64 = 0x1_0000;

/// First byte of the PL011.
pub const UART_BASE: u64 = 0x0900_0000;

/// Size of the PL011's window, in bytes.
pub const UART_SIZE: u64 = 0x1000;

/// First byte of the flash window, which reads as zero and ignores writes.
pub const FLASH_BASE: u64 = 0;

/// Size of the flash window, in bytes.
pub const FLASH_SIZE: u64 = 0x0800_0000;

/// First byte of the GIC's distributor.
pub const GICD_BASE: u64 = 0x0800_0000;

/// Size of the distributor's window, in bytes.
pub const GICD_SIZE: u64 = 0x1_0000;

/// First byte of the GIC's redistributors: that of vCPU 0. The others follow, one after another.
pub const GICR_BASE: u64 = 0x080a_0000;

/// Size of one redistributor, in bytes: its frame of control registers, then that of SGIs and PPIs.
pub const GICR_STRIDE: u64 = 0x2_0000;

const _: () = {
    let redistributors = GICR_STRIDE * crate::MAX_VCPUS as u64;
    assert!(FLASH_BASE + FLASH_SIZE <= GICD_BASE, "flash and distributor are apart");
    assert!(GICD_BASE + GICD_SIZE <= GICR_BASE, "distributor and redistributors are apart");
    assert!(GICR_BASE + redistributors <= UART_BASE, "redistributors and UART are apart");
    assert!(DTB_SPACE <= IMAGE_OFFSET, "the tree's space ends before the image begins");
    assert!(FLASH_BASE + FLASH_SIZE <= UART_BASE, "flash and UART are apart");
    assert!(UART_BASE + UART_SIZE <= RAM_BASE, "the UART lies below RAM");
};
