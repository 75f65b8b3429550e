//! The health of a node, by tables and by random histories with a clock of their own.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const QUICK: Duration = Duration::from_millis(1);
const TORPID: Duration = Duration::from_millis(200);

fn config() -> HealthConfig {
    HealthConfig::default()
        .max_lag(SECOND * 10)
        .max_lag_bytes(1000)
}

/// A node and the time.
struct Watched {
    health: Health,
    now: Instant,
    config: HealthConfig,
}

impl Watched {
    fn up() -> Self {
        let mut watched = Self {
            health: Health::default(),
            now: Instant::now(),
            config: config(),
        };
        watched.hear(Signal::Reached);
        watched
    }

    fn hear(&mut self, signal: Signal) -> NodeHealth {
        self.health.hear(signal, &self.config, self.now);
        self.health.kind()
    }

    /// A second later.
    fn measure(&mut self, round_trip: Duration, bytes: u64) -> NodeHealth {
        self.now += SECOND;
        self.hear(Signal::Measured(Measure {
            round_trip: Some(round_trip),
            peers: Some(QUICK),
            lag: Some(Duration::ZERO),
            lag_bytes: Some(bytes),
            compared: true,
        }))
    }

    fn share(&self) -> f64 {
        self.health.share(&self.config, self.now)
    }
}

fn silence() -> Signal {
    Signal::Silent("silence".to_owned())
}

fn failure() -> Signal {
    Signal::Failed("refused".to_owned())
}

#[test]
fn one_that_refuses_is_down_at_once_and_one_that_keeps_silent_is_suspected_first() {
    let mut node = Watched::up();
    assert_eq!(node.hear(silence()), NodeHealth::Suspect);
    assert!(node.health.serves() && node.share() == 0.0);
    assert_eq!(node.health.cause().unwrap(), "silence");
    assert_eq!(node.hear(Signal::Reached), NodeHealth::Up);
    assert_eq!(node.share(), 1.0, "it was never away");
    node.hear(silence());
    let ended = Signal::Doubted("a connection ended".to_owned());
    for _ in 0..10 {
        assert_eq!(node.hear(ended.clone()), NodeHealth::Suspect);
    }
    assert_eq!(node.hear(silence()), NodeHealth::Down);
    assert_eq!(node.hear(silence()), NodeHealth::Down);
    let mut node = Watched::up();
    assert_eq!(node.hear(failure()), NodeHealth::Down);
    assert!(!node.health.is_up() && !node.health.serves());
}

#[test]
fn the_first_to_come_has_its_whole_share_and_one_that_returns_grows_into_it() {
    let mut node = Watched::up();
    assert_eq!(node.share(), 1.0);
    node.hear(failure());
    node.hear(Signal::Reached);
    assert!((node.share() - LEAST).abs() < 1e-9);
    let mut before = node.share();
    for _ in 0..10 {
        node.measure(QUICK, 0);
        assert!(node.share() > before);
        before = node.share();
    }
    assert_eq!(node.share(), 1.0);
}

#[test]
fn a_slow_node_loses_its_weight_then_leaves_and_comes_back_for_good() {
    let mut node = Watched::up();
    assert_eq!(node.measure(TORPID, 0), NodeHealth::Up);
    assert_eq!(node.measure(QUICK, 0), NodeHealth::Up);
    node.measure(TORPID, 0);
    node.measure(TORPID, 0);
    assert_eq!(node.measure(TORPID, 0), NodeHealth::Slow);
    assert!((node.share() - LEAST).abs() < 1e-9);
    for _ in 0..10 {
        node.measure(TORPID, 0);
    }
    assert!(node.share() == 0.0 && node.health.serves());
    assert_eq!(node.measure(QUICK, 0), NodeHealth::Slow);
    // Half as slow is still too slow to come back.
    assert_eq!(node.measure(Duration::from_millis(40), 0), NodeHealth::Slow);
    node.measure(QUICK, 0);
    node.measure(QUICK, 0);
    assert_eq!(node.measure(QUICK, 0), NodeHealth::Up);
    assert!(node.share() < 0.2);
}

#[test]
fn a_node_without_peers_is_never_slow() {
    let mut node = Watched::up();
    for _ in 0..10 {
        node.now += SECOND;
        let measure = Measure {
            round_trip: Some(SECOND),
            ..Measure::default()
        };
        assert_eq!(node.hear(Signal::Measured(measure)), NodeHealth::Up);
    }
}

#[test]
fn a_lagging_node_serves_again_when_it_has_caught_up_well_enough() {
    let mut node = Watched::up();
    assert_eq!(node.measure(QUICK, 1000), NodeHealth::Up);
    assert_eq!(node.measure(QUICK, 1001), NodeHealth::Lagging);
    assert!(!node.health.serves() && node.health.is_up());
    assert_eq!(node.measure(QUICK, 900), NodeHealth::Lagging);
    node.now += SECOND;
    assert_eq!(
        node.hear(Signal::Measured(Measure::default())),
        NodeHealth::Lagging,
        "what is not known changes nothing"
    );
    assert_eq!(node.measure(QUICK, 800), NodeHealth::Up);
    assert!(node.share() < 0.2, "it comes back gradually");
}

#[test]
fn one_of_which_it_is_not_known_how_far_it_is_behind_is_too_far_after_a_moment() {
    let mut node = Watched::up();
    let unknown = |compared| {
        Signal::Measured(Measure {
            compared,
            ..Measure::default()
        })
    };
    for _ in 0..10 {
        // There is nothing to compare it with.
        node.now += SECOND;
        assert_eq!(node.hear(unknown(false)), NodeHealth::Up);
    }
    assert_eq!(node.hear(unknown(true)), NodeHealth::Up);
    node.now += SECOND * 2;
    assert_eq!(node.hear(unknown(true)), NodeHealth::Lagging);
    let cause = node.health.cause().unwrap();
    assert!(cause.contains("is not known"), "{cause}");
    assert_eq!(node.measure(QUICK, 0), NodeHealth::Up);
    // One that comes back is looked at anew.
    node.hear(unknown(true));
    node.hear(failure());
    node.now += SECOND * 60;
    node.hear(Signal::Reached);
    assert_eq!(node.hear(unknown(true)), NodeHealth::Up);
}

#[test]
fn one_whose_log_is_not_the_primarys_is_not_trusted_and_a_diverged_one_serves_nothing() {
    let mut node = Watched::up();
    for (apart, kind) in [
        (Apart::Doubtful, NodeHealth::Doubtful),
        (Apart::Orphaned, NodeHealth::Orphaned),
        (Apart::Diverged, NodeHealth::Diverged),
    ] {
        node.health.set_apart(Some((apart, "why".into())));
        assert_eq!(node.health.kind(), kind);
        assert_eq!(node.health.cause().unwrap(), "why");
        assert!(!node.health.is_trusted());
        assert_eq!(node.health.serves(), apart != Apart::Diverged);
    }
    node.health.set_apart(None);
    assert!(node.health.is_trusted() && node.health.serves());
    assert_eq!(node.health.kind(), NodeHealth::Up);
}

#[test]
fn a_drained_node_serves_nothing_until_it_is_taken_back() {
    let mut node = Watched::up();
    assert_eq!(node.hear(Signal::Drain(true)), NodeHealth::Draining);
    assert!(!node.health.serves() && node.health.is_up());
    node.hear(failure());
    assert_eq!(node.hear(Signal::Reached), NodeHealth::Draining);
    assert_eq!(node.hear(Signal::Drain(false)), NodeHealth::Up);
}

fn signals() -> impl Strategy<Value = (u64, Signal)> {
    let signal = prop_oneof![
        3 => Just(Signal::Reached),
        1 => Just(silence()),
        1 => Just(Signal::Doubted("a connection ended".to_owned())),
        1 => Just(failure()),
        1 => any::<bool>().prop_map(Signal::Drain),
        6 => (0..400u64, 0..20u64, 0..3000u64, any::<[bool; 4]>()).prop_map(|(took, lag, bytes, known)| {
            Signal::Measured(Measure {
                round_trip: Some(Duration::from_millis(took)),
                peers: known[0].then_some(QUICK),
                lag: known[1].then_some(SECOND * u32::try_from(lag).unwrap()),
                lag_bytes: known[2].then_some(bytes),
                compared: known[3],
            })
        }),
    ];
    (0..5000u64, signal)
}

proptest! {
    #[test]
    fn whatever_happens_the_answers_fit_together(history in proptest::collection::vec(signals(), 1..200)) {
        let mut node = Watched::up();
        for (later, signal) in history {
            node.now += Duration::from_millis(later);
            let kind = node.hear(signal.clone());
            let (health, share) = (&node.health, node.share());
            prop_assert!((0.0..=1.0).contains(&share));
            prop_assert_eq!(health.is_down(), kind == NodeHealth::Down);
            prop_assert!(!health.serves() || health.is_up());
            prop_assert_eq!(health.cause().is_none(), kind == NodeHealth::Up);
            match signal {
                Signal::Failed(_) => prop_assert_eq!(kind, NodeHealth::Down),
                Signal::Reached => prop_assert!(health.is_up() && kind != NodeHealth::Suspect),
                _ => {}
            }
        }
        // When all is well again, it is up with its whole share within a bounded time.
        node.hear(Signal::Drain(false));
        node.hear(Signal::Reached);
        for _ in 0..320 {
            node.measure(QUICK, 0);
        }
        prop_assert_eq!(node.health.kind(), NodeHealth::Up);
        prop_assert_eq!(node.share(), 1.0);
    }

    #[test]
    fn a_node_between_quick_and_slow_does_not_oscillate(wobble in proptest::collection::vec(any::<bool>(), 600)) {
        let mut node = Watched::up();
        let mut changes = 0;
        let mut kind = NodeHealth::Up;
        for slow in wobble {
            let now = node.measure(if slow { TORPID } else { QUICK }, 0);
            changes += u32::from(now != kind);
            kind = now;
        }
        // In ten minutes: each stay is twice as long as the one before.
        prop_assert!(changes <= 14, "{changes} changes");
    }
}

#[test]
fn one_that_lets_no_more_in_is_up_and_says_why() {
    let (config, now) = (HealthConfig::default(), Instant::now());
    let mut health = Health::default();
    health.hear(Signal::Hindered("full".to_owned()), &config, now);
    assert_eq!(health.kind(), NodeHealth::Unknown, "nothing is known of it");
    health.hear(Signal::Reached, &config, now);
    health.hear(Signal::Doubted("one ended".to_owned()), &config, now);
    health.hear(Signal::Hindered("full".to_owned()), &config, now);
    assert_eq!(health.kind(), NodeHealth::Up, "it has answered");
    assert_eq!(health.cause().as_deref(), Some("full"));
    health.hear(Signal::Reached, &config, now);
    assert_eq!(health.cause(), None);
    health.hear(Signal::Hindered("full".to_owned()), &config, now);
    health.hear(Signal::Failed("away".to_owned()), &config, now);
    assert_eq!(health.cause().as_deref(), Some("away"));
}
