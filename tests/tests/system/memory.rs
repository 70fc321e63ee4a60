//! What Weir takes of the memory where a control group limits it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weir_demo::ending::tell;
use weir_tests::{Lab, MemoryGroup, Readers, content, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[(
    "a_mount_with_256_mib_of_memory_is_never_killed",
    a_mount_with_256_mib_of_memory_is_never_killed,
)];

const LIMIT: u64 = 256 << 20;
/// Files that readers have read before the test ends, and how long that may take.
const READS: f64 = 1500.0;
const READ_DEADLINE: Duration = Duration::from_mins(1);

fn a_mount_with_256_mib_of_memory_is_never_killed() {
    let group = match MemoryGroup::new(LIMIT) {
        Ok(group) => group,
        Err(reason) => {
            return tell(format_args!(
                "skipped, no control group can be made here: {reason}"
            ));
        }
    };
    let lab = Lab::new();
    // More than the limit, so that tiers and buffers are all in use: big files, and small ones that are read ahead.
    let big: BTreeMap<String, Vec<u8>> = (0..6)
        .map(|n| (format!("big/{n}"), content(n, 40 << 20)))
        .collect();
    let small: BTreeMap<String, Vec<u8>> = (0..800)
        .map(|n| (format!("small/{}/{n:03}", n / 100), content(n, 90_000)))
        .collect();
    lab.put_all(&big);
    lab.put_all(&small);
    let limited = lab.path("weir-limited");
    group.wrap(&lab.binary(), &limited);
    lab.use_binary(&limited);
    let mount = lab.mount("", &[]);
    assert!(group.processes() >= 2, "the mount is not in its group");
    let server = mount.server();
    let readers = [(big, 4), (small, 8)]
        .map(|(files, count)| Readers::start(&mount.dir, &Arc::new(files), count));
    let read = || mount.metric("weir_fuse_requests_total", "");
    wait_until("enough was read", READ_DEADLINE, || {
        group.kills() > 0 || read() > READS
    });
    let reports = readers.map(Readers::finish);
    assert_eq!(group.kills(), 0, "the kernel has killed for memory");
    for report in reports {
        assert_eq!(report.errors, Vec::<String>::new());
    }
    assert_eq!(mount.server(), server, "the server was replaced");
    mount.unmount();
}
