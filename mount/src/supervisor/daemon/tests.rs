//! The supervisor's decisions, one at a time, over a connection that is no mount.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;
use weir_process::fdpass::{self, Slot};
use weir_process::signals::Signals;

use super::commands::{ASKED_WITHIN, MAX_CLIENTS, other_source};
use super::servers::{LONGEST_PAUSE, SHORTEST_PAUSE};
use super::{Audience, Daemon};
use crate::kept::Kept;
use crate::mounting::MountError;
use crate::runtime;
use crate::state::{FromServer, InitExchange, MountState, Outcome, ServerFailure};
use crate::supervisor::Made;
use crate::supervisor::holder::Holder;
use crate::supervisor::request::{Control, StartRequest};
use crate::supervisor::server::Server;

/// Longest wait for something that happens at once.
const SOON: Duration = Duration::from_secs(20);

fn request(mountpoint: &Path, source: &str, identity: &str) -> StartRequest {
    StartRequest {
        mountpoint: mountpoint.to_owned(),
        source: source.to_owned(),
        identity: identity.to_owned(),
        allow_other: false,
        server_args: Vec::new(),
        made: Made::default(),
    }
}

/// A supervisor without a server, and the other end of its connection.
fn daemon(dir: &TempDir, ready: bool) -> (Daemon, OwnedFd) {
    let (fuse, kernel) = fdpass::pair().unwrap();
    let mountpoint = dir.path().join("mnt");
    let run = dir.path().join("run");
    for dir in [&mountpoint, &run] {
        std::fs::create_dir(dir).unwrap();
    }
    let state = MountState {
        request: request(&mountpoint, "s3://a", "a"),
        dir: run.clone(),
        device: "none".to_owned(),
        started_at: 0,
        logs_to_file: false,
        detached: false,
        was_ready: ready,
        init: InitExchange {
            request: Vec::new(),
            reply: None,
            answered: false,
        },
        properties: [].into(),
        server_pid: None,
        taken_over_at: 0,
        taken_over_times: 0,
    };
    let lock = std::fs::File::create(run.join("lock")).unwrap();
    let kept = Kept {
        fuse,
        lock: lock.into(),
        in_flight: None,
    };
    let control = runtime::bind_control(&run).unwrap();
    let signals = Signals::watch().unwrap();
    let daemon = Daemon::new(state, kept, Some(control), signals);
    (daemon, kernel)
}

/// A process in place of a server, and the server's end of the line.
fn server(program: &str, ready: bool) -> (Server, OwnedFd, Child) {
    let child = Command::new(program).arg("600").spawn().unwrap();
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
    let (ours, theirs) = fdpass::pair().unwrap();
    (
        Server::known(process, ours, child.id(), ready),
        theirs,
        child,
    )
}

#[test]
fn the_other_pod_holds_the_mount_and_its_line_ends_with_the_last_process_of_this_one() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    type Message = serde_json::Value;
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, _kernel) = daemon(&dir, true);
    let (server, server_line, mut child) = server("sleep", true);
    let (holder, holder_line) = fdpass::pair().unwrap();
    (daemon.server, daemon.holder) = (Some(server), Some(Holder::known(holder)));
    let socket = dir.path().join("peer.sock");
    (daemon.peer_socket, daemon.peer_at) = (Some(socket.clone()), Some(Instant::now()));
    daemon.ask_peer_when_due();
    assert!(daemon.peer.is_none(), "nobody listens");
    assert!(daemon.peer_at.is_some_and(|at| at > Instant::now()));

    let (unix, packets) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let listener = rustix::net::socket_with(unix, packets, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&socket).unwrap()).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    daemon.peer_at = Some(Instant::now());
    daemon.ask_peer_when_due();
    let line = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
    let (_, mut held) = fdpass::try_receive::<Message>(line.as_fd())
        .unwrap()
        .unwrap();
    held.need(Slot::Fuse).unwrap();
    held.need(Slot::Lock).unwrap();
    let of_holder = fdpass::try_receive::<Message>(holder_line.as_fd());
    let of_holder = of_holder.unwrap().unwrap().1.need(Slot::Peer).unwrap();
    let of_server = fdpass::try_receive::<Message>(server_line.as_fd());
    let of_server = of_server.unwrap().unwrap().1.need(Slot::Peer).unwrap();

    let has_ended = || fdpass::readable(&line, Duration::ZERO).unwrap();
    daemon.peer = None; // as when the supervisor dies
    assert!(!has_ended());
    drop(of_server);
    assert!(!has_ended());
    drop(of_holder);
    assert!(has_ended(), "now the other pod goes on");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_holder_that_is_stopped_is_killed_and_replaced_and_one_elsewhere_is_told_to_leave() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, _kernel) = daemon(&dir, true);
    let (line, theirs) = fdpass::pair().unwrap();
    let (peer, peer_line) = fdpass::pair().unwrap();
    daemon.holder = Some(Holder::known(line));
    daemon.peer = Some(Holder::known(peer));
    if let Some(peer) = &mut daemon.peer {
        peer.be_silent();
    }
    let mut stopped = Command::new("sleep").arg("600").spawn().unwrap();
    kill_process(Pid::from_child(&stopped), Signal::STOP).unwrap();
    let who = serde_json::json!({"pid": stopped.id()});
    fdpass::send(theirs.as_fd(), &who, &[]).unwrap();
    daemon.hear_holder();
    daemon.beat();
    assert!(daemon.holder.is_some(), "it has just said its number");
    assert!(daemon.peer.is_none() && daemon.peer_at.is_some());
    let told = || fdpass::try_receive::<serde_json::Value>(peer_line.as_fd());
    let told = std::iter::from_fn(|| Some(told().ok()??.0));
    assert_eq!(told.last(), Some("Leave".into()));
    if let Some(holder) = &mut daemon.holder {
        holder.be_silent();
    }
    daemon.beat();
    assert!(daemon.holder.is_none() && daemon.hold_at.is_some());
    stopped.wait().unwrap(); // it was killed
}

#[test]
fn a_supervisor_whose_pod_stood_still_leaves_the_mount_to_the_other_pod() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, _kernel) = daemon(&dir, true);
    let (server, _line, mut child) = server("sleep", true);
    let ((peer, peer_line), (holder, holder_line)) =
        (fdpass::pair().unwrap(), fdpass::pair().unwrap());
    daemon.server = Some(server);
    (daemon.peer, daemon.holder) = (Some(Holder::known(peer)), Some(Holder::known(holder)));
    let says = serde_json::json!({"pid": 1, "serves": true});
    fdpass::send(peer_line.as_fd(), &says, &[]).unwrap();
    drop(peer_line); // it has a line to another supervisor
    daemon.run(Audience::Nobody).unwrap();
    child.wait().unwrap(); // the server was killed
    let told = || fdpass::try_receive::<serde_json::Value>(holder_line.as_fd());
    let told = std::iter::from_fn(|| Some(told().ok()??.0));
    assert_eq!(told.last(), Some("Leave".into()));
    assert!(dir.path().join("run").exists(), "it is the other pod's");
}

#[test]
fn a_mount_that_nobody_waits_for_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, _kernel) = daemon(&dir, false);
    let (server, _line, mut child) = server("sleep", false);
    daemon.server = Some(server);
    let (requester, socket) = fdpass::pair().unwrap();
    let mut audience = Audience::Requester(socket);
    daemon.hear_clients(&mut audience);
    assert!(daemon.failed.is_none(), "somebody waits");
    rustix::net::shutdown(&requester, rustix::net::Shutdown::Write).unwrap();
    daemon.hear_clients(&mut audience);
    assert!(matches!(
        daemon.failed,
        Some((MountError::GivenUp { .. }, _))
    ));
    child.wait().unwrap(); // the server was killed
    assert!(daemon.run(audience).is_err());
    let told = fdpass::receive::<Outcome>(requester.as_fd()).unwrap();
    let told = told.map(|(outcome, _)| outcome);
    assert!(matches!(
        told,
        Some(Outcome::Failed(MountError::GivenUp { .. }))
    ));
    assert!(!dir.path().join("run").exists());
}

#[test]
fn the_first_servers_words_are_the_reason_why_a_mount_failed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, _kernel) = daemon(&dir, false);
    let (server, line, mut child) = server("sleep", false);
    daemon.server = Some(server);
    let failure = ServerFailure {
        reason: "no such bucket".to_owned(),
        code: 3,
    };
    fdpass::send(line.as_fd(), &FromServer::Failed(failure), &[]).unwrap();
    child.kill().unwrap();
    let mut audience = Audience::Nobody;
    let until = Instant::now() + SOON;
    while daemon.failed.is_none() {
        assert!(Instant::now() < until);
        daemon.reap_server(&mut audience);
    }
    let failed = daemon.failed.as_ref().map(|(error, _)| error.clone());
    let Some(MountError::Server { reason, code }) = failed else {
        panic!("{failed:?}");
    };
    assert_eq!((reason.as_str(), code), ("no such bucket", 3));
}

#[test]
fn servers_that_do_not_start_are_tried_again_ever_more_slowly() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, _kernel) = daemon(&dir, true);
    let mut least = Duration::ZERO;
    for _ in 0..12 {
        let now = Instant::now();
        daemon.start_later();
        let pause = daemon.start_at.unwrap().saturating_duration_since(now);
        assert!(pause >= least && pause < least + SOON, "{pause:?}");
        least = (least * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
    }
    assert_eq!(least, LONGEST_PAUSE);
}

#[test]
fn the_end_of_a_server_that_served_is_followed_by_another_start() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, _kernel) = daemon(&dir, true);
    let (server, _line, mut child) = server("sleep", true);
    daemon.server = Some(server);
    daemon.reap_server(&mut Audience::Nobody);
    assert!(daemon.server.is_some(), "it lives");
    child.kill().unwrap();
    let until = Instant::now() + SOON;
    while daemon.server.is_some() {
        assert!(Instant::now() < until);
        daemon.reap_server(&mut Audience::Nobody);
    }
    assert!(daemon.start_at.is_some() && daemon.failed.is_none());
}

#[test]
fn commands_that_do_not_ask_make_room_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, _kernel) = daemon(&dir, true);
    let run = dir.path().join("run");
    let silent: Vec<OwnedFd> = (0..MAX_CLIENTS)
        .map(|_| runtime::connect_control(&run).unwrap())
        .collect();
    let asks = runtime::connect_control(&run).unwrap();
    let other = Control::TakeOver {
        request: Box::new(request(&dir.path().join("mnt"), "s3://b", "b")),
        exe: "/does/not/exist".into(),
        environment: None,
    };
    fdpass::send(asks.as_fd(), &other, &[]).unwrap();
    daemon.hear_clients(&mut Audience::Nobody);
    assert_eq!(daemon.clients.len(), MAX_CLIENTS, "it waits behind them");
    for (_, since) in &mut daemon.clients {
        *since -= ASKED_WITHIN;
    }
    daemon.hear_clients(&mut Audience::Nobody);
    daemon.hear_clients(&mut Audience::Nobody);
    let answer = fdpass::try_receive::<Outcome>(asks.as_fd()).unwrap();
    let answer = answer.map(|(outcome, _)| outcome);
    let refused = matches!(
        answer,
        Some(Outcome::Failed(MountError::OtherSource { .. }))
    );
    assert!(refused, "{answer:?}");
    drop(silent);
}

#[test]
fn sources_are_compared_by_what_they_are_unless_a_version_does_not_know() {
    let at = Path::new("/mnt");
    let mounted = request(at, "s3://a", "one");
    assert!(other_source(&mounted, &request(at, "s3://a/", "one")).is_none());
    assert!(other_source(&mounted, &request(at, "s3://a", "two")).is_some());
    assert!(other_source(&mounted, &request(at, "s3://a", "")).is_none());
    assert!(other_source(&mounted, &request(at, "s3://b", "")).is_some());
}
