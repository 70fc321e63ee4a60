//! What this node's kernel can do.

/// What users of a node with this kernel should know of their volumes; `None` if that is nothing. One that sends again what a dead
/// server had read needs nothing.
pub(crate) fn warning(release: &str, sends_again: bool) -> Option<String> {
    (!sends_again).then(|| {
        format!(
            "this node's kernel {release} is older than 6.9: a read that is under way when its server is killed is answered by the next one, and fails with EIO if that does not know of it"
        )
    })
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
        let told = warning("6.1.0-18-amd64", false).unwrap();
        assert!(told.contains("6.1.0-18-amd64"), "{told}");
        assert_eq!(warning("6.9.0", true), None);
    }
}
