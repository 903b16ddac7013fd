use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, channel},
    thread,
};

use super::*;

fn limits() -> ClientLimits {
    ClientLimits { connect_timeout: Duration::from_secs(10), idle_max: 1, secure: false }
}

fn client() -> Downloader {
    Downloader::new(limits(), &ClientFiles::default(), Pieces::Large).expect("a client")
}

/// Answers each request by what `answer` makes of its target, one connection each; tells the heads that it has read.
fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> (Url, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("bound");
    let (tell, heads) = channel();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            let head = head(&mut connection);
            let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
            if tell.send(head).is_err() {
                return;
            }
            // Who has read enough goes.
            drop(connection.write_all(&answer(&target)));
        }
    });
    (format!("http://{at}/").parse().expect("an address"), heads)
}

fn head(connection: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && connection.read(&mut byte).is_ok_and(|count| count == 1) {
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("a head is ASCII")
}

fn redirect(to: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into_bytes()
}

fn nothing() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
}

#[tokio::test]
async fn no_small_piece_is_longer_than_its_bound_however_much_has_come() {
    let length = 8 << 20;
    let (url, _heads) = serve(move |_| {
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        answer.extend((0..length).map(|at: usize| (at % 251).to_le_bytes()[0]));
        answer
    });
    let client = Downloader::new(limits(), &ClientFiles::default(), Pieces::Small).expect("a client");
    let mut download = client.get(url, &HeaderMap::new()).await.expect("an answer");
    let (mut got, mut longest) = (Vec::new(), 0);
    while let Some(piece) = download.chunk().await.expect("a body") {
        longest = longest.max(piece.len());
        got.extend_from_slice(&piece);
    }
    assert!(got.len() == length && got.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at % 251));
    assert!((SMALL_PIECE_MAX / 4..=SMALL_PIECE_MAX).contains(&longest), "the longest had {longest} bytes");
}

#[tokio::test]
async fn redirects_within_the_origin_are_followed_three_times() {
    let (url, heads) = serve(|target| match target.strip_prefix("/").and_then(|number| number.parse::<usize>().ok()) {
        Some(0) | None => nothing(),
        Some(number) => redirect(&format!("/{}", number - 1)),
    });
    let from = |number: &str| url.join(number).expect("an address");
    let found = client().get(from("3"), &HeaderMap::new()).await.expect("an answer");
    assert_eq!((found.status(), found.url().path(), found.leads_to()), (StatusCode::OK, "/0", None));
    let still = client().get(from("4"), &HeaderMap::new()).await.expect("an answer");
    assert_eq!((still.status(), still.leads_to()), (StatusCode::FOUND, Some(from("0"))));
    assert_eq!(heads.try_iter().count(), 8);
}

#[tokio::test]
async fn a_redirect_that_is_not_ascii_or_is_no_address_is_no_fault() {
    let (url, _heads) = serve(|target| match target {
        "/a" => redirect("/vid\u{e9}os/a.mp4"),
        "/b" => redirect(&format!("/{}", "x".repeat(70_000))),
        "/c" => redirect("blob:http://127.0.0.1/x"),
        _ => nothing(),
    });
    let ask = async |at: &str| {
        let client = Downloader::new(limits(), &ClientFiles::default(), Pieces::Large).expect("a client");
        client.get(url.join(at).expect("an address"), &HeaderMap::new()).await.expect("an answer")
    };
    let found = ask("a").await;
    assert_eq!((found.status(), found.url().path()), (StatusCode::OK, "/vid%C3%A9os/a.mp4"));
    for strange in ["b", "c"] {
        assert_eq!(ask(strange).await.status(), StatusCode::FOUND, "{strange}");
    }
}

#[tokio::test]
async fn a_redirect_that_leaves_the_origin_stays_one() {
    let (other, asked) = serve(|_| nothing());
    let target = other.clone();
    let (url, _heads) = serve(move |_| redirect(target.as_str()));
    let answer = client().get(url.clone(), &HeaderMap::new()).await.expect("an answer");
    assert_eq!((answer.status(), answer.url(), answer.leads_to()), (StatusCode::FOUND, &url, Some(other)));
    assert_eq!(asked.try_iter().count(), 0);
}

#[tokio::test]
async fn what_an_address_says_of_a_user_goes_by_the_field_and_not_by_redirects() {
    let (url, heads) = serve(|target| if target == "/" { redirect("http://eve:x@127.0.0.1/") } else { nothing() });
    let mut url = url.join("a").expect("an address");
    url.set_username("al ice").and_then(|()| url.set_password(Some("p:w"))).expect("it has a host");
    let answer = client().get(url.clone(), &HeaderMap::new()).await.expect("an answer");
    assert_eq!((answer.url().username(), answer.url().password()), ("", None));
    let head = heads.recv().expect("a head").to_ascii_lowercase();
    let basic = BASE64_STANDARD.encode("al ice:p:w").to_ascii_lowercase();
    assert!(head.contains(&format!("authorization: basic {basic}\r\n")), "{head}");
    assert!(head.contains("accept-encoding: identity\r\n") && head.contains("user-agent: oca/"), "{head}");
    url.set_path("/");
    let away = client().get(url, &HeaderMap::new()).await.expect("an answer").leads_to();
    assert_eq!(away.expect("a redirect").as_str(), "http://127.0.0.1/");
}

/// A server of HTTP/2 that closes its connection instead of answering the first request of each but the last.
#[tokio::test]
async fn what_a_server_has_not_begun_with_is_asked_again() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let go_away = |last: u8, code: u8| [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, last, 0, 0, 0, code];
    for (closings, code, answered) in [(2, 0, true), (3, 0, false), (1, 2, false)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("bound");
        let server = tokio::spawn(async move {
            for number in 0.. {
                let Ok((mut stream, _)) = listener.accept().await else { return };
                let mut came = Vec::new();
                // The request's HEADERS: behind the preface and SETTINGS there is a frame of kind 1.
                while !came.windows(6).any(|window| window == [1, 5, 0, 0, 0, 1]) {
                    if stream.read_buf(&mut came).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
                let answer: Vec<u8> = if number < closings {
                    [settings.as_slice(), &go_away(0, code)].concat()
                } else {
                    // HEADERS that end the stream, `:status: 200`.
                    [settings.as_slice(), &[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]].concat()
                };
                drop(stream.write_all(&answer).await);
                let mut rest = [0; 1024];
                while stream.read(&mut rest).await.unwrap_or(0) > 0 {}
            }
        });
        let client = Downloader { client: prior_knowledge(), ..client() };
        let answer = client.get(format!("http://{at}/").parse().expect("an address"), &HeaderMap::new()).await;
        assert_eq!(answer.is_ok(), answered, "{closings} closings with code {code}: {answer:?}");
        server.abort();
    }
}

/// A client that speaks HTTP/2 without asking by ALPN.
fn prior_knowledge() -> Client<Timely, Empty<Bytes>> {
    let mut tcp = HttpConnector::new_with_resolver(Names { outward: None });
    tcp.enforce_http(false);
    let config = ClientFiles::default().outward(false).expect("nothing to read");
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_all_versions().wrap_connector(tcp);
    let longest = Duration::from_secs(10);
    Client::builder(TokioExecutor::new()).http2_only(true).build(Timely { connector, longest })
}

#[tokio::test]
async fn no_connection_is_told_from_a_broken_one() {
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let closed: Url = format!("http://{closed}/").parse().expect("an address");
    let fault = client().get(closed, &HeaderMap::new()).await.expect_err("nobody listens");
    assert!(matches!(fault, DownloadError::Connect(_)), "{fault:?}");
    let (url, _heads) = serve(|_| b"SSH-2.0-x\r\n".to_vec());
    let fault = client().get(url, &HeaderMap::new()).await.expect_err("that is not HTTP");
    assert!(matches!(fault, DownloadError::Broken(_)), "{fault:?}");
    let (url, _heads) = serve(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n123".to_vec());
    let mut cut = client().get(url, &HeaderMap::new()).await.expect("a head");
    assert_eq!(cut.chunk().await.expect("what has come").as_deref(), Some(b"123".as_slice()));
    assert!(cut.chunk().await.is_err());
}

#[tokio::test]
async fn names_that_resolve_to_addresses_within_lead_nowhere() {
    let (url, asked) = serve(|_| nothing());
    let mut named = url.clone();
    named.set_host(Some("localhost")).expect("a host");
    let redirects = |allow_private| Redirects { hosts: Vec::new(), allow_private };
    let asking = |redirects| Downloader::redirected(limits(), None, Pieces::Large, &redirects).expect("a client");
    let fault = asking(redirects(false)).get(named.clone(), &HeaderMap::new()).await.expect_err("loopback only");
    assert!(matches!(fault, DownloadError::Connect(_)), "{fault:?}");
    assert_eq!(asked.try_iter().count(), 0);
    assert_eq!(
        asking(redirects(true)).get(named, &HeaderMap::new()).await.expect("an answer").status(),
        StatusCode::OK
    );
}
