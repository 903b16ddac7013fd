//! Who has a turn, and when.

mod paid;

use std::net::SocketAddr;

use super::*;
use crate::telemetry::metrics::Metrics;

struct Scene {
    turns: Rc<Turns>,
    now: Rc<Cell<u64>>,
    /// Who had a turn, in order.
    had: Rc<RefCell<Vec<u32>>>,
}

impl Scene {
    fn new() -> Self {
        Self { turns: Rc::new(Turns::new()), now: Rc::new(Cell::new(1_000_000)), had: Rc::default() }
    }

    fn connection(&self, prefix: u128) -> Rc<Connection> {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let together = Some(self.turns.together(prefix, self.now.get()));
        Connection::new((peer, prefix, together), None, Metrics::new(1).worker(0), Rc::clone(&self.now))
    }

    fn viewer(&self) -> Rc<Connection> {
        let viewer = self.connection(1);
        viewer.add_sent(1 << 20);
        viewer
    }

    /// A task of `connection` that takes `cost` in each of `turns` turns, and is ready again at once.
    fn busy(&self, name: u32, connection: Rc<Connection>, cost: Duration, turns: u32) {
        let (had, served) = (Rc::clone(&self.had), connection.account.is_served().then(|| Rc::clone(&connection)));
        let task = async move {
            for _ in 0..turns {
                had.borrow_mut().push(name);
                let begun = Instant::now();
                while begun.elapsed() < cost {
                    std::hint::spin_loop();
                }
                if let Some(served) = &served {
                    served.add_sent(64 << 20);
                }
                yield_now().await;
            }
        };
        tokio::task::spawn_local(in_turn(Rc::clone(&self.turns), connection, task));
    }

    /// Runs until so many turns were had, with no more for those who wait than one in each round: time is no matter then.
    async fn until(&self, turns: usize) -> Vec<u32> {
        let shares = || Shares { called: 0, costly: 20 };
        let caller = tokio::task::spawn_local(call(Rc::clone(&self.turns), Rc::clone(&self.now), shares));
        while self.had.borrow().len() < turns {
            yield_now().await;
        }
        caller.abort();
        self.had.borrow().clone()
    }
}

fn run<F: Future>(task: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build_local(tokio::runtime::LocalOptions::default()).expect("a runtime").block_on(task)
}

const LITTLE: Duration = Duration::from_micros(20);

fn count(had: &[u32], name: u32) -> usize {
    had.iter().filter(|had| **had == name).count()
}

#[test]
fn a_client_that_comes_with_many_is_called_no_more_often_than_one_that_comes_with_one() {
    run(async {
        let scene = Scene::new();
        for _ in 0..200 {
            scene.busy(1, scene.connection(1), LITTLE, 1);
        }
        scene.busy(2, scene.connection(2), LITTLE, 5);
        let had = scene.until(100).await;
        let last = had.iter().rposition(|name| *name == 2).expect("it was called");
        assert_eq!(count(&had, 2), 5);
        assert!(last < 20, "{had:?}");
    });
}

#[test]
fn who_is_served_waits_for_no_more_than_a_few_of_a_crowd() {
    run(async {
        let scene = Scene::new();
        for _ in 0..500 {
            scene.busy(1, scene.connection(1), LITTLE, 100);
        }
        for _ in 0..4 {
            scene.busy(2, scene.viewer(), LITTLE, 100);
        }
        let had = scene.until(1000).await;
        // By turns in order they would have one in a hundred. A machine that stops for long makes them look as if they cost much.
        assert!(count(&had[..600], 2) > 200, "one of the crowd for each round of all four, and not {had:?}");
    });
}

#[test]
fn turns_are_short_while_the_worker_has_time_to_spare() {
    run(async {
        let scene = Scene::new();
        let viewer = scene.viewer();
        let tenth = Duration::from_millis(100);
        for (percent, short) in [(0, true), (79, true), (80, false), (100, false), (50, true)] {
            scene.turns.set_worked(tenth * percent / 100, tenth);
            let seen = Rc::clone(&viewer);
            let turn = async move { seen.has_short_turn() };
            let had = in_turn(Rc::clone(&scene.turns), Rc::clone(&viewer), turn).await;
            assert_eq!(had, Some(short), "{percent} % of its time it has something to do");
        }
    });
}

#[test]
fn as_many_are_called_as_there_is_time_for() {
    let (turn, viewers) = (30_000, 300);
    // Rounds of 300 viewers with 30 us each: 9 ms, of which a fifth of all is owed to others.
    let round = viewers * turn;
    let (mut owed, mut called) = (0, 0);
    for _ in 0..1000 {
        let count = calls(owed, turn);
        called += count;
        let elapsed = round + count * turn;
        owed = (owed + elapsed / 5 - count * turn).clamp(-OWED_MAX, (elapsed / 5).max(OWED_MAX));
    }
    let share = 100 * called * turn / (called * turn + 1000 * round);
    assert!((19..=20).contains(&share), "{share} percent");
    assert_eq!(calls(-5_000_000, 30_000), 1, "one in each round, whatever is owed");
    assert_eq!(calls(1_000_000, 0), 500, "a clock that stands still is no reason to call everybody");
}

#[test]
fn a_crowd_of_one_client_is_no_overload_while_others_are_served() {
    let scene = Scene::new();
    let viewer = scene.viewer();
    let crowd: Vec<_> = (0..3).map(|_| scene.connection(7)).collect();
    let late = |others_too: bool, viewers_too: bool| {
        let tickets: Vec<_> = crowd.iter().map(|one| scene.turns.wait(one, Waker::noop())).collect();
        let other = others_too.then(|| scene.turns.wait(&scene.connection(8), Waker::noop()));
        scene.turns.first.set(viewers_too);
        for _ in 0..4 {
            scene.turns.call(false, (Instant::now() + Duration::from_secs(1), scene.now.get()));
        }
        drop((tickets, other));
        scene.turns.wait_of_late() >= Duration::from_secs(1)
    };
    scene.turns.took(&viewer, 1000);
    assert!(late(false, false), "nobody else is there");
    assert!(!late(false, true), "viewers are served, and the crowd waits for itself");
    assert!(late(true, true), "others wait as long");
}

#[test]
fn who_takes_far_more_than_others_waits_and_who_is_alone_does_not() {
    let scene = Scene::new();
    let viewers: Vec<_> = (0..50).map(|_| scene.viewer()).collect();
    let heavy = scene.viewer();
    let window = 1 << WINDOW_BITS;
    let at_work = |light: u64, much: u64| {
        for _ in 0..3 {
            scene.now.set(scene.now.get() + window);
            for viewer in &viewers {
                scene.turns.took(viewer, light);
                viewer.add_sent(1 << 20);
            }
            scene.turns.took(&heavy, much);
            heavy.add_sent(64 << 20);
        }
    };
    at_work(1_000_000, 50_000_000);
    assert!(!scene.turns.goes_first(&heavy), "half of the worker, beside fifty");
    assert!(viewers.iter().all(|viewer| scene.turns.goes_first(viewer)));
    at_work(1_000_000, 4_000_000);
    assert!(scene.turns.goes_first(&heavy), "little, though more than others");
    let alone = Scene::new();
    let viewer = alone.viewer();
    for _ in 0..3 {
        alone.now.set(alone.now.get() + window);
        alone.turns.took(&viewer, 120_000_000);
        viewer.add_sent(64 << 20);
    }
    assert!(alone.turns.goes_first(&viewer), "nobody else wants anything");
    alone.now.set(alone.now.get() + 10 * window);
    assert!(alone.turns.goes_first(&viewer));
}

#[test]
fn a_client_that_takes_more_than_its_part_by_many_connections_comes_after_all_others() {
    let scene = Scene::new();
    scene.turns.set_client_percent(50);
    let crowd: Vec<_> = (0..50).map(|_| scene.connection(7)).collect();
    let viewer = scene.viewer();
    let at_work = |each: u64, others: u64| {
        for _ in 0..3 {
            scene.now.set(scene.now.get() + (1 << WINDOW_BITS));
            if others > 0 {
                scene.turns.took(&viewer, others);
                viewer.add_sent(1 << 20);
            }
            for one in &crowd {
                scene.turns.took(one, each);
                one.add_sent(1 << 20);
            }
        }
    };
    let first = || crowd.iter().filter(|one| scene.turns.goes_first(one)).count();
    at_work(2_000_000, 1_000);
    assert_eq!(first(), 0, "100 of 128 ms, none of them more than 2");
    assert!(scene.turns.goes_first(&viewer));
    at_work(1_000_000, 1_000);
    assert_eq!(first(), 50, "50 of 128 ms");
    at_work(2_000_000, 0);
    assert_eq!(first(), 50, "nobody else wants anything");
    at_work(2_000_000, 1_000);
    scene.turns.set_client_percent(100);
    assert_eq!(first(), 50, "no bound");
    drop(crowd);
    for prefix in 10..1000 {
        drop(scene.connection(prefix));
    }
    assert!(scene.turns.clients.borrow().len() < 10, "who has left is forgotten");
}

#[test]
fn tasks_that_have_ended_keep_nobody_waiting() {
    run(async {
        let scene = Scene::new();
        let ended: Vec<_> = (0..100)
            .map(|_| {
                let task = in_turn(Rc::clone(&scene.turns), scene.connection(1), std::future::pending::<()>());
                tokio::task::spawn_local(task)
            })
            .collect();
        yield_now().await;
        ended.iter().for_each(tokio::task::JoinHandle::abort);
        yield_now().await;
        scene.busy(2, scene.connection(1), LITTLE, 1);
        assert_eq!(scene.until(1).await, [2]);
        assert!(scene.turns.wait_of_late() > Duration::ZERO);
        assert_eq!(scene.turns.wait_of_late(), Duration::ZERO, "asked already");
    });
}

#[test]
fn who_leaves_while_it_waits_needs_no_turn_and_is_no_crowd() {
    run(async {
        let scene = Scene::new();
        let connections: Vec<_> = (0..=CROWD).map(|_| scene.connection(1)).collect();
        let wait = |connection: &Rc<Connection>| {
            let task = in_turn(Rc::clone(&scene.turns), Rc::clone(connection), std::future::ready("had its turn"));
            tokio::task::spawn_local(task)
        };
        let waiting: Vec<_> = connections.iter().map(wait).collect();
        // Only so many tasks are polled before who has yielded is.
        for _ in 0..4 {
            yield_now().await;
        }
        let is_crowd = || scene.turns.is_crowd(1, (CROWD, Duration::ZERO, true), scene.now.get());
        assert!(is_crowd());
        let left: Vec<_> = connections[1..].iter().flat_map(|connection| connection.waiters.leave()).collect();
        assert_eq!(left.len(), CROWD);
        scene.turns.let_go(left);
        let shares = || Shares { called: 0, costly: 20 };
        let caller = tokio::task::spawn_local(call(Rc::clone(&scene.turns), Rc::clone(&scene.now), shares));
        for (number, one) in waiting.into_iter().enumerate() {
            assert_eq!(one.await.expect("it ends"), (number == 0).then_some("had its turn"));
        }
        caller.abort();
        assert!(!is_crowd());
        let (one, other) = (scene.connection(1), scene.connection(1));
        let (one, _other) = (wait(&one), wait(&other));
        yield_now().await;
        one.abort();
        yield_now().await;
        let count = scene.turns.waiting.borrow_mut().of((1, true), scene.now.get()).map(|(count, ..)| count);
        assert_eq!(count, Some(1), "who was there before counts no more");
    });
}

#[test]
fn a_client_of_whom_many_wait_for_long_is_a_crowd_and_no_other_is() {
    run(async {
        let scene = Scene::new();
        for _ in 0..CROWD + 1 {
            scene.busy(1, scene.connection(1), LITTLE, 1);
        }
        scene.busy(2, scene.connection(2), LITTLE, 1);
        assert!(!scene.turns.is_crowd(1, (1000, LITTLE, true), scene.now.get()), "nobody has had a look yet");
        for _ in 0..5 {
            yield_now().await;
        }
        let begun = Instant::now();
        while begun.elapsed() < 2 * LITTLE {
            std::hint::spin_loop();
        }
        assert!(scene.turns.is_crowd(1, (1000, LITTLE, true), scene.now.get()));
        assert!(
            !scene.turns.is_crowd(1, (1000, Duration::from_secs(1000), true), scene.now.get()),
            "not for that long"
        );
        assert!(!scene.turns.is_crowd(1, (1000, Duration::ZERO, true), scene.now.get()), "as long as they like");
        assert!(scene.turns.is_crowd(1, (CROWD, Duration::ZERO, true), scene.now.get()), "too many");
        assert!(
            !scene.turns.is_crowd(2, (1000, LITTLE, true), scene.now.get())
                && !scene.turns.is_crowd(3, (1000, LITTLE, true), scene.now.get())
        );
    });
}

#[test]
fn those_of_a_client_that_costs_much_may_wait_for_long_where_there_is_plenty_of_room() {
    let scene = Scene::new();
    let flood = scene.connection(7);
    let tickets: Vec<_> = (0..=CROWD).map(|_| scene.turns.wait(&flood, Waker::noop())).collect();
    let begun = Instant::now();
    while begun.elapsed() < LITTLE * CROWD_COSTLY {
        std::hint::spin_loop();
    }
    let is_crowd = |most, plenty| scene.turns.is_crowd(7, (most, LITTLE, plenty), scene.now.get());
    assert!(is_crowd(1000, true) && is_crowd(1000, false), "it costs nobody much yet");
    flood.together.as_ref().expect("it is counted").take(0, (20_000_000, 0), scene.now.get());
    assert!(!is_crowd(1000, true) && is_crowd(1000, false));
    assert!(is_crowd(CROWD, true), "too many all the same");
    drop(tickets);
}

#[test]
fn who_costs_much_has_its_part_and_no_more_while_others_want_something_and_all_of_it_when_they_do_not() {
    run(async {
        let scene = Scene::new();
        let flood = scene.connection(7);
        flood.together.as_ref().expect("it is counted").take(0, (20_000_000, 0), scene.now.get());
        assert!(flood.comes_last());
        let cost = Duration::from_micros(200);
        scene.busy(1, Rc::clone(&flood), cost, 20);
        let begun = Instant::now();
        let alone = scene.until(20).await;
        assert_eq!(count(&alone, 1), 20, "whatever is free, without a rest");
        let quick = begun.elapsed();
        // Its debt is what it was.
        flood.together.as_ref().expect("it is counted").take(0, (20_000_000, 0), scene.now.get());
        scene.busy(1, flood, cost, u32::MAX);
        scene.busy(2, scene.viewer(), LITTLE, 20_000);
        let mut had = scene.until(20 + 20_000).await.split_off(20);
        had.retain(|name| *name == 1);
        // 20,000 turns of 20 us are 0.4 s, of which two in a hundred are 8 ms: 40 turns. One for each round would be as many as the viewer has.
        assert!((5..=400).contains(&had.len()), "{} turns of the flood; alone it had 20 in {quick:?}", had.len());
    });
}

#[test]
fn a_newcomer_does_not_wait_for_those_who_cost_much() {
    let scene = Scene::new();
    let flood: Vec<_> = (100..120).map(|prefix| scene.connection(prefix)).collect();
    for one in &flood {
        one.together.as_ref().expect("it is counted").take(0, (20_000_000, 0), scene.now.get());
    }
    let tickets: Vec<_> = flood.iter().map(|one| scene.turns.wait(one, Waker::noop())).collect();
    let newcomer = scene.turns.wait(&scene.connection(8), Waker::noop());
    scene.turns.call(false, (Instant::now(), scene.now.get()));
    assert!(newcomer.called().is_some() && tickets.iter().all(|ticket| ticket.called().is_none()));
    // What it waits is by its own rule, and no sign of overload, as long as others are served.
    scene.turns.served(1, Instant::now() + Duration::from_secs(1));
    scene.turns.wait_of_late();
    scene.turns.call(true, (Instant::now() + Duration::from_secs(1), scene.now.get()));
    assert_eq!(tickets.iter().filter(|ticket| ticket.called().is_some()).count(), 1);
    assert_eq!(scene.turns.wait_of_late(), Duration::ZERO);
    // One that costs much no more is called as all others, and those who wait already in their turn.
    scene.now.set(scene.now.get() + 10_000);
    let later = scene.turns.wait(&scene.connection(100), Waker::noop());
    scene.turns.call(false, (Instant::now(), scene.now.get()));
    assert!(later.called().is_some());
    for _ in 0..flood.len() {
        scene.turns.call(true, (Instant::now(), scene.now.get()));
    }
    assert!(tickets.iter().all(|ticket| ticket.called().is_some()));
}

#[test]
fn who_costs_much_no_more_waits_for_none_of_those_who_do() {
    run(async {
        let scene = Scene::new();
        let costs =
            |one: &Connection| one.together.as_ref().expect("it is counted").take(0, (20_000_000, 0), scene.now.get());
        let flood: Vec<_> = (100..400).map(|prefix| scene.connection(prefix)).collect();
        let one = scene.connection(7);
        flood.iter().chain([&one]).for_each(|one| costs(one));
        let tickets: Vec<_> = flood.iter().map(|one| scene.turns.wait(one, Waker::noop())).collect();
        let waits = [0, 1].map(|_| scene.turns.wait(&one, Waker::noop()));
        for _ in 0..100 {
            scene.turns.forgive(scene.now.get());
        }
        scene.turns.call(false, (Instant::now(), scene.now.get()));
        assert!(waits.iter().chain(&tickets).all(|ticket| ticket.called().is_none()), "all cost much");
        scene.now.set(scene.now.get() + 10_000);
        flood.iter().for_each(|one| costs(one));
        // Whoever calls rests until it is told.
        let told = scene.turns.somebody(|waiting| !waiting.is_empty());
        let looks = async {
            yield_now().await;
            for _ in 0..3 {
                scene.turns.forgive(scene.now.get());
            }
        };
        tokio::join!(told, looks);
        for waiting in &waits {
            scene.turns.call(false, (Instant::now(), scene.now.get()));
            assert!(waiting.called().is_some());
        }
        scene.turns.call(false, (Instant::now(), scene.now.get()));
        assert!(tickets.iter().all(|ticket| ticket.called().is_none()), "these still do");
    });
}

/// The machine may have done something else meanwhile: a host that takes the core, or another process.
#[test]
fn a_turn_that_takes_very_long_makes_no_viewer_one_who_costs_much() {
    run(async {
        let scene = Scene::new();
        let viewer = scene.viewer();
        viewer.pay_hit(100);
        scene.busy(1, Rc::clone(&viewer), LITTLE, 1);
        scene.until(1).await;
        let stopped = async {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(30) {
                std::hint::spin_loop();
            }
        };
        in_turn(Rc::clone(&scene.turns), Rc::clone(&viewer), stopped).await;
        assert!(!viewer.comes_last());
        assert!(scene.turns.goes_first(&viewer));
        // Nor where others of its address flood.
        scene.turns.flooded(&scene.connection(1));
        assert!(scene.turns.goes_first(&viewer) && scene.connection(1).comes_last());
    });
}

#[test]
fn a_client_that_costs_much_has_all_of_the_time_where_only_its_own_connections_want_some() {
    let scene = Scene::new();
    let now = Instant::now();
    scene.turns.served(7, now);
    assert!(scene.turns.is_quiet(7, now) && !scene.turns.is_quiet(8, now));
    scene.turns.served(1, now);
    scene.turns.served(7, now);
    scene.turns.served(7, now);
    assert!(!scene.turns.is_quiet(7, now), "another was served a moment ago");
    assert!(scene.turns.is_quiet(7, now + 2 * QUIET));
}

#[test]
fn a_client_that_floods_costs_much_from_then_on_whatever_it_gets_besides_and_wherever_it_has_been() {
    let scene = Scene::new();
    let (flood, next, known) = (scene.connection(7), scene.connection(7), scene.connection(7));
    next.add_sent(64 << 10);
    known.add_sent(1 << 20);
    assert!(scene.turns.goes_first(&next));
    scene.turns.flooded(&flood);
    assert_eq!(flood.closing.get(), Some(crate::telemetry::metrics::CloseReason::Flood));
    known.add_sent(64 << 20);
    assert!(!scene.turns.goes_first(&next) && next.comes_last(), "a window of a body makes it no viewer");
    assert!(scene.turns.goes_first(&known) && !known.comes_last(), "who has got a megabyte stands for itself");
    assert!(!scene.connection(8).comes_last());
    drop((flood, next, known));
    let other = scene.connection(9);
    other.together.as_ref().expect("it is counted").take(0, (20_000_000, 0), scene.now.get());
    drop(other);
    (10..1000).for_each(|prefix| drop(scene.connection(prefix)));
    assert!(scene.connection(9).comes_last(), "nor is it forgotten what it took, between one connection and the next");
    let again = scene.connection(7);
    assert!(again.comes_last(), "it has left and comes back");
    let ticket = scene.turns.wait(&again, Waker::noop());
    scene.turns.call(false, (Instant::now(), scene.now.get()));
    assert!(ticket.called().is_none());
    scene.now.set(scene.now.get() + 6_000);
    assert!(!again.comes_last(), "seconds later that is forgotten");
    scene.turns.call(true, (Instant::now(), scene.now.get()));
    assert!(ticket.called().is_some());
    for prefix in 0..1000 {
        scene.turns.flooded(&scene.connection(prefix));
    }
    assert_eq!(scene.turns.floods.borrow().len(), FLOODS_MAX);
}
