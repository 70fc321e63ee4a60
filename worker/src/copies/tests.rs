//! What is asked of other workers, and what becomes of those that do not answer.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::FutureExt;
use prometheus_client::registry::Registry;
use weir_core::placement::Hashing;

use super::fake::{Kind, LENGTH, block, content, peer};
use super::*;

/// Longest wait for anything. Generous: other tests run on the same cores.
const PATIENCE: Duration = Duration::from_mins(1);

fn copies() -> Arc<Copies> {
    copies_of(ClusterMap::default())
}

fn copies_of(map: ClusterMap) -> Arc<Copies> {
    let map = watch::Sender::new(Arc::new(map)).subscribe();
    let metrics = WorkerMetrics::register(&mut Registry::default());
    let own = "own".parse().unwrap();
    let placements = Arc::default();
    Arc::new(Copies::new(own, map, placements, Dial::default(), metrics))
}

/// As a fill does.
async fn fetch(copies: &Arc<Copies>, holders: &[WorkerInfo], block: &Block) -> Option<Bytes> {
    let turn = copies.turn_of(block.origin).await?;
    let given = copies.fetch(&turn, holders, "set", block).await;
    given.map(|given| given.data)
}

fn counted(copies: &Copies, result: &'static str) -> u64 {
    let label = ResultLabel { result };
    copies.metrics.copies.get_or_create(&label).get()
}

/// Asks one worker, then one that holds the block. Gives how long that took, and whether the first one is left out then.
async fn passed_over(kind: Kind, result: &'static str) -> (Duration, bool) {
    let copies = copies();
    let (first, second) = (peer("first", kind).await, peer("second", Kind::Holds).await);
    let holders = [first.info.clone(), second.info];
    let since = Instant::now();
    let fetched = timeout(PATIENCE, fetch(&copies, &holders, &block())).await;
    let took = since.elapsed();
    assert_eq!(
        fetched.unwrap().as_deref(),
        Some(&content()[..]),
        "{kind:?}"
    );
    assert_eq!(counted(&copies, result), 1, "{kind:?}");
    assert_eq!(counted(&copies, "ok"), 1, "{kind:?}");
    let too_old = matches!(kind, Kind::Old | Kind::Older);
    assert!(
        !too_old || first.asked.load(Ordering::Relaxed) == 0,
        "{kind:?}"
    );
    let avoided = copies.avoided.lock().contains_key(&first.info.id);
    (took, avoided)
}

/// Workers that do not give a block, what that is counted as, and whether they are left out then.
const GIVE_NOTHING: [(Kind, &str, bool); 7] = [
    (Kind::Lacks, "not_held", false),
    (Kind::Refusing, "refused", false),
    (Kind::Empty, "refused", false),
    (Kind::Lying, "damaged", false),
    (Kind::Short, "unreachable", true),
    (Kind::Closing, "unreachable", true),
    (Kind::Frozen, "silent", true),
];

#[tokio::test]
async fn whoever_does_not_give_a_block_is_passed_over_and_the_silent_are_left_out() {
    let others = [
        (Kind::Waiting, "late", true),
        (Kind::Slow, "silent", true),
        (Kind::Old, "too_old", true),
        (Kind::Older, "too_old", true),
    ];
    for (kind, result, left_out) in GIVE_NOTHING.into_iter().chain(others) {
        let (took, avoided) = passed_over(kind, result).await;
        assert_eq!(avoided, left_out, "{kind:?}");
        assert!(kind != Kind::Frozen || took >= SILENCE, "{took:?}");
    }
}

#[tokio::test]
async fn a_question_keeps_its_turn_though_nobody_waits_for_it_any_more() {
    let copies = copies();
    let frozen = peer("frozen", Kind::Frozen).await;
    let block = block();
    let holders = [frozen.info];
    let asking = fetch(&copies, &holders, &block);
    assert!(asking.now_or_never().is_none());
    assert_eq!(copies.turns.available_permits(), AT_ONCE - 1);
    let ended = async {
        while copies.turns.available_permits() < AT_ONCE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(counted(&copies, "silent"), 1);
}

#[tokio::test]
async fn a_worker_that_says_that_it_is_busy_is_waited_for() {
    let copies = copies();
    let busy = peer("busy", Kind::Busy).await;
    let fetched = fetch(&copies, &[busy.info], &block()).await;
    assert_eq!(fetched.as_deref(), Some(&content()[..]));
    assert_eq!(copies.metrics.copied_bytes.get(), LENGTH as u64);
}

#[tokio::test]
async fn what_is_cold_everywhere_is_seldom_asked_for_until_somebody_has_it() {
    let copies = copies();
    let (lacks, holds) = (
        peer("lacks", Kind::Lacks).await,
        peer("holds", Kind::Holds).await,
    );
    let cold = [lacks.info];
    for _ in 0..COLD_AFTER {
        assert!(fetch(&copies, &cold, &block()).await.is_none());
    }
    let asked = || lacks.asked.load(Ordering::Relaxed);
    assert_eq!(asked(), COLD_AFTER);
    for _ in 0..10 * STILL_ASKED {
        assert!(fetch(&copies, &cold, &block()).await.is_none());
    }
    assert!((5..=15).contains(&(asked() - COLD_AFTER)), "{}", asked());
    // Another origin's are asked for.
    let other = Block {
        origin: OriginId(8),
        ..block()
    };
    let before = asked();
    assert!(fetch(&copies, &cold, &other).await.is_none());
    assert_eq!(asked(), before + 1);
    // Somebody has one: then others are worth it, too.
    let warm = [holds.info];
    let mut found = false;
    for _ in 0..STILL_ASKED {
        found |= fetch(&copies, &warm, &block()).await.is_some();
    }
    assert!(found && fetch(&copies, &warm, &block()).await.is_some());
}

#[tokio::test]
async fn whoever_was_silent_to_others_is_passed_over_by_those_that_were_to_ask_it_next() {
    let copies = copies();
    let (first, second) = (
        peer("first", Kind::Frozen).await,
        peer("second", Kind::Holds).await,
    );
    let holders = [first.info.clone(), second.info];
    copies.leave_out(&first.info, AVOIDED_FOR);
    let fetched = fetch(&copies, &holders, &block()).await;
    assert_eq!(fetched.as_deref(), Some(&content()[..]));
    // That nobody gave a block does not mean that it is cold.
    assert!(fetch(&copies, &holders[..1], &block()).await.is_none());
    assert!(copies.cold.lock().is_empty());
    assert_eq!(counted(&copies, "silent"), 0);
}

#[tokio::test]
async fn nobody_is_asked_for_a_block_that_was_wrong() {
    let peer = peer("a", Kind::Holds).await;
    let own = WorkerInfo {
        id: "own".parse().unwrap(),
        ..peer.info.clone()
    };
    let copies = copies_of(ClusterMap::new(2, Hashing::NEWEST, vec![peer.info, own]));
    copies.see(&copies.map());
    let mut keys = (0..).map(|n: u64| {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        BlockKey(key)
    });
    let key = keys.find(|key| !copies.holders(key).is_empty()).unwrap();
    copies.distrust(&[key]);
    assert!(copies.holders(&key).is_empty());
    let many: Vec<BlockKey> = keys.take(2 * MAX_WRONG).collect();
    copies.distrust(&many);
    assert!(copies.wrong.lock().len() <= MAX_WRONG);
}

/// Asks the one that is to fetch a block for it; gives what comes of it.
async fn of_filler(copies: &Arc<Copies>, filler: &WorkerInfo) -> Option<Bytes> {
    let (turn, block) = (copies.turn_of_filler().await?, block());
    let given = copies.fetch_of_filler(&turn, filler, "set", &block);
    let given = timeout(PATIENCE, given).await.unwrap();
    given.map(|given| given.data)
}

#[tokio::test]
async fn whoever_should_fetch_a_block_and_does_not_is_given_up_on_soon() {
    for (kind, result, left_out) in GIVE_NOTHING {
        let (copies, filler) = (copies(), peer("first", kind).await.info);
        assert!(of_filler(&copies, &filler).await.is_none(), "{kind:?}");
        assert_eq!(counted(&copies, result), 1, "{kind:?}");
        let avoided = copies.avoided.lock().contains_key(&filler.id);
        assert_eq!(avoided, left_out, "{kind:?}");
        if left_out {
            let since = Instant::now();
            assert!(of_filler(&copies, &filler).await.is_none(), "{kind:?}");
            assert!(since.elapsed() < FILLER_SILENCE, "{kind:?} was asked again");
        }
    }
}

#[tokio::test]
async fn whoever_says_that_it_fetches_is_waited_for_also_if_it_is_older() {
    for kind in [Kind::Busy, Kind::Holds, Kind::Old] {
        let (copies, filler) = (copies(), peer("first", kind).await.info);
        let given = of_filler(&copies, &filler).await;
        assert_eq!(given.as_deref(), Some(&content()[..]), "{kind:?}");
    }
}

#[tokio::test]
async fn whoever_is_too_old_to_make_copies_is_still_asked_to_fetch() {
    let (copies, old) = (copies(), peer("first", Kind::Old).await);
    let (block, way) = (block(), ["own".parse().unwrap()]);
    let asked = copies.ask_for_copy(&old.info, "set", &block, 1, &way, DEADLINE);
    assert!(matches!(asked.await, Answer::Failed));
    assert_eq!(counted(&copies, "too_old"), 1);
    assert_eq!(old.asked.load(Ordering::Relaxed), 0);
    let given = of_filler(&copies, &old.info).await;
    assert_eq!(given.as_deref(), Some(&content()[..]));
}

/// In this test time passes as soon as nothing else is to be done.
#[tokio::test(start_paused = true)]
async fn whoever_says_so_for_ever_is_not_waited_for() {
    let (copies, filler) = (copies(), peer("first", Kind::Waiting).await.info);
    let since = tokio::time::Instant::now();
    assert!(of_filler(&copies, &filler).await.is_none());
    assert!(since.elapsed() < 2 * FILLER_DEADLINE);
    assert!(copies.avoided.lock().contains_key(&filler.id));
}

#[tokio::test]
async fn who_goes_by_another_map_or_placement_has_the_owners_by_this_one_asked() {
    let of_zone = |id: &str, zone: &str| WorkerInfo {
        location: weir_core::Location::of_names(zone, "").unwrap(),
        ..crate::testing::info(id).unwrap()
    };
    let workers = vec![of_zone("a1", "a"), of_zone("own", "b")];
    let copies = copies_of(ClusterMap::new(1, Hashing::NEWEST, workers));
    let placed = |zones: &[&str]| {
        copies.placements.set(&[weir_proto::v1::DatasetSources {
            dataset: "set".to_owned(),
            placement: Some(weir_proto::v1::Placement {
                version: 1,
                spread: weir_proto::v1::Spread::Zone.into(),
                domains: zones.iter().map(|zone| (*zone).to_owned()).collect(),
                ..weir_proto::v1::Placement::default()
            }),
            ..weir_proto::v1::DatasetSources::default()
        }]);
    };
    copies.see(&copies.map());
    let key = block().key();
    let route = |asker: &Asker| match copies.route(&key, asker, || vec!["set".into()]) {
        Route::Held(_, holders) => holders.iter().map(|it| it.id.to_string()).collect(),
        Route::Filler(..) => vec!["filler".to_owned()],
        Route::Origin | Route::Kept(..) => Vec::new(),
    };
    let reader = Asker::default();
    let other_reader = Asker {
        has_other_view: true,
        ..Asker::default()
    };
    let other_worker = Asker {
        is_worker: true,
        ..other_reader.clone()
    };
    // No owner of it: who knows the same asks because the owner says nothing.
    placed(&["a"]);
    assert!(route(&reader).is_empty());
    assert_eq!(route(&other_reader), ["a1"]);
    assert_eq!(route(&other_worker), ["a1"]);
    // The owner of the second copy, which another one takes for that of the first.
    placed(&["a", "b"]);
    assert_eq!(route(&reader), ["filler"]);
    assert_eq!(route(&other_reader), ["filler"]);
    assert_eq!(route(&other_worker), ["a1"]);
    // The owner of the first copy has the others.
    placed(&["b", "a"]);
    assert_eq!(route(&reader), ["a1"]);
    // Whom the asker has found silent nobody asks for it.
    let waited = Asker {
        silent: vec!["a1".to_owned()],
        ..other_reader
    };
    for zones in [&["a"][..], &["a", "b"], &["b", "a"]] {
        placed(zones);
        assert!(route(&waited).is_empty(), "{zones:?}");
    }
}

#[tokio::test]
async fn by_the_map_alone_the_owner_is_asked_for_who_goes_by_another_one() {
    let workers = ["a", "b", "own"].map(|id| crate::testing::info(id).unwrap());
    let copies = copies_of(ClusterMap::new(1, Hashing::NEWEST, workers.to_vec()));
    let map = copies.map();
    copies.see(&map);
    let other = Asker {
        has_other_view: true,
        ..Asker::default()
    };
    let mut keys = (0..=255).map(|n| weir_core::BlockKey([n; 16]));
    let key = keys.find(|key| map.owner(key).unwrap().id.as_str() == "a");
    let holders = |asker: &Asker| -> Vec<String> {
        let holders = copies.by_map(&key.unwrap(), asker);
        holders.iter().map(|it| it.id.to_string()).collect()
    };
    assert!(holders(&Asker::default()).is_empty());
    assert_eq!(holders(&other)[0], "a");
}
