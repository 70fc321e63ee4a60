//! Which of many workers a block belongs to, without scoring all of them.
//!
//! This is weighted rendezvous hashing (score = weight / -ln(1 - x), where x in (0, 1) is the worker's hash for the
//! block, and the best score owns the block) with a hash that can be run backwards. Each worker has a *seat*, one of
//! 2 halls of 65,536, which follows from its name. A block's key gives each hall a permutation, and a worker's hash for the block is
//! the *rank* of its seat in that. A few workers, and ones that weigh much more than others, are scored each; the
//! others are found by walking through the ranks from the first, which ends as soon as no later one can win.
//! So the walk gets shorter with more workers, and the answer is that of scoring all.
//!
//! What is left from a plain hash: two workers cannot have one seat. The one with the later priority, which is a hash
//! of its name, takes its next seat, and its blocks move when the other one comes or goes. With 1,000 workers that
//! happens to one in 260, with 10,000 to one in 26. Ranks are smeared over [`SMEAR`] of them, because workers must be
//! able to meet in one rank for the shares of different weights to be true; what is left is below 1 % at 10,000.
//!
//! Candidates, on one of 2 busy cores (release build, CPU time; `weir-bench --suite placement` measures this one again).
//! *Off* is the largest difference between a worker's share and what its weight asks for, without the noise of
//! sampling; *moved* counts the bytes that change owner when workers join, relative to the ideal.
//!
//! | candidate | owner at 1,000 / 10,000 | off | moved | map update at 10,000 |
//! |---|---|---|---|---|
//! | all scored and sorted ([`super::scored`]) | 41 µs / 570 µs | 0 | 1.00 | 0 |
//! | the same hash, logarithms for likely winners only | 4.4 µs / 37 µs | 0 | 1.00 | 0.1 ms |
//! | groups first, then their workers (32 of 32) | 1.1 µs / 3.6 µs | 0 | 1.73 to 1.90 | 1 ms |
//! | ring, 200 points a worker | 0.3 µs / 1.2 µs | 24 to 48 % | - | 400 ms, 31 MiB |
//! | table of 65,536 slots, each scored once | 0.01 µs | 39 to 51 % | 1.00 | seconds |
//! | seats, 1 hall, not smeared | 0.2 µs / 0.1 µs | 7 % at 10,000 | up to 1.09 | 1 ms |
//! | **seats, 2 halls, smeared** | 0.3 to 0.5 µs / 0.4 µs | < 1 % | 1.00 / 1.04 | 1.5 ms, 0.1 MiB |
//!
//! Sources: Thaler and Ravishankar (1998) and Schindelhauer and Schomaker (2005), as for [`super::scored`]; walking a
//! pseudo-random sequence until a member is met is Shrivastava's "Simple and efficient weighted minwise hashing" (2016).

/// Seats of a hall; ranks fit 16 bits, of which a processor handles many with one instruction.
const SEATS: u32 = 1 << 16;
/// Halls; each has its half of the key.
const HALLS: usize = 2;
/// Ranks over which one is smeared.
const SMEAR: u32 = 16;
/// Ranks or seats that are looked at together.
const LANES: usize = 16;
/// Odd multipliers of the rounds of a permutation, and what undoes them.
const ROUNDS: [u16; 3] = [0x6b4d, 0x88b5, 0xdb2d];
const BACK: [u16; 3] = [inverse(ROUNDS[0]), inverse(ROUNDS[1]), inverse(ROUNDS[2])];
/// Time to score a worker, relative to that of walking past a rank of all halls.
const COST_OF_SCORING: f64 = 0.4;
/// Ranks that a walk costs beside those that it passes.
const COST_OF_WALKING: f64 = 60.0;

/// One worker, as placement sees it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Member {
    /// Hash of its name.
    pub(super) seed: u64,
    /// Its share is proportional to this; 0 counts as 1.
    pub(super) weight: u64,
}

/// The seats of some workers.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Seats {
    halls: [Hall; HALLS],
    /// 1 / weight of each member.
    lightness: Vec<f64>,
    /// Of all members.
    weight: f64,
    /// The largest weight of those that are found by walking; `None` if nobody is.
    walked: Option<f64>,
}

#[derive(Clone, PartialEq, Debug, Default)]
struct Hall {
    /// Who is scored for each block, the heaviest first.
    scored: Vec<Group>,
    /// Who is found by walking: a bit for each seat that is taken.
    taken: Vec<u64>,
    /// Taken seats before each word of `taken`.
    before: Vec<u16>,
    /// The members of the taken seats.
    members: Vec<u16>,
}

/// Members that are scored together.
#[derive(Clone, PartialEq, Debug)]
struct Group {
    seats: [u16; LANES],
    members: Vec<u16>,
    /// The largest weight.
    weight: f64,
}

impl Seats {
    /// Seats members, which are known by their number from then on: at most 10,000 ([`super::MAX_WORKERS`]).
    /// Whoever has the same members in another order gives them the same seats.
    pub(super) fn new(members: &[Member]) -> Self {
        let seat_of = seats_of(members);
        let weights: Vec<f64> = members.iter().map(|m| m.weight.max(1) as f64).collect();
        let weight = weights.iter().sum();
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
        let scored = most_to_score(&order, &weights, weight);
        let (scored, walked) = order.split_at(scored);
        let in_hall = |members: &[usize], hall: usize| -> Vec<usize> {
            let members = members.iter().copied();
            members.filter(|m| seat_of[*m].0 == hall).collect()
        };
        let halls = std::array::from_fn(|hall| {
            let scored = in_hall(scored, hall);
            let groups = scored.chunks(LANES).map(|group| {
                let seats = group.iter().map(|member| seat_of[*member].1);
                Group {
                    seats: lanes(seats),
                    members: group.iter().map(|member| *member as u16).collect(),
                    weight: weights[group[0]],
                }
            });
            let mut walked_here = in_hall(walked, hall);
            walked_here.sort_by_key(|member| seat_of[*member].1);
            let mut taken = vec![
                0;
                if walked.is_empty() {
                    0
                } else {
                    SEATS as usize / 64
                }
            ];
            for member in &walked_here {
                let (word, bit) = place(seat_of[*member].1);
                taken[word] |= bit;
            }
            let before = taken.iter().scan(0, |count, word: &u64| {
                let before = *count;
                *count += word.count_ones() as u16;
                Some(before)
            });
            Hall {
                scored: groups.collect(),
                before: before.collect(),
                members: walked_here.iter().map(|member| *member as u16).collect(),
                taken,
            }
        });
        Self {
            halls,
            lightness: weights.iter().map(|weight| 1.0 / weight).collect(),
            weight,
            walked: walked.first().map(|heaviest| weights[*heaviest]),
        }
    }

    /// The numbers of the members that should hold a block, the owner first; at most `count`. The time grows with `count`.
    pub(super) fn order(&self, key: [u64; HALLS], count: usize) -> Vec<usize> {
        let count = count.min(self.lightness.len());
        if count == 0 {
            return Vec::new();
        }
        // Scores below this have so many members on average that hardly ever fewer than `count` do.
        let likely = if count == self.lightness.len() {
            f64::INFINITY
        } else {
            (6.0 + 2.0 * count as f64) / self.weight
        };
        let mut best = Best::new(count, likely);
        self.search(key, &mut best);
        if best.found.len() < count {
            best = Best::new(count, f64::INFINITY);
            self.search(key, &mut best);
        }
        best.found.into_iter().map(|(_, member)| member).collect()
    }

    fn search(&self, key: [u64; HALLS], best: &mut Best) {
        let orders = key.map(Order::new);
        for (hall, order) in self.halls.iter().zip(&orders) {
            for group in &hall.scored {
                let ranks = order.ranks(&group.seats);
                let last = last_rank(best.limit * group.weight);
                if ranks.iter().min() > Some(&last) {
                    continue;
                }
                let members = group.members.iter().zip(ranks).zip(group.seats);
                for ((member, rank), seat) in members.filter(|((_, rank), _)| *rank <= last) {
                    let member = usize::from(*member);
                    best.take(order.delay(rank, seat) * self.lightness[member], member);
                }
            }
        }
        let Some(heaviest) = self.walked else { return };
        let mut start = 0;
        while start <= u32::from(last_rank(best.limit * heaviest)) {
            for (hall, order) in self.halls.iter().zip(&orders) {
                let seats = order.seats(start as u16);
                let mut taken = hall.taken_of(&seats);
                while taken != 0 {
                    let lane = taken.trailing_zeros();
                    taken &= taken - 1;
                    let seat = seats[lane as usize];
                    let member = hall.member_at(seat);
                    let delay = order.delay((start + lane) as u16, seat);
                    best.take(delay * self.lightness[member], member);
                }
            }
            start += LANES as u32;
        }
    }
}

impl Hall {
    /// Which of these seats are taken, as bits.
    fn taken_of(&self, seats: &[u16; LANES]) -> u32 {
        let mut bits = 0;
        for (lane, seat) in seats.iter().enumerate() {
            let (word, _) = place(*seat);
            bits |= ((self.taken[word] >> (seat % 64)) as u32 & 1) << lane;
        }
        bits
    }

    /// Who has a taken seat.
    fn member_at(&self, seat: u16) -> usize {
        let (word, bit) = place(seat);
        let before = (self.taken[word] & (bit - 1)).count_ones() as usize;
        usize::from(self.members[usize::from(self.before[word]) + before])
    }
}

/// The best scores so far.
struct Best {
    count: usize,
    /// Scores and members, the best first. A lower score is better.
    found: Vec<(f64, usize)>,
    /// Scores from here on are of no use.
    limit: f64,
}

impl Best {
    fn new(count: usize, limit: f64) -> Self {
        let found = Vec::with_capacity(count + 1);
        Self {
            count,
            found,
            limit,
        }
    }

    fn take(&mut self, score: f64, member: usize) {
        if score > self.limit {
            return;
        }
        let place = self.found.partition_point(|found| *found < (score, member));
        self.found.insert(place, (score, member));
        self.found.truncate(self.count);
        if let Some(worst) = self.found.get(self.count - 1) {
            self.limit = worst.0;
        }
    }
}

/// The order in which a block's key calls the seats of a hall: a permutation.
struct Order {
    key: u64,
    words: [u16; 4],
}

impl Order {
    fn new(key: u64) -> Self {
        let words = std::array::from_fn(|word| (key >> (16 * word)) as u16);
        Self { key, words }
    }

    /// The seats of ranks from `start` on.
    fn seats(&self, start: u16) -> [u16; LANES] {
        let mut lanes: [u16; LANES] = std::array::from_fn(|lane| start.wrapping_add(lane as u16));
        for lane in &mut lanes {
            *lane ^= self.words[0];
        }
        for (multiplier, word) in ROUNDS.iter().zip(&self.words[1..]) {
            for lane in &mut lanes {
                *lane = lane.wrapping_mul(*multiplier);
                *lane ^= *lane >> 8; // its own inverse
                *lane ^= word;
            }
        }
        lanes
    }

    /// The ranks of seats: the inverse of [`Self::seats`].
    fn ranks(&self, seats: &[u16; LANES]) -> [u16; LANES] {
        let mut lanes = *seats;
        for (multiplier, word) in BACK.iter().zip(&self.words[1..]).rev() {
            for lane in &mut lanes {
                *lane ^= word;
                *lane ^= *lane >> 8;
                *lane = lane.wrapping_mul(*multiplier);
            }
        }
        for lane in &mut lanes {
            *lane ^= self.words[0];
        }
        lanes
    }

    /// How long a member of weight 1 takes until it would win: exponentially distributed. The smeared rank is at most
    /// `SMEAR` before `rank`, and what would be before 0 is at the end.
    fn delay(&self, rank: u16, seat: u16) -> f64 {
        let hash = (self.key.rotate_left(11) ^ u64::from(seat)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let smeared = f64::from(rank) - f64::from(SMEAR) * unit(hash, 44);
        let x = smeared / f64::from(SEATS);
        -(if x < 0.0 { -x } else { 1.0 - x }).ln()
    }
}

/// The last rank at which a member of weight 1 can have a delay of at most `delay`, which is never shorter than x.
fn last_rank(delay: f64) -> u16 {
    let ranks = delay * f64::from(SEATS) + f64::from(SMEAR);
    ranks as u16 // saturates
}

/// How many members are scored each, the heaviest first; the others are found by walking, until the heaviest of them
/// can win no more.
fn most_to_score(order: &[usize], weights: &[f64], weight: f64) -> usize {
    let costs = order.iter().enumerate().map(|(scored, heaviest)| {
        let ranks = f64::from(SEATS) * weights[*heaviest] / weight;
        scored as f64 * COST_OF_SCORING + COST_OF_WALKING + 2.0 * ranks
    });
    let all = order.len() as f64 * COST_OF_SCORING;
    let best = costs.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
    best.filter(|(_, cost)| *cost < all)
        .map_or(order.len(), |(scored, _)| scored)
}

/// Hall and seat of each member.
fn seats_of(members: &[Member]) -> Vec<(usize, u16)> {
    let mut by_priority: Vec<usize> = (0..members.len()).collect();
    by_priority.sort_by_key(|member| members[*member].seed);
    let mut taken = vec![0u64; HALLS * SEATS as usize / 64];
    let mut seats = vec![(0, 0); members.len()];
    for member in by_priority {
        let mut number = members[member].seed;
        let seat = loop {
            number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let seat = (mix(number) >> 32) as usize % (HALLS * SEATS as usize);
            let bit = 1 << (seat % 64);
            if taken[seat / 64] & bit == 0 {
                taken[seat / 64] |= bit;
                break seat;
            }
        };
        seats[member] = (seat / SEATS as usize, seat as u16);
    }
    seats
}

/// Word and bit of a seat.
fn place(seat: u16) -> (usize, u64) {
    (usize::from(seat / 64), 1 << (seat % 64))
}

fn lanes(mut values: impl Iterator<Item = u16>) -> [u16; LANES] {
    std::array::from_fn(|_| values.next().unwrap_or(0))
}

/// The number that undoes a multiplication with an odd one, by Newton's method.
const fn inverse(odd: u16) -> u16 {
    let mut inverse = odd;
    let mut step = 0;
    while step < 4 {
        inverse = inverse.wrapping_mul(2u16.wrapping_sub(odd.wrapping_mul(inverse)));
        step += 1;
    }
    inverse
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The first bits of a hash as a number between 0 and 1, of which it is neither, so that its logarithm is finite.
pub(super) fn unit(hash: u64, bits: u32) -> f64 {
    ((hash >> (64 - bits)) as f64 + 0.5) / (1u64 << bits) as f64
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn member(seed: u64, weight: u64) -> Member {
        Member { seed, weight }
    }

    fn equal(count: u64) -> Vec<Member> {
        (0..count)
            .map(|number| member(mix(number), 1 << 40))
            .collect()
    }

    fn key(number: u64) -> [u64; 2] {
        [mix(number ^ 0x5151), mix(mix(number) ^ 0xa2a2)]
    }

    /// The definition: all members by their score.
    fn all_scored(members: &[Member], key: [u64; 2], count: usize) -> Vec<usize> {
        let orders = key.map(Order::new);
        let scores = seats_of(members).into_iter().zip(members);
        let scores = scores.map(|((hall, seat), member)| {
            let [rank, ..] = orders[hall].ranks(&[seat; LANES]);
            orders[hall].delay(rank, seat) * (1.0 / member.weight.max(1) as f64)
        });
        let mut scores: Vec<_> = scores.zip(0..).collect();
        scores.sort_by(|a, b| a.partial_cmp(b).unwrap());
        scores
            .into_iter()
            .take(count)
            .map(|(_, member)| member)
            .collect()
    }

    /// Members with another seat than before, by their seeds.
    fn displaced(before: &[Member], after: &[Member]) -> Vec<u64> {
        let seated = |members: &[Member]| -> Vec<(u64, (usize, u16))> {
            let seeds = members.iter().map(|member| member.seed);
            seeds.zip(seats_of(members)).collect()
        };
        let after = seated(after);
        let moved = seated(before).into_iter().filter(|(seed, seat)| {
            let now = after.iter().find(|(other, _)| other == seed);
            now.is_some_and(|(_, now)| now != seat)
        });
        moved.map(|(seed, _)| seed).collect()
    }

    #[test]
    fn ranks_undo_seats_and_each_seat_has_one() {
        for number in 0..3 {
            let order = Order::new(mix(number));
            let mut seen = vec![false; SEATS as usize];
            for start in (0..SEATS).step_by(LANES) {
                let seats = order.seats(start as u16);
                for (seat, rank) in
                    seats
                        .iter()
                        .zip(order.ranks(&seats))
                        .zip(start..)
                        .map(|((s, r), expected)| {
                            assert_eq!(u32::from(r), expected);
                            (s, r)
                        })
                {
                    assert!(
                        !std::mem::replace(&mut seen[usize::from(*seat)], true),
                        "{rank}"
                    );
                }
            }
            assert!(seen.iter().all(|seen| *seen));
        }
    }

    #[test]
    fn a_walk_finds_what_scoring_all_does() {
        // All scored, some walked, all walked; and one that weighs more than all others together.
        for (count, heavy) in [(3, 1), (400, 1), (3000, 1), (3000, 1 << 13), (10_000, 7)] {
            let mut members = equal(count);
            members[1].weight *= heavy;
            for (place, member) in members.iter_mut().enumerate() {
                member.weight *= [1, 2, 4][place % 3];
            }
            let seats = Seats::new(&members);
            for number in 0..20 {
                for owners in [1, 2, 5] {
                    let expected = all_scored(&members, key(number), owners);
                    assert_eq!(
                        seats.order(key(number), owners),
                        expected,
                        "{count} {heavy}"
                    );
                }
            }
        }
    }

    #[test]
    fn all_members_can_be_had_in_order() {
        let members = equal(1500);
        let seats = Seats::new(&members);
        assert_eq!(
            seats.order(key(1), 2000),
            all_scored(&members, key(1), 2000)
        );
    }

    #[test]
    fn two_members_with_one_seat_have_each_its_share() {
        // The first seats of seeds, until two are one.
        let mut seen = std::collections::HashMap::new();
        let first = |seed: u64| seats_of(&[member(seed, 1)])[0];
        let (a, b) = (0..)
            .map(mix)
            .find_map(|seed| seen.insert(first(seed), seed).map(|before| (before, seed)))
            .unwrap();
        let both = [member(a, 1), member(b, 1)];
        let seats = seats_of(&both);
        assert_ne!(seats[0], seats[1]);
        let backwards = seats_of(&[both[1], both[0]]);
        assert_eq!((backwards[1], backwards[0]), (seats[0], seats[1]));
        assert!(seats[0] == first(a) || seats[1] == first(b));
        let table = Seats::new(&both);
        let of_first = (0..2000)
            .filter(|number| table.order(key(*number), 1) == [0])
            .count();
        assert!((850..1150).contains(&of_first), "{of_first}");
    }

    #[test]
    fn few_members_are_displaced() {
        let members = equal(10_000);
        let first = |member: &Member| seats_of(std::slice::from_ref(member))[0];
        let seats = seats_of(&members);
        let others = members
            .iter()
            .zip(&seats)
            .filter(|(member, seat)| first(member) != **seat);
        let others = others.count();
        assert!((200..600).contains(&others), "{others}");
    }

    #[test]
    fn hostile_seeds_are_seated_in_time() {
        // Names are hashed with a hash that nobody can choose the outcome of; but if somebody could.
        let members = vec![member(7, 1); 2000];
        let mut seats = seats_of(&members);
        seats.sort_unstable();
        seats.dedup();
        assert_eq!(seats.len(), 2000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_members_are_ordered_as_if_all_were_scored(
            weights in vec(prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>(), 1u64..9], 0..900),
            salt in any::<u64>(), number in any::<u64>(), count in 0usize..6,
        ) {
            let members = weights.iter().zip(0..).map(|(weight, n)| member(mix(salt ^ n), *weight));
            let members: Vec<_> = members.collect();
            let order = Seats::new(&members).order(key(number), count);
            prop_assert_eq!(order, all_scored(&members, key(number), count));
        }

        #[test]
        fn a_newcomer_takes_blocks_and_nobody_else_does(
            weights in vec(1u64..1 << 44, 1..100), newcomer in 1u64..1 << 46, salt in any::<u64>(),
        ) {
            let before: Vec<_> = weights.iter().zip(1..).map(|(w, n)| member(mix(salt ^ n), *w)).collect();
            let mut after = before.clone();
            after.insert(before.len() / 2, member(mix(salt), newcomer));
            let displaced = displaced(&before, &after);
            let (old, new) = (Seats::new(&before), Seats::new(&after));
            for number in 0..100 {
                let old = before[old.order(key(number), 1)[0]].seed;
                let new = after[new.order(key(number), 1)[0]].seed;
                let is_free = new == mix(salt) || displaced.contains(&new) || displaced.contains(&old);
                prop_assert!(old == new || is_free);
            }
        }

        #[test]
        fn more_weight_takes_blocks_and_less_gives_them(
            weights in vec(1u64..1 << 44, 2..100), more in 1u64..1 << 44, salt in any::<u64>(),
        ) {
            let before: Vec<_> = weights.iter().zip(1..).map(|(w, n)| member(mix(salt ^ n), *w)).collect();
            let mut after = before.clone();
            after[0].weight += more;
            let (old, new) = (Seats::new(&before), Seats::new(&after));
            for number in 0..100 {
                let (old, new) = (old.order(key(number), 1)[0], new.order(key(number), 1)[0]);
                prop_assert!(old == new || new == 0);
            }
        }
    }
}
