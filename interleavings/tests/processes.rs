//! What `weir_interleavings::processes` plays, under many schedules.

use weir_interleavings::{check, processes};

#[test]
fn a_mount_survives_two_of_its_processes() {
    check(processes::a_mount_survives_two_of_its_processes);
}
