//! Threads that wait, and sockets that move between them and a runtime.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::*;

#[test]
fn another_thread_wakes_one_that_is_parked() {
    for _ in 0..200 {
        let (send, receive) = oneshot::channel();
        let thread = std::thread::spawn(move || send.send(7).unwrap());
        assert_eq!(block_on(receive), Ok(7));
        thread.join().unwrap();
    }
}

#[test]
fn one_call_within_another_has_its_own_sockets_and_wakers() {
    let done = block_on(async {
        let (send, receive) = oneshot::channel();
        let thread = std::thread::spawn(move || send.send(1).unwrap());
        let inner = block_on(async { receive.await.unwrap() + 1 });
        assert!(is_within());
        thread.join().unwrap();
        inner + 1
    });
    assert_eq!(done, 3);
    assert!(!is_within());
}

#[test]
fn a_panic_leaves_the_thread_as_it_was() {
    let panicking = || block_on(async { std::panic::resume_unwind(Box::new("in there")) });
    assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
    assert!(!is_within());
    assert_eq!(block_on(async { 1 }), 1);
}

/// A socket that a runtime watches, and its other end.
fn pair(runtime: &tokio::runtime::Runtime) -> (Movable<UnixStream>, StdStream) {
    let (ours, other) = StdStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let _runtime = runtime.enter();
    (Movable::new(UnixStream::from_std(ours).unwrap()), other)
}

// Whoever polls has it, in whichever order, and nothing is lost in between.
#[test]
fn a_socket_moves_between_a_runtime_and_a_thread() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut socket, mut other) = pair(&runtime);
    let mut answers = other.try_clone().unwrap();
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while other.read(&mut byte).unwrap() == 1 {
            answers.write_all(&byte).unwrap();
        }
    });
    for round in 0..50u8 {
        let talk = async {
            socket.write_all(&[round]).await.unwrap();
            socket.read_u8().await.unwrap()
        };
        let heard = match round % 3 {
            0 => runtime.block_on(talk),
            _ => block_on(talk),
        };
        assert_eq!(heard, round);
    }
    block_on(socket.shutdown()).unwrap();
    echo.join().unwrap();
    assert_eq!(block_on(socket.read(&mut [0])).unwrap(), 0);
}

#[test]
fn more_than_a_buffer_is_written_and_read_by_a_thread() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut socket, mut other) = pair(&runtime);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        other.read_to_end(&mut all).unwrap();
        all.len()
    });
    block_on(async {
        socket.write_all(&vec![1; 5_000_000]).await.unwrap();
        socket.shutdown().await.unwrap();
    });
    assert_eq!(reader.join().unwrap(), 5_000_000);
}

// A look takes what came, and waits for nothing.
#[test]
fn a_look_tells_of_the_other_ends_death() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut socket, other) = pair(&runtime);
    let mut cx = Context::from_waker(Waker::noop());
    let mut look = |socket: &mut Movable<UnixStream>| {
        looking(|| {
            let mut byte = [0];
            let read = pin!(socket.read(&mut byte));
            read.poll(&mut cx).is_ready()
        })
    };
    assert_eq!(look(&mut socket), Some(false));
    drop(other);
    assert_eq!(look(&mut socket), Some(true));
}
