use std::collections::HashSet;

use futures::StreamExt;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::*;
use crate::fake::{Answer, Fake, PIECE, unavailable};

const MIB: u64 = 1 << 20;

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn error(error: OriginError) -> Answer {
    Answer {
        error: Some(error),
        ..Answer::default()
    }
}

struct Outcome {
    result: Result<Vec<u8>, OriginError>,
    /// Bytes that came before the error.
    yielded: usize,
    took: Duration,
    metrics: String,
}

impl Outcome {
    fn metric(&self, name: &str) -> u64 {
        let line = self.metrics.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok())
            .unwrap_or(0)
    }
}

async fn read(fake: &Arc<Fake>, range: Range<u64>) -> Outcome {
    read_with(fake, range, FetchPolicy::default()).await
}

async fn read_with(fake: &Arc<Fake>, range: Range<u64>, policy: FetchPolicy) -> Outcome {
    read_at_pace(fake, range, policy, &Arc::default()).await
}

async fn read_at_pace(
    fake: &Arc<Fake>,
    range: Range<u64>,
    policy: FetchPolicy,
    pace: &Arc<Pace>,
) -> Outcome {
    let mut registry = Registry::default();
    let metrics = OriginMetrics::register(&mut registry);
    let started = Instant::now();
    let stream = fetch(
        fake.clone(),
        fake.object(),
        range,
        Arc::new(policy),
        pace.clone(),
        metrics,
    );
    let mut stream = std::pin::pin!(stream);
    let mut bytes = Vec::new();
    let mut result = Ok(());
    while let Some(piece) = stream.next().await {
        assert!(result.is_ok(), "something came after the error");
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => result = Err(error),
        }
    }
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    Outcome {
        yielded: bytes.len(),
        result: result.map(|()| bytes),
        took: started.elapsed(),
        metrics: text,
    }
}

fn slice(fake: &Fake, range: Range<u64>) -> &[u8] {
    &fake.content()[range.start as usize..range.end as usize]
}

#[tokio::test(start_paused = true)]
async fn a_read_yields_exactly_its_range() {
    let fake = Arc::new(Fake::new(MIB, [], Answer::default()));
    for range in [
        0..MIB,
        1..2,
        5..PIECE,
        1000..3 * PIECE + 7,
        MIB - 1..MIB,
        9..9,
        MIB..MIB,
    ] {
        let got = read(&fake, range.clone()).await.result.unwrap();
        assert_eq!(got, slice(&fake, range));
    }
    assert_eq!(fake.requests().len(), 5, "an empty range needs no request");
}

#[tokio::test(start_paused = true)]
async fn a_range_outside_the_object_is_refused_without_a_request() {
    let fake = Arc::new(Fake::new(100, [], Answer::default()));
    #[allow(clippy::reversed_empty_ranges)]
    for range in [0..101, 101..101, 50..20] {
        let error = read(&fake, range).await.result.unwrap_err();
        assert!(matches!(error, OriginError::OutOfRange { .. }));
    }
    assert!(fake.requests().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_read_goes_on_at_the_first_missing_byte() {
    let cut = Answer {
        truncated: Some(100_000),
        ..Answer::default()
    };
    let fake = Arc::new(Fake::new(
        MIB,
        [cut.clone(), error(unavailable()), cut],
        Answer::default(),
    ));
    let outcome = read(&fake, 10..MIB).await;
    assert_eq!(outcome.result.as_ref().unwrap(), slice(&fake, 10..MIB));
    assert_eq!(
        fake.requests(),
        [10..MIB, 100_010..MIB, 100_010..MIB, 200_010..MIB]
    );
    assert_eq!(
        outcome.metric("weir_origin_retries_total{reason=\"unavailable\"}"),
        3
    );
    assert_eq!(outcome.metric("weir_origin_read_bytes_total"), MIB - 10);
}

#[tokio::test(start_paused = true)]
async fn a_short_answer_is_continued_without_counting_as_a_failure() {
    let short = Answer {
        short: Some(1000),
        ..Answer::default()
    };
    let policy = FetchPolicy {
        max_attempts: 1,
        ..FetchPolicy::default()
    };
    let fake = Arc::new(Fake::new(200_000, [], short));
    let outcome = read_with(&fake, 0..200_000, policy).await;
    assert_eq!(outcome.result.unwrap(), slice(&fake, 0..200_000));
    assert_eq!(fake.requests().len(), 200);
    assert_eq!(outcome.took, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn reads_succeed_when_30_or_70_percent_of_requests_fail() {
    for (part, seeds) in [(0.3, 100), (0.7, 200)] {
        for seed in 0..seeds {
            let fake = Arc::new(Fake::new(MIB, [], Answer::default()).failing(part, seed));
            let outcome = read(&fake, 0..MIB).await;
            assert!(outcome.result.is_ok(), "seed {seed}: {:?}", outcome.result);
            assert!(outcome.took < seconds(30.0), "{:?}", outcome.took);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_reported_when_the_budget_ends_and_requests_stay_few() {
    let fake = Arc::new(Fake::new(MIB, [], error(unavailable())));
    let outcome = read(&fake, 0..MIB).await;
    let error = outcome.result.as_ref().unwrap_err();
    assert!(matches!(error, OriginError::GaveUp { .. }), "{error}");
    assert_eq!(error.kind(), "unavailable");
    assert!(
        outcome.took > seconds(28.0) && outcome.took <= seconds(30.0),
        "{:?}",
        outcome.took
    );
    assert!(fake.requests().len() < 70, "{}", fake.requests().len());
    assert_eq!(
        outcome.metric("weir_origin_errors_total{kind=\"unavailable\"}"),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn retries_of_many_readers_spread_out() {
    let mut second_requests = HashSet::new();
    for _ in 0..20 {
        let fake = Arc::new(Fake::new(100, [error(unavailable())], Answer::default()));
        let start = Instant::now();
        read(&fake, 0..100).await.result.unwrap();
        second_requests.insert((fake.times()[1] - start).as_millis());
    }
    assert!(second_requests.len() > 3, "{second_requests:?}");
}

#[tokio::test(start_paused = true)]
async fn endless_small_progress_ends_with_the_attempts() {
    let drip = Answer {
        truncated: Some(1),
        ..Answer::default()
    };
    let fake = Arc::new(Fake::new(MIB, [], drip));
    let outcome = read(&fake, 0..MIB).await;
    assert!(matches!(
        outcome.result,
        Err(OriginError::GaveUp { attempts: 100, .. })
    ));
    assert_eq!(fake.requests().len(), 100);
}

#[tokio::test(start_paused = true)]
async fn progress_does_not_refill_the_budget() {
    // Each request gives a little after 0.9 s of silence and then breaks, 27 times in 30 s.
    let drip = Answer {
        truncated: Some(1),
        head_delay: seconds(0.9),
        ..Answer::default()
    };
    let fake = Arc::new(Fake::new(MIB, [], drip));
    let outcome = read(&fake, 0..MIB).await;
    assert!(matches!(outcome.result, Err(OriginError::GaveUp { .. })));
    assert!(outcome.took < seconds(35.0), "{:?}", outcome.took);
}

#[tokio::test(start_paused = true)]
async fn final_errors_are_not_retried() {
    let origin: Arc<str> = "fake://f".into();
    let key: Arc<str> = "key".into();
    let detail = String::new;
    for last in [
        OriginError::config("fake://f", "", ""),
        OriginError::AccessDenied {
            target: origin.clone(),
            detail: detail(),
            remedy: "",
        },
        OriginError::CredentialsExpired {
            target: origin.clone(),
            detail: detail(),
        },
        OriginError::BucketMissing {
            origin: origin.clone(),
        },
        OriginError::NotFound {
            origin: origin.clone(),
            key: key.clone(),
        },
        OriginError::Changed {
            origin: origin.clone(),
            key: key.clone(),
        },
        OriginError::Unsupported {
            target: origin.clone(),
            problem: detail(),
        },
    ] {
        let kind = last.kind();
        let fake = Arc::new(Fake::new(
            100,
            [error(unavailable()), error(last)],
            Answer::default(),
        ));
        let outcome = read(&fake, 0..100).await;
        assert_eq!(outcome.result.unwrap_err().kind(), kind);
        assert_eq!(fake.requests().len(), 2, "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stall_of_20_seconds_costs_a_reader_less_than_3() {
    for stalled in [
        Answer {
            head_delay: seconds(20.0),
            ..Answer::default()
        },
        Answer {
            stall: Some((0, seconds(20.0))),
            ..Answer::default()
        },
        Answer {
            stall: Some((300_001, seconds(20.0))),
            ..Answer::default()
        },
    ] {
        let fake = Arc::new(Fake::new(MIB, [stalled.clone()], Answer::default()));
        let outcome = read(&fake, 0..MIB).await;
        assert_eq!(outcome.result.as_ref().unwrap(), slice(&fake, 0..MIB));
        assert!(outcome.took < seconds(3.0), "{:?}", outcome.took);
        assert_eq!(outcome.metric("weir_origin_hedges_total{won=\"true\"}"), 1);
        let resumed = stalled.stall.map_or(0, |(at, _)| at);
        assert_eq!(fake.requests(), [0..MIB, resumed..MIB]);
    }
}

#[tokio::test(start_paused = true)]
async fn hedges_double_their_distance_and_their_number_is_limited() {
    let silent = Answer {
        head_delay: seconds(3600.0),
        ..Answer::default()
    };
    let fake = Arc::new(Fake::new(100, [], silent));
    let start = Instant::now();
    let outcome = read(&fake, 0..100).await;
    assert!(matches!(outcome.result, Err(OriginError::Timeout { .. })));
    assert_eq!(outcome.took.as_secs(), 30);
    let times: Vec<u64> = fake
        .times()
        .iter()
        .map(|t| (*t - start).as_secs())
        .collect();
    assert_eq!(times, [0, 1, 3, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_uniformly_slow_origin_is_read_to_the_end_and_not_stormed() {
    // 1.5 s before each piece: slower than the hedge's patience, for ever.
    let slow = Answer {
        piece_delay: seconds(1.5),
        ..Answer::default()
    };
    let fake = Arc::new(Fake::new(4 * MIB, [], slow));
    let outcome = read(&fake, 0..4 * MIB).await;
    assert_eq!(outcome.result.as_ref().unwrap(), slice(&fake, 0..4 * MIB));
    assert!(
        outcome.took > seconds(90.0),
        "the body is longer than the budget: {:?}",
        outcome.took
    );
    // One when nothing came, three since the bytes that came were few.
    assert!(fake.requests().len() <= 5, "{:?}", fake.requests());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_crawls_is_overtaken_by_a_second_request() {
    // 71 KiB a second: a block would take almost a minute, and is never silent for as long as a hedge waits.
    let slow = Answer {
        piece_delay: seconds(0.9),
        ..Answer::default()
    };
    let whole = 4 * MIB;
    for second in [
        Answer::default(),
        Answer {
            head_delay: seconds(1.5),
            piece_delay: seconds(0.001),
            ..Answer::default()
        },
    ] {
        for digest in [false, true] {
            let slow = Answer {
                digest,
                ..slow.clone()
            };
            let fake = Arc::new(Fake::new(whole, [slow, second.clone()], Answer::default()));
            let outcome = read(&fake, 0..whole).await;
            assert_eq!(outcome.result.as_ref().unwrap(), slice(&fake, 0..whole));
            assert!(outcome.took < seconds(5.0), "{:?}", outcome.took);
            assert_eq!(fake.requests().len(), 2, "{:?}", fake.requests());
            assert_eq!(outcome.metric("weir_origin_hedges_total{won=\"true\"}"), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_race_that_fails_leaves_the_slow_body_alone() {
    let slow = Answer {
        piece_delay: seconds(0.9),
        ..Answer::default()
    };
    let denied = error(OriginError::AccessDenied {
        target: "fake://f/key".into(),
        detail: String::new(),
        remedy: "",
    });
    let fake = Arc::new(Fake::new(MIB, [slow], denied));
    let outcome = read(&fake, 0..MIB).await;
    assert_eq!(outcome.result.as_ref().unwrap(), slice(&fake, 0..MIB));
}

#[tokio::test(start_paused = true)]
async fn a_failed_request_leaves_the_race_to_the_hedge() {
    let late_failure = Answer {
        head_delay: seconds(1.5),
        ..error(unavailable())
    };
    let late_answer = Answer {
        head_delay: seconds(1.0),
        ..Answer::default()
    };
    let fake = Arc::new(Fake::new(
        100,
        [late_failure, late_answer],
        Answer::default(),
    ));
    let outcome = read(&fake, 0..100).await;
    assert!(outcome.result.is_ok());
    assert_eq!(fake.requests().len(), 2);
    assert_eq!(outcome.took, seconds(2.0));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_yielded_before_the_digest_is_verified() {
    let flipped = Answer {
        flipped: Some(MIB - 1),
        digest: true,
        ..Answer::default()
    };
    let right = Answer {
        digest: true,
        ..Answer::default()
    };
    let fake = Arc::new(Fake::new(MIB, [flipped.clone()], right));
    let outcome = read(&fake, 0..MIB).await;
    assert_eq!(outcome.result.as_ref().unwrap(), slice(&fake, 0..MIB));
    assert_eq!(fake.requests(), [0..MIB, 0..MIB]);
    assert_eq!(
        outcome.metric("weir_origin_retries_total{reason=\"corrupt\"}"),
        1
    );

    let fake = Arc::new(Fake::new(MIB, [], flipped));
    let outcome = read(&fake, 0..MIB).await;
    assert_eq!(outcome.result.unwrap_err().kind(), "corrupt");
    assert_eq!(outcome.yielded, 0);
    assert_eq!(fake.requests().len(), 1 + MAX_WRONG as usize);
}

#[tokio::test(start_paused = true)]
async fn wrong_answers_are_got_around_and_told_soon_when_they_stay() {
    let malformed = OriginError::Malformed {
        target: "fake://f/key".into(),
        detail: "it has 101 bytes, listed were 100".to_owned(),
    };
    let wrong = error(malformed);
    let fake = Arc::new(Fake::new(100, vec![wrong.clone(); 10], Answer::default()));
    let outcome = read(&fake, 0..100).await;
    assert_eq!(outcome.result.unwrap(), slice(&fake, 0..100));

    let fake = Arc::new(Fake::new(100, [], wrong));
    let outcome = read(&fake, 0..100).await;
    let error = outcome.result.as_ref().unwrap_err();
    assert_eq!(error.kind(), "malformed");
    assert!(error.to_string().contains("listed were 100"), "{error}");
    assert!(outcome.took < seconds(2.5), "{:?}", outcome.took);
}

#[tokio::test(start_paused = true)]
async fn a_digest_covers_the_bytes_that_another_request_brings() {
    let first = Answer {
        truncated: Some(1000),
        digest: true,
        ..Answer::default()
    };
    let flipped_rest = Answer {
        flipped: Some(0),
        ..Answer::default()
    };
    let fake = Arc::new(Fake::new(MIB, [first, flipped_rest], Answer::default()));
    let outcome = read(&fake, 0..MIB).await;
    assert_eq!(outcome.result.unwrap(), slice(&fake, 0..MIB));
    assert_eq!(fake.requests(), [0..MIB, 1000..MIB, 0..MIB]);
}

#[tokio::test(start_paused = true)]
async fn each_part_is_verified_by_its_own_digest() {
    let part = Answer {
        short: Some(100_000),
        digest: true,
        ..Answer::default()
    };
    let flipped = Answer {
        flipped: Some(5),
        ..part.clone()
    };
    let fake = Arc::new(Fake::new(250_000, [part.clone(), flipped], part));
    let outcome = read(&fake, 0..250_000).await;
    assert_eq!(outcome.result.unwrap(), slice(&fake, 0..250_000));
    let end = 250_000;
    assert_eq!(
        fake.requests(),
        [0..end, 100_000..end, 100_000..end, 200_000..end]
    );
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_is_far_gets_no_more_for_a_while_once_it_asks_for_fewer_or_fails_again() {
    let late = Answer {
        head_delay: seconds(0.03),
        ..Answer::default()
    };
    let throttled = OriginError::Throttled {
        after: None,
        target: "fake://f/key".into(),
        detail: "503 SlowDown".to_owned(),
    };
    let pace = Arc::default();
    let read = async |answers: &[Answer]| {
        let fake = Arc::new(Fake::new(MIB, answers.to_vec(), late.clone()));
        let outcome = read_at_pace(&fake, 0..MIB, FetchPolicy::default(), &pace).await;
        assert_eq!(outcome.result.unwrap(), slice(&fake, 0..MIB));
    };
    for _ in 0..8 {
        assert!(!pace.wants_more(), "not known yet");
        read(&[]).await;
    }
    assert!(pace.wants_more());
    let failure = error(unavailable());
    read(std::slice::from_ref(&failure)).await;
    assert!(pace.wants_more(), "one failure says nothing");
    for answers in [vec![failure.clone(), failure], vec![error(throttled)]] {
        read(&answers).await;
        assert!(!pace.wants_more());
        sleep(seconds(2.0)).await;
        assert!(pace.wants_more());
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_waits_as_long_as_its_origin_is_to_be_waited_for_and_is_counted_meanwhile() {
    let spec = crate::OriginSpec {
        patience_seconds: Some(600),
        ..crate::OriginSpec::parse("s3://bucket").unwrap()
    };
    let policy = FetchPolicy::default().with_patience(&spec);
    let outage = |answers: usize| {
        let answers = vec![error(unavailable()); answers];
        Arc::new(Fake::new(100, answers, Answer::default()))
    };
    let outcome = read_with(&outage(500), 0..100, policy.clone()).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    assert!(outcome.took > seconds(300.0), "{:?}", outcome.took);

    let mut registry = Registry::default();
    let metrics = OriginMetrics::register(&mut registry);
    let fake = outage(20);
    let stream = fetch(
        fake.clone(),
        fake.object(),
        0..100,
        Arc::new(policy),
        Arc::default(),
        metrics.clone(),
    );
    let mut stream = std::pin::pin!(stream);
    let soon = tokio::time::timeout(seconds(1.0), stream.next()).await;
    assert!(soon.is_err(), "it is still waiting");
    assert_eq!(metrics.waiting_reads(), 1);
    stream.next().await.unwrap().unwrap();
    assert_eq!(metrics.waiting_reads(), 0);
}
