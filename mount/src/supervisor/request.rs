//! What a supervisor is asked for: a mount, its end, or to become a newer version.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::environment::Environment;
use super::made::Made;

/// What is to be mounted, and how its server is started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StartRequest {
    /// The directory; need not be absolute.
    pub mountpoint: PathBuf,
    /// What is mounted, in the user's words.
    pub source: String,
    /// What that is, however it is written: a mount can only be taken over by the same. Empty when an older version
    /// has asked, whose words are compared.
    #[serde(default)]
    pub identity: String,
    /// Let other users in.
    pub allow_other: bool,
    /// Arguments of `serve-mount`.
    pub server_args: Vec<String>,
    /// Is removed again should the mount never become usable.
    #[serde(default)]
    pub made: Made,
}

/// What a command asks of a supervisor, over the control socket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Control {
    /// End the mount. Answered with `Result<(), MountError>`, when it has ended.
    Unmount {
        /// Also when it is in use.
        lazy: bool,
    },
    /// The mount was taken out of the tree by who asks: its processes may not be allowed to. Answered as above, at once if it
    /// is still in use.
    Detached,
    /// Become `exe` and serve with the new arguments. Answered with an [`Outcome`](crate::state::Outcome).
    TakeOver {
        /// What to serve from now on.
        request: Box<StartRequest>,
        /// The program.
        exe: PathBuf,
        /// Its environment; that of before when an older version asks.
        #[serde(default)]
        environment: Option<Environment>,
    },
}
