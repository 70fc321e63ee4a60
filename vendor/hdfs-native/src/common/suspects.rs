// Added by Weir.
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

/// A DataNode that says nothing for so long is asked last for a while.
const SUSPECT_AFTER: Duration = Duration::from_millis(700);
/// How long it is.
const SUSPECT_FOR: Duration = Duration::from_secs(60);
/// DataNodes that are remembered.
const MAX_SUSPECTS: usize = 1024;

/// DataNodes that failed or were silent lately, for all readers of a client.
#[derive(Debug, Default)]
pub(crate) struct Suspects(Mutex<HashMap<String, Instant>>);

impl Suspects {
    pub(crate) fn add(&self, datanode: String) {
        let now = Instant::now();
        let mut suspects = self.0.lock().unwrap();
        if suspects.len() >= MAX_SUSPECTS {
            suspects.retain(|_, until| *until > now);
        }
        if suspects.len() < MAX_SUSPECTS {
            suspects.insert(datanode, now + SUSPECT_FOR);
        }
    }

    pub(crate) fn contains(&self, datanode: &str) -> bool {
        let suspects = self.0.lock().unwrap();
        suspects
            .get(datanode)
            .is_some_and(|until| *until > Instant::now())
    }

    /// Waits for `work`; `datanode` is a suspect as soon as that takes too long.
    pub(crate) async fn watch<T>(
        &self,
        datanode: impl FnOnce() -> String,
        handle: &Handle,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        let slow = {
            let _runtime = handle.enter();
            tokio::time::sleep(SUSPECT_AFTER)
        };
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = slow => self.add(datanode()),
        }
        work.await
    }
}
