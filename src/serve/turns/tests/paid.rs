//! What turns cost, and what pays for them.

use http::StatusCode;

use super::*;
use crate::{
    serve::{connection::End, exchange::Exchange},
    telemetry::metrics::CacheOutcome,
};

#[test]
fn what_is_done_after_a_hit_in_the_same_turn_counts() {
    run(async {
        let scene = Scene::new();
        let counts = async |after: bool| {
            let viewer = scene.viewer();
            let theirs = Rc::clone(&viewer);
            let before = scene.turns.load.get().nanos[0];
            let task = async move {
                let begun = Instant::now();
                let mut hit = Exchange::begin_at(begun, Rc::clone(&theirs), None);
                hit.head_sent(StatusCode::OK, CacheOutcome::Hit, true);
                drop(hit);
                // What follows is for nobody where nothing was asked for.
                let other = after.then(|| Exchange::begin(Rc::clone(&theirs), None));
                let begun = Instant::now();
                while begun.elapsed() < 2 * Duration::from_nanos(TURN_MAX) {
                    std::hint::spin_loop();
                }
                drop(other);
            };
            in_turn(Rc::clone(&scene.turns), viewer, task).await;
            scene.turns.load.get().nanos[0] - before
        };
        assert_eq!(counts(true).await, TURN_MAX);
        // The clock is not asked again after a hit, which is the end of nearly all turns.
        assert!(counts(false).await < TURN_MAX);
    });
}

#[test]
fn what_a_connection_takes_until_it_asks_is_on_trust_and_no_more() {
    let scene = Scene::new();
    let costs_much = |answers: &[Option<StatusCode>], end: End| {
        scene.now.set(scene.now.get() + 20_000);
        let all: Vec<_> = (0..20).map(|_| scene.connection(7)).collect();
        for one in &all {
            // A handshake, and what is asked for: half a millisecond each.
            scene.turns.took(one, 500_000);
            for answer in answers {
                let mut exchange = Exchange::begin(Rc::clone(one), None);
                if let Some(status) = answer {
                    exchange.head(*status, CacheOutcome::Miss);
                }
                drop(exchange);
                scene.turns.took(one, 500_000);
            }
        }
        all.iter().for_each(|one| one.end(end));
        all[0].comes_last()
    };
    let (there, not_there) = (Some(StatusCode::OK), Some(StatusCode::NOT_FOUND));
    assert!(costs_much(&[], End::Served), "they come for nothing");
    assert!(!costs_much(&[], End::Left), "they have left, since we were late");
    assert!(!costs_much(&[there], End::Served));
    assert!(costs_much(&[not_there], End::Served) && costs_much(&[None], End::Served));
    assert!(costs_much(&[there, there, there], End::Served), "what is asked for after that has to pay");
    assert!(
        costs_much(&[not_there, not_there, not_there, there], End::Served),
        "and is not paid for by what comes later"
    );
    let one = scene.connection(8);
    for _ in 0..100 {
        scene.turns.took(&one, TURN_MAX / 2);
    }
    assert!(one.comes_last(), "nor is it for ever");
}

#[test]
fn what_a_connection_has_begun_ends_with_it() {
    run(async {
        let scene = Scene::new();
        let connection = scene.connection(1);
        // A stream of it, and one that is told of the end of the connection only after that.
        let stream = || {
            let task = in_turn(Rc::clone(&scene.turns), Rc::clone(&connection), std::future::ready("had its turn"));
            tokio::task::spawn_local(task)
        };
        let first = stream();
        yield_now().await;
        scene.turns.let_go(connection.waiters.leave());
        let second = stream();
        yield_now().await;
        // Nobody is called.
        scene.turns.waiting.borrow_mut().wake_left(usize::MAX);
        yield_now().await;
        assert!(first.is_finished() && second.is_finished());
        assert_eq!((first.await.expect("it ends"), second.await.expect("it ends")), (None, None));
    });
}

#[test]
fn hits_that_take_long_do_not_pay_for_themselves_and_those_of_a_slow_machine_do() {
    let (scene, turn) = (Scene::new(), Cell::new(0));
    let goes_first = |nanos: u64| {
        let one = scene.viewer();
        for _ in 0..20 {
            scene.now.set(scene.now.get() + (1 << WINDOW_BITS));
            scene.turns.took(&one, nanos);
            one.pay_hit(1);
        }
        turn.set(scene.turns.worth.get());
        one.account.is_served()
    };
    assert!(goes_first(15_000) && turn.get() == 30_000);
    // Those of a crowd that waits say nothing of what a turn takes.
    let crowd = scene.connection(7);
    crowd.waited.set(LITTLE);
    (0..1000).for_each(|_| scene.turns.took(&crowd, USUAL_MAX));
    assert!(goes_first(15_000) && turn.get() == 30_000);
    assert!(goes_first(200_000), "ten times as slow as others");
    assert!(!goes_first(TURN_MAX), "whatever all the others take");
}
