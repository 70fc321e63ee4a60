//! Requests that were read and never answered come again when the kernel is asked for them.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// `FUSE_NOTIFY_RESEND` as a whole `fuse_out_header`: length 16, code 7, unique 0 (Linux 6.9).
const RESEND_CODE: u32 = 7;

/// Asks the kernel for the requests that a dead server read and did not answer.
pub fn send_again(fuse: impl AsFd) {
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16_u32.to_ne_bytes());
    message[4..8].copy_from_slice(&RESEND_CODE.to_ne_bytes());
    match rustix::io::retry_on_intr(|| rustix::io::write(&fuse, &message)) {
        Ok(_) => {}
        Err(Errno::INVAL) => tracing::warn!(
            "this kernel cannot send unanswered requests again (Linux 6.9 can): reads that were under way when the server before this one ended will hang"
        ),
        Err(error) => tracing::warn!("unanswered requests could not be asked for again: {error}"),
    }
}
