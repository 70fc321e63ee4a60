//! Certificates for the tests of the crates above.
//!
//! It is always there, and no feature: with one, each crate above would be compiled twice. The program does not call it,
//! so that it has no bytes of it.

use std::path::Path;
use std::sync::Arc;

use weir_core::NodeName;

use crate::authority::{Authority, Validity};
use crate::error::TrustError;
use crate::identity::Identity;
use crate::subject::{Role, Subject};

/// Issues a certificate into `ROLE-NAME` below `dir` and loads it. All of the same `dir` are of one authority, which lies
/// in it, too, and is made at the first call.
///
/// # Errors
/// When a file cannot be written.
pub fn identity(dir: &Path, role: Role, name: NodeName) -> Result<Arc<Identity>, TrustError> {
    let ca = dir.join("ca");
    let authority = if Authority::is_in(&ca) {
        Authority::open(&ca, Validity::default())
    } else {
        Authority::init(&ca, Validity::default())
    };
    let place = dir.join(format!("{role}-{name}"));
    authority?.issue(&Subject::new(role, name), &[], &place)?;
    Identity::load(&place)
}
