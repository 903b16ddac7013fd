//! Cases of health, one after the other, and what holds for all of them.

use proptest::prelude::*;

use super::*;
use crate::health::{
    State,
    inputs::{Descriptors, Fill, Overload, Served, Source, Volume},
};

/// An appliance that is well.
fn well() -> Inputs {
    let volume = |name: &str| Volume {
        name: name.into(),
        failure: None,
        free_percent: Some(20.0),
        probe: Some(Duration::from_millis(5)),
    };
    let source = |name: &str| Source { name: name.into(), set_aside: false };
    let certificate =
        |name: &str| Certificate { name: name.into(), expires_in: Some(Duration::from_secs(90 * 86_400)) };
    Inputs {
        phase: Phase::Serving,
        drained_by: Vec::new(),
        volumes: vec![volume("/disk0"), volume("/disk1")],
        served: Served { responses: 1000, errors: 0, hits: 900, first_byte: Some(Duration::from_millis(1)) },
        cold_wait: Some(Duration::from_millis(10)),
        fill: Fill { fetches: 100, failures: 0, queued: 0, queued_max: 1000 },
        sources: vec![source("tier-0"), source("origin-0")],
        manifest: Some(Manifest {
            has_come: true,
            age: Duration::from_secs(3600),
            expires_in: Some(Duration::from_secs(86_400)),
        }),
        manifest_failure: None,
        memory: Some(Memory { available: 50, total: 100 }),
        descriptors: Some(Descriptors { open: 100, max: 1000 }),
        clock_jump_seconds: 0.0,
        certificates: vec![certificate("/a.pem"), certificate("/b.pem")],
        https_only: false,
        overload: Overload { egress_percent: Some(10.0), ..Overload::default() },
    }
}

fn said(inputs: &Inputs, before: &Health) -> Health {
    judge(inputs, &Config::default(), before)
}

fn fresh(inputs: &Inputs) -> Health {
    said(inputs, &Health::default())
}

type Case = (Code, State, Option<&'static str>, fn(&mut Inputs));

/// What makes each code, alone.
const CASES: &[Case] = &[
    (Code::Draining, State::Draining, None, |inputs| inputs.phase = Phase::Drained),
    (Code::Draining, State::Draining, None, |inputs| inputs.phase = Phase::Leaving),
    (Code::Draining, State::Draining, None, |inputs| inputs.phase = Phase::Stopping),
    (Code::Starting, State::Starting, None, |inputs| inputs.phase = Phase::Starting),
    (Code::Refusing, State::Overloaded, None, |inputs| inputs.overload.refused_percent = 2.0),
    (Code::WorkersBehind, State::Overloaded, None, |inputs| inputs.overload.queue_delay = Duration::from_millis(51)),
    (Code::EgressFull, State::Overloaded, None, |inputs| inputs.overload.egress_percent = Some(96.0)),
    (Code::ConnectionsFull, State::Overloaded, None, |inputs| inputs.overload.connections_percent = 91.0),
    (Code::DescriptorsLow, State::Overloaded, None, |inputs| {
        inputs.descriptors = Some(Descriptors { open: 951, max: 1000 });
    }),
    (Code::MemoryLow, State::Overloaded, None, |inputs| inputs.memory = Some(Memory { available: 2, total: 100 })),
    (Code::VolumeFailed, State::Degraded, Some("/disk1"), |inputs| inputs.volumes[1].failure = Some("gone".into())),
    (Code::DiskFull, State::Degraded, Some("/disk0"), |inputs| inputs.volumes[0].free_percent = Some(0.9)),
    (Code::DiskSlow, State::Degraded, Some("/disk0"), |inputs| {
        inputs.volumes[0].probe = Some(Duration::from_millis(2100));
    }),
    (Code::DiskSlow, State::Degraded, None, |inputs| inputs.cold_wait = Some(Duration::from_millis(251))),
    (Code::Errors, State::Degraded, None, |inputs| inputs.served.errors = 51),
    (Code::FirstByteSlow, State::Degraded, None, |inputs| {
        inputs.served.first_byte = Some(Duration::from_millis(1001));
    }),
    (Code::CertificateExpired, State::Degraded, Some("/b.pem"), |inputs| inputs.certificates[1].expires_in = None),
    (Code::CertificateExpiring, State::Degraded, Some("/a.pem"), |inputs| {
        inputs.certificates[0].expires_in = Some(Duration::from_secs(86_400));
    }),
    (Code::SourceDown, State::Degraded, Some("tier-0"), |inputs| inputs.sources[0].set_aside = true),
    (Code::FillFailing, State::Degraded, None, |inputs| inputs.fill.failures = 51),
    (Code::FillBehind, State::Degraded, None, |inputs| inputs.fill.queued = 501),
    (Code::ManifestStale, State::Degraded, None, |inputs| {
        inputs.manifest = inputs.manifest.map(|manifest| Manifest { expires_in: None, ..manifest });
    }),
    (Code::ManifestStale, State::Degraded, None, |inputs| {
        let age = Duration::from_secs(37 * 3600);
        inputs.manifest = inputs.manifest.map(|manifest| Manifest { age, ..manifest });
    }),
    (Code::ManifestsOff, State::Degraded, None, |inputs| {
        inputs.manifest_failure = Some("control.state /x: permission denied".into());
    }),
    (Code::ClockJumped, State::Degraded, None, |inputs| inputs.clock_jump_seconds = -3600.0),
];

#[test]
fn all_is_well_where_nothing_is_wrong() {
    let health = fresh(&well());
    assert_eq!((health.state, health.reasons.len()), (State::Serving, 0));
    assert!(health.is_ready());
}

#[test]
fn what_cannot_be_measured_speaks_for_nothing() {
    let mut inputs = well();
    (inputs.memory, inputs.descriptors, inputs.manifest, inputs.cold_wait) = (None, None, None, None);
    inputs.served = Served::default();
    inputs.fill = Fill::default();
    inputs.overload.egress_percent = None;
    inputs.volumes.iter_mut().for_each(|volume| (volume.free_percent, volume.probe) = (None, None));
    assert_eq!(fresh(&inputs), fresh(&well()));
}

#[test]
fn each_fault_alone_is_told_by_its_code_and_goes_when_it_is_mended() {
    for (code, state, subject, break_it) in CASES {
        let mut inputs = well();
        break_it(&mut inputs);
        let health = fresh(&inputs);
        let [reason] = &health.reasons[..] else { panic!("{code:?}: {health:?}") };
        assert_eq!((reason.code, reason.subject.as_deref(), health.state), (*code, *subject, *state), "{health:?}");
        assert!(!reason.words.is_empty() && reason.words.is_ascii(), "{reason:?}");
        assert_eq!(said(&well(), &health), Health { state: State::Serving, reasons: Vec::new() }, "{code:?} stays");
    }
}

#[test]
fn a_drain_says_who_wants_it() {
    let words = |services: &[&str]| {
        let drained_by = services.iter().map(|&name| name.into()).collect();
        let health = fresh(&Inputs { phase: Phase::Drained, drained_by, ..well() });
        health.reasons[0].words.clone()
    };
    assert_eq!(words(&[]), "the appliance is draining: an operator wants viewers sent elsewhere");
    assert_eq!(words(&["a"]), "the appliance is draining: steering service a wants viewers sent elsewhere");
    assert_eq!(words(&["a", "b"]), "the appliance is draining: steering services a, b want viewers sent elsewhere");
}

#[test]
fn every_code_has_a_case_or_needs_more_than_one_fault() {
    for code in Code::ALL {
        let alone = CASES.iter().any(|(known, ..)| *known == code);
        let needs_several = matches!(code, Code::NoVolume | Code::NoCertificate | Code::NoSource);
        assert!(alone != needs_several, "{code:?}");
    }
}

#[test]
fn where_all_of_a_kind_have_failed_that_is_another_reason() {
    let mut inputs = well();
    inputs.volumes.iter_mut().for_each(|volume| volume.failure = Some("gone".into()));
    let health = fresh(&inputs);
    assert_eq!((health.state, health.reasons[0].code, health.reasons.len()), (State::Down, Code::NoVolume, 3));
    assert!(!health.is_ready());

    let mut inputs = well();
    inputs.sources.iter_mut().for_each(|source| source.set_aside = true);
    let health = fresh(&inputs);
    assert_eq!((health.state, health.reasons[0].code, health.reasons.len()), (State::Degraded, Code::NoSource, 3));
    assert!(health.is_ready(), "what is held is served");

    let mut inputs = well();
    inputs.certificates.iter_mut().for_each(|certificate| certificate.expires_in = None);
    assert_eq!(fresh(&inputs).state, State::Degraded, "there is HTTP too");
    inputs.https_only = true;
    assert_eq!((fresh(&inputs).state, fresh(&inputs).reasons[0].code), (State::Down, Code::NoCertificate));
}

#[test]
fn the_worst_decides_and_stands_first() {
    let mut inputs = well();
    for (.., break_it) in CASES {
        break_it(&mut inputs);
    }
    let health = fresh(&inputs);
    assert_eq!(health.state, State::Starting, "drain was overwritten by the next case");
    assert!(health.reasons.is_sorted_by_key(|reason| std::cmp::Reverse(reason.severity)), "{health:?}");
    inputs.phase = Phase::Drained;
    assert_eq!(fresh(&inputs).state, State::Draining);
    inputs.volumes[0].failure = Some("gone".into());
    assert_eq!(fresh(&inputs).state, State::Down);
}

#[test]
fn an_overloaded_appliance_is_ready_until_it_refuses() {
    let mut inputs = well();
    inputs.overload.queue_delay = Duration::from_secs(1);
    assert!(fresh(&inputs).is_ready());
    inputs.overload.refused_percent = 10.0;
    assert!(!fresh(&inputs).is_ready());
}

#[test]
fn a_few_responses_say_nothing() {
    let mut inputs = well();
    inputs.served = Served { responses: 19, errors: 19, hits: 19, first_byte: Some(Duration::from_secs(9)) };
    inputs.fill = Fill { fetches: 3, failures: 3, ..inputs.fill };
    assert_eq!(fresh(&inputs).state, State::Serving);
}

#[test]
fn a_reason_that_came_stays_until_its_measure_is_calm() {
    let with = |percent: f64| {
        let mut inputs = well();
        inputs.overload.egress_percent = Some(percent);
        inputs.memory = Some(Memory { available: 3500 - u64::from(percent > 90.0) * 1000, total: 100_000 });
        inputs
    };
    let (calm, between, full) = (with(70.0), with(80.0), with(96.0));
    assert_eq!(fresh(&between).state, State::Serving);
    let alarmed = fresh(&full);
    assert_eq!(alarmed.reasons.len(), 2);
    let still = said(&between, &alarmed);
    assert!(still.is_like(&alarmed), "80 % of 95 is 76, 3 % / 0.8 is 3.75: {still:?}");
    assert!(said(&between, &still).is_like(&alarmed));
    // Only the link has come back.
    let link = said(&calm, &still);
    assert!(!link.has(Code::EgressFull, None) && link.has(Code::MemoryLow, None));
}

#[test]
fn reasons_about_several_are_remembered_each_by_itself() {
    let with = |first: f64, second: f64| {
        let mut inputs = well();
        inputs.volumes[0].free_percent = Some(first);
        inputs.volumes[1].free_percent = Some(second);
        inputs
    };
    let before = fresh(&with(0.5, 20.0));
    let after = said(&with(1.1, 1.1), &before);
    assert!(after.has(Code::DiskFull, Some("/disk0")) && !after.has(Code::DiskFull, Some("/disk1")), "{after:?}");
}

prop_compose! {
    /// Whatever can be measured.
    fn anything()(
        phase in prop::sample::select(vec![Phase::Starting, Phase::Serving, Phase::Drained, Phase::Leaving, Phase::Stopping]),
        failed in prop::collection::vec((any::<bool>(), 0.0..5.0_f64, 0..4000_u64), 2),
        (responses, errors, hits, first) in (0..200_u64, 0..200_u64, 0..200_u64, 0..2000_u64),
        (cold, fetches, failures, queued) in (0..500_u64, 0..50_u64, 0..50_u64, 0..1000_u64),
        (aside, age, expired) in (any::<[bool; 2]>(), 0..200_000_u64, any::<bool>()),
        (available, open) in (0..10_u64, 900..1000_u64),
        (jump, left, https_only) in (-5.0..5.0_f64, 0..20_u64, any::<bool>()),
        (delay, refused, egress, connections) in (0..100_u64, 0.0..3.0_f64, 50.0..100.0_f64, 50.0..100.0_f64),
    ) -> Inputs {
        let mut inputs = well();
        inputs.phase = phase;
        for (volume, (failed, free, probe)) in inputs.volumes.iter_mut().zip(failed) {
            volume.failure = failed.then(|| "gone".into());
            (volume.free_percent, volume.probe) = (Some(free), Some(Duration::from_millis(probe)));
        }
        inputs.served = Served {
            responses, errors: errors.min(responses), hits: hits.min(responses),
            first_byte: Some(Duration::from_millis(first)),
        };
        inputs.cold_wait = Some(Duration::from_millis(cold));
        inputs.fill = Fill { fetches, failures: failures.min(fetches), queued, queued_max: 1000 };
        for (source, aside) in inputs.sources.iter_mut().zip(aside) {
            source.set_aside = aside;
        }
        let expires_in = (!expired).then_some(Duration::from_secs(60));
        inputs.manifest = Some(Manifest { has_come: true, age: Duration::from_secs(age), expires_in });
        inputs.memory = Some(Memory { available, total: 100 });
        inputs.descriptors = Some(Descriptors { open, max: 1000 });
        inputs.clock_jump_seconds = jump;
        for certificate in &mut inputs.certificates {
            certificate.expires_in = (left > 0).then(|| Duration::from_secs(left * 86_400));
        }
        inputs.https_only = https_only;
        inputs.overload = Overload {
            queue_delay: Duration::from_millis(delay), refused_percent: refused,
            egress_percent: Some(egress), connections_percent: connections,
        };
        inputs
    }
}

/// `inputs`, and every way in which a single measure of it can be worse.
fn worse(inputs: &Inputs) -> Vec<Inputs> {
    type Worsen = fn(&mut Inputs);
    let ways: &[Worsen] = &[
        |inputs| inputs.volumes[0].failure = Some("gone".into()),
        |inputs| inputs.volumes[0].free_percent = inputs.volumes[0].free_percent.map(|free| free / 2.0),
        |inputs| inputs.volumes[0].probe = inputs.volumes[0].probe.map(|probe| probe * 2),
        |inputs| inputs.served.errors = inputs.served.responses,
        |inputs| inputs.served.first_byte = inputs.served.first_byte.map(|time| time * 2),
        |inputs| inputs.cold_wait = inputs.cold_wait.map(|time| time * 2),
        |inputs| inputs.fill.failures = inputs.fill.fetches,
        |inputs| inputs.fill.queued = 1000,
        |inputs| inputs.sources[0].set_aside = true,
        |inputs| {
            inputs.manifest = inputs.manifest.map(|manifest| Manifest { age: manifest.age * 2, ..manifest });
        },
        |inputs| inputs.memory = Some(Memory { available: 0, total: 100 }),
        |inputs| inputs.descriptors = Some(Descriptors { open: 1000, max: 1000 }),
        |inputs| inputs.clock_jump_seconds *= 2.0,
        |inputs| inputs.certificates[0].expires_in = None,
        |inputs| inputs.overload.queue_delay *= 2,
        |inputs| inputs.overload.refused_percent *= 2.0,
        |inputs| inputs.overload.egress_percent = Some(100.0),
        |inputs| inputs.overload.connections_percent = 100.0,
    ];
    let worsened = |way: &Worsen| {
        let mut inputs = inputs.clone();
        way(&mut inputs);
        inputs
    };
    ways.iter().map(worsened).collect()
}

proptest! {
    #[test]
    fn worse_input_never_gives_a_better_state(inputs in anything(), before in anything()) {
        let before = fresh(&before);
        let health = said(&inputs, &before);
        for worse in worse(&inputs) {
            let then = said(&worse, &before);
            prop_assert!(then.state >= health.state, "{health:?}\n{then:?}\n{worse:?}");
        }
    }

    #[test]
    fn what_does_not_change_is_judged_the_same_again(inputs in anything(), before in anything()) {
        let first = said(&inputs, &fresh(&before));
        prop_assert_eq!(&said(&inputs, &first), &first);
    }

    /// A measure that dwells between calm and its limit, however it moves there, changes nothing.
    #[test]
    fn between_calm_and_limit_nothing_flaps(percents in prop::collection::vec(76.1..95.0_f64, 2..50), alarmed in any::<bool>()) {
        let with = |percent: f64| {
            let mut inputs = well();
            inputs.overload.egress_percent = Some(percent);
            inputs
        };
        let mut health = fresh(&with(if alarmed { 99.0 } else { 10.0 }));
        for percent in percents {
            health = said(&with(percent), &health);
            prop_assert_eq!(health.has(Code::EgressFull, None), alarmed);
        }
    }

    #[test]
    fn the_state_is_that_of_the_first_reason(inputs in anything()) {
        let health = fresh(&inputs);
        prop_assert_eq!(health.state, health.reasons.first().map_or(State::Serving, |reason| reason.severity));
        prop_assert!(health.reasons.is_sorted_by_key(|reason| std::cmp::Reverse(reason.severity)));
    }
}
