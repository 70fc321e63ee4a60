//! What becomes of a Dataset that was deleted: claim, volume, blocks and metadata go in this order, and none while a pod uses it.

use std::time::Duration;

use weir_core::CredentialName;

use super::{Look, READY};
use crate::error::OperatorError;
use crate::objects::{FINALIZER, Is, Phase, let_go};
use crate::volumes::{self, Removed};

/// When a Dataset is looked at again that cannot go yet.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Nodes that a message names.
const MAX_NAMED: usize = 5;

impl Look<'_> {
    /// Removes what was made of the Dataset, as far as that can go now. Gives whether all is gone, and the object with it.
    pub(super) async fn delete(&mut self) -> Result<bool, OperatorError> {
        let Ok(name) = self.name() else {
            // The master never had one of such a name.
            self.release().await?;
            return Ok(true);
        };
        self.context.listings.forget(&name);
        let (noted, master) = (&self.context.noted, &*self.context.master);
        // At once: no pod is to mount it while it is looked for those that do.
        noted.deleting(master, &name).await;
        let removed = volumes::remove(&self.context.client, self.object, &[]).await?;
        match removed {
            Removed::Gone => {}
            Removed::Used(users) => {
                self.waits("InUse", format!("{users}; it goes when they have ended"));
                return Ok(false);
            }
            Removed::Leaving => {
                self.waits("Deleting", "its claims are being deleted".to_owned());
                return Ok(false);
            }
        }
        match self.context.master.mounted_on(&name).await {
            Ok(Some(nodes)) if nodes.is_empty() => {}
            Ok(Some(nodes)) => {
                let shown = nodes.iter().take(MAX_NAMED).map(String::as_str);
                let shown: Vec<&str> = shown.collect();
                let more = match nodes.len().saturating_sub(MAX_NAMED) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                self.waits("InUse", format!(
                    "it is mounted on {}{more}; it goes when that has ended, or five minutes after such a node was heard of last",
                    shown.join(", ")
                ));
                return Ok(false);
            }
            Ok(None) => {
                let message = "the master does not know yet where it is mounted: it has just started, or has no room for all mounts";
                self.waits("Deleting", message.to_owned());
                return Ok(false);
            }
            Err(error) => {
                let message = format!("where it is mounted is the master's to say: {error}");
                self.waits("MasterUnavailable", message);
                return Ok(false);
            }
        }
        if let Err(error) = self.context.master.delete(&name).await {
            self.waits(
                "MasterUnavailable",
                format!("its blocks and metadata are the master's to delete: {error}"),
            );
            return Ok(false);
        }
        self.context.view.forget(&name);
        for secret in &self.status.secrets {
            let Ok(credentials) = CredentialName::of_source(&name, &secret.name) else {
                continue;
            };
            if let Err(error) = self.context.master.delete_credential(&credentials).await {
                tracing::warn!(dataset = %name, %credentials, %error, "credentials stay at the master");
            }
        }
        self.release().await?;
        noted.fine(master, &name).await;
        Ok(true)
    }

    fn waits(&mut self, reason: &str, message: String) {
        self.status.phase = Some(Phase::Deleting);
        self.status.message = Some(message.clone());
        self.conditions.set(READY, Is::False, reason, message);
        self.again = LOOK_AGAIN;
    }

    /// Lets the object go.
    async fn release(&self) -> Result<(), OperatorError> {
        let_go(&self.api(), self.object, FINALIZER).await
    }
}
