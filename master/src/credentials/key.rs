//! The key that credentials are encrypted with, and how a record is sealed.
//!
//! AES-256 in GCM with a nonce of its own for each record that is written. A record's name and revision are authenticated
//! with it, so that whoever can write to the store can neither give one dataset's credentials to another by renaming their
//! record, nor put an older text under a newer number.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use weir_core::CredentialName;
use zeroize::Zeroizing;

/// Longest key file, in bytes, and most keys in it.
const MAX_FILE: u64 = 64 << 10;
const MAX_KEYS: usize = 16;
/// Bytes of a key.
const KEY_LEN: usize = 32;
/// Before what else is authenticated.
const CONTEXT: &[u8] = b"weir credential 1\0";

/// Keys, the newest first: that encrypts, and all of them decrypt.
#[derive(Clone)]
pub struct CredentialKeys(Arc<[LessSafeKey]>);

/// Shows none of them.
impl std::fmt::Debug for CredentialKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CredentialKeys({})", self.0.len())
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error(
        "the key file {0} cannot be read: {1}; make one with `umask 077; openssl rand -hex 32 > {0}`"
    )]
    Unreadable(String, std::io::Error),
    /// It is no file.
    #[error("the key file {0} is not a regular file; name one that holds the key")]
    NoFile(String),
    /// Others may read it.
    #[error("the key file {0} has mode {1:04o}, so that others can read it; `chmod 600 {0}`")]
    Open(String, u32),
    /// It is another user's.
    #[error("the key file {0} belongs to user {1}, and not to this process's; `chown` it")]
    Owner(String, u32),
    /// What is in it is no key.
    #[error(
        "{0} holds no key: write 64 hexadecimal digits (`openssl rand -hex 32`), or several such lines, the newest first"
    )]
    NoKey(String),
}

/// A sealed text.
pub(super) struct Sealed {
    pub(super) nonce: Vec<u8>,
    pub(super) text: Vec<u8>,
}

impl CredentialKeys {
    /// Reads a key file, which nobody but its owner, this process's user or root, may read.
    ///
    /// # Errors
    /// When it is none, or others can read it.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let name = || path.display().to_string();
        let unreadable = |error| KeyError::Unreadable(name(), error);
        // One that is a pipe must not be waited for.
        let file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(path)
            .map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(KeyError::NoFile(name()));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(KeyError::Open(name(), metadata.mode() & 0o7777));
        }
        let own = rustix::process::geteuid().as_raw();
        if metadata.uid() != own && metadata.uid() != 0 {
            return Err(KeyError::Owner(name(), metadata.uid()));
        }
        let mut text = Zeroizing::new(String::new());
        let read = file.take(MAX_FILE).read_to_string(&mut text);
        read.map_err(unreadable)?;
        Self::of_text(&text).ok_or_else(|| KeyError::NoKey(format!("the key file {}", name())))
    }

    /// Writes a file with a new key, if there is none of this name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn make(path: &Path) -> std::io::Result<()> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        let random = SystemRandom::new().fill(&mut *bytes);
        random.map_err(|_| std::io::Error::other("the system gives no random numbers"))?;
        let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = Zeroizing::new(format!("{}\n", digits.concat()));
        let mut options = File::options();
        match options.write(true).create_new(true).mode(0o600).open(path) {
            Ok(mut file) => file.write_all(text.as_bytes()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The keys of a variable's value.
    ///
    /// # Errors
    /// When it is no key.
    pub fn of_variable(name: &str, value: &str) -> Result<Self, KeyError> {
        Self::of_text(value).ok_or_else(|| KeyError::NoKey(format!("the variable {name}")))
    }

    /// A key in each line; empty lines and those that begin with `#` are skipped.
    fn of_text(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim);
        let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Option<Vec<LessSafeKey>> = keys.map(key).collect();
        let keys = keys.filter(|keys| (1..=MAX_KEYS).contains(&keys.len()))?;
        Some(Self(keys.into()))
    }

    /// Encrypts a text with the newest key.
    pub(super) fn seal(&self, name: &CredentialName, revision: u64, text: &[u8]) -> Option<Sealed> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut sealed = Vec::with_capacity(text.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(text);
        let key = self.0.first()?;
        let aad = Aad::from(associated(name, revision));
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .ok()?;
        Some(Sealed {
            nonce: nonce.to_vec(),
            text: sealed,
        })
    }

    /// Decrypts a text. Gives whether the newest key did; `None` when none does, or when it is not what was sealed under this
    /// name and revision.
    pub(super) fn open(
        &self,
        name: &CredentialName,
        revision: u64,
        sealed: &Sealed,
    ) -> Option<(Zeroizing<Vec<u8>>, bool)> {
        let nonce: [u8; NONCE_LEN] = sealed.nonce.as_slice().try_into().ok()?;
        for (number, key) in self.0.iter().enumerate() {
            let mut text = Zeroizing::new(sealed.text.clone());
            let aad = Aad::from(associated(name, revision));
            let nonce = Nonce::assume_unique_for_key(nonce);
            let Ok(plain) = key.open_in_place(nonce, aad, &mut text) else {
                continue;
            };
            let length = plain.len();
            text.truncate(length);
            return Some((text, number == 0));
        }
        None
    }
}

fn associated(name: &CredentialName, revision: u64) -> Vec<u8> {
    let revision = revision.to_le_bytes();
    [CONTEXT, &revision, name.as_str().as_bytes()].concat()
}

/// The key that 64 hexadecimal digits write.
fn key(line: &str) -> Option<LessSafeKey> {
    let digits = line.as_bytes();
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    if digits.len() != 2 * KEY_LEN {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    let key = UnboundKey::new(&AES_256_GCM, &*bytes).ok()?;
    Some(LessSafeKey::new(key))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ONE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";
    const TWO: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

    fn keys(text: &str) -> CredentialKeys {
        CredentialKeys::of_text(text).unwrap()
    }

    fn name(name: &str) -> CredentialName {
        name.parse().unwrap()
    }

    #[test]
    fn a_text_opens_under_its_name_and_revision_with_one_of_the_keys_alone() {
        let one = keys(ONE);
        let sealed = one.seal(&name("a"), 7, b"secret").unwrap();
        assert!(!sealed.text.windows(6).any(|bytes| bytes == b"secret"));
        let opened = |keys: &CredentialKeys, of: &str, revision| {
            let opened = keys.open(&name(of), revision, &sealed);
            opened.map(|(text, newest)| (text.to_vec(), newest))
        };
        assert_eq!(opened(&one, "a", 7), Some((b"secret".to_vec(), true)));
        let both = keys(&format!("# newest\n{TWO}\n\n  {ONE}  \n"));
        assert_eq!(opened(&both, "a", 7), Some((b"secret".to_vec(), false)));
        for (keys, of, revision) in [(&one, "b", 7), (&one, "a", 8), (&keys(TWO), "a", 7)] {
            assert_eq!(opened(keys, of, revision), None);
        }
        for at in 0..sealed.text.len() {
            let mut text = sealed.text.clone();
            text[at] ^= 1;
            let flipped = Sealed {
                nonce: sealed.nonce.clone(),
                text,
            };
            assert!(one.open(&name("a"), 7, &flipped).is_none(), "{at}");
        }
        let again = one.seal(&name("a"), 7, b"secret").unwrap();
        assert_ne!(again.nonce, sealed.nonce);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [
            "",
            "\n# only a comment\n",
            &ONE[1..],
            &format!("{ONE}0"),
            &ONE.replace('0', "g"),
            &format!("{ONE}\nshort"),
            &format!("{ONE}\n").repeat(MAX_KEYS + 1),
            &"é".repeat(KEY_LEN),
        ] {
            assert!(CredentialKeys::of_text(text).is_none(), "{text:?}");
        }
        assert!(!format!("{:?}", keys(ONE)).contains("000102"));
    }

    #[test]
    fn a_key_file_is_one_that_nobody_else_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, format!("{ONE}\n")).unwrap();
        let read = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            CredentialKeys::read(&path).map_err(|error| error.to_string())
        };
        read(0o600).unwrap();
        read(0o400).unwrap();
        let made = dir.path().join("made");
        CredentialKeys::make(&made).unwrap();
        let first = std::fs::read(&made).unwrap();
        CredentialKeys::make(&made).unwrap();
        assert_eq!(std::fs::read(&made).unwrap(), first);
        CredentialKeys::read(&made).unwrap();
        for mode in [0o640, 0o604, 0o666] {
            let error = read(mode).unwrap_err();
            assert!(error.contains("chmod 600"), "{error}");
        }
        let error = CredentialKeys::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let missing = dir.path().join("none");
        let error = CredentialKeys::read(&missing).unwrap_err().to_string();
        assert!(error.contains("openssl rand"), "{error}");
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        let error = CredentialKeys::read(&fifo).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
