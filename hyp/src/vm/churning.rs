//! A manager in the background changes how RAM is kept, at random, under a guest that knows nothing of it: the word `churn=`.
//!
//! What it does next and where, [`Dice`] say (crate `hyp-core`, [`churn`](hyp_core::churn)). Here is who does it, when, and in what order:
//!
//! ```text
//!  session     a dirty session of all RAM that there is room for a second copy of; blocks are split for it, or not
//!  a while     steps at random; harvests among them, a part after the other, and what they report is copied       (`second`)
//!  compare     a part after the other: all vCPUs stand still (`pause`); harvest; copy; compare every byte
//!  stop        the session ends; the copy is given back
//!  a while     steps at random, without a log: contiguous runs are made only now
//!  session     the next one, until the time is over
//! ```
//!
//! A VM that ends in the middle of a session is compared as a whole, when no CPU runs it any more ([`at_the_end`]). A page that differs
//! was written, or moved, without the log's knowledge: the VM stops with a diagnosis that names it.
//!
//! | CPUs | who works | how often |
//! | --- | --- | --- |
//! | some have no vCPU | those, one at a time, as idle CPUs do (`idle`) | 500 parts a second |
//! | all have vCPUs | each, at its safe point | 100 parts a second |
//!
//! A part is one step, or 16 MiB of a harvest; nothing is held when it is over. It does what the calls of a guest do, by the same
//! functions, and takes the same turn: who comes second is refused, and goes on with something else. With the word, RAM may have blocks,
//! as with `scan`.
//!
//! The copy takes frames of what the guest can never have: where that is less than RAM, each session is about another range of it.

mod second;

use alloc::boxed::Box;
use alloc::format;
use core::sync::atomic::{AtomicU64, Ordering};

use hyp_core::churn::{Dice, Effects, Kind, Step, Tally};
use hyp_core::diagnosis::Diagnosis;
use second::Second;
use stage2::space::{Batch, LogBlocks, Progress};
use stage2::{Ipa, IpaRange, Level, View};

use super::create::Plan;
use super::logging::{self, By};
use super::outcome::{Part, Refused};
use super::policy::plain;
use super::run::Env;
use super::stop::Reason;
use super::{NUMBER, ageing, blocks, copying, moving, pause, runs};
use crate::lock::Lock;
use crate::mem::cache::BLOCK;
use crate::mem::frames;
use crate::platform::timer::{self, Why};

/// Parts a second, on CPUs without a vCPU.
const RATE: u64 = 500;
/// Parts a second, on each CPU that has one.
const SHARED_RATE: u64 = 100;
/// Blocks of a step, at the most; on a CPU that has a vCPU one.
const MOST: u64 = 4;
/// Seconds of a session, before it is compared: from the first on, less than the second.
const SESSION: (u64, u64) = (1, 5);
/// Seconds between two sessions, likewise.
const BETWEEN: (u64, u64) = (1, 3);
/// Leaves that are write-protected under one flush.
const BATCH: usize = 4096;
/// Memory that a second copy leaves to everything else, tables of the guest's apart.
const SLACK: u64 = 32 << 20;
/// Places that are tried to find one where something is mapped.
const PLACES: usize = 8;
/// Not before the counter's end.
const NEVER: u64 = u64::MAX;

/// What came of all steps, in all lives of the VM.
static TALLY: Lock<Tally> = Lock::new("the counts of the manager", Tally::new());

/// The manager of a VM's memory, if it has one.
#[derive(Debug)]
pub(crate) struct Churning {
    /// When the next part is due, in ticks of the counter.
    due: AtomicU64,
    /// Others try it, and never wait.
    manager: Lock<Option<Manager>>,
}

#[derive(Debug)]
struct Manager {
    dice: Dice,
    /// RAM.
    ram: IpaRange,
    /// Bytes of it that there is room for a copy of.
    room: u64,
    /// When no session is begun any more.
    until: u64,
    /// When the next one is.
    next: u64,
    session: Option<Session>,
}

/// A dirty session of the manager's.
#[derive(Debug)]
struct Session {
    range: IpaRange,
    second: Second,
    /// Where the next harvest begins.
    at: Ipa,
    phase: Phase,
}

/// The VM's other CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// They may run it, until they are told to stand still.
    Running,
    /// They have left it for good.
    Gone,
}

/// What a session is at.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Steps and harvests, until then.
    Running { until: u64 },
    /// All before this has been compared.
    Comparing { at: Ipa },
    /// The log is being stopped.
    Stopping,
    /// The copy is being given back.
    Clearing,
}

impl Churning {
    /// For a VM that is being made; `ram` is its RAM.
    pub(super) fn new(plan: &Plan, ram: IpaRange) -> Self {
        let manager = plan.churn.and_then(|wanted| {
            let kept = plan.mem + plan.mem / 256 + SLACK;
            // Of each page a copy, its place in the list, and more room where that is rounded up.
            let room = (frames::free().saturating_sub(kept) / 64 * 63) & !(BLOCK - 1);
            Some(Manager {
                dice: Dice::new(wanted.seed, plain(ram))?,
                ram,
                room,
                until: timer::now() + u64::from(wanted.seconds) * timer::frequency(),
                next: 0,
                session: None,
            })
        });
        let due = if manager.is_some() { 0 } else { NEVER };
        Self { due: AtomicU64::new(due), manager: Lock::new("the manager", manager) }
    }
}

/// When the executing CPU is to look again whether it can do a part, in ticks of the counter. What is due and not done another CPU
/// is doing.
pub(super) fn next_look(env: Env<'_>) -> u64 {
    let (next, now) = (next_part(env), timer::now());
    if next < now { now.saturating_add(timer::frequency() / SHARED_RATE) } else { next }
}

/// When a part is due, in ticks of the counter; never, if the executing CPU is none that does any.
fn next_part(env: Env<'_>) -> u64 {
    if works_here(env) { env.vm.churning.due.load(Ordering::Relaxed) } else { NEVER }
}

/// Has the executing CPU come to its safe point for the first part, if it is one that has a vCPU and does parts.
pub(super) fn begin(env: Env<'_>) {
    if works_here(env) && has_vcpu(env) {
        timer::arm(env.cpu, Why::Churn, timer::now());
    }
}

/// Does a part, if one is due, and if this is a CPU that does. Called at a safe point.
///
/// # Errors
/// The VM cannot go on: a page differs from its copy, or a step went wrong half way.
pub(super) fn when_due(env: Env<'_>) -> Result<(), Reason> {
    let Churning { due, manager } = &env.vm.churning;
    let next = next_part(env);
    if next == NEVER {
        return Ok(());
    }
    let done = if timer::now() < next { Ok(()) } else { try_part(env, due, manager) };
    if has_vcpu(env) {
        timer::arm(env.cpu, Why::Churn, next_look(env));
    }
    done
}

/// Does a part, unless another CPU does one.
fn try_part(env: Env<'_>, due: &AtomicU64, manager: &Lock<Option<Manager>>) -> Result<(), Reason> {
    let Some(mut held) = manager.try_lock() else { return Ok(()) };
    let Some(manager) = held.as_mut() else { return Ok(()) };
    let rate = if has_vcpu(env) { SHARED_RATE } else { RATE };
    let next = match manager.part(env) {
        Ok(true) => timer::now().saturating_add(timer::frequency() / rate),
        Ok(false) => NEVER,
        Err(Refused::Broken(why)) => return Err(stopped(env, why)),
        // Every other refusal is counted where it comes up.
        Err(_) => timer::now(),
    };
    due.store(next, Ordering::Relaxed);
    Ok(())
}

/// Compares what a VM that ends was in the middle of. No other CPU runs it any more.
///
/// # Errors
/// A page differs from its copy.
pub(super) fn at_the_end(env: Env<'_>) -> Result<(), Reason> {
    let mut held = env.vm.churning.manager.lock();
    let Some(session) = held.as_mut().and_then(|manager| manager.session.as_mut()) else {
        return Ok(());
    };
    let from = match session.phase {
        Phase::Running { .. } => session.range.start(),
        Phase::Comparing { at } => at,
        Phase::Stopping | Phase::Clearing => return Ok(()),
    };
    session.phase = Phase::Comparing { at: from };
    loop {
        match session.compare(env, Others::Gone) {
            Ok(()) if matches!(session.phase, Phase::Comparing { .. }) => {}
            Ok(()) => return Ok(()),
            Err(Refused::Broken(why)) => return Err(stopped(env, why)),
            // Nobody is left who could be in the way; without memory nothing is proved.
            Err(_) => {
                TALLY.lock().refuse(Kind::Compare);
                return Ok(());
            }
        }
    }
}

/// What came of it so far.
pub(super) fn effects() -> Effects {
    TALLY.lock().effects()
}

/// Whether CPUs work that have vCPUs.
fn is_shared(env: Env<'_>) -> bool {
    env.vm.plan.cpus <= env.vm.plan.vcpus
}

fn has_vcpu(env: Env<'_>) -> bool {
    env.cpu.number < env.vm.plan.vcpus
}

/// Whether the executing CPU is one that does parts.
fn works_here(env: Env<'_>) -> bool {
    env.vm.plan.churn.is_some() && (is_shared(env) || !has_vcpu(env))
}

fn stopped(env: Env<'_>, why: alloc::string::String) -> Reason {
    let diagnosis = Diagnosis::new(NUMBER, env.cpu.number as u32, 0, 0).with_hint(why);
    Reason::Diagnosis(Box::new(diagnosis))
}

/// Counts what came of a step. A refusal is none, but for one half way.
fn noted(kind: Kind, outcome: Result<u64, Refused>) -> Result<(), Refused> {
    match outcome {
        Ok(changed) => TALLY.lock().add(kind, changed),
        Err(Refused::Broken(why)) => return Err(Refused::Broken(why)),
        Err(_) => TALLY.lock().refuse(kind),
    }
    Ok(())
}

impl Manager {
    /// Does a part; returns whether there will be another.
    fn part(&mut self, env: Env<'_>) -> Result<bool, Refused> {
        let now = timer::now();
        match &mut self.session {
            None if now >= self.until => return Ok(false),
            None if now < self.next => self.step(env)?,
            None => {
                let begun = self.begin(env).map(|()| 0);
                noted(Kind::Harvest, begun)?;
                self.step(env)?;
            }
            Some(session) => match session.phase {
                Phase::Running { until } if now >= until.min(self.until) => {
                    session.phase = Phase::Comparing { at: session.range.start() };
                }
                Phase::Running { .. } => self.step(env)?,
                Phase::Comparing { .. } => {
                    noted(Kind::Compare, session.compare(env, Others::Running).map(|()| 0))?;
                }
                Phase::Stopping => session.stop(env)?,
                Phase::Clearing => {
                    if session.second.clear() {
                        self.session = None;
                        self.next = timer::now() + self.while_of(BETWEEN);
                    }
                }
            },
        }
        Ok(true)
    }

    /// Some time, in ticks: at least so many seconds, and less than so many.
    fn while_of(&mut self, (least, most): (u64, u64)) -> u64 {
        let (least, most) = (least * timer::frequency(), most * timer::frequency());
        least + self.dice.below(most - least)
    }

    /// Begins a session.
    fn begin(&mut self, env: Env<'_>) -> Result<(), Refused> {
        let bytes = self.ram.bytes().min(self.room).min(hyp_abi::call::RANGE_MAX);
        let spare = (self.ram.bytes() - bytes) / BLOCK;
        let start = self.ram.start().get() + self.dice.below(spare + 1) * BLOCK;
        let range = IpaRange::new(Ipa::new(start), bytes).map_err(|_| Refused::NoMemory)?;
        let blocks = if self.dice.below(2) == 0 { LogBlocks::Keep } else { LogBlocks::Split };
        let second = Second::new(range)?;
        logging::start_by(env, By::Manager, start, bytes, blocks)?;
        let until = timer::now() + self.while_of(SESSION);
        let phase = Phase::Running { until };
        self.session = Some(Session { range, second, at: range.start(), phase });
        Ok(())
    }

    /// Takes a step at random.
    fn step(&mut self, env: Env<'_>) -> Result<(), Refused> {
        self.go_where_memory_is(env);
        let most = if has_vcpu(env) { 1 } else { MOST };
        let step = self.dice.step(most);
        let parts = |range: hyp_core::IpaRange| (range.start, range.len());
        let counted = |part: Result<Part, Refused>| part.map(|part| part.count);
        let done = match step {
            Step::Harvest => match &mut self.session {
                Some(session) => session.harvest(env),
                None => Ok(0),
            },
            Step::WriteProtect(range) => write_protect(env, range),
            Step::Age(range) => {
                let (start, bytes) = parts(range);
                counted(ageing::age(env, start, bytes, 0))
            }
            Step::Split(range) => {
                let (start, bytes) = parts(range);
                counted(blocks::split(env, start, bytes))
            }
            Step::Collapse(range) => {
                let (start, bytes) = parts(range);
                counted(blocks::collapse(env, start, bytes))
            }
            Step::Copy { range, holes } => {
                let (start, bytes) = parts(range);
                counted(copying::copy(env, start, bytes, holes))
            }
            Step::Move(range) => {
                let (start, bytes) = parts(range);
                moving::move_memory(env, start, bytes)
            }
            Step::Run { range, and_dissolve } => {
                let (start, bytes) = parts(range);
                noted(Kind::Split, counted(blocks::split(env, start, bytes)))?;
                let made = counted(runs::make(env, start, bytes));
                if and_dissolve && made.as_ref().is_ok_and(|made| *made != 0) {
                    noted(Kind::Dissolve, counted(runs::dissolve(env, start, bytes)))?;
                }
                made
            }
            Step::Dissolve(range) => {
                let (start, bytes) = parts(range);
                counted(runs::dissolve(env, start, bytes))
            }
        };
        noted(step.kind(), done)
    }

    /// Leaves a place at which nothing is mapped.
    fn go_where_memory_is(&mut self, env: Env<'_>) {
        for _ in 0..PLACES {
            let place = self.dice.place();
            let guard = env.guards.enter();
            let is_mapped = (place.start..place.end).step_by(BLOCK as usize).any(|span| {
                let found = env.vm.space.lookup(&guard, Ipa::new(span));
                found.is_some_and(|found| found.level == Level::L3 || found.view() != View::Empty)
            });
            if is_mapped {
                return;
            }
            self.dice.move_on();
        }
    }
}

impl Session {
    /// Harvests the next part, and copies what is reported; returns how many pages.
    fn harvest(&mut self, env: Env<'_>) -> Result<u64, Refused> {
        let part = self.copied(env, self.from(self.at))?;
        let next = Ipa::new(self.at.get() + part.bytes);
        self.at = if next < self.range.end() { next } else { self.range.start() };
        Ok(part.count)
    }

    /// The range from an address in it on.
    fn from(&self, at: Ipa) -> IpaRange {
        IpaRange::new(at, self.range.end().get() - at.get()).unwrap_or(self.range)
    }

    /// Harvests the first part of a range, and copies what is reported.
    fn copied(&mut self, env: Env<'_>, range: IpaRange) -> Result<Part, Refused> {
        let Self { second, .. } = self;
        let mut copied = 0;
        let mut copy = |ipa| copied += u64::from(second.copy(env, ipa));
        let Part { bytes, .. } = logging::harvest_with(env, By::Manager, range, &mut copy)?;
        if second.is_short() {
            // It proves nothing any more.
            self.phase = Phase::Stopping;
            return Err(Refused::NoMemory);
        }
        Ok(Part { bytes, count: copied })
    }

    /// Compares the next part while no vCPU runs. What was written since the last harvest is copied by one before, so that they
    /// do not stand still for all of it.
    fn compare(&mut self, env: Env<'_>, others: Others) -> Result<(), Refused> {
        let Phase::Comparing { at } = self.phase else { return Ok(()) };
        let rest = self.from(at);
        let before = self.copied(env, rest)?.count;
        let pause = match others {
            Others::Running => Some(pause::pause(env).ok_or(Refused::Busy)?),
            Others::Gone => None,
        };
        let part = self.copied(env, rest)?;
        let looked = IpaRange::new(at, part.bytes).map_err(|_| Refused::Busy)?;
        let differs = self.second.compare(env, looked);
        drop(pause);
        noted(Kind::Harvest, Ok(before + part.count))?;
        if let Some(ipa) = differs.map_err(Refused::Broken)? {
            let why = "was written, and no harvest has reported it: the manager's copy differs";
            return Err(Refused::Broken(format!("the page at {ipa} {why}")));
        }
        let is_last = looked.end() == self.range.end();
        self.phase = if is_last { Phase::Stopping } else { Phase::Comparing { at: looked.end() } };
        TALLY.lock().compared(looked.pages(), is_last);
        Ok(())
    }

    /// Stops a part of the log.
    fn stop(&mut self, env: Env<'_>) -> Result<(), Refused> {
        let Part { bytes, .. } = logging::stop_by(env, By::Manager)?;
        if bytes == self.range.bytes() {
            self.phase = Phase::Clearing;
        }
        Ok(())
    }
}

/// Takes the permission to write from all leaves of whole blocks of RAM; returns how many had it. The policy stays: the next write of each
/// gives it back.
fn write_protect(env: Env<'_>, range: hyp_core::IpaRange) -> Result<u64, Refused> {
    let range = blocks::wanted(env, range.start, range.len())?;
    let (vm, guards) = (env.vm, env.guards);
    let Some(_turn) = vm.moving.try_lock() else { return Err(Refused::Busy) };
    let mut claim = vm.space.claim(range).map_err(|_| Refused::Busy)?;
    let before = vm.space.account().changed;
    let mut batch = Batch { from: range.start(), slots: BATCH };
    loop {
        match vm.space.write_protect(guards, &mut claim, batch) {
            Ok(Progress::Done) => break,
            Ok(Progress::Until(next)) => batch.from = next,
            Err(error) => {
                return Err(Refused::Broken(format!("cannot write-protect: {error}")));
            }
        }
    }
    // Nobody else changes protections: that takes the turn.
    Ok(vm.space.account().changed - before)
}
