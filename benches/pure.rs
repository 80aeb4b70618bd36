//! Benchmarks without the kernel: decoding, filtering and formatting 100,000 rows, and parsing arguments.

use std::hint::black_box;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::time::SystemTime;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use twtool::cli;
use twtool::filter::parser;
use twtool::model::facts::{Facts, UnreadFacts};
use twtool::model::port::{LocalPortRange, LocalReservedPorts, Port, PortRange};
use twtool::model::row::{Direction, Row};
use twtool::model::services::Services;
use twtool::model::socket::{Socket, StateSet, TcpState};
use twtool::sock_diag::request::{Request, SEQUENCE, TCPDIAG_GETSOCK, Walk};
use twtool::sock_diag::transport::Transport;
use twtool::sock_diag::{bytecode, dump, response};
use twtool::view::column::Column;
use twtool::view::list::{ListTable, RowMeasurements, Stream, prefetch, table};
use twtool::view::record::SocketRecord;
use twtool::view::style::TextStyle;
use twtool::view::text::Text;

const ROWS: u32 = 100_000;

const EXPRESSION: &str =
    "(sport = :443 or dport >= 8000) and dst 10.0.0.0/8 and not src [2001:db8::]/32 and expires < 30s";

fn facts() -> Facts {
    Facts {
        taken_at: SystemTime::UNIX_EPOCH,
        kernel: "6.18.0".into(),
        netns: Some(4_026_531_840),
        netns_name: Some("1:init".into()),
        local_port_range: PortRange::new(Port(32768), Port(60999)).map(LocalPortRange),
        local_reserved_ports: Some(LocalReservedPorts(vec![])),
        unprivileged_port_start: Some(1024),
        services: Services::new([(Port(443), ["https"]), (Port(8080), ["http-alt"])]),
        interfaces: NonZeroU32::new(1).map(|lo| (lo, "lo".to_owned())).into_iter().collect(),
        unread: UnreadFacts::default(),
    }
}

fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + payload.len()).expect("short");
    let header =
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &2_u16.to_ne_bytes(), &SEQUENCE.to_ne_bytes(), &[0; 4]];
    [header.concat(), payload.to_vec()].concat()
}

/// The `struct inet_diag_msg` of bucket `i`, and the INET_DIAG_MARK that a privileged caller gets. Every third bucket is IPv6.
fn payload(i: u32) -> Vec<u8> {
    let port = |n: u32| u16::try_from(n).expect("a port").to_be_bytes();
    let addr = |n: u32| match i % 3 {
        0 => Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(n)).octets().to_vec(),
        _ => [&Ipv4Addr::from(0x0a00_0000 | n).octets()[..], &[0; 12]].concat(),
    };
    let family = if i.is_multiple_of(3) { 10 } else { 2 };
    let own = [443, 8080, 32768 + i % 28_000][(i % 7 % 3) as usize];
    let cookie = [i + 1, 1].map(u32::to_ne_bytes).concat();
    [
        &[family, 6, 3, 0][..],
        &port(own),
        &port(1024 + i % 60_000),
        &addr(i % 256),
        &addr(i),
        &[0; 4],
        &cookie,
        &(i % 60_000).to_ne_bytes(),
        &[0; 16],
        &[8, 0, 15, 0, 0, 0, 0, 0],
    ]
    .concat()
}

struct PreparedDatagrams<'a>(std::slice::Iter<'a, Vec<u8>>);

impl Transport for PreparedDatagrams<'_> {
    fn send(&mut self, _: &Request) -> io::Result<()> {
        Ok(())
    }

    fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let datagram = self.0.next().ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.clear();
        buffer.extend_from_slice(datagram);
        Ok(datagram.len())
    }
}

fn rows() -> Vec<Row> {
    let bucket = |i| match response::decode(&payload(i)) {
        Ok(Socket::Bucket(bucket)) => Row { bucket, direction: Direction::Inbound, netns: 0 },
        other => panic!("no bucket: {other:?}"),
    };
    (0..ROWS).map(bucket).collect()
}

fn decoding(c: &mut Criterion) {
    let messages: Vec<Vec<u8>> = (0..ROWS).map(|i| message(TCPDIAG_GETSOCK, &payload(i))).collect();
    // 340 messages of 96 bytes have almost 32 KiB, the size to which the kernel fills a datagram.
    let mut datagrams: Vec<Vec<u8>> = messages.chunks(340).map(<[_]>::concat).collect();
    // NLMSG_DONE
    datagrams.push(message(3, &[0; 4]));
    let states = StateSet::of(&[TcpState::Listen, TcpState::TimeWait]);
    let request = Request { walk: Walk::BothFamilies, states, program: None, tcp_info: false };
    let mut group = c.benchmark_group("dump");
    group.throughput(Throughput::Elements(ROWS.into()));
    group.bench_function("decode", |b| {
        b.iter(|| {
            let mut sum = 0_u64;
            let end = dump::run(&mut PreparedDatagrams(datagrams.iter()), &request, &mut |socket| {
                sum += u64::from(socket.tuple().local_port().0);
                ControlFlow::Continue(())
            });
            assert!(end.is_ok());
            sum
        });
    });
}

fn formatting(c: &mut Criterion) {
    let (rows, facts) = (rows(), facts());
    let mut group = c.benchmark_group("format");
    group.throughput(Throughput::Elements(ROWS.into()));
    let stream = |mut stream: Stream| {
        rows.iter().try_for_each(|row| stream.write(row, &facts)).and_then(|()| stream.finish()).expect("written");
    };
    group.bench_function("ndjson", |b| b.iter(|| stream(Stream::ndjson(&mut io::sink()))));
    // The difference from `ndjson` is the gain from the generated code of view/column.rs.
    let mut text = Text::default();
    group.bench_function("ndjson in a loop over the columns", |b| {
        b.iter(|| {
            for row in &rows {
                let record = SocketRecord::of_row(row, &facts);
                text.truncate(0);
                for (i, column) in Column::of_record().enumerate() {
                    text.push_str(if i == 0 { "{\"" } else { ",\"" });
                    text.push_str(column.key);
                    text.push_str("\":");
                    column.value(&record).append_json(&mut text);
                }
                text.push_str("}\n");
                black_box(text.as_bytes());
            }
        });
    });
    let columns: Vec<_> = Column::of_record().collect();
    group.bench_function("csv", |b| b.iter(|| stream(Stream::csv(&mut io::sink(), &columns, true))));
    let references: Vec<&Row> = rows.iter().collect();
    let style = TextStyle { color: false, width: None, unicode: true };
    let draw = |facts: &Facts| {
        let facts = std::slice::from_ref(facts);
        let measurements = RowMeasurements::of_rows(&references, facts, &Column::of_table(false, false));
        let list = ListTable { rows: &references, facts, measurements, total: rows.len(), header: true };
        table(&mut io::sink(), &list, style).expect("written");
    };
    group.bench_function("table", |b| b.iter(|| draw(&facts)));
    // The difference from `table` is the gain from view/fast_path.rs, which twtool does not use if the name of a service is not ASCII.
    let named = Facts { services: Services::new([(Port(1), ["\u{f6}"])]), ..facts.clone() };
    group.bench_function("table without fast path", |b| b.iter(|| draw(&named)));
    group.finish();
    prefetching(c, &rows, &facts);
}

/// Measures the prefetch of view/list.rs on rows whose order differs from their order in memory.
fn prefetching(c: &mut Criterion, rows: &[Row], facts: &Facts) {
    let mut shuffled: Vec<&Row> = rows.iter().collect();
    shuffled.sort_by_key(|row| row.bucket.cookie.map(|cookie| cookie.number().wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let write = |before: fn(&[&Row])| {
        let mut text = Text::default();
        for part in shuffled.chunks(256) {
            before(part);
            text.truncate(0);
            for row in part {
                SocketRecord::of_row(row, facts).append_json(&mut text);
            }
            black_box(text.as_bytes());
        }
    };
    let mut group = c.benchmark_group("prefetch");
    group.throughput(Throughput::Elements(ROWS.into()));
    group.bench_function("with", |b| b.iter(|| write(prefetch)));
    group.bench_function("without", |b| b.iter(|| write(|_| ())));
}

fn filtering(c: &mut Criterion) {
    let (rows, facts) = (rows(), facts());
    let filter = parser::parse(EXPRESSION, &facts).expect("an expression").filter;
    let mut group = c.benchmark_group("filter");
    group.bench_function("parse", |b| b.iter(|| parser::parse(black_box(EXPRESSION), &facts).expect("an expression")));
    group.bench_function("compile", |b| b.iter(|| bytecode::compile(black_box(&filter))));
    group.throughput(Throughput::Elements(ROWS.into()));
    group.bench_function("accepts", |b| b.iter(|| rows.iter().filter(|row| filter.accepts(row)).count()));
}

/// Measures the gain if clap builds only the arguments of the given command.
fn arguments(c: &mut Criterion) {
    let words = ["twtool", "list"];
    let mut group = c.benchmark_group("arguments");
    group.bench_function("of one command", |b| b.iter(|| cli::command().get_matches_from(words)));
    group.bench_function("of every command", |b| {
        b.iter(|| {
            let mut command = cli::command();
            command.build();
            command.get_matches_from(words)
        });
    });
}

criterion_group!(pure, decoding, formatting, filtering, arguments);
criterion_main!(pure);
