//! A model of what caching may and may not do: values are those of an evaluation without a cache, and what runs is
//! exactly what has inputs that never were before.

use std::collections::BTreeSet;

use fcpipe_engine::Run;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use crate::kit::{Count, Place, See, Sum, count, seed};

/// Probes see these numbers; each stage sums some earlier nodes.
#[derive(Debug, Clone)]
struct Dag {
    seen: Vec<u64>,
    stages: Vec<(Vec<usize>, u64)>,
}

#[derive(Debug, Clone)]
enum Edit {
    See(usize, u64),
    Plus(usize, u64),
    Inputs(usize, Vec<usize>),
    Nothing,
}

impl Dag {
    /// What the indices in `inputs` name, given that `nodes` nodes come before.
    fn resolve(inputs: &[usize], nodes: usize) -> Vec<usize> {
        inputs.iter().map(|i| i % nodes).collect()
    }

    fn edit(&mut self, edit: &Edit) {
        match edit {
            Edit::See(at, n) => {
                let at = at % self.seen.len();
                self.seen[at] = *n;
            }
            Edit::Plus(at, n) => {
                let at = at % self.stages.len();
                self.stages[at].1 = *n;
            }
            Edit::Inputs(at, inputs) => {
                let at = at % self.stages.len();
                self.stages[at].0.clone_from(inputs);
            }
            Edit::Nothing => {}
        }
    }

    /// Every node's value, and the distinct inputs of stages that `known` does not have yet.
    fn evaluate(&self, known: &mut BTreeSet<(Vec<u64>, u64)>) -> (Vec<u64>, usize) {
        let mut values = self.seen.clone();
        let mut fresh = 0;
        for (inputs, plus) in &self.stages {
            let inputs: Vec<u64> = Self::resolve(inputs, values.len())
                .iter()
                .map(|i| values[*i])
                .collect();
            values.push((inputs.iter().sum::<u64>() + plus) % 10);
            fresh += usize::from(known.insert((inputs, *plus)));
        }
        (values, fresh)
    }

    /// The same by the engine.
    fn launch(&self, run: Run) -> (Vec<u64>, usize) {
        let ran = Count::default();
        let mut nodes: Vec<_> = self
            .seen
            .iter()
            .enumerate()
            .map(|(i, n)| run.probe(format!("see:{i}"), See(*n)))
            .collect();
        for (i, (inputs, plus)) in self.stages.iter().enumerate() {
            let of = Self::resolve(inputs, nodes.len())
                .iter()
                .map(|i| nodes[*i])
                .collect();
            nodes.push(run.stage(
                format!("sum:{i}"),
                Sum {
                    of,
                    plus: *plus,
                    ran: ran.clone(),
                },
            ));
        }
        let values = nodes.iter().map(|node| run.wait(node).unwrap().0).collect();
        run.finish().result.unwrap();
        (values, count(&ran))
    }
}

fn dags() -> impl Strategy<Value = (Dag, Vec<Edit>)> {
    let inputs = || prop::collection::vec(any::<usize>(), 0..4);
    let edit = prop_oneof![
        (any::<usize>(), 0u64..10).prop_map(|(at, n)| Edit::See(at, n)),
        (any::<usize>(), 0u64..10).prop_map(|(at, n)| Edit::Plus(at, n)),
        (any::<usize>(), inputs()).prop_map(|(at, i)| Edit::Inputs(at, i)),
        Just(Edit::Nothing),
    ];
    (
        prop::collection::vec(0u64..10, 1..4),
        prop::collection::vec((inputs(), 0u64..10), 1..8),
        prop::collection::vec(edit, 1..8),
    )
        .prop_map(|(seen, stages, edits)| (Dag { seen, stages }, edits))
}

#[test]
fn cached_runs_equal_uncached_evaluation_and_run_only_what_changed() {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed());
    let config = Config {
        cases: 30,
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new_with_rng(config, rng).run(&dags(), |(mut dag, edits)| {
        let place = Place::new();
        let mut known = BTreeSet::new();
        for edit in std::iter::once(&Edit::Nothing).chain(&edits) {
            dag.edit(edit);
            prop_assert_eq!(dag.evaluate(&mut known), dag.launch(place.run()));
        }
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, (dag, edits))) => panic!("{why}\n{dag:?}\n{edits:?}"),
        Err(error) => panic!("{error}"),
    }
}
