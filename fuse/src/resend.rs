//! Requests that were read and never answered come again when the kernel is asked for them.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// `FUSE_NOTIFY_RESEND` as a whole `fuse_out_header`: length 16, code 7, unique 0.
const RESEND_CODE: u32 = 7;
/// The first kernel that knows it.
const SINCE: (u32, u32) = (6, 9);
/// `off` makes this program go on as on an older kernel, for tests of that.
const VARIABLE: &str = "WEIR_RESEND";

/// Whether this kernel sends requests again; one whose version cannot be read does.
pub fn sends_again() -> bool {
    let is_off = std::env::var_os(VARIABLE).is_some_and(|value| value == "off");
    let release = rustix::system::uname();
    let version = version(&release.release().to_string_lossy());
    !is_off && version.is_none_or(|version| version >= SINCE)
}

/// Major and minor of `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

/// Asks the kernel for the requests that a dead server read and did not answer. `false` when it cannot send them.
pub fn send_again(fuse: impl AsFd) -> bool {
    if !sends_again() {
        return false;
    }
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16_u32.to_ne_bytes());
    message[4..8].copy_from_slice(&RESEND_CODE.to_ne_bytes());
    match rustix::io::retry_on_intr(|| rustix::io::write(&fuse, &message)) {
        Ok(_) => true,
        Err(Errno::INVAL) => false,
        Err(error) => {
            tracing::warn!("unanswered requests could not be asked for again: {error}");
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_known_by_its_release() {
        for (release, known) in [
            ("5.14.0-427.el9", Some((5, 14))),
            ("6.8.0-31-generic", Some((6, 8))),
            ("6.18.44-fc-v595", Some((6, 18))),
            ("10.0-rc1", Some((10, 0))),
            ("unknown", None),
            ("", None),
        ] {
            assert_eq!(version(release), known, "{release}");
        }
    }
}
