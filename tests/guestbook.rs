//! The guestbook of the examples, a synchronous application, driven over HTTP on a cluster of its own.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../examples/guestbook/app.rs"]
mod app;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use app::{Guestbook, Serving};
use diesel_replicated::testing::LocalCluster;

const WAIT: Duration = Duration::from_secs(20);

struct Site {
    serving: Serving,
    guestbook: Guestbook,
    cluster: LocalCluster,
    address: SocketAddr,
}

impl Site {
    fn start(size: u32, wait: Duration) -> Self {
        let cluster = LocalCluster::start().unwrap();
        let guestbook = Guestbook::open(&cluster.url("postgres"), size, wait).unwrap();
        let serving = Serving::start("127.0.0.1:0", &guestbook, 4).unwrap();
        let address = serving.address().unwrap();
        Self {
            serving,
            guestbook,
            cluster,
            address,
        }
    }

    /// Status, head and body of the answer.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close");
        write!(stream, "{head}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_owned(), body.to_owned())
    }

    fn status(&self, method: &str, path: &str, body: &str) -> u16 {
        self.ask(method, path, body).0
    }

    fn stop(self) {
        self.serving.stop();
        drop(self.guestbook);
        drop(self.cluster);
    }
}

#[test]
fn whoever_signs_is_read_by_the_next_request() {
    let site = Site::start(4, WAIT);
    std::thread::scope(|scope| {
        for guest in 0..6 {
            let site = &site;
            scope.spawn(move || {
                for n in 0..5 {
                    let name = format!("guest-{guest}-{n}");
                    let (status, head, _) = site.ask("POST", "/", &format!("text={name}"));
                    assert_eq!(status, 303, "{head}");
                    assert!(
                        head.to_lowercase().contains("x-served-by: primary"),
                        "{head}"
                    );
                    let (status, _, page) = site.ask("GET", "/", "");
                    assert_eq!(status, 200);
                    assert!(page.contains(&name), "{page}");
                }
            });
        }
    });
    // Once they have it, replicas serve the page.
    site.cluster.wait_caught_up().unwrap();
    let started = Instant::now();
    while !site.ask("GET", "/", "").1.contains("x-served-by: replica") {
        assert!(started.elapsed() < WAIT, "the primary serves all");
    }
    site.stop();
}

#[test]
fn what_is_wrong_is_told() {
    let site = Site::start(1, Duration::from_millis(200));
    for (expected, method, path, body) in [
        (404, "GET", "/nothing", ""),
        (405, "DELETE", "/", ""),
        (422, "POST", "/", ""),
        (422, "POST", "/", "text="),
        (422, "POST", "/", "text=a%00"),
        (422, "POST", "/", "text=%ff"),
        (422, "POST", "/", "name=a"),
    ] {
        assert_eq!(
            site.status(method, path, body),
            expected,
            "{method} {path} {body}"
        );
    }
    let long = format!("text={}", "a".repeat(20_000));
    assert_eq!(site.status("POST", "/", &long), 422);
    assert_eq!(site.status("POST", "/", "text=%3Cb%3E+%26"), 303);
    assert!(site.ask("GET", "/", "").2.contains("<li>&lt;b&gt; &amp;"));
    // The only connection is held.
    let held = site.guestbook.pool.get().unwrap();
    assert_eq!(site.status("GET", "/", ""), 503);
    drop(held);
    assert_eq!(site.status("GET", "/", ""), 200);
    site.stop();
}

#[test]
fn without_a_database_it_says_why() {
    let told = |url: &str| match Guestbook::open(url, 1, WAIT) {
        Ok(_) => String::from("it opens"),
        Err(error) => error.to_string(),
    };
    let nothing = told("postgres://u:secret@127.0.0.1:1/app");
    assert!(nothing.contains("127.0.0.1"), "{nothing}");
    assert!(!nothing.contains("secret"), "{nothing}");
    let scheme = told("mysql://u@h/db");
    assert!(scheme.contains("postgres"), "{scheme}");
    let cluster = LocalCluster::start().unwrap();
    let stranger = cluster.url("postgres").replace("//postgres", "//stranger");
    assert!(told(&stranger).contains("stranger"), "{}", told(&stranger));
    let missing = told(&cluster.url("missing"));
    assert!(missing.contains("missing"), "{missing}");
}
