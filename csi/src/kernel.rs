//! What this node's kernel can do.

/// The first kernel that sends requests again which a dead server had read (FUSE_NOTIFY_RESEND).
const SENDS_AGAIN: (u32, u32) = (6, 9);

/// What users of a node with this kernel should know of their volumes; `None` if that is nothing.
pub(crate) fn warning(release: &str) -> Option<String> {
    // What cannot be read is not taken for old.
    let is_old = version(release).is_some_and(|version| version < SENDS_AGAIN);
    is_old.then(|| {
        format!(
            "this node's kernel {release} is older than 6.9: a read that is under way when its server is killed may hang until the pod ends"
        )
    })
}

/// Major and minor of `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

/// That of this machine.
pub(crate) fn release() -> String {
    let uname = rustix::system::uname();
    uname.release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_told_of_a_kernel_that_sends_nothing_again() {
        for old in [
            "5.14.0-427.el9",
            "6.1.0-18-amd64",
            "6.8.0-31-generic",
            "6.8",
        ] {
            assert!(warning(old).is_some_and(|text| text.contains(old)), "{old}");
        }
        for new in ["6.9.0", "6.18.44-fc-v595", "10.0-rc1", "unknown", ""] {
            assert_eq!(warning(new), None, "{new}");
        }
    }
}
