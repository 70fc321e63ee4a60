//! What `weir_interleavings::serving` plays, each under many schedules.

use weir_interleavings::{check, serving};

#[test]
fn threads_begin_together() {
    check(serving::threads_begin_together);
}

#[test]
fn the_end_is_told_when_the_duty_is_over() {
    check(serving::the_end_is_told_when_the_duty_is_over);
}
