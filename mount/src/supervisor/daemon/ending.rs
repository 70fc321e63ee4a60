//! How a mount ends: given up before it was usable, unmounted, or detached while it is in use.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use weir_process::fdpass;

use super::{Audience, Daemon, STOP_DEADLINE, answer};
use crate::mounting::{self, MountError, connection};
use crate::runtime;
use crate::state::Outcome;

/// Longest wait for the server's own reader to close its files before an unmount, and how often it is looked for.
const LET_GO_DEADLINE: Duration = Duration::from_millis(500);
const LET_GO_POLL: Duration = Duration::from_millis(20);
/// Longest wait for the end of a server that was killed because its mount never became usable.
const KILLED_WITHIN: Duration = Duration::from_secs(3);

impl Daemon {
    /// After the kernel's side is gone, or was given up: whether the server has gone too. It gets a while to close its
    /// cache.
    pub(super) fn has_ended(&mut self) -> bool {
        if self.server.is_none() {
            return true;
        }
        if let Some((_, at)) = self.failed {
            return at.elapsed() > KILLED_WITHIN;
        }
        let ending = self.ending.get_or_insert_default();
        ending
            .kill_at
            .get_or_insert_with(|| Instant::now() + STOP_DEADLINE);
        false
    }

    pub(super) fn finish(mut self, audience: Audience) -> Result<(), MountError> {
        let failed = self.failed.take().map(|(error, _)| error);
        for holder in [&self.holder, &self.peer].into_iter().flatten() {
            holder.dismiss();
        }
        // Were it the last one, the kernel lets go of those who still wait for the mount.
        drop(self.kept);
        if failed.is_some() {
            self.state.request.made.remove();
        }
        runtime::release(&self.state.dir);
        if let (Audience::Requester(socket), Some(error)) = (&audience, &failed) {
            // The requester may have given up.
            let _ = fdpass::send(socket.as_fd(), &Outcome::Failed(error.clone()), &[]);
        }
        for client in self.ending.take().unwrap_or_default().waiting {
            answer(&client, &Ok::<(), MountError>(()));
        }
        tracing::info!(mountpoint = %self.state.request.mountpoint.display(), "the mount has ended");
        failed.map_or(Ok(()), Err)
    }

    /// The other pod serves the mount, since all of this one was frozen: its processes end, and everything else is the other's.
    pub(super) fn give_way(self) {
        tracing::warn!(mountpoint = %self.state.request.mountpoint.display(), "this pod stood still, and the other one serves its mount");
        if let Some(server) = &self.server {
            server.kill();
        }
        if let Some(holder) = &self.holder {
            holder.dismiss();
        }
    }

    /// The mount never became usable: takes it out of the tree again. Whoever has looked into it meanwhile, and waits
    /// for an answer that will not come, gets an error.
    pub(super) fn give_up(&mut self, error: MountError) {
        if self.failed.is_some() {
            return;
        }
        self.failed = Some((error, Instant::now()));
        if let Some(server) = &self.server {
            server.kill();
        }
        if let Err(error) = connection::abort(&self.state.device) {
            tracing::debug!(
                "the connection could not be aborted, it ends with this process: {error}"
            );
        }
        match mounting::unmount(&self.state.request.mountpoint, true) {
            // Somebody may have been faster.
            Ok(()) | Err(MountError::NotMounted { .. }) => {}
            Err(error) => tracing::error!("{error}"),
        }
        self.ending.get_or_insert_default().kill_at = Some(Instant::now());
    }

    pub(super) fn give_up_for(&mut self, reason: &str) {
        self.give_up(MountError::GivenUp {
            mountpoint: self.state.request.mountpoint.clone(),
            reason: reason.to_owned(),
        });
    }

    pub(super) fn unmount(&mut self, lazy: bool) -> Result<(), MountError> {
        if self.state.detached {
            return Ok(());
        }
        if !self.state.was_ready {
            self.give_up_for("it was told to end before it was usable");
            return Ok(());
        }
        self.take_out(lazy)?;
        self.was_taken_out();
        Ok(())
    }

    /// Somebody else has taken the mount out of the tree, who may do that.
    pub(super) fn detach(&mut self) {
        if self.state.detached {
            return;
        }
        if let Some(server) = &self.server {
            server.let_go();
        }
        self.was_taken_out();
    }

    /// What follows when the mount is not in the tree any more.
    fn was_taken_out(&mut self) {
        if let Some(server) = &mut self.server {
            server.ping();
        }
        if !mounting::is_gone(&self.kept.fuse) {
            // Its users keep it alive, and the mountpoint is free for another mount.
            self.control = None;
            self.state.detached = true;
            match runtime::set_aside(&self.state.dir) {
                Ok(dir) => self.state.dir = dir,
                Err(error) => {
                    tracing::warn!("the mount's runtime directory could not be moved: {error}");
                }
            }
            self.save();
        }
        self.ending.get_or_insert_default();
    }

    /// Takes the mount out of the tree, once the server's own process that reads ahead has let go of it.
    pub(super) fn take_out(&self, lazy: bool) -> Result<(), MountError> {
        if let Some(server) = &self.server {
            server.let_go();
        }
        let until = Instant::now() + LET_GO_DEADLINE;
        loop {
            match mounting::unmount(&self.state.request.mountpoint, lazy) {
                Err(MountError::Busy { .. }) if Instant::now() < until => {
                    std::thread::sleep(LET_GO_POLL);
                }
                outcome => return outcome,
            }
        }
    }
}
