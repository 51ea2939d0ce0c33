//! What becomes of a run in which something fails, is cancelled, or is not what was recorded.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fcpipe_engine::{FailureKind, Outcome, Run};

use crate::kit::{
    Count, Fail, Hang, Number, Place, Print, See, Sum, Touch, bump, count, log_of, outcomes,
};

#[test]
fn the_first_failure_skips_the_rest_and_undoes_in_reverse() {
    let place = Place::new();
    let files = place.dir.path().join("files");
    fs::create_dir(&files).unwrap();
    let run = place.run();
    let a = run.effect("a", Touch::at(&files.join("a")));
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
    run.cancel("SIGINT");
    let failure = run.wait(&hangs[0]).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Cancelled);
    let finished = run.finish();
    assert_eq!(finished.result.unwrap_err().subject, "SIGINT");
    let mut threads = threads.lock().unwrap().clone();
    threads.sort();
    assert_eq!(threads, ["fc-hang:0", "fc-hang:1", "fc-hang:2"]);
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
fn undo_ends_what_still_works_and_comes_before_the_workers_end() {
    let place = Place::new();
    let file = place.dir.path().join("file");
    let run = place.run();
    let touch = run.effect("touch", Touch::at(&file));
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
