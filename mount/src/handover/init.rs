//! The reply to INIT, as far as a later server must know it (`struct fuse_init_out` in linux/fuse.h).
#![forbid(unsafe_code)]

/// Size of `struct fuse_out_header`.
const HEADER: usize = 16;
/// `FUSE_INIT_EXT`: the second word of flags is there.
const INIT_EXT: u64 = 1 << 30;

/// A FORGET of no inode: a request that is not answered and changes nothing. It is as long as any request that a
/// read-only mount gets.
pub(super) fn nothing() -> Vec<u8> {
    /// `struct fuse_in_header` and `struct fuse_forget_in`, and its opcode.
    const LENGTH: u32 = 48;
    const FORGET: u32 = 2;
    /// A header, a file's name and more.
    const LONGEST: usize = 4096;
    let mut request = vec![0; LONGEST];
    request[..4].copy_from_slice(&LENGTH.to_ne_bytes());
    request[4..8].copy_from_slice(&FORGET.to_ne_bytes());
    request
}

/// What a server and the kernel agreed on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InitReply {
    major: u32,
    flags: u64,
    max_write: u32,
}

/// Reads a reply. Fails when it is short, or says that the server does not want to serve.
pub(super) fn parse(reply: &[u8]) -> Result<InitReply, String> {
    let word = |at: usize| -> Option<u32> {
        let bytes = reply.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let error = word(4)
        .ok_or("the reply to INIT is too short")?
        .cast_signed();
    if error != 0 {
        let error = std::io::Error::from_raw_os_error(-error);
        return Err(format!("INIT was answered with an error: {error}"));
    }
    let fields = || {
        let low = u64::from(word(HEADER + 12)?);
        let high = if low & INIT_EXT == 0 {
            0
        } else {
            u64::from(word(HEADER + 32)?)
        };
        Some(InitReply {
            major: word(HEADER)?,
            flags: high << 32 | low,
            max_write: word(HEADER + 20)?,
        })
    };
    fields().ok_or_else(|| {
        "the reply to INIT is too short; the kernel may be older than Linux 5.4".to_owned()
    })
}

impl InitReply {
    /// Compares with what the kernel was told. Fails when a server with this reply cannot serve it; returns what is
    /// only different.
    pub(super) fn check_against(&self, told: &Self) -> Result<Option<String>, String> {
        if self.major != told.major {
            return Err(format!(
                "the mount speaks version {} of the protocol and this server version {}; unmount and mount again",
                told.major, self.major
            ));
        }
        if self.max_write < told.max_write {
            return Err(format!(
                "the mount was made for messages of {} bytes and this server takes {}; unmount and mount again",
                told.max_write, self.max_write
            ));
        }
        let difference = self.flags ^ told.flags;
        Ok((difference != 0)
            .then(|| format!("the mount was made with other options ({difference:#x})")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(error: i32, major: u32, flags: u64, max_write: u32) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + 64];
        bytes[4..8].copy_from_slice(&error.to_ne_bytes());
        bytes[16..20].copy_from_slice(&major.to_ne_bytes());
        bytes[28..32].copy_from_slice(&(flags as u32).to_ne_bytes());
        bytes[36..40].copy_from_slice(&max_write.to_ne_bytes());
        bytes[48..52].copy_from_slice(&((flags >> 32) as u32).to_ne_bytes());
        bytes
    }

    #[test]
    fn a_refusal_and_a_torn_reply_are_errors() {
        assert!(parse(&reply(-5, 7, 1, 1)).unwrap_err().contains("error"));
        assert!(parse(&reply(0, 7, 1, 1)[..20]).is_err());
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn a_server_that_takes_less_than_the_kernel_was_told_is_refused() {
        let told = parse(&reply(0, 7, 1, 4096)).unwrap();
        assert!(
            parse(&reply(0, 7, 1, 2048))
                .unwrap()
                .check_against(&told)
                .is_err()
        );
        assert!(
            parse(&reply(0, 8, 1, 4096))
                .unwrap()
                .check_against(&told)
                .is_err()
        );
        assert_eq!(
            parse(&reply(0, 7, 1, 8192)).unwrap().check_against(&told),
            Ok(None)
        );
    }

    #[test]
    fn other_flags_are_told_including_those_of_the_second_word() {
        let told = parse(&reply(0, 7, INIT_EXT, 1)).unwrap();
        let ours = parse(&reply(0, 7, INIT_EXT | 1 << 40, 1)).unwrap();
        let difference = ours.check_against(&told).unwrap().unwrap();
        assert!(difference.contains("0x10000000000"), "{difference}");
        // Without the extension the second word means nothing.
        assert_eq!(parse(&reply(0, 7, 1 << 40, 1)).unwrap().flags, 0);
    }
}
