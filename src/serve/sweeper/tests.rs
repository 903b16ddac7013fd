use std::{io::Write as _, net::SocketAddr};

use super::*;
use crate::{serve::account::Together, telemetry::metrics::Metrics};

const DEADLINES: Deadlines = Deadlines {
    idle_overloaded: 5_000,
    overloaded: false,
    handshake: 5_000,
    header: 10_000,
    idle: 60_000,
    stall: 30_000,
    rate_window: 60_000,
    rate_min: 8_000,
};

fn connection() -> (Rc<Connection>, Rc<Cell<u64>>) {
    let now = Rc::new(Cell::new(1_000_000));
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    (Connection::new((peer, 0, None), None, Metrics::new(1).worker(0), Rc::clone(&now)), now)
}

#[tokio::test]
async fn each_connection_is_looked_at_once_a_second_however_often_some_are() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let (_, now) = connection();
    let sweeper = Sweeper::default();
    let (mut clients, mut streams, mut connections) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..25 {
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let stream = Rc::new(accepted.expect("accepted").0);
        let connection = Connection::new((address, 0, None), None, Metrics::new(1).worker(0), Rc::clone(&now));
        sweeper.add(&stream, &connection);
        clients.push(client.expect("connected"));
        streams.push(Some(stream));
        connections.push(connection);
    }
    now.set(now.get() + 10_001);
    sweeper.sweep(&DEADLINES, Duration::from_millis(100));
    assert_eq!(connections.iter().filter(|connection| connection.closing.get().is_some()).count(), 3);
    // Those that have ended are looked at too, and forgotten; nobody is passed over for it.
    streams.iter_mut().step_by(2).for_each(|stream| *stream = None);
    for _ in 0..9 {
        sweeper.sweep(&DEADLINES, Duration::from_millis(100));
    }
    let looked_at =
        |(stream, connection): (&Option<_>, &Rc<Connection>)| stream.is_none() || connection.closing.get().is_some();
    assert!(streams.iter().zip(&connections).all(looked_at));
    sweeper.sweep(&DEADLINES, Duration::from_secs(5));
    let left = streams.iter().flatten().count();
    sweeper.sweep(&DEADLINES, Duration::from_secs(5));
    assert_eq!(sweeper.connections.borrow().len(), left);
    // However many come meanwhile.
    assert_eq!(due(1000, EVERY / 10, EVERY / 10), 1000);
    assert_eq!((due(1000, EVERY, Duration::ZERO), due(1000, EVERY / 10, EVERY)), (1000, 101));
    assert_eq!((due(0, EVERY, EVERY), due(1, Duration::ZERO, EVERY)), (0, 1));
}

#[test]
fn a_head_that_trickles_is_not_given_more_time() {
    let (connection, now) = connection();
    for _ in 0..10 {
        now.set(now.get() + 1_000);
        connection.received();
        assert_eq!(DEADLINES.verdict(&connection, || 0), None);
    }
    now.set(now.get() + 1);
    connection.received();
    assert_eq!(DEADLINES.verdict(&connection, || 0), Some(CloseReason::HeaderTimeout));
}

#[test]
fn who_costs_much_is_excused_while_it_waits_and_not_for_ever() {
    let now = Rc::new(Cell::new(1_000_000));
    let together = Rc::new(Together::default());
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let whose = (peer, 0, Some(Rc::clone(&together)));
    let connection = Connection::new(whose, None, Metrics::new(1).worker(0), Rc::clone(&now));
    let mut verdict = None;
    let (mut lived, mut waiter) = (0, connection.begin_wait(Waker::noop()));
    // A head that never ends, of one whose client floods all the time: it has a turn every ten seconds.
    while verdict.is_none() && lived < 1000 {
        if lived % 10 == 9 {
            connection.waiters.end(waiter);
            connection.has_waited((Duration::from_secs(10), true));
            waiter = connection.begin_wait(Waker::noop());
        }
        lived += 1;
        // Now and then it is looked at just after it has had its turn.
        now.set(now.get() + 999);
        together.flooded(now.get());
        verdict = DEADLINES.verdict(&connection, || 0);
    }
    assert_eq!(verdict, Some(CloseReason::HeaderTimeout));
    let window = DEADLINES.rate_window / 1000;
    assert!((window..2 * window).contains(&lived), "{lived} s, of which a window is excused");
    // One that takes what it is sent is not held to what was before.
    connection.waiters.end(waiter);
    now.set(now.get() + 6_000);
    assert!(!connection.comes_last());
    connection.begin(Doing::Responding);
    assert_eq!(DEADLINES.verdict(&connection, || 0), None);
    assert_eq!(connection.pace.get().excused, 0);
}

#[tokio::test]
async fn who_is_cut_while_it_waits_for_its_turn_needs_none() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().expect("bound")), listener.accept());
    let (_client, stream) = (client.expect("connected"), Rc::new(accepted.expect("accepted").0));
    let (sweeper, (connection, now)) = (Sweeper::default(), connection());
    sweeper.add(&stream, &connection);
    for _ in 0..3 {
        connection.begin_wait(Waker::noop());
    }
    let sweep = |closing| {
        now.set(now.get() + 2_000);
        connection.closing.set(closing);
        sweeper.sweep(&DEADLINES, EVERY).len()
    };
    assert_eq!(sweep(None), 0, "it is there");
    assert_eq!(sweep(Some(CloseReason::IdleTimeout)), 0, "it is sent away as its protocol has it");
    assert_eq!(sweep(Some(CloseReason::HandshakesMax)), 3, "each of its tasks");
    assert!(connection.waiters.have_left());
    assert_eq!(sweep(Some(CloseReason::HandshakesMax)), 0, "they know");
}

#[test]
fn who_waits_for_its_turn_is_not_late() {
    let (connection, now) = connection();
    now.set(now.get() + 9_000);
    let waiter = connection.begin_wait(Waker::noop());
    let ends = |waiter, waited: Duration| {
        connection.waiters.end(waiter);
        connection.has_waited((waited, false));
    };
    now.set(now.get() + 20_000);
    assert_eq!(DEADLINES.verdict(&connection, || 0), None, "we have not read what it sent");
    ends(waiter, Duration::from_secs(20));
    // What trickles in is ready again and again, and waits for a moment each time.
    for late in [None, Some(CloseReason::HeaderTimeout)] {
        let waiter = connection.begin_wait(Waker::noop());
        now.set(now.get() + 900);
        assert_eq!(DEADLINES.verdict(&connection, || 0), late, "ten seconds of its own, and short waits excuse nobody");
        ends(waiter, Duration::from_millis(900));
    }
    // Nor is it slow at taking what it was not sent.
    connection.begin(Doing::Responding);
    connection.set_blocked();
    assert_eq!(DEADLINES.verdict(&connection, || 0), None);
    let waiter = connection.begin_wait(Waker::noop());
    now.set(now.get() + 100_000);
    assert_eq!(DEADLINES.verdict(&connection, || 0), None);
    // Of HTTP/2, one of its tasks has its turn, and others wait still.
    let other = connection.begin_wait(Waker::noop());
    ends(other, Duration::ZERO);
    assert!(connection.waits_long());
    let other = connection.begin_wait(Waker::noop());
    ends(waiter, Duration::from_secs(100));
    assert!(!connection.waits_long(), "not that one");
    ends(other, Duration::ZERO);
    assert_eq!(DEADLINES.verdict(&connection, || 0), None);
}

#[tokio::test]
async fn who_has_asked_and_closed_its_half_is_there_still() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let pair = |said: &[u8]| {
        let mut far = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        far.write_all(said).expect("written");
        let near = listener.accept().expect("it has come").0;
        near.set_nonblocking(true).expect("set");
        (TcpStream::from_std(near).expect("taken over"), far)
    };
    let half = |said: &[u8]| {
        let (near, far) = pair(said);
        far.shutdown(std::net::Shutdown::Write).expect("shut");
        (near, far)
    };
    // It is known once it has come, over loopback at once.
    let left = |(near, _far): &(TcpStream, std::net::TcpStream), secure: bool, sent: u64| {
        let (connection, _) = connection();
        connection.secure.set(secure);
        connection.add_sent(sent);
        has_left(near, &connection)
    };
    assert!(!left(&pair(b""), false, 0));
    assert!(left(&half(b""), false, 0), "it has never asked");
    assert!(!left(&half(b"GET / HTTP/1.0\r\n\r\n"), false, 0), "what it asks is unread");
    assert!(left(&half(b"\x16\x03\x01"), true, 0), "nobody agrees on a session so");
    assert!(!left(&half(b""), true, 100), "it may have asked inside of TLS");
    let (connection, _) = connection();
    connection.begin(Doing::Responding);
    assert!(!has_left(&half(b"").0, &connection), "it is answered");
    connection.begin(Doing::Fresh);
    connection.closing.set(Some(CloseReason::IdleTimeout));
    assert!(!has_left(&half(b"").0, &connection), "it is sent away as its protocol has it");
    let (near, far) = pair(b"GET / HTTP/1.0\r\n\r\n");
    socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).expect("set");
    drop(far);
    assert!(has_left(&near, &connection), "whatever it has asked");
}

#[test]
fn a_handshake_has_a_deadline_of_its_own() {
    let (connection, now) = connection();
    connection.begin(Doing::Handshake);
    now.set(now.get() + 5_000);
    connection.received();
    assert_eq!(DEADLINES.verdict(&connection, || 0), None);
    now.set(now.get() + 1);
    assert_eq!(DEADLINES.verdict(&connection, || 0), Some(CloseReason::HandshakeTimeout));
}

#[test]
fn who_says_nothing_goes_sooner_while_requests_are_refused() {
    let (connection, now) = connection();
    connection.begin(Doing::Idle);
    now.set(now.get() + 5_001);
    assert_eq!(DEADLINES.verdict(&connection, || 0), None);
    let overloaded = DEADLINES.while_overloaded(true);
    assert_eq!(overloaded.verdict(&connection, || 0), Some(CloseReason::Overload));
    connection.begin(Doing::Responding);
    now.set(now.get() + 5_001);
    assert_eq!(overloaded.verdict(&connection, || 0), None, "what has begun goes on");
}

#[test]
fn waiting_for_fill_is_no_fault_of_the_client() {
    let (connection, now) = connection();
    connection.begin(Doing::Responding);
    now.set(now.get() + 10_000_000);
    assert_eq!(DEADLINES.verdict(&connection, || 0), None);
}

#[test]
fn of_several_exchanges_one_that_waits_for_the_client_counts() {
    let (connection, now) = connection();
    connection.set_multiplexed();
    connection.begin_exchange();
    connection.begin_exchange();
    now.set(now.get() + 10_000_000);
    assert_eq!(DEADLINES.verdict(&connection, || 0), None, "both wait for us");
    connection.turn(false);
    assert_eq!(DEADLINES.verdict(&connection, || 0), None);
    now.set(now.get() + 30_001);
    assert_eq!(DEADLINES.verdict(&connection, || 0), Some(CloseReason::Stalled), "one is the client's turn");
    connection.turn(true);
    assert_eq!(DEADLINES.verdict(&connection, || 0), None);
}

#[test]
fn what_waits_to_be_allowed_out_is_no_idleness_while_it_moves() {
    let (connection, now) = connection();
    connection.set_multiplexed();
    connection.begin_exchange();
    connection.turn(false);
    connection.end_exchange();
    for _ in 0..10 {
        now.set(now.get() + 50_000);
        connection.progressed();
        assert!(!connection.is_idle());
        assert_eq!(DEADLINES.verdict(&connection, || 0), None);
    }
    now.set(now.get() + 60_001);
    assert_eq!(DEADLINES.verdict(&connection, || 0), Some(CloseReason::IdleTimeout));
}

#[test]
fn who_takes_nothing_is_stalled_and_who_takes_little_is_too_slow() {
    let (connection, now) = connection();
    connection.begin(Doing::Responding);
    connection.set_blocked();
    assert_eq!(DEADLINES.verdict(&connection, || 5), None);
    now.set(now.get() + 30_001);
    assert_eq!(DEADLINES.verdict(&connection, || 5), Some(CloseReason::Stalled));

    let (connection, now) = self::connection();
    connection.begin(Doing::Responding);
    connection.set_blocked();
    let mut verdicts = Vec::new();
    for second in 0..=61 {
        verdicts.push(DEADLINES.verdict(&connection, || second * 7_000));
        now.set(now.get() + 1_000);
    }
    assert_eq!(verdicts.iter().flatten().collect::<Vec<_>>(), [&CloseReason::TooSlow]);
}

#[test]
fn a_slow_viewer_above_the_minimum_is_served_for_ever() {
    let (connection, now) = connection();
    connection.begin(Doing::Responding);
    connection.set_blocked();
    for second in 0..1_000 {
        assert_eq!(DEADLINES.verdict(&connection, || second * 9_000), None, "second {second}");
        now.set(now.get() + 1_000);
    }
}
