//! Parses the kernel's responses to SOCK_DESTROY and to the look-up of a socket. No bucket counts as destroyed if no response arrives at
//! all.
//!
//! A case is a list of datagrams. Two bytes before each datagram are its length. The last datagram may be truncated.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twtool::model::port::Port;
use twtool::model::row::{Direction, Row};
use twtool::model::socket::{Cookie, FourTuple, Socket, TimeWaitBucket};
use twtool::sock_diag::destroy::{self, Acknowledgement};
use twtool::sock_diag::lookup;
use twtool_fuzz::{Datagrams, bounded, datagrams, errors};

const ROWS: usize = 4;

fn row(port: u16) -> Row {
    let addr = "127.0.0.1".parse().expect("an address");
    let bucket = TimeWaitBucket {
        tuple: FourTuple::new((addr, Port(80)), (addr, Port(port))),
        fin_wait_2: false,
        expires_ms: 1,
        interface: None,
        mark: None,
        cookie: Cookie::new(port.into()),
    };
    Row { bucket, direction: Direction::Unknown, netns: 0 }
}

fuzz_target!(|case: &[u8]| {
    let received = datagrams(case);
    let kernel = || Datagrams(received.iter().map(|datagram| datagram.to_vec()).collect::<Vec<_>>().into_iter());
    let rows: Vec<Row> = (1..=ROWS as u16).map(row).collect();
    let destroyed = bounded(case, || destroy::run(&mut kernel(), &rows));
    assert_eq!(destroyed.answers.len(), ROWS);
    let errors = errors(received.iter().copied());
    for answer in &destroyed.answers {
        match answer {
            Acknowledgement::None => assert!(destroyed.end.is_err()),
            Acknowledgement::Done => assert!(!errors.is_empty(), "a bucket is destroyed without an acknowledgement"),
            Acknowledgement::NotFound => assert!(errors.contains(&-2)),
            Acknowledgement::Failed(errno) => {
                assert!(errors.iter().any(|code| code.unsigned_abs() == errno.unsigned_abs()))
            }
        }
    }
    let socket = Socket::Bucket(rows[0].bucket);
    if let Ok(Some(found)) = bounded(case, || lookup::find(&mut kernel(), &socket)) {
        assert_eq!(found.cookie(), socket.cookie());
    }
});
