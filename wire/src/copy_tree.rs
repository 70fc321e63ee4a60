//! The workers with copies of a block that many read, as a tree: the owner has place 0, and the worker of place n copies the block
//! from the one of place (n - 1) / 2.

/// Most workers with copies beside the owner.
pub const MAX_COPIES: u32 = 63;

/// The places below one, down to the owner's.
pub fn way_down(place: u32) -> impl Iterator<Item = u32> {
    let below = |place: &u32| place.checked_sub(1).map(|place| place / 2);
    std::iter::successors(below(&place), below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_down_to_the_owner_halves_with_each_step() {
        let way = |place| way_down(place).collect::<Vec<_>>();
        assert_eq!(
            [1, 2, 3, 4, 5, 6].map(|place| way(place)[0]),
            [0, 0, 1, 1, 2, 2]
        );
        assert!(way(0).is_empty());
        assert_eq!(way(6), [2, 0]);
        assert_eq!(way(7), [3, 1, 0]);
    }
}
