//! What runs, in what order, and what is reported of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fcpipe_engine::{Amount, CacheMode, Event, FailureKind, Finished, Outcome, Run, event_channel};

use crate::kit::{Count, Grow, Number, Place, Print, See, Sum, Touch, count, outcomes};

/// see → grow (parity) → print, and a launch of it.
fn chain(place: &Place, cache: CacheMode, seen: u64, salt: u64) -> (Finished, usize, usize) {
    let (grown, printed) = (Count::default(), Count::default());
    let run = place.run_with(cache);
    let see = run.probe("see", See(seen));
    let big = run.stage(
        "grow",
        Grow {
            of: see,
            ran: grown.clone(),
        },
    );
    run.stage(
        "print:/mnt",
        Print {
            big,
            salt,
            ran: printed.clone(),
        },
    );
    (run.finish(), count(&grown), count(&printed))
}

#[test]
fn a_hit_runs_nothing_and_a_value_is_made_again_only_for_who_runs() {
    let place = Place::new();
    let (first, grown, printed) = chain(&place, CacheMode::Auto, 4, 0);
    first.result.as_ref().unwrap();
    assert_eq!((grown, printed), (1, 1));
    assert!(outcomes(&first).values().all(|o| *o == Outcome::Ran));
    let ids: Vec<_> = first.receipt.stages.iter().map(|r| r.id.as_str()).collect();
    assert_eq!(
        ids,
        ["see", "grow", "allocate:/mnt", "copy:/mnt", "seal:/mnt"]
    );

    let (second, grown, printed) = chain(&place, CacheMode::Auto, 4, 0);
    assert_eq!((grown, printed), (0, 0));
    assert!(
        outcomes(&second).values().all(|o| *o == Outcome::Hit),
        "{:?}",
        outcomes(&second)
    );

    // Another number of the same parity: only the probe sees a difference.
    let (third, grown, printed) = chain(&place, CacheMode::Auto, 6, 0);
    assert_eq!((grown, printed), (0, 0));
    assert_eq!(outcomes(&third)["see"], Outcome::Ran);
    assert_eq!(outcomes(&third)["grow"], Outcome::Hit);

    // The printer has to run, and its input's record keeps no value.
    let (fourth, grown, printed) = chain(&place, CacheMode::Auto, 6, 1);
    assert_eq!((grown, printed), (1, 1));
    assert_eq!(outcomes(&fourth)["grow"], Outcome::Hit);
    assert!(fourth.receipt.stages[1].again_us > 0);
    let changed = fourth.explained[2].changed.as_ref().unwrap();
    assert_eq!(changed.len(), 1);
    assert_eq!(
        (changed[0].label.as_str(), changed[0].was.as_deref()),
        ("salt", Some("0"))
    );
}

#[test]
fn equal_outputs_stop_the_work_early() {
    let place = Place::new();
    for (seen, expected) in [(1, (1, 1)), (11, (1, 0)), (2, (1, 1))] {
        let (first, second) = (Count::default(), Count::default());
        let run = place.run();
        let see = run.probe("see", See(seen));
        let a = run.stage(
            "a",
            Sum {
                of: vec![see],
                plus: 0,
                ran: first.clone(),
            },
        );
        let b = run.stage(
            "b",
            Sum {
                of: vec![a],
                plus: 5,
                ran: second.clone(),
            },
        );
        assert_eq!(run.wait(&b).unwrap().0, (seen % 10 + 5) % 10);
        run.finish().result.unwrap();
        assert_eq!((count(&first), count(&second)), expected, "seen {seen}");
    }
}

#[test]
fn require_names_the_stage_and_what_changed() {
    let place = Place::new();
    chain(&place, CacheMode::Auto, 4, 0).0.result.unwrap();
    let (hit, ..) = chain(&place, CacheMode::Require, 4, 0);
    hit.result.unwrap();
    let (missed, _, printed) = chain(&place, CacheMode::Require, 4, 7);
    let failure = missed.result.unwrap_err();
    assert_eq!(printed, 0);
    assert_eq!(
        (failure.kind, &*failure.node),
        (FailureKind::NotCached, "print:/mnt")
    );
    assert!(
        format!("{failure:#}").contains("changed: salt"),
        "{failure:#}"
    );
}

#[test]
fn off_neither_reads_nor_writes_records() {
    let place = Place::new();
    let (first, grown, printed) = chain(&place, CacheMode::Off, 4, 0);
    first.result.unwrap();
    assert_eq!((grown, printed), (1, 1));
    for part in ["objects", "records", "notes", "locks", "tmp"] {
        assert_eq!(place.count(part), 0, "{part}");
    }
    chain(&place, CacheMode::Auto, 4, 0).0.result.unwrap();
    let (again, grown, printed) = chain(&place, CacheMode::Off, 4, 0);
    assert_eq!((grown, printed), (1, 1));
    assert!(outcomes(&again).values().all(|o| *o == Outcome::Ran));
}

#[test]
fn a_plan_makes_nothing_and_says_what_would_be_made() {
    let place = Place::new();
    let plan = |salt| {
        let mut settings = place.settings();
        settings.plan = true;
        let run = Run::start(settings).unwrap();
        let ran = Count::default();
        let see = run.probe("see", See(4));
        let big = run.stage(
            "grow",
            Grow {
                of: see,
                ran: ran.clone(),
            },
        );
        run.stage(
            "print:/mnt",
            Print {
                big,
                salt,
                ran: ran.clone(),
            },
        );
        run.effect("touch", Touch::at(&place.dir.path().join("file")));
        let finished = run.finish();
        finished.result.unwrap();
        assert_eq!(count(&ran), 0);
        assert!(!place.dir.path().join("file").exists());
        finished
            .explained
            .into_iter()
            .map(|e| {
                let labels = |changes: Vec<fcpipe_engine::Change>| {
                    changes.into_iter().map(|c| c.label).collect::<Vec<_>>()
                };
                (e.outcome, e.key.is_some(), e.changed.map(labels))
            })
            .collect::<Vec<_>>()
    };
    let same = || Some(Vec::new());
    use Outcome::{Hit, Ran, Skipped};
    assert_eq!(
        plan(0),
        [
            (Ran, true, None),
            (Skipped, true, None),
            (Skipped, false, None),
            (Skipped, true, None)
        ]
    );
    chain(&place, CacheMode::Auto, 4, 0).0.result.unwrap();
    assert_eq!(
        plan(0),
        [
            (Hit, true, same()),
            (Hit, true, same()),
            (Hit, true, same()),
            (Skipped, true, None)
        ]
    );
    assert_eq!(
        plan(1),
        [
            (Hit, true, same()),
            (Hit, true, same()),
            (Skipped, true, Some(vec!["salt".to_owned()])),
            (Skipped, true, None)
        ]
    );
}

#[test]
fn identical_nodes_of_one_run_are_made_once() {
    let place = Place::new();
    let ran = Count::default();
    let run = place.run();
    let see = run.probe("see", See(1));
    let sums: Vec<_> = (0..8)
        .map(|_| {
            run.stage(
                "sum",
                Sum {
                    of: vec![see, see],
                    plus: 1,
                    ran: ran.clone(),
                },
            )
        })
        .collect();
    for sum in &sums {
        assert_eq!(run.wait(sum).unwrap().0, 3);
    }
    let finished = run.finish();
    assert_eq!(count(&ran), 1);
    let ids: Vec<_> = finished
        .receipt
        .stages
        .iter()
        .skip(1)
        .take(3)
        .map(|r| r.id.as_str())
        .collect();
    assert_eq!(ids, ["sum", "sum#2", "sum#3"]);
    assert_eq!(finished.receipt.stages[1].deps, ["see"]);
}

#[test]
fn events_tell_every_start_and_end() {
    let place = Place::new();
    let (sender, receiver) = event_channel();
    let mut settings = place.settings();
    settings.events = sender;
    let run = Run::start(settings).unwrap();
    let see = run.probe("see", See(1));
    let big = run.stage(
        "grow",
        Grow {
            of: see,
            ran: Count::default(),
        },
    );
    run.stage(
        "print",
        Print {
            big,
            salt: 0,
            ran: Count::default(),
        },
    );
    run.finish().result.unwrap();
    let mut log = Vec::new();
    for event in receiver.try_iter() {
        match event {
            Event::Started { node } => log.push(format!("+{node}")),
            Event::Finished {
                node, outcome, key, ..
            } => {
                assert!(key.is_some());
                log.push(format!("-{node} {outcome:?}"));
            }
            other => panic!("{other:?}"),
        }
    }
    let expected = [
        "+see",
        "-see Ran",
        "+grow",
        "-grow Ran",
        "+allocate",
        "-allocate Ran",
        "+copy",
        "-copy Ran",
        "+seal",
        "-seal Ran",
    ];
    assert_eq!(log, expected);
}

#[test]
fn work_is_counted_in_the_phase_that_did_it() {
    /// When its second phase has begun.
    struct Counts(Arc<Mutex<Option<Instant>>>);
    impl fcpipe_engine::Stage for Counts {
        const NAME: &'static str = "counts";
        const VERSION: u32 = 1;
        const PHASES: &'static [&'static str] = &["one", "two"];
        type Output = Number;
        fn inputs(&self, _: &mut fcpipe_engine::KeyWriter<'_>) {}
        fn run(&self, cx: &fcpipe_engine::Cx) -> Result<Number, fcpipe_engine::Failure> {
            let some = |files, bytes_read| Amount {
                files,
                bytes_read,
                bytes_written: 1,
            };
            cx.phase("one", || cx.progress(some(1, 10)));
            std::thread::scope(|scope| {
                cx.phase("two", || {
                    *self.0.lock().unwrap() = Some(Instant::now());
                    for _ in 0..4 {
                        scope.spawn(|| (0..100).for_each(|_| cx.progress(some(2, 20))));
                    }
                });
            });
            std::thread::sleep(Duration::from_millis(20));
            Ok(Number(1))
        }
    }
    let place = Place::new();
    let run = place.run();
    let (begun, second) = (Instant::now(), Arc::default());
    run.stage("counts", Counts(Arc::clone(&second)));
    let rows = run.finish().receipt.stages;
    assert_eq!(
        (rows[0].files, rows[0].bytes_read, rows[0].bytes_written),
        (1, 10, 1)
    );
    assert_eq!(
        (rows[1].files, rows[1].bytes_read, rows[1].bytes_written),
        (800, 8000, 400)
    );
    // The first row ends where the second phase begins, to the microsecond.
    let first = second.lock().unwrap().unwrap() - begun;
    assert!(rows[1].wall_us >= 20_000 && u128::from(rows[0].wall_us) <= first.as_micros() + 1);
    assert_eq!(rows[1].deps, ["one"]);
    assert_eq!(rows[0].key, rows[1].key);
}

#[test]
fn what_changed_is_told_against_the_last_launch_and_not_the_last_one_that_ran() {
    let place = Place::new();
    let changed = |salt| {
        let (finished, ..) = chain(&place, CacheMode::Auto, 4, salt);
        finished.result.unwrap();
        let changed = finished.explained.into_iter().nth(2).unwrap().changed;
        changed.map(|c| {
            c.into_iter()
                .map(|c| (c.was.unwrap(), c.is.unwrap()))
                .collect::<Vec<_>>()
        })
    };
    let from_to = |was: u64, is: u64| Some(vec![(was.to_string(), is.to_string())]);
    assert_eq!(changed(1), None);
    assert_eq!(changed(2), from_to(1, 2));
    // A hit, and still the last launch from here on.
    assert_eq!(changed(1), from_to(2, 1));
    assert_eq!(changed(3), from_to(1, 3));
    assert_eq!(changed(3), Some(vec![]));
}
