//! The processes of a mount, as threads: two of them are killed at any moments.
//!
//! Supervisor, server and holder know of each other by lines, whose ends are counted as the system counts those of a socket
//! pair: a line's end also lives in a message that nobody has read. A process that is killed does nothing more, and closes
//! its ends one after the other.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shuttle::rand::Rng;
use shuttle::thread::{self, JoinHandle};

use crate::succession::{Successor, stand_by};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Processes that are killed: with a third one, all may be gone.
const KILLS: usize = 2;

type Pid = usize;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Supervisor,
    Server,
    Holder,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Lives,
    Killed,
    Ended,
}

/// What is said on a line.
enum Message {
    /// To the holder: which server there is.
    Hold(Option<Pid>),
    /// To the server: the line to the holder.
    Holder(End),
}

#[derive(Default)]
struct Side {
    ends: usize,
    unread: VecDeque<Message>,
}

#[derive(Default)]
struct State {
    processes: BTreeMap<Pid, (Kind, Life)>,
    lines: Vec<[Side; 2]>,
    /// The mount is gone.
    over: bool,
}

/// All processes and lines.
#[derive(Default)]
struct Machine {
    state: Mutex<State>,
    changed: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A process's end of a line, closed when dropped.
struct End {
    machine: Arc<Machine>,
    line: usize,
    side: usize,
}

impl Clone for End {
    fn clone(&self) -> Self {
        self.machine.state.lock().lines[self.line][self.side].ends += 1;
        Self {
            machine: self.machine.clone(),
            ..*self
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.machine.state.lock();
        let side = &mut state.lines[self.line][self.side];
        side.ends -= 1;
        let unread = if side.ends == 0 {
            std::mem::take(&mut side.unread)
        } else {
            VecDeque::new()
        };
        drop(state);
        self.machine.changed.notify_all();
        drop(unread); // with the ends in it
    }
}

impl End {
    /// Sends a message, if the one that does so still lives.
    fn send(&self, by: Pid, message: Message) {
        let mut state = self.machine.state.lock();
        let is_killed = state.is_killed(by);
        let other = &mut state.lines[self.line][1 - self.side];
        let lost = if other.ends > 0 && !is_killed {
            other.unread.push_back(message);
            None
        } else {
            Some(message)
        };
        drop(state);
        self.machine.changed.notify_all();
        drop(lost);
    }
}

impl State {
    fn is_killed(&self, process: Pid) -> bool {
        self.processes[&process].1 != Life::Lives
    }

    fn living(&self) -> Vec<(Pid, Kind)> {
        let all = self.processes.iter();
        let living = all.filter(|(_, (_, life))| *life == Life::Lives);
        living.map(|(pid, (kind, _))| (*pid, *kind)).collect()
    }

    fn count(&self, kind: Kind) -> usize {
        self.living().iter().filter(|(_, is)| *is == kind).count()
    }

    fn is_closed(&self, end: &End) -> bool {
        let sides = &self.lines[end.line];
        sides[1 - end.side].ends == 0 && sides[end.side].unread.is_empty()
    }
}

impl Machine {
    fn wait(&self, state: &mut MutexGuard<'_, State>) {
        self.changed.wait_until(state, Instant::now());
    }

    fn line(self: &Arc<Self>) -> (End, End) {
        let mut state = self.state.lock();
        let line = state.lines.len();
        let side = || Side {
            ends: 1,
            unread: VecDeque::new(),
        };
        state.lines.push([side(), side()]);
        drop(state);
        let end = |side| End {
            machine: self.clone(),
            line,
            side,
        };
        (end(0), end(1))
    }

    /// Starts a process, if the one that does so still lives.
    fn spawn(
        self: &Arc<Self>,
        by: Option<Pid>,
        kind: Kind,
        body: impl FnOnce(&Arc<Self>, Pid) + Send + 'static,
    ) -> Option<Pid> {
        let mut state = self.state.lock();
        if by.is_some_and(|by| state.is_killed(by)) {
            return None;
        }
        assert!(
            kind == Kind::Holder || state.count(kind) == 0,
            "two of a kind: {kind:?}"
        );
        let pid = state.processes.len();
        state.processes.insert(pid, (kind, Life::Lives));
        drop(state);
        let machine = self.clone();
        let thread = thread::spawn(move || {
            body(&machine, pid);
            let mut state = machine.state.lock();
            state.processes.insert(pid, (kind, Life::Ended));
            drop(state);
            machine.changed.notify_all();
        });
        self.threads.lock().push(thread);
        self.changed.notify_all();
        Some(pid)
    }

    fn kill_one(&self) {
        let mut state = self.state.lock();
        let living = state.living();
        let (pid, kind) = living[shuttle::rand::thread_rng().gen_range(0..living.len())];
        state.processes.insert(pid, (kind, Life::Killed));
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until one process of each kind lives.
    fn until_whole(&self) {
        let mut state = self.state.lock();
        while [Kind::Supervisor, Kind::Server, Kind::Holder]
            .iter()
            .any(|kind| state.count(*kind) != 1)
        {
            self.wait(&mut state);
        }
    }

    fn end(&self) {
        self.state.lock().over = true;
        self.changed.notify_all();
        loop {
            let thread = self.threads.lock().pop();
            let Some(thread) = thread else { return };
            thread.join().expect("it ended");
        }
    }
}

/// A server or a holder, whose decisions are those of the program.
struct Standby {
    machine: Arc<Machine>,
    pid: Pid,
    kind: Kind,
    line: End,
    /// The server's line to the holder.
    holder: Option<End>,
    /// What the holder knows of the server.
    server: Option<Pid>,
}

impl Successor for Standby {
    fn follow(&mut self) -> io::Result<bool> {
        let mut state = self.machine.state.lock();
        loop {
            if state.is_killed(self.pid) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let side = &mut state.lines[self.line.line][self.line.side];
            match side.unread.pop_front() {
                Some(Message::Hold(server)) => self.server = server,
                Some(Message::Holder(end)) => {
                    drop(state);
                    self.holder = Some(end);
                    state = self.machine.state.lock();
                }
                None if state.over || state.is_closed(&self.line) => return Ok(true),
                None => self.machine.wait(&mut state),
            }
        }
    }

    fn is_needed(&self) -> bool {
        let mut state = self.machine.state.lock();
        if let (Kind::Holder, Some(server)) = (self.kind, self.server) {
            while state.processes[&server].1 == Life::Killed {
                self.machine.wait(&mut state);
            }
            if state.processes[&server].1 == Life::Lives {
                return false;
            }
        }
        !state.over
    }

    fn start_supervisor(&mut self) -> io::Result<()> {
        let (ours, theirs) = self.machine.line();
        let (server, holder) = match self.kind {
            Kind::Server => (Some((self.pid, theirs)), self.holder.clone()),
            _ => (None, Some(theirs)),
        };
        self.machine
            .spawn(Some(self.pid), Kind::Supervisor, |machine, pid| {
                supervise(machine, pid, server, holder);
            });
        self.line = ours;
        self.server = None;
        Ok(())
    }

    fn pause(&self, _: Duration) {}
}

fn standby(
    machine: &Arc<Machine>,
    by: Option<Pid>,
    kind: Kind,
    line: End,
    holder: Option<End>,
    server: Option<Pid>,
) -> Option<Pid> {
    machine.spawn(by, kind, move |machine, pid| {
        let mut standby = Standby {
            machine: machine.clone(),
            pid,
            kind,
            line,
            holder,
            server,
        };
        let _ = stand_by(&mut standby); // fails when it was killed
    })
}

/// Plays the supervisor: it starts again what has died, and tells each what it has to know of the others.
fn supervise(
    machine: &Arc<Machine>,
    pid: Pid,
    mut server: Option<(Pid, End)>,
    mut holder: Option<End>,
) {
    if let (Some((server, _)), Some(holder)) = (&server, &holder) {
        holder.send(pid, Message::Hold(Some(*server)));
    }
    loop {
        if server.is_none() {
            let (ours, theirs) = machine.line();
            let started = standby(
                machine,
                Some(pid),
                Kind::Server,
                theirs,
                holder.clone(),
                None,
            );
            let Some(started) = started else { return };
            if let Some(holder) = &holder {
                holder.send(pid, Message::Hold(Some(started)));
            }
            server = Some((started, ours));
        }
        if let (None, Some((server, line))) = (&holder, &server) {
            let (ours, theirs) = machine.line();
            line.send(pid, Message::Holder(ours.clone()));
            let server = Some(*server);
            let started = standby(machine, Some(pid), Kind::Holder, theirs, None, server);
            if started.is_none() {
                return;
            }
            holder = Some(ours);
        }
        let mut state = machine.state.lock();
        let (server_ended, holder_ended) = loop {
            if state.over || state.is_killed(pid) {
                return;
            }
            let server = server.as_ref();
            let server_ended = server.is_some_and(|(pid, _)| state.processes[pid].1 == Life::Ended);
            let holder_ended = holder.as_ref().is_some_and(|line| state.is_closed(line));
            if server_ended || holder_ended {
                break (server_ended, holder_ended);
            }
            machine.wait(&mut state);
        };
        drop(state);
        if server_ended {
            server = None;
        }
        if holder_ended {
            holder = None;
        }
    }
}

/// Two processes of a mount may be killed at any moments: soon after there is one of each kind again, and at no moment two
/// supervisors or two servers.
pub fn a_mount_survives_two_of_its_processes() {
    let machine = Arc::new(Machine::default());
    machine.spawn(None, Kind::Supervisor, |machine, pid| {
        supervise(machine, pid, None, None);
    });
    machine.until_whole();
    for _ in 0..KILLS {
        machine.kill_one();
        thread::yield_now();
    }
    machine.until_whole();
    machine.end();
}
