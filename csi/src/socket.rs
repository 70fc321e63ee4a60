//! A Unix socket at a path that a process of before may have left, or another one may have taken since.
//!
//! Invariant: a socket that somebody listens on is never removed, nor one that this process has not bound.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::error::CsiError;

/// Longest path of a socket, in bytes: that of the kernel, less what a temporary name has more.
const MAX_PATH: usize = 102;

/// A socket's file, which is removed with this if it is still the one that was bound.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    path: PathBuf,
    identity: (u64, u64),
}

/// Listens at `path`, which only root and this user can then connect to. A socket that nobody listens on any more is removed;
/// one in use is replaced if this process is to `take_over`, and else an error.
pub(crate) async fn listen(
    path: &Path,
    take_over: bool,
) -> Result<(UnixListener, BoundSocket), CsiError> {
    if path.as_os_str().len() > MAX_PATH {
        return Err(CsiError::Node(format!(
            "the path {} is too long for a socket; at most {MAX_PATH} bytes are possible",
            path.display()
        )));
    }
    let system = |what| CsiError::system(what, path);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(system("make the directory of"))?;
    }
    // Kubelet, which looks for sockets in its directories, does not look at hidden ones.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.new"));
    // Of a process that was killed before it had renamed it, or is doing so now, and then one of the two fails.
    remove_stale(&new).await?;
    if !take_over {
        remove_stale(path).await?;
    }
    let at = if take_over { &new } else { path };
    let listener = UnixListener::bind(at).map_err(system("listen at"))?;
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o600))
        .map_err(system("set the permissions of"))?;
    let identity = identity(at).map_err(system("look at"))?;
    if take_over {
        std::fs::rename(&new, path).map_err(system("replace the socket"))?;
    }
    let bound = BoundSocket {
        path: path.to_owned(),
        identity,
    };
    Ok((listener, bound))
}

/// Removes a socket that nobody listens on, if there is one.
async fn remove_stale(path: &Path) -> Result<(), CsiError> {
    let system = |what| CsiError::system(what, path);
    let before = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        before => before.map_err(system("look at"))?,
    };
    if !before.file_type().is_socket() {
        return Err(CsiError::Node(format!(
            "{} is no socket; remove it by hand",
            path.display()
        )));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("see who listens at")(error)),
        Ok(_) => {
            return Err(CsiError::Node(format!(
                "another node plugin listens at {}; there is one for each node",
                path.display()
            )));
        }
    }
    // It may have been replaced since by somebody else's.
    let is_same = identity(path).is_ok_and(|now| now == (before.dev(), before.ino()));
    if is_same {
        std::fs::remove_file(path).map_err(system("remove the stale socket"))?;
    }
    Ok(())
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("{} was not removed: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/csi.sock");
        let (listener, bound) = listen(&path, false).await.unwrap();
        let error = listen(&path, false).await.unwrap_err();
        assert!(error.to_string().contains("another node plugin"), "{error}");
        // As after a kill: the file stays, and nobody listens.
        drop(listener);
        std::mem::forget(bound);
        let (old, replaced) = listen(&path, false).await.unwrap();
        let (_listener, bound) = listen(&path, true).await.unwrap();
        drop((old, replaced));
        assert!(
            UnixStream::connect(&path).await.is_ok(),
            "the newer one's stays"
        );
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_and_what_another_has_bound_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        std::fs::write(&path, "").unwrap();
        assert!(listen(&path, false).await.is_err());
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
        let (_listener, bound) = listen(&path, false).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(bound);
        assert!(path.exists(), "it is the other's now");
        let long = dir.path().join("x".repeat(200));
        assert!(listen(&long, false).await.is_err());
    }
}
