//! EL2 as the hypervisor goes about it: a [`Vgic`] and some CPUs, beside the reference, compared after every step.
//!
//! Each vCPU has a CPU of its own. What a CPU does to itself is seen at once: its timer and its maintenance interrupt take it out of
//! its guest before the guest's next step. What others do to it comes with a kick, at once ([`Machine::prompt`]) or when the program
//! says so; until it comes, what the CPU has in its list registers may be out of date, and less is compared.

use hyp_core::vgic::{Access, Answer, Done, IDLE, Interface, Link, Sgi, VcpuSet, Vgic};

use super::pe::{Pe, TIMER};
use super::reference::{Active, Event, Id, Reference};

/// Which window an access goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The distributor's.
    Distributor,
    /// The redistributors'.
    Redistributor,
}

/// What a guest asks of EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A load or store.
    Access(Window, u64, Access),
    /// A write of `ICC_DIR_EL1`.
    Deactivate(u32),
}

/// A VM, its CPUs, and what should be.
pub struct Machine {
    vgic: Vgic,
    reference: Reference,
    pes: Vec<Pe>,
    /// Kicks come at once.
    prompt: bool,
    /// They always have.
    exact: bool,
    kicked: VcpuSet,
    /// What each vCPU has been told to do again.
    parked: Vec<Option<Request>>,
    /// No vCPU has ever split its ends: they come in the order of the acknowledgements, reversed.
    nested: bool,
}

impl Machine {
    /// A VM of `vcpus` on CPUs with so many list registers. Nothing is enabled, nothing runs.
    #[must_use]
    pub fn new(vcpus: usize, list_registers: usize, prompt: bool) -> Self {
        Self {
            vgic: Vgic::new(vcpus, 5),
            reference: Reference::new(vcpus),
            pes: vec![Pe::new(list_registers); vcpus],
            prompt,
            exact: prompt,
            kicked: VcpuSet::EMPTY,
            parked: vec![None; vcpus],
            nested: true,
        }
    }

    /// A CPU.
    #[must_use]
    pub fn pe(&self, vcpu: usize) -> &Pe {
        &self.pes[vcpu]
    }

    /// What should be.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Whether some CPU has it in a list register.
    fn is_listed(&self, id: Id) -> bool {
        self.lister(id).is_some()
    }

    fn lister(&self, id: Id) -> Option<usize> {
        let has = |vcpu: &usize| self.pes[*vcpu].listed().any(|one| Id::of(*vcpu, one.intid) == id);
        (0..self.pes.len()).find(has)
    }

    // --- The hypervisor ---

    /// `vcpu` begins to run on its CPU.
    pub fn load(&mut self, vcpu: usize) {
        if !self.pes[vcpu].loaded {
            self.pes[vcpu].loaded = true;
            self.exit(vcpu);
            self.settle();
        }
    }

    /// `vcpu` makes room for another.
    pub fn unload(&mut self, vcpu: usize) {
        if self.pes[vcpu].loaded {
            self.take_back(vcpu);
            self.pes[vcpu].loaded = false;
            let held = self.vgic.take_holds(vcpu);
            assert_eq!(held, u32::from(self.pes[vcpu].timer_active) << TIMER);
            self.pes[vcpu].timer_active = false;
            self.kicked = self.kicked.without(vcpu);
            self.settle();
        }
    }

    /// An exit for no reason.
    pub fn exit_for_nothing(&mut self, vcpu: usize) {
        if self.pes[vcpu].loaded {
            self.exit(vcpu);
            self.settle();
        }
    }

    /// The kick of `vcpu` comes, if one is under way.
    pub fn kick(&mut self, vcpu: usize) {
        if self.kicked.contains(vcpu) && self.pes[vcpu].loaded {
            self.exit(vcpu);
        }
        self.settle();
    }

    /// An interrupt, a maintenance interrupt, or any exit: take back, look, list again.
    fn exit(&mut self, vcpu: usize) {
        self.take_back(vcpu);
        self.refill(vcpu);
    }

    /// Reads the list registers, takes all back, and looks at the timer.
    fn take_back(&mut self, vcpu: usize) {
        let pe = &mut self.pes[vcpu];
        let listed: Vec<u32> = pe.listed().map(|register| register.intid).collect();
        let (counted, vmcr) = (pe.eoi_count, pe.vmcr());
        let unlisted: Vec<(Id, Active)> =
            self.reference.active(vcpu).filter(|(id, _)| !listed.contains(&id.intid)).collect();
        let mut wake = self.vgic.sync(vcpu, &mut pe.lists, u64::from(counted) << 27, vmcr);
        assert_eq!(pe.listed().count(), 0, "a sync empties the list registers");
        pe.eoi_count = 0;
        let ended = if pe.split { 0 } else { counted };
        self.check_ends(vcpu, ended, &unlisted);
        for intid in listed {
            self.reference.synced(vcpu, Id::of(vcpu, intid));
        }
        let pe = &mut self.pes[vcpu];
        wake.add(if pe.timer_pends() {
            pe.timer_active = true;
            self.vgic.forward(vcpu, TIMER)
        } else {
            self.vgic.set_level(vcpu, TIMER, pe.timer_line)
        });
        let line = pe.timer_line;
        self.reference.line(Id::of(vcpu, TIMER), line, false);
        self.kicked = self.kicked.without(vcpu);
        self.wake(wake.without(vcpu));
    }

    /// Ends that found no list register: as many of those that had none are over, the most urgent ones.
    fn check_ends(&mut self, vcpu: usize, counted: u32, unlisted: &[(Id, Active)]) {
        let is_over = |id: Id| !self.vgic.is_active(vcpu, id.intid);
        let over: Vec<_> = unlisted.iter().filter(|(id, _)| is_over(*id)).copied().collect();
        assert_eq!(over.len(), unlisted.len().min(counted as usize), "{counted} of {unlisted:?}");
        let least =
            unlisted.iter().filter(|(id, _)| !is_over(*id)).map(|(_, one)| one.priority).min();
        for (id, one) in &over {
            assert!(
                least.is_none_or(|least| one.priority <= least),
                "{id:?} is not the most urgent"
            );
            if self.nested
                && !self.reference.interfered
                && unlisted.iter().all(|(_, one)| one.taken)
            {
                assert!(one.ended, "{id:?} was not ended, of {unlisted:?}");
            }
            self.reference.get_mut(*id).active = None;
        }
    }

    /// Lists, and does what else a fill asks for.
    fn refill(&mut self, vcpu: usize) {
        let pe = &mut self.pes[vcpu];
        let vmcr = pe.vmcr();
        let filled = self.vgic.fill(vcpu, &mut pe.lists, vmcr);
        pe.maintenance = filled.maintenance;
        assert_eq!(filled.used, pe.listed().count());
        assert!(filled.used <= pe.lists.count);
        if filled.deactivate != 0 {
            assert_eq!(filled.deactivate, 1 << TIMER);
            assert!(pe.timer_active, "what is deactivated was active");
            pe.timer_active = false;
        }
        assert_eq!(self.vgic.is_held(vcpu, TIMER), pe.timer_active, "held is what is active");
        if pe.timer_active {
            let timer = self.reference.get(Id::of(vcpu, TIMER));
            assert!(
                timer.pending() || timer.active.is_some(),
                "the timer's interrupt is active for nothing: it never comes again"
            );
        }
        self.kicked = self.kicked.without(vcpu);
        self.check_sleeper(vcpu);
    }

    /// If the guest said WFI now, it would sleep, or not.
    fn check_sleeper(&self, vcpu: usize) {
        let pe = &self.pes[vcpu];
        let interface = Interface { vmcr: pe.vmcr(), running: pe.running().unwrap_or(IDLE) };
        let wakes = self.reference.waiting(vcpu).any(|(_, one)| {
            pe.groups[usize::from(one.group1)] && pe.passes(one.priority, one.group1)
        });
        assert_eq!(self.vgic.signals(vcpu, &interface), wakes, "{pe:?}");
    }

    fn wake(&mut self, wake: VcpuSet) {
        let running = (0..self.pes.len()).filter(|vcpu| self.pes[*vcpu].loaded);
        let running = running.fold(VcpuSet::EMPTY, |set, vcpu| set.union(VcpuSet::one(vcpu)));
        self.kicked.add(wake.intersection(running));
    }

    /// Takes the exits that come by themselves, and compares.
    fn settle(&mut self) {
        for round in 0.. {
            let exits = |vcpu: &usize| {
                let pe = &self.pes[*vcpu];
                let kick = self.prompt && self.kicked.contains(*vcpu);
                pe.loaded && (pe.maintains() || pe.timer_pends() || kick)
            };
            let Some(vcpu) = (0..self.pes.len()).find(exits) else { break };
            assert!(round < 16, "exits without end: {:?}", self.pes[vcpu]);
            self.exit(vcpu);
        }
        self.check();
    }

    // --- The guest ---

    /// `vcpu` does what it was told to do again, if it was.
    pub fn again(&mut self, vcpu: usize) {
        if let Some(request) = self.parked[vcpu] {
            self.request(vcpu, request);
        }
    }

    /// `vcpu` traps. Gives what a load reads, or 0, if it came through.
    pub fn request(&mut self, vcpu: usize, request: Request) -> Option<u64> {
        if !self.pes[vcpu].loaded {
            return None;
        }
        if let Request::Deactivate(_) = request
            && !self.pes[vcpu].split
        {
            return None;
        }
        loop {
            self.take_back(vcpu);
            let first = self.parked[vcpu] != Some(request);
            if first {
                self.happens(vcpu, request);
            }
            let Done { answer, wake } = match request {
                Request::Access(Window::Distributor, offset, access) => {
                    self.vgic.gicd(offset, access, vcpu)
                }
                Request::Access(Window::Redistributor, offset, access) => {
                    self.vgic.gicr(offset, access, vcpu)
                }
                Request::Deactivate(intid) => {
                    self.vgic.deactivate(vcpu, intid, self.pes[vcpu].vmcr())
                }
            };
            assert!(first || wake.is_empty(), "others are asked once");
            if let Answer::Value(value) = answer {
                self.check_answer(request, value);
            }
            self.refill(vcpu);
            self.wake(wake.without(vcpu));
            self.parked[vcpu] = (answer == Answer::Again).then_some(request);
            self.settle();
            match answer {
                Answer::Value(value) => return Some(value),
                Answer::Again if !self.prompt => return None,
                Answer::Again => assert!(first, "all have been synced: {request:?}"),
            }
        }
    }

    /// The effects in the reference.
    fn happens(&mut self, vcpu: usize, request: Request) {
        let listed: Vec<Id> =
            self.reference.all().map(|(id, _)| id).filter(|id| self.is_listed(*id)).collect();
        let is_listed = |id| listed.contains(&id);
        match request {
            Request::Access(_, _, Access { write: None, .. }) => {}
            Request::Access(window, offset, Access { size, write: Some(value) }) => {
                for nth in 0..u64::from(size) {
                    let (at, byte) = (offset + nth, (value >> (8 * nth)) as u8);
                    match window {
                        Window::Distributor => {
                            self.reference.write_distributor(at, byte, vcpu, &is_listed);
                        }
                        Window::Redistributor => {
                            self.reference.write_redistributor(at, byte, vcpu, &is_listed);
                        }
                    }
                }
            }
            Request::Deactivate(intid) if intid < 96 => {
                let id = Id::of(vcpu, intid);
                self.reference.happens(id, Event::Deactivate, is_listed(id));
            }
            Request::Deactivate(_) => {}
        }
    }

    /// What a load reads is what the reference says; of what may have changed in a list register since, nothing is said.
    fn check_answer(&self, request: Request, value: u64) {
        let Request::Access(window, offset, Access { size, write }) = request else {
            return;
        };
        if write.is_some() {
            assert_eq!(value, 0);
            return;
        }
        for nth in 0..u64::from(size) {
            let (at, byte) = (offset + nth, (value >> (8 * nth)) as u8);
            let expected = match window {
                Window::Distributor => self.reference.read_distributor(at),
                Window::Redistributor => self.reference.read_redistributor(at),
            };
            let unknown = if self.exact { 0 } else { self.unknown(window, at) };
            assert_eq!(byte | unknown, expected | unknown, "{window:?} + {at:#x}");
        }
        assert!(size == 8 || value >> (8 * size) == 0);
    }

    /// The bits of a byte of a pending or active register that are about what is in list registers.
    fn unknown(&self, window: Window, at: u64) -> u8 {
        let (vcpu, at) = match window {
            Window::Distributor => (0, at),
            Window::Redistributor => ((at >> 17) as usize, (at & 0x1_ffff).wrapping_sub(0x1_0000)),
        };
        if !(0x200..0x400).contains(&at) {
            return 0;
        }
        let first = (at % 0x80 * 8) as u32;
        (0..8)
            .fold(0, |mask, nth| mask | u8::from(self.is_listed(Id::of(vcpu, first + nth))) << nth)
    }

    /// A write of `ICC_SGI1R_EL1` or one of its siblings.
    pub fn sgi(&mut self, from: usize, register: Sgi, value: u64) {
        if !self.pes[from].loaded {
            return;
        }
        for id in self.reference.sgi_targets(from, value, register == Sgi::One) {
            let listed = self.is_listed(id);
            self.reference.happens(id, Event::Latch, listed);
        }
        let wake = self.vgic.sgi(from, register, value);
        self.look(from, wake);
    }

    /// A device's line changes, while `by` runs: an SPI's, or that of another PPI than the timer's.
    pub fn line(&mut self, by: usize, intid: u32, level: bool) {
        assert!(intid != TIMER);
        let id = Id::of(by, intid);
        if (16..96).contains(&intid) {
            let listed = self.is_listed(id);
            self.reference.line(id, level, listed);
        }
        let wake = self.vgic.set_level(by, intid, level);
        self.look(by, wake);
    }

    /// EL2, on the CPU of `vcpu`, is told who has to look.
    fn look(&mut self, vcpu: usize, wake: VcpuSet) {
        if wake.contains(vcpu) && self.pes[vcpu].loaded {
            self.exit(vcpu);
        }
        self.wake(wake.without(vcpu));
        self.settle();
    }

    /// The output of `vcpu`'s virtual timer changes.
    pub fn timer(&mut self, vcpu: usize, level: bool) {
        if self.pes[vcpu].loaded {
            self.pes[vcpu].timer_line = level;
            self.settle();
        }
    }

    /// The guest writes its interface's registers.
    pub fn interface(
        &mut self,
        vcpu: usize,
        groups: [bool; 2],
        mask: u8,
        bpr: [u8; 2],
        split: bool,
    ) {
        if self.pes[vcpu].loaded {
            self.nested &= !split;
            self.pes[vcpu].set_interface(groups, mask, bpr, split);
            self.settle();
        }
    }

    /// The guest acknowledges: which INTID.
    pub fn acknowledge(&mut self, vcpu: usize, group1: bool) -> Option<u32> {
        if !self.pes[vcpu].loaded {
            return None;
        }
        let taken = self.pes[vcpu].acknowledge(group1)?;
        let id = Id::of(vcpu, taken.intid);
        let fresh = !self.kicked.contains(vcpu);
        let interrupt = self.reference.get_mut(id);
        // The timer's line may have fallen: EL2 has not looked.
        assert!(interrupt.pending() || !fresh || taken.intid == TIMER, "{id:?} was not pending");
        assert_eq!(interrupt.active, None, "{id:?} is taken twice");
        interrupt.latch = false;
        let priority = taken.priority;
        interrupt.active = Some(Active { vcpu, priority, taken: true, ended: false });
        self.settle();
        Some(taken.intid)
    }

    /// The guest ends what it acknowledged last.
    pub fn end(&mut self, vcpu: usize) {
        if !self.pes[vcpu].loaded {
            return;
        }
        let split = self.pes[vcpu].split;
        let Some((intid, found)) = self.pes[vcpu].end() else { return };
        let interrupt = self.reference.get_mut(Id::of(vcpu, intid));
        if found && !split {
            interrupt.active = None;
            if intid == TIMER && !self.pes[vcpu].timer_line {
                // Its line fell unseen, and now nothing has to be seen of it.
                interrupt.line = false;
            }
        } else if let (Some(active), false) = (&mut interrupt.active, split) {
            active.ended = true;
        }
        self.settle();
    }

    // --- What must hold ---

    fn check(&self) {
        let mut seen = Vec::new();
        for (vcpu, pe) in self.pes.iter().enumerate() {
            for register in pe.listed() {
                let id = Id::of(vcpu, register.intid);
                assert!(pe.loaded && !seen.contains(&id), "{id:?} is in two list registers");
                seen.push(id);
                if let Link::Physical(physical) = register.link {
                    assert_eq!((physical, register.intid), (TIMER, TIMER));
                    assert!(!(register.pending && register.active), "no link allows both");
                }
            }
            if pe.loaded && !self.kicked.contains(vcpu) {
                self.check_best(vcpu);
            }
        }
    }

    /// The CPU would take what is most urgent.
    fn check_best(&self, vcpu: usize) {
        let pe = &self.pes[vcpu];
        let stale = pe.listed().any(|one| one.intid == TIMER && one.pending);
        let allowed = |group1: bool| pe.groups[usize::from(group1)];
        let waiting = self.reference.waiting(vcpu);
        let best =
            waiting.filter(|(_, one)| allowed(one.group1)).map(|(_, one)| one.priority).min();
        let has = pe.best().map(|register| register.priority);
        assert!(has == best || stale, "{has:x?} in place of {best:x?}: {pe:?}");
    }

    /// In the end all that is pending is delivered, once, and nothing stays.
    pub fn drain(&mut self) {
        let vcpus = 0..self.pes.len();
        for vcpu in vcpus.clone() {
            self.load(vcpu);
            self.kick(vcpu);
        }
        self.prompt = true;
        for vcpu in vcpus.clone() {
            self.again(vcpu);
            self.timer(vcpu, false);
            self.exit_for_nothing(vcpu);
            for intid in (16..32).filter(|intid| *intid != TIMER) {
                self.line(vcpu, intid, false);
            }
            while !self.pes[vcpu].taken.is_empty() {
                self.end(vcpu);
            }
            self.interface(vcpu, [true; 2], 0xff, [0; 2], true);
        }
        for intid in 32..96 {
            self.line(0, intid, false);
        }
        let left: Vec<(Id, usize)> = vcpus
            .clone()
            .flat_map(|vcpu| self.reference.active(vcpu).map(move |(id, _)| (id, vcpu)))
            .collect();
        for (id, vcpu) in left {
            let by = if id.intid < 32 { id.vcpu } else { vcpu };
            assert_eq!(self.request(by, Request::Deactivate(id.intid)), Some(0));
        }
        for vcpu in vcpus.clone() {
            for count in 0.. {
                let taken =
                    [true, false].into_iter().find_map(|group1| self.acknowledge(vcpu, group1));
                let Some(intid) = taken else { break };
                assert!(count < 96, "{intid} comes again and again");
                self.end(vcpu);
                assert_eq!(self.request(vcpu, Request::Deactivate(intid)), Some(0));
            }
        }
        for vcpu in vcpus {
            let lost: Vec<_> =
                self.reference.waiting(vcpu).filter(|(_, one)| one.priority < 0xf8).collect();
            assert!(lost.is_empty(), "{lost:?} of vCPU {vcpu} never came");
            assert_eq!(self.reference.active(vcpu).next(), None, "still active");
        }
    }
}
