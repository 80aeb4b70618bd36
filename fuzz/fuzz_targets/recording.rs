//! Parses recordings. There are fewer events than lines, and a replay reports only sockets that are in the netlink messages of the
//! recording.
//!
//! The input is the content of a recording. If it starts with a line feed, the target removes that byte and adds the last line with
//! the correct checksum, which a fuzzer cannot guess.
#![no_main]

use std::ops::ControlFlow;

use libfuzzer_sys::fuzz_target;
use twtool::model::facts::Setting;
use twtool::model::socket::StateSet;
use twtool::sock_diag::dump;
use twtool::sock_diag::request::{Request, Walk};
use twtool::sock_diag::transport::{Replay, TransportEvent};
use twtool::source::recording;
use twtool_fuzz::{bounded, payload_matches, sockets};

fuzz_target!(|case: &[u8]| {
    let mut file = case.to_vec();
    if let Some(body) = case.strip_prefix(b"\n") {
        file = body.to_vec();
        if !file.ends_with(b"\n") {
            file.push(b'\n');
        }
        let lines = file.iter().filter(|&&byte| byte == b'\n').count();
        let end = format!("{{\"end\":{{\"lines\":{lines},\"crc32\":{}}}}}\n", crc32fast::hash(&file));
        file.extend(end.into_bytes());
    }
    let Ok(recording::RecordingContent { facts, events, .. }) = bounded(&file, || recording::parse(&file)) else {
        return;
    };
    let lines = file.iter().filter(|&&byte| byte == b'\n').count();
    assert!(events.len() + 2 <= lines + 1, "{} events in {lines} lines", events.len());
    let datagrams = events.iter().filter_map(|event| match event {
        TransportEvent::Datagram(bytes) => Some(bytes.as_slice()),
        _ => None,
    });
    let payloads = sockets(datagrams.clone());
    assert!(datagrams.map(<[u8]>::len).sum::<usize>() * 2 <= file.len());
    let _ = facts.gaps(&Setting::ALL);
    for walk in [Walk::BothFamilies, Walk::Ipv4, Walk::Ipv6] {
        let request = Request { walk, states: StateSet::from_bits(1 << 6), program: None, tcp_info: false };
        bounded(&file, || {
            let _ = dump::run(&mut Replay::new(events.clone()), &request, &mut |socket| {
                assert!(
                    payloads.iter().any(|payload| payload.len() >= 72 && payload_matches(payload, &socket)),
                    "{socket:?}"
                );
                ControlFlow::Continue(())
            });
        });
    }
});
