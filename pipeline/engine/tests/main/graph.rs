//! What runs, in what order, and what is reported of it.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fcpipe_engine::{Amount, CacheMode, Event, FailureKind, Finished, Outcome, Run, event_channel};

use crate::kit::{
    Count, Fail, Grow, Hang, Number, Place, Print, See, Sum, Touch, bump, count, log_of,
};

fn outcomes(finished: &Finished) -> BTreeMap<&str, Outcome> {
    finished
        .receipt
        .stages
        .iter()
        .map(|row| (row.id.as_str(), row.outcome))
        .collect()
}

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
        run.effect(
            "touch",
            Touch {
                path: place.dir.path().join("file"),
                after: None,
            },
        );
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
fn the_first_failure_skips_the_rest_and_undoes_in_reverse() {
    let place = Place::new();
    let files = place.dir.path().join("files");
    fs::create_dir(&files).unwrap();
    let run = place.run();
    let a = run.effect(
        "a",
        Touch {
            path: files.join("a"),
            after: None,
        },
    );
    let b = run.effect(
        "b",
        Touch {
            path: files.join("b"),
            after: Some(a),
        },
    );
    let c = run.effect(
        "c",
        Touch {
            path: files.join("c"),
            after: Some(b),
        },
    );
    run.wait(&c).unwrap();
    let ran = Count::default();
    let fail = run.stage(
        "fail",
        Fail {
            after: Duration::from_millis(1),
        },
    );
    let sum = run.stage(
        "sum",
        Sum {
            of: vec![fail],
            plus: 0,
            ran: ran.clone(),
        },
    );
    let threads = Arc::default();
    run.effect(
        "hang",
        Hang {
            go: Arc::default(),
            threads,
        },
    );
    let failure = run.wait(&sum).unwrap_err();
    assert_eq!(
        (&*failure.node, failure.kind),
        ("fail", FailureKind::Source)
    );
    assert_eq!(format!("{failure:#}"), "fail: /some/file: it was read");
    assert_eq!(failure.hint.as_deref(), Some("don't"));
    let late = run.probe("late", See(1));
    assert_eq!(&*run.wait(&late).unwrap_err().node, "fail");
    let finished = run.finish();
    assert_eq!(&*finished.result.as_ref().unwrap_err().node, "fail");
    let outcomes = outcomes(&finished);
    assert_eq!(outcomes["a"], Outcome::Ran);
    assert_eq!(outcomes["fail"], Outcome::Failed);
    for skipped in ["sum", "hang", "late"] {
        assert_eq!(outcomes[skipped], Outcome::Skipped, "{skipped}");
    }
    assert_eq!(count(&ran), 0);
    assert_eq!(
        fs::read_to_string(log_of(&files.join("a"))).unwrap(),
        "c\nb\na\n"
    );
    finished.launch.unwrap().remove().unwrap();
    assert_eq!(
        fs::read_dir(place.state()).unwrap().count(),
        1,
        "only the lock of the state directory is left"
    );
}

#[test]
fn what_waits_holds_no_worker_and_ends_when_cancelled() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.threads = 1;
    let run = Run::start(settings).unwrap();
    let (go, threads) = (
        Arc::new(Mutex::new(false)),
        Arc::new(Mutex::new(Vec::new())),
    );
    let hangs: Vec<_> = (0..3)
        .map(|i| {
            run.effect(
                format!("hang:{i}"),
                Hang {
                    go: go.clone(),
                    threads: threads.clone(),
                },
            )
        })
        .collect();
    // The one worker is free for this.
    let see = run.probe("see", See(1));
    assert_eq!(run.wait(&see).unwrap().0, 1);
    let start = Instant::now();
    while threads.lock().unwrap().len() < 3 {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    let start = Instant::now();
    run.cancel("SIGINT");
    let failure = run.wait(&hangs[0]).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Cancelled);
    let finished = run.finish();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(finished.result.unwrap_err().subject, "SIGINT");
    let mut threads = threads.lock().unwrap().clone();
    threads.sort();
    assert_eq!(threads, ["fc-hang:0", "fc-hang:1", "fc-hang:2"]);
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
fn a_panic_is_a_failure_of_its_node() {
    struct Panics;
    impl fcpipe_engine::Stage for Panics {
        const NAME: &'static str = "panics";
        const VERSION: u32 = 1;
        type Output = Number;
        fn inputs(&self, _: &mut fcpipe_engine::KeyWriter<'_>) {}
        fn run(&self, _: &fcpipe_engine::Cx) -> Result<Number, fcpipe_engine::Failure> {
            panic!("on purpose {}", 7)
        }
    }
    let place = Place::new();
    let run = place.run();
    let node = run.stage("panics", Panics);
    let failure = run.wait(&node).unwrap_err();
    assert_eq!(
        (failure.kind, format!("{failure:#}")),
        (FailureKind::Internal, "panics: panic: on purpose 7".into())
    );
}

#[test]
fn inputs_that_were_not_declared_can_not_be_read() {
    struct Sneaks(fcpipe_engine::Node<Number>, Count);
    impl fcpipe_engine::Stage for Sneaks {
        const NAME: &'static str = "sneaks";
        const VERSION: u32 = 1;
        type Output = Number;
        fn inputs(&self, _: &mut fcpipe_engine::KeyWriter<'_>) {}
        fn run(&self, cx: &fcpipe_engine::Cx) -> Result<Number, fcpipe_engine::Failure> {
            bump(&self.1);
            Ok(Number(cx.get(&self.0)?.0))
        }
    }
    let place = Place::new();
    let run = place.run();
    let see = run.probe("see", See(1));
    let node = run.stage("sneaks", Sneaks(see, Count::default()));
    assert_eq!(run.wait(&node).unwrap_err().kind, FailureKind::Internal);
}

/// Makes another value each time.
struct Impure(Count);

impl fcpipe_engine::Stage for Impure {
    const NAME: &'static str = "impure";
    const VERSION: u32 = 1;
    type Output = crate::kit::Big;
    fn inputs(&self, _: &mut fcpipe_engine::KeyWriter<'_>) {}
    fn run(&self, _: &fcpipe_engine::Cx) -> Result<crate::kit::Big, fcpipe_engine::Failure> {
        bump(&self.0);
        Ok(crate::kit::Big(count(&self.0) as u64))
    }
}

#[test]
fn a_value_that_comes_out_otherwise_than_recorded_is_never_handed_out() {
    let place = Place::new();
    let ran = Count::default();
    let launch = |salt| {
        let run = place.run();
        let big = run.stage("impure", Impure(ran.clone()));
        run.stage(
            "print",
            Print {
                big,
                salt,
                ran: Count::default(),
            },
        );
        run.finish().result
    };
    launch(0).unwrap();
    launch(0).unwrap();
    let failure = launch(1).unwrap_err();
    assert_eq!(
        (&*failure.node, failure.kind),
        ("impure", FailureKind::Internal)
    );
    // The record is gone, so this launch starts anew.
    launch(1).unwrap();
}

#[test]
fn work_is_counted_in_the_phase_that_did_it() {
    struct Counts;
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
    run.stage("counts", Counts);
    let rows = run.finish().receipt.stages;
    assert_eq!(
        (rows[0].files, rows[0].bytes_read, rows[0].bytes_written),
        (1, 10, 1)
    );
    assert_eq!(
        (rows[1].files, rows[1].bytes_read, rows[1].bytes_written),
        (800, 8000, 400)
    );
    assert!(rows[1].wall_us >= 20_000 && rows[0].wall_us < 20_000);
    assert_eq!(rows[1].deps, ["one"]);
    assert_eq!(rows[0].key, rows[1].key);
}

#[test]
fn undo_ends_what_still_works_and_comes_before_the_workers_end() {
    let place = Place::new();
    let file = place.dir.path().join("file");
    let run = place.run();
    let touch = run.effect(
        "touch",
        Touch {
            path: file.clone(),
            after: None,
        },
    );
    run.wait(&touch).unwrap();
    run.effect(
        "hang",
        Hang {
            go: Arc::default(),
            threads: Arc::default(),
        },
    );
    assert!(run.undo().is_empty());
    assert!(!file.exists());
    assert_eq!(
        run.finish().result.unwrap_err().kind,
        FailureKind::Cancelled
    );
}

#[test]
fn a_token_cancelled_from_outside_fails_what_is_added_later() {
    let place = Place::new();
    let run = place.run();
    run.cancel_token().cancel();
    let see = run.probe("see", See(1));
    assert_eq!(run.wait(&see).unwrap_err().kind, FailureKind::Cancelled);
    assert_eq!(
        run.finish().result.unwrap_err().kind,
        FailureKind::Cancelled
    );
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
