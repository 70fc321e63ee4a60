//! What `weir_interleavings::filling` plays, each under many schedules.

use weir_interleavings::check;
use weir_interleavings::filling::{self, Tiers};

fn with_all(scenario: fn(Tiers)) {
    for tiers in Tiers::ALL {
        check(move || scenario(tiers));
    }
}

#[test]
fn readers_share_a_fill() {
    with_all(filling::readers_share_a_fill);
}

#[test]
fn a_block_is_found_on_its_way() {
    with_all(filling::a_block_is_found_on_its_way);
}

#[test]
fn an_evicted_block_never_comes_back() {
    with_all(filling::an_evicted_block_never_comes_back);
}

#[test]
fn nobody_waits_for_a_fill_that_was_given_up() {
    with_all(filling::nobody_waits_for_a_fill_that_was_given_up);
}

#[test]
fn no_wake_up_is_lost() {
    check(filling::no_wake_up_is_lost);
}
