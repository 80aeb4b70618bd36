//! Parses netlink datagrams. Each socket comes from a message, in the order of the messages.
//!
//! A case is a list of datagrams. Two bytes before each datagram are its length. The last datagram may be truncated.
#![no_main]

use std::ops::ControlFlow;

use libfuzzer_sys::fuzz_target;
use twtool::model::socket::StateSet;
use twtool::sock_diag::request::{Request, Walk};
use twtool::sock_diag::{dump, response};
use twtool_fuzz::{Datagrams, bounded, datagrams, payload_matches, sockets};

fuzz_target!(|case: &[u8]| {
    let datagrams = datagrams(case);
    let payloads = sockets(datagrams.iter().copied());
    let rows = bounded(case, || {
        let _ = response::decode(case);
        let mut kernel = Datagrams(datagrams.iter().map(|datagram| datagram.to_vec()).collect::<Vec<_>>().into_iter());
        let request = Request { walk: Walk::BothFamilies, states: StateSet::ALL, program: None, tcp_info: false };
        let mut rows = Vec::with_capacity(payloads.len());
        let end = dump::run(&mut kernel, &request, &mut |socket| {
            rows.push(*socket);
            ControlFlow::Continue(())
        });
        assert!(end.is_err() || !rows.is_empty() || payloads.is_empty() || end.is_ok_and(|end| !end.stopped));
        rows
    });
    assert!(rows.len() <= payloads.len(), "{} rows of {} messages", rows.len(), payloads.len());
    // There can be fewer rows than messages, because twtool drops a socket that repeats one at the end of the previous datagram.
    let mut payloads = payloads.iter();
    for row in &rows {
        assert!(payloads.any(|payload| payload_matches(payload, row)), "{row:?} is invented, or not in order");
    }
});
