//! What hardware reads from the leaves that are installed.

use stage2::space::Tally;
use stage2::{Attributes, Caps, Descriptor, Encoding, Ipa, Level, MemType, Owner, Pa, Prot, View};

use crate::rig::{Pool, Rig};

/// The leaf's bits outside of its address and of the two that software may use \[57:56\].
fn installed(caps: Caps, level: Level, prot: Prot, mem: MemType) -> u64 {
    let rig = Rig::new(40, caps);
    let vm = rig.vm();
    rig.enter(&vm, 1);
    let mapping = vm.mapping(level, &Attributes::new(prot, mem), Owner::Vm).unwrap();
    let mut pool = Pool::new(1, level, 1);
    rig.machine.on_pe(0, || {
        let cpu = rig.epochs.join(0).unwrap();
        let ipa = Ipa::new(0x4000_0000);
        vm.install(&cpu.enter(), ipa, &mapping, &mut pool, &mut Tally::default()).unwrap();
    });
    let found = rig.translate(1, 0x4000_0000).expect("hardware finds no leaf");
    assert_eq!(found.level, level as u8, "the leaf is at its level");
    found.bits & !(0b11 << 56)
}

/// S2AP, XN, AF and SH as hardware reads them (D8.4, D8.5, D8.6): a guest may do what it was allowed, and
/// nothing else; nothing is left for hardware to update.
#[test]
fn a_guest_may_do_what_the_policy_says_and_no_more() {
    for level in [Level::L1, Level::L2, Level::L3] {
        for n in 0..16 {
            let prot = Prot::from_bits_truncate(n);
            let bits = installed(Caps::XNX, level, prot, MemType::Normal);
            assert_eq!(bits >> 6 & 1 != 0, prot.contains(Prot::READ), "S2AP[0] for {prot}");
            assert_eq!(bits >> 7 & 1 != 0, prot.contains(Prot::WRITE), "S2AP[1] for {prot}");
            // XN[1:0] with FEAT_XNX: 00 both, 01 EL0 only, 10 neither, 11 EL1 only.
            let execute = match bits >> 53 & 0b11 {
                0b00 => Prot::EXEC,
                0b01 => Prot::EXEC_EL0,
                0b10 => Prot::empty(),
                _ => Prot::EXEC_EL1,
            };
            assert_eq!(execute, prot & Prot::EXEC, "XN[1:0] for {prot}");
            assert_eq!(bits >> 10 & 1, 1, "the access flag is set, or each first use faults");
            assert_eq!(bits >> 8 & 0b11, 0b11, "inner shareable, as all PEs share the VM");
            assert_eq!(bits >> 51 & 0b11, 0, "neither DBM nor Contiguous");
        }
    }
}

/// MemAttr with and without forced write-back (tables D8-96 and D8-100).
#[test]
fn memory_behaves_as_the_policy_says() {
    for (caps, normal) in [(Caps::empty(), 0b1111), (Caps::FWB, 0b0110)] {
        for (mem, expected) in
            [(MemType::Normal, normal), (MemType::NonCacheable, 0b0101), (MemType::Device, 0b0001)]
        {
            let bits = installed(caps, Level::L3, Prot::RW, mem);
            assert_eq!(bits >> 2 & 0b1111, expected, "MemAttr for {mem:?} {caps:?}");
            assert_eq!(bits >> 53 & 0b11, 0b10, "XN without FEAT_XNX: nothing executes");
        }
    }
}

/// Bits that look like a state, but for one of them.
#[test]
fn what_only_looks_like_a_state_is_none() {
    // Type and MANAGED of a table, at the level where that is a page.
    let page = Descriptor::from_bits(1 << 56 | 0x1003);
    assert_eq!(page.as_table(Level::L3), None, "a page is no table");
    let busy = Descriptor::table(Level::L2, Pa::new(0x1000)).unwrap().to_busy().unwrap();
    assert_eq!(busy.to_busy(), None, "what is Busy is not live");

    let rwx = Attributes::new(Prot::RWX, MemType::Normal);
    let leaf = |level, owner| {
        let encoding = Encoding { fwb: false, xnx: false };
        Descriptor::leaf(level, Pa::new(0x80_0000_0000), &rwx, encoding, owner).unwrap().bits()
    };
    let (page, block) = (leaf(Level::L3, Owner::Vm), leaf(Level::L2, Owner::Vm));
    let foreign = |what: &str, level, bits| {
        let view = Descriptor::from_bits(bits).view(level);
        assert_eq!(view, View::Foreign(bits), "{what} is not ours");
    };
    foreign("Drain with a payload", Level::L2, 1 << 5 | 0b0010);
    foreign("a Drain of an unaligned block", Level::L2, 1 << 12 | 0b0010);
    foreign("Dead with a payload", Level::L2, Descriptor::DEAD.bits() | 1 << 20);
    foreign("a page without MANAGED", Level::L3, page & !(1 << 56));
    foreign("a block without MANAGED", Level::L2, block & !(1 << 56));
    for stray in [11, 48, 49, 50, 55, 58, 59, 60, 61, 62, 63] {
        foreign("a page with a stray bit", Level::L3, page | 1 << stray);
        foreign("a block with a stray bit", Level::L2, block | 1 << stray);
        foreign("a table with a stray bit", Level::L2, 1 << 56 | 0x1003 | 1 << stray);
    }
    foreign("a block that is not aligned", Level::L2, block | 0x2000);
    foreign("a block's type at level 3", Level::L3, block);
    foreign("a page's type above level 3", Level::L2, page);
    foreign("a block at level 0", Level::L0, block);
    for owner in [Owner::Vm, Owner::Other] {
        let View::Leaf(leaf) = Descriptor::from_bits(leaf(Level::L3, owner)).view(Level::L3) else {
            panic!("no leaf");
        };
        assert_eq!(leaf.owner(), owner, "whose page it is");
    }
}
