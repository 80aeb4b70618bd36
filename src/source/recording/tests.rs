//! Tests of recordings and of series of samples.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use super::header::LATEST_MS;
use super::*;
use crate::model::facts::UnreadFacts;
use crate::model::kernel_counts::{TcpExt, TcpSockstat};
use crate::model::port::{LocalPortRange, LocalReservedPorts, Port, PortRange};
use crate::model::services::Services;
use crate::model::socket::{Cookie, StateSet};
use crate::sock_diag::request::Walk;
use crate::sock_diag::transport;
use proptest::prelude::*;

fn facts() -> Facts {
    Facts {
        taken_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        kernel: "6.18.0".into(),
        netns: Some(4_026_531_840),
        netns_name: Some("web".into()),
        local_port_range: PortRange::new(Port(32768), Port(60999)).map(LocalPortRange),
        local_reserved_ports: Some(LocalReservedPorts(vec![PortRange::one(Port(8080))])),
        unprivileged_port_start: None,
        services: Services::new([(Port(80), ["http", "www"])]),
        interfaces: [(NonZeroU32::MIN, "lo".to_owned())].into_iter().collect(),
        unread: UnreadFacts::default(),
    }
}

fn buckets() -> BucketFacts {
    BucketFacts {
        max_tw_buckets: Some(4096),
        tw_timeout_s: None,
        sockstat: Some(TcpSockstat { inuse: 1, orphan: 2, tw: 3, alloc: 4, mem: 5 }),
        tcp_ext: Some(TcpExt(BTreeMap::from([("TW".to_owned(), 7)]))),
        bucket_bytes: Some(256),
    }
}

fn events() -> Vec<TransportEvent> {
    let request = Request { walk: Walk::BothFamilies, states: StateSet::ALL, program: None, tcp_info: false };
    vec![
        TransportEvent::Request(request),
        TransportEvent::Datagram(vec![0, 1, 0xfe, 0xff]),
        TransportEvent::RecvFailed(105),
    ]
}

fn written() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recording");
    let mut file = RecordingFile::create(&path, false, &facts(), &buckets()).expect("a file");
    for event in events() {
        file.keep(&event).expect("kept");
    }
    file.finish().expect("finished");
    std::fs::read(&path).expect("there")
}

#[test]
fn a_recording_is_read_back_unchanged() {
    assert_eq!(
        parse(&written()),
        Ok(RecordingContent { facts: facts(), buckets: buckets(), events: events(), sample: None })
    );
}

#[test]
fn counts_that_the_header_does_not_have_are_unknown() {
    let header = serde_json::to_string(&Header::new(&facts(), &BucketFacts::default())).expect("a header");
    assert!(!header.contains("buckets"), "{header}");
    let old: Header = serde_json::from_str(&header).expect("read");
    assert_eq!(old.content(), Ok((facts(), BucketFacts::default())));
}

#[test]
fn a_recording_that_is_too_short_or_too_long_is_rejected() {
    let whole = written();
    // Only the line feed of the last line may be missing.
    for cut in 0..whole.len() - 1 {
        assert!(parse(&whole[..cut]).is_err(), "cut at {cut}");
    }
    let more = [whole.as_slice(), b"x"].concat();
    assert!(parse(&more).is_err());
}

#[test]
fn a_recording_with_any_byte_changed_before_its_last_line_is_refused() {
    let whole = written();
    let end = whole.len() - whole.rsplit(|&b| b == b'\n').nth(1).map_or(0, <[u8]>::len) - 1;
    for at in 0..end {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(parse(&changed).is_err(), "byte {at}");
    }
}

#[test]
fn a_recording_that_a_replay_would_not_accept_is_not_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recording");
    let far = SystemTime::UNIX_EPOCH + Duration::from_millis(LATEST_MS + 1);
    let many = Services::new((0..u16::MAX).map(|port| (Port(port), ["x".repeat(300)])));
    for facts in [
        Facts { taken_at: far, ..facts() },
        Facts { taken_at: SystemTime::UNIX_EPOCH - Duration::from_secs(1), ..facts() },
        Facts { services: many, ..facts() },
    ] {
        let made = RecordingFile::create(&path, false, &facts, &buckets());
        assert!(matches!(made, Err(RecordingError::Unfit { .. })));
    }
    let mut file = RecordingFile::create(&path, false, &facts(), &buckets()).expect("a file");
    assert!(file.keep(&TransportEvent::Datagram(vec![0; 8 * transport::BUFFER])).is_err());
    file.keep(&TransportEvent::Datagram(vec![0; transport::BUFFER])).expect("the largest datagram that is received");
    file.finish().expect("finished");
    assert!(read(&path).is_ok());
}

#[test]
fn control_characters_in_names_are_escaped_in_the_file_and_read_back() {
    let facts = Facts { netns_name: Some("1:\u{9b}2J\u{202e}\x7f\u{1f600}".into()), ..facts() };
    let line = Header::new(&facts, &buckets()).line(&facts, &buckets()).expect("a header");
    assert!(line.contains(r"1:\u009b2J\u202e\u007f"), "{line}");
}

#[test]
fn a_series_can_store_the_maximum_number_of_occupants() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("series");
    let found: BTreeMap<u64, Occupant> =
        (0..MAX_OCCUPANTS as u64).map(|number| (u64::MAX - number, Occupant::Another)).collect();
    let occupant = |sample: &RecordedSample, cookie| sample.occupant(Cookie::new(cookie));
    for (is_whole, other) in [(true, Occupant::Nobody), (false, Occupant::Unknown)] {
        let mut sample = RecordedSample::default();
        sample.set_occupants(found.clone(), is_whole);
        let mut series = SeriesFile::create(&path, true).expect("a file");
        series.begin(&facts(), &buckets()).expect("written");
        series.end(Some(sample)).expect("written");
        series.finish().expect("finished");
        let mut reader = SeriesReader::open(&path).expect("a file");
        let (_, sample) = reader.next_sample().expect("a series").expect("a sample");
        assert_eq!((occupant(&sample, u64::MAX), occupant(&sample, 1)), (Occupant::Another, other));
    }
}

#[test]
fn looked_up_buckets_without_occupant_stay_different_from_buckets_that_were_not_looked_up() {
    let found = BTreeMap::from([(1, Occupant::Nobody), (2, Occupant::Unknown), (3, Occupant::Another)]);
    for (is_whole, other) in [(true, Occupant::Nobody), (false, Occupant::Unknown)] {
        let mut sample = RecordedSample::default();
        sample.set_occupants(found.clone(), is_whole);
        let read = [1, 2, 3, 4].map(|cookie| sample.occupant(Cookie::new(cookie)));
        assert_eq!(read, [Occupant::Nobody, Occupant::Unknown, Occupant::Another, other]);
        assert_eq!(sample.occupants.len(), 2, "the answer for all other buckets is stored once");
    }
}

#[test]
fn an_existing_file_is_replaced_only_on_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recording");
    std::fs::write(&path, "mine").expect("written");
    assert!(matches!(RecordingFile::create(&path, false, &facts(), &buckets()), Err(RecordingError::Exists { .. })));
    RecordingFile::create(&path, true, &facts(), &buckets()).and_then(RecordingFile::finish).expect("replaced");
    assert!(read(&path).is_ok());
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).expect("a link");
    assert!(matches!(RecordingFile::create(&link, true, &facts(), &buckets()), Err(RecordingError::Exists { .. })));
}

#[test]
fn an_unfinished_recording_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    drop(RecordingFile::create(&folder.path().join("recording"), false, &facts(), &buckets()).expect("a file"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(parse(&bytes).is_err());
    }
}
