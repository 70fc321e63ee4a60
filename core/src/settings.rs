//! Files that people name: settings, keys, tokens and certificates.
//!
//! Whoever reads one never waits: a pipe that nobody writes to, or a device, is refused and not read.

use std::fs::{File, FileType};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, major, minor, open};

/// Longest file of settings, keys or certificates, in bytes.
pub const MAX_SETTINGS: u64 = 4 << 20;
/// The numbers of `/dev/null`, by which people say that there are no settings.
const NULL: (u32, u32) = (1, 3);

/// Reads a file of settings, keys or certificates.
///
/// # Errors
/// What the system says; that it is a directory, a pipe or another thing that is no file; that it is longer than
/// [`MAX_SETTINGS`].
pub fn read_settings(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a pipe without this waits for somebody to write to it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    let found = file.metadata()?;
    if found.file_type().is_char_device() && (major(found.rdev()), minor(found.rdev())) == NULL {
        return Ok(Vec::new());
    }
    if !found.is_file() {
        let problem = format!("it is {}, and no regular file", kind(found.file_type()));
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    let mut content = Vec::new();
    file.take(MAX_SETTINGS + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_SETTINGS {
        let problem = format!("it is longer than {MAX_SETTINGS} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    Ok(content)
}

fn kind(found: FileType) -> &'static str {
    if found.is_dir() {
        "a directory"
    } else if found.is_fifo() {
        "a pipe"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;

    fn refused(path: &Path) -> String {
        read_settings(path).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(refused(&pipe).contains("a pipe"));
        assert!(refused(dir.path()).contains("a directory"));
        assert!(refused(Path::new("/dev/zero")).contains("a device"));
        let missing = read_settings(&dir.path().join("missing")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn files_up_to_the_limit_and_the_null_device_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "text").unwrap();
        assert_eq!(read_settings(&path).unwrap(), b"text");
        assert!(read_settings(Path::new("/dev/null")).unwrap().is_empty());
        std::fs::write(&path, vec![0; MAX_SETTINGS as usize + 1]).unwrap();
        assert!(refused(&path).contains("longer"));
    }
}
