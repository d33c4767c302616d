//! A manager in the background changes how RAM is kept, at random, under a guest that knows nothing of it: the word `churn=`.
//!
//! What it does next and where, when its dirty sessions begin and end, and which CPUs work, is decided in crate `hyp-core`
//! ([`churn`](hyp_core::churn)). Here it is done:
//!
//! ```text
//!  session     a dirty session of all RAM that there is room for a second copy of; blocks are split for it, or not
//!  a while     steps at random (`steps`); harvests among them, a part after the other, and what they report is copied    (`second`)
//!  compare     a part after the other: all vCPUs stand still (`pause`); harvest; copy; compare every byte
//!  stop        the session ends; the copy is given back
//!  a while     steps at random, without a log: contiguous runs are made only now
//!  session     the next one, until the time is over
//! ```
//!
//! A VM that ends in the middle of a session is compared as a whole, when no CPU runs it any more ([`at_the_end`]). A page that differs
//! was written, or moved, without the log's knowledge: the VM stops with a diagnosis that names it. A session that cannot be compared, for
//! want of memory, is one that was begun and not compared: the counts of the two tell.
//!
//! A part is one step, or 16 MiB of a harvest; nothing is held when it is over. It does what the calls of a guest do, by the same
//! functions, and takes the same turn: who comes second is refused, and goes on with something else. With the word, RAM may have blocks,
//! as with `scan`.
//!
//! The copy takes frames of what the guest can never have: where that is less than RAM, each session is about another range of it.

mod steps;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use hyp_core::churn::{BLOCK, Course, Dice, Effects, Kind, NEVER, Next, Step, Tally, Workers};
use hyp_core::diagnosis::Diagnosis;
use stage2::space::LogBlocks;
use stage2::{Ipa, IpaRange, Level, View};

use super::create::Plan;
use super::logging::{self, By};
use super::outcome::{Part, Refused};
use super::policy::plain;
use super::run::Env;
use super::second::Second;
use super::stop::Reason;
use super::{NUMBER, pause};
use crate::lock::Lock;
use crate::mem::frames;
use crate::platform::timer::{self, Why};

/// Memory that a second copy leaves to everything else, tables of the guest's apart.
const SLACK: u64 = 32 << 20;
/// Places that are tried to find one where something is mapped.
const PLACES: usize = 8;

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
    course: Course,
    /// RAM.
    ram: IpaRange,
    /// Bytes of it that there is room for a copy of.
    room: u64,
    /// That of the session, if there is one.
    second: Option<Second>,
}

/// The VM's other CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// They may run it, until they are told to stand still.
    Running,
    /// They have left it for good.
    Gone,
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
                course: Course::new(&wanted, timer::now(), timer::frequency()),
                ram,
                room,
                second: None,
            })
        });
        let due = if manager.is_some() { 0 } else { NEVER };
        Self { due: AtomicU64::new(due), manager: Lock::new("the manager", manager) }
    }
}

/// When the executing CPU is to look again whether it can do a part, in ticks of the counter.
pub(super) fn next_look(env: Env<'_>) -> u64 {
    workers(env).look(next_part(env), timer::now(), timer::frequency())
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
    let next = next_part(env);
    if next == NEVER {
        return Ok(());
    }
    let done = if timer::now() < next { Ok(()) } else { try_part(env) };
    if has_vcpu(env) {
        timer::arm(env.cpu, Why::Churn, next_look(env));
    }
    done
}

/// Does a part, unless another CPU does one.
fn try_part(env: Env<'_>) -> Result<(), Reason> {
    let Churning { due, manager } = &env.vm.churning;
    let Some(mut held) = manager.try_lock() else { return Ok(()) };
    let Some(manager) = held.as_mut() else { return Ok(()) };
    let is_over = manager.part(env).map_err(|why| stopped(env, why))?;
    let next = workers(env).due(timer::now(), timer::frequency());
    due.store(if is_over { NEVER } else { next }, Ordering::Relaxed);
    Ok(())
}

/// Compares what a VM that ends was in the middle of. No other CPU runs it any more.
///
/// # Errors
/// A page differs from its copy.
pub(super) fn at_the_end(env: Env<'_>) -> Result<(), Reason> {
    let mut held = env.vm.churning.manager.lock();
    let Some(manager) = held.as_mut() else { return Ok(()) };
    while let Some(rest) = manager.course.at_the_end() {
        let compared = manager.compare(env, rest, Others::Gone);
        let Some(_) = noted(Kind::Compare, compared).map_err(|why| stopped(env, why))? else {
            // Nobody is left who could be in the way, and there will be no more memory. That it was not compared, the counts tell.
            break;
        };
    }
    Ok(())
}

/// What came of it so far.
pub(super) fn effects() -> Effects {
    TALLY.lock().effects()
}

fn workers(env: Env<'_>) -> Workers {
    Workers { cpus: env.vm.plan.cpus, vcpus: env.vm.plan.vcpus }
}

fn has_vcpu(env: Env<'_>) -> bool {
    workers(env).has_vcpu(env.cpu.number)
}

/// Whether the executing CPU is one that does parts.
fn works_here(env: Env<'_>) -> bool {
    env.vm.plan.churn.is_some() && workers(env).works(env.cpu.number)
}

fn stopped(env: Env<'_>, why: String) -> Reason {
    let diagnosis = Diagnosis::new(NUMBER, env.cpu.number as u32, 0, 0).with_hint(why);
    Reason::Diagnosis(Box::new(diagnosis))
}

/// Counts what came of a step: what it has changed, or that it was refused, which is `None` then.
///
/// # Errors
/// It went wrong half way.
fn noted(kind: Kind, outcome: Result<u64, Refused>) -> Result<Option<u64>, String> {
    match outcome {
        Ok(changed) => {
            TALLY.lock().add(kind, changed);
            Ok(Some(changed))
        }
        Err(Refused::Broken(why)) => Err(why),
        Err(_) => {
            TALLY.lock().refuse(kind);
            Ok(None)
        }
    }
}

impl Manager {
    /// Does a part; returns whether that was the last.
    ///
    /// # Errors
    /// The VM cannot go on.
    fn part(&mut self, env: Env<'_>) -> Result<bool, String> {
        match self.course.next(timer::now()) {
            Next::Over => return Ok(true),
            Next::Step => self.step(env)?,
            Next::Begin => {
                let begun = self.begin(env);
                noted(Kind::Session, begun)?;
                self.step(env)?;
            }
            Next::Compare(rest) => {
                let compared = self.compare(env, rest, Others::Running);
                noted(Kind::Compare, compared)?;
            }
            Next::Stop => {
                let stopped = self.stop(env);
                noted(Kind::Session, stopped)?;
            }
            Next::Clear => {
                if self.second.as_mut().is_none_or(Second::clear) {
                    self.second = None;
                    self.course.cleared(timer::now(), &mut self.dice);
                }
            }
        }
        Ok(false)
    }

    /// Begins a session; returns how many: one.
    fn begin(&mut self, env: Env<'_>) -> Result<u64, Refused> {
        let bytes = self.ram.bytes().min(self.room).min(hyp_abi::call::RANGE_MAX);
        let spare = (self.ram.bytes() - bytes) / BLOCK;
        let start = self.ram.start().get() + self.dice.below(spare + 1) * BLOCK;
        let range = IpaRange::new(Ipa::new(start), bytes).map_err(|_| Refused::NoMemory)?;
        let blocks = if self.dice.below(2) == 0 { LogBlocks::Keep } else { LogBlocks::Split };
        let second = Second::new(range)?;
        logging::start_by(env, By::Manager, start, bytes, blocks)?;
        self.second = Some(second);
        self.course.begun(plain(range), timer::now(), &mut self.dice);
        Ok(1)
    }

    /// Takes a step at random.
    fn step(&mut self, env: Env<'_>) -> Result<(), String> {
        self.go_where_memory_is(env);
        let step = self.dice.step(workers(env).most());
        let done = match step {
            Step::Harvest => self.harvest(env),
            Step::Run { range, and_dissolve } => return steps::run(env, range, and_dissolve),
            step => steps::take(env, step),
        };
        noted(step.kind(), done).map(|_| ())
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

    /// Harvests the session's next part, and copies what is reported; returns how many pages. There may be no session.
    fn harvest(&mut self, env: Env<'_>) -> Result<u64, Refused> {
        let Some(rest) = self.course.harvest() else { return Ok(0) };
        let part = self.copied(env, rest)?;
        self.course.harvested(part.bytes);
        Ok(part.count)
    }

    /// Harvests the first part of a range of the session, and copies what is reported.
    fn copied(&mut self, env: Env<'_>, range: hyp_core::IpaRange) -> Result<Part, Refused> {
        let second = self.second.as_mut().ok_or(Refused::Invalid)?;
        let range = ipas(range)?;
        let part = second.harvest(env, By::Manager, range);
        if second.is_short() {
            self.course.gave_up();
        }
        part
    }

    /// Compares the first part of what is left while no vCPU runs. What was written since the last harvest is copied by one before, so
    /// that they do not stand still for all of it. What is compared is counted here.
    fn compare(
        &mut self,
        env: Env<'_>,
        rest: hyp_core::IpaRange,
        others: Others,
    ) -> Result<u64, Refused> {
        let before = self.copied(env, rest)?.count;
        let pause = match others {
            Others::Running => Some(pause::pause(env).ok_or(Refused::Busy)?),
            Others::Gone => None,
        };
        let part = self.copied(env, rest)?;
        let second = self.second.as_mut().ok_or(Refused::Invalid)?;
        let looked = IpaRange::new(Ipa::new(rest.start), part.bytes).map_err(|_| Refused::Busy)?;
        let differs = second.compare(env, looked);
        drop(pause);
        if let Some(ipa) = differs.map_err(Refused::Broken)? {
            let why = "was written, and no harvest has reported it: the manager's copy differs";
            return Err(Refused::Broken(format!("the page at {ipa} {why}")));
        }
        let is_last = self.course.compared(part.bytes);
        let mut tally = TALLY.lock();
        tally.copied(before + part.count);
        tally.compared(looked.pages(), is_last);
        Ok(0)
    }

    /// Stops a part of the log; returns how many sessions it has begun: none.
    fn stop(&mut self, env: Env<'_>) -> Result<u64, Refused> {
        let all = self.second.as_ref().map_or(0, |second| second.range().bytes());
        let Part { bytes, .. } = logging::stop_by(env, By::Manager)?;
        if bytes == all {
            self.course.stopped();
        }
        Ok(0)
    }
}

/// A range in the terms of `stage2`.
fn ipas(range: hyp_core::IpaRange) -> Result<IpaRange, Refused> {
    IpaRange::new(Ipa::new(range.start), range.len()).map_err(|_| Refused::Invalid)
}
