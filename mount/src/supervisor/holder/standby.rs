//! What a holder does: it waits until it is needed, or no longer.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use weir_fuse::send_again;
use weir_process::descriptor;
use weir_process::fdpass::{self, Descriptors, Slot};

use super::{BEAT, Holding, SILENT_BEATS, ToHolder};
use crate::adoption::adopting_supervisor;
use crate::kept::Kept;
use crate::mounting;
use crate::state::MountState;
use crate::succession::{Successor, stand_by};
use crate::supervisor::running::{Rhythm, has_counted};

/// Longest wait for the supervisor's first message.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest time that a process which has closed its files takes to end.
const DEATH_DEADLINE: Duration = Duration::from_secs(1);
/// How often a supervisor is looked at that counts.
const LOOK: Duration = Duration::from_millis(100);
/// One that has not counted for so long is stopped. In another pod it may be the work of a holder there to kill it, and all of
/// that pod is frozen only after longer: a reader that waits for that is to take less than a second.
const STOPPED_AFTER: Duration = Duration::from_millis(300);
const FROZEN_AFTER: Duration = Duration::from_millis(500);
/// Two pods that have taken a mount from each other so often, each time so soon after the last one, are slow rather than frozen, and
/// the machine has too much to do: they get more time, so that they do not go on like that.
const RECENTLY: Duration = Duration::from_mins(1);
const IN_TURNS: u32 = 3;
/// That time; and the most that one gets which has counted with long pauses, as on such a machine.
const LONGEST: Duration = Duration::from_secs(6);

/// What a holder knows of its mount.
struct Held {
    state: MountState,
    /// The processes that serve it, as far as they are known.
    supervisor: Option<OwnedFd>,
    server: Option<OwnedFd>,
    /// The line to the holder in another pod, which must not end before this process does.
    peer: Option<OwnedFd>,
}

impl Held {
    fn new(state: MountState, descriptors: &mut Descriptors) -> Self {
        Self {
            state,
            supervisor: descriptors.take(Slot::Supervisor),
            server: descriptors.take(Slot::Server),
            peer: descriptors.take(Slot::Peer),
        }
    }

    /// Ends the supervisor, which is silent; or the server, if the supervisor has ended and nobody has come after it.
    fn end_the_silent(&self) {
        match (&self.supervisor, &self.server) {
            (Some(supervisor), _) if lives(supervisor) => self.end(supervisor, "supervisor"),
            (Some(_), Some(server)) if lives(server) => self.end(server, "server"),
            _ => {}
        }
    }

    /// Ends the supervisor, which does not run.
    fn end_the_stopped(&self) {
        if let Some(supervisor) = self.supervisor.as_ref().filter(|process| lives(process)) {
            self.end(supervisor, "supervisor");
        }
    }

    fn end(&self, process: &OwnedFd, name: &str) {
        if !self.state.logs_to_file {
            return;
        }
        let mountpoint = self.state.request.mountpoint.display();
        tracing::warn!(%mountpoint, "the {name} does not run any more (stopped?); it is killed and replaced");
        // It may have ended by itself.
        let _ = pidfd_send_signal(process, Signal::KILL);
    }

    /// Whether there is a server after all, which starts a supervisor by itself, and that one another holder: this one's
    /// line had not reached it.
    fn server_lives(&self) -> bool {
        let ended = |process: &OwnedFd| fdpass::readable(process, DEATH_DEADLINE).unwrap_or(true);
        self.server.as_ref().is_some_and(|process| !ended(process))
    }

    /// For how long all of the other pod may stand still.
    fn patience(&self) -> Duration {
        if self.is_recent() && self.state.taken_over_times >= IN_TURNS {
            LONGEST
        } else {
            FROZEN_AFTER
        }
    }

    /// Whether the mount was taken over from a pod that stood still, a short time ago.
    fn is_recent(&self) -> bool {
        self.state.taken_over_at > seconds().saturating_sub(RECENTLY.as_secs())
    }

    /// Notes that it was, now.
    fn was_taken_over(&mut self) {
        let before = if self.is_recent() {
            self.state.taken_over_times
        } else {
            0
        };
        self.state.taken_over_times = before + 1;
        self.state.taken_over_at = seconds();
    }
}

fn lives(process: &OwnedFd) -> bool {
    !fdpass::readable(process, Duration::ZERO).unwrap_or(true)
}

/// Since 1970.
fn seconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// The body of `weir hold`: waits until it is needed, or no longer.
pub(in crate::supervisor) fn run() -> io::Result<()> {
    let missing = || io::Error::other("no process has said what to hold");
    let line = descriptor::inherited().ok_or_else(missing)?;
    if !fdpass::readable(&line, MESSAGE_DEADLINE)? {
        return Err(missing());
    }
    let first = fdpass::try_receive::<ToHolder>(line.as_fd())?;
    let Some((ToHolder::Hold(state), mut descriptors)) = first else {
        return Err(missing());
    };
    let mut standby = Standby {
        kept: Kept::of(&mut descriptors)?,
        line,
        held: Held::new(*state, &mut descriptors),
        counter: None,
        frozen: Vec::new(),
    };
    stand_by(&mut standby)
}

/// The holder, with what it holds.
struct Standby {
    kept: Kept,
    line: OwnedFd,
    held: Held,
    /// What the supervisor counts with while it runs, if it does.
    counter: Option<Counter>,
    /// Servers of another pod that was frozen. The kernel gives what they read and do not answer to others when they are dead.
    frozen: Vec<OwnedFd>,
}

struct Counter {
    descriptor: OwnedFd,
    /// It is counted in another pod.
    is_elsewhere: bool,
}

/// Why a holder waits no longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waited {
    /// It was told to leave.
    Dismissed,
    /// Nobody is left at the other end of the line.
    Alone,
    /// The processes at the other end are frozen, and cannot be killed from here.
    Frozen,
}

impl Successor for Standby {
    fn follow(&mut self) -> io::Result<bool> {
        say_who(&self.line, false);
        let waited = self.wait()?;
        if waited == Waited::Frozen {
            self.take_over();
        }
        Ok(waited != Waited::Dismissed)
    }

    fn is_needed(&self) -> bool {
        let needed = !mounting::is_gone(&self.kept.fuse) && !self.held.server_lives();
        if needed {
            let mountpoint = self.held.state.request.mountpoint.display();
            tracing::warn!(%mountpoint, "nobody serves the mount any more; others are started");
        }
        needed
    }

    fn start_supervisor(&mut self) -> io::Result<()> {
        self.held.state.server_pid = None;
        (self.held.supervisor, self.held.server) = (None, None);
        let mut descriptors = self.kept.descriptors();
        let peer = self.held.peer.as_ref();
        descriptors.extend(peer.map(|line| (Slot::Peer, line.as_fd())));
        self.line = adopting_supervisor(&self.held.state, Slot::Holder, &descriptors)?;
        self.counter = None;
        Ok(())
    }
}

/// What a look has found.
#[derive(Default)]
struct Look {
    /// The line has a message, or has ended.
    is_told: bool,
    /// The supervisor has counted.
    has_counted: bool,
}

impl Standby {
    /// Leaves the processes of the other pod where they are. What they have read is sent again with the first server here.
    fn take_over(&mut self) {
        let mountpoint = self.held.state.request.mountpoint.display();
        tracing::warn!(%mountpoint, "all processes of the other pod stand still; the mount is served here");
        // They read it should they ever go on.
        say_who(&self.line, true);
        self.frozen.extend(self.held.server.take());
        self.held.was_taken_over();
    }

    /// Keeps the state up to date until this process is needed, or no longer.
    fn wait(&mut self) -> io::Result<Waited> {
        let (mut heard, mut ran) = (Instant::now(), Instant::now());
        let mut rhythm = Rhythm::new(ran);
        loop {
            let pause = if self.counter.is_some() { LOOK } else { BEAT };
            let before = Instant::now();
            let look = self.look(pause)?;
            let now = Instant::now();
            // This process was stopped itself, or the machine was: all get their time anew.
            if now - before > pause + BEAT.min(2 * pause) {
                (heard, ran) = (now, now);
            }
            if look.has_counted {
                rhythm.note(now - ran, now);
                ran = now;
            }
            if look.is_told {
                (heard, ran) = (now, now);
                match fdpass::try_receive::<ToHolder>(self.line.as_fd()) {
                    Ok(Some((ToHolder::Hold(newer), mut descriptors))) => {
                        self.held = Held::new(*newer, &mut descriptors);
                        say_who(&self.line, false);
                    }
                    Ok(Some((ToHolder::Beat, _))) => say_who(&self.line, false),
                    Ok(Some((ToHolder::Runs { elsewhere }, mut descriptors))) => {
                        let counter = descriptors.take(Slot::Counter);
                        self.counter = counter.map(|descriptor| Counter {
                            descriptor,
                            is_elsewhere: elsewhere,
                        });
                    }
                    Ok(Some((ToHolder::Leave, _))) => return Ok(Waited::Dismissed),
                    Ok(None) => return Ok(Waited::Alone),
                    // A newer supervisor may say what this version does not know.
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            if let Some(counter) = &self.counter {
                let usual = if counter.is_elsewhere {
                    self.held.patience()
                } else {
                    STOPPED_AFTER
                };
                if now - ran >= rhythm.patience(usual, LONGEST) {
                    if counter.is_elsewhere {
                        return Ok(Waited::Frozen);
                    }
                    self.held.end_the_stopped();
                    ran = now;
                }
            }
            if now - heard >= SILENT_BEATS * BEAT {
                self.held.end_the_silent();
                heard = now;
            }
        }
    }

    /// Waits for what is next, at most for `pause`.
    fn look(&mut self, pause: Duration) -> io::Result<Look> {
        let pause = Timespec::try_from(pause).map_err(io::Error::other)?;
        let mut fds = vec![PollFd::new(&self.line, PollFlags::IN)];
        let counter = self.counter.as_ref().map(|counter| &counter.descriptor);
        fds.extend(counter.map(|counter| PollFd::new(counter, PollFlags::IN)));
        let of_servers = fds.len();
        let servers = self.frozen.iter();
        fds.extend(servers.map(|server| PollFd::new(server, PollFlags::IN)));
        match poll(&mut fds, Some(&pause)) {
            Err(Errno::INTR) => return Ok(Look::default()),
            done => done?,
        };
        let is_told = !fds[0].revents().is_empty();
        let ended: Vec<bool> = fds[of_servers..]
            .iter()
            .map(|server| !server.revents().is_empty())
            .collect();
        let has_counted = counter.is_some_and(has_counted);
        if ended.contains(&true) {
            let mut ended = ended.into_iter();
            self.frozen.retain(|_| ended.next() == Some(false));
            // They went on for a moment, and may have read what they did not come to answer.
            send_again(&self.kept.fuse);
        }
        Ok(Look {
            is_told,
            has_counted,
        })
    }
}

pub(super) fn say_who(line: &OwnedFd, serves: bool) {
    let pid = std::process::id();
    // It is only shown to users; a supervisor that has too much to read already asks again.
    let _ = fdpass::send(line.as_fd(), &Holding { pid, serves }, &[]);
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::process::{Pid, PidfdFlags, kill_process, pidfd_open};

    use super::*;
    use crate::state::InitExchange;
    use crate::supervisor::{Made, StartRequest};

    fn state(logs_to_file: bool) -> MountState {
        MountState {
            request: StartRequest {
                mountpoint: "/mnt".into(),
                source: "s3://b".to_owned(),
                identity: String::new(),
                allow_other: false,
                server_args: Vec::new(),
                made: Made::default(),
            },
            dir: "/run".into(),
            device: String::new(),
            started_at: 0,
            logs_to_file,
            detached: false,
            was_ready: true,
            init: InitExchange {
                request: Vec::new(),
                reply: None,
                answered: true,
            },
            properties: [].into(),
            server_pid: None,
            taken_over_at: 0,
            taken_over_times: 0,
        }
    }

    /// A process that is stopped.
    fn stopped() -> (Option<OwnedFd>, Child) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::STOP).unwrap();
        (Some(pidfd_open(pid, PidfdFlags::empty()).unwrap()), child)
    }

    #[test]
    fn a_silent_supervisor_is_killed_first_and_its_server_if_nothing_comes_after_it() {
        let ((supervisor, mut first), (server, mut second)) = (stopped(), stopped());
        let held = Held {
            state: state(true),
            supervisor,
            server,
            peer: None,
        };
        held.end_the_silent();
        first.wait().unwrap();
        assert!(second.try_wait().unwrap().is_none());
        assert!(held.server_lives());
        held.end_the_silent();
        second.wait().unwrap();
        assert!(!held.server_lives());
        held.end_the_silent(); // nobody is left
    }

    #[test]
    fn what_a_user_has_stopped_in_a_terminal_is_let_alone() {
        let ((supervisor, mut first), (server, mut second)) = (stopped(), stopped());
        let held = Held {
            state: state(false),
            supervisor,
            server,
            peer: None,
        };
        held.end_the_silent();
        for child in [&mut first, &mut second] {
            assert!(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A holder of a mount with these processes, and the other end of its line.
    fn standby(supervisor: Option<OwnedFd>, server: Option<OwnedFd>) -> (Standby, OwnedFd) {
        let (line, theirs) = fdpass::pair().unwrap();
        let (fuse, lock) = fdpass::pair().unwrap();
        let standby = Standby {
            kept: Kept {
                fuse,
                lock,
                in_flight: None,
            },
            line,
            held: Held {
                state: state(true),
                supervisor,
                server,
                peer: None,
            },
            counter: None,
            frozen: Vec::new(),
        };
        (standby, theirs)
    }

    fn show(line: &OwnedFd, elsewhere: bool) -> OwnedFd {
        let counter = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let descriptors = [(Slot::Counter, counter.as_fd())];
        fdpass::send(line.as_fd(), &ToHolder::Runs { elsewhere }, &descriptors).unwrap();
        counter
    }

    #[test]
    fn a_pod_that_stands_still_is_taken_over_from_and_told() {
        let (server, mut child) = stopped();
        let (mut standby, line) = standby(None, server);
        let counter = show(&line, true);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while begun.elapsed() < 2 * FROZEN_AFTER {
                    rustix::io::write(&counter, &1_u64.to_ne_bytes()).unwrap();
                    std::thread::sleep(LOOK);
                }
            });
            assert!(standby.follow().unwrap());
        });
        assert!(begun.elapsed() + LOOK > 3 * FROZEN_AFTER, "it was running");
        assert!(standby.is_needed(), "though its server lives");
        assert!(child.try_wait().unwrap().is_none());
        let says = || fdpass::try_receive::<Holding>(line.as_fd()).unwrap();
        let says: Vec<_> = [says(), says()].into_iter().flatten().collect();
        assert_eq!(
            says.iter().map(|(who, _)| who.serves).collect::<Vec<_>>(),
            [false, true]
        );
        // The other one may as well be frozen, but two that do that in turns are slow.
        assert_eq!(standby.held.patience(), FROZEN_AFTER);
        (1..IN_TURNS).for_each(|_| standby.held.was_taken_over());
        assert_eq!(standby.held.patience(), LONGEST);
        standby.held.state.taken_over_at -= RECENTLY.as_secs() + 1;
        standby.held.was_taken_over();
        assert_eq!(standby.held.patience(), FROZEN_AFTER);
        // What it had read, should it ever have gone on, is asked for again when it is dead.
        assert_eq!(standby.frozen.len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        standby.look(DEATH_DEADLINE).unwrap();
        assert!(standby.frozen.is_empty());
    }

    #[test]
    fn a_supervisor_of_this_pod_that_counts_no_more_is_killed() {
        let (supervisor, mut child) = stopped();
        let (mut standby, line) = standby(supervisor, None);
        let _counter = show(&line, false);
        let waiting = std::thread::spawn(move || standby.wait().unwrap());
        child.wait().unwrap(); // it was killed
        assert!(!waiting.is_finished());
        fdpass::send(line.as_fd(), &ToHolder::Leave, &[]).unwrap();
        assert_eq!(waiting.join().unwrap(), Waited::Dismissed);
    }
}
