//! The columns of a socket record: one registry for json, ndjson, csv, tables, and for what `--columns` accepts.

use std::time::Duration;

use super::human;
use super::record::SocketRecord;
use super::text::Text;
use super::value::Value;

/// A column.
#[derive(Debug)]
pub struct Column {
    /// Its name: the key of JSON and csv, and for `--columns`.
    pub key: &'static str,
    /// Its heading in a table.
    pub title: &'static str,
    /// Whether a table aligns it to the right.
    pub right: bool,
    value: for<'r> fn(&'r SocketRecord<'_>) -> Value<'r>,
    shown: Shown,
}

/// What a table makes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Exact,
    /// A rounded time.
    Duration,
    /// By its number where it has no name.
    Netns,
    /// With the interface that the socket is bound to, and the service of the local port beside it.
    Local,
    /// With the service of the remote port beside it.
    RemoteService,
}

impl Column {
    /// The exact value.
    #[must_use]
    pub fn value<'r>(&self, record: &'r SocketRecord<'_>) -> Value<'r> {
        (self.value)(record)
    }

    /// Appends the value as a table has it: `-` for what is unknown, times rounded, a service beside its port. Returns how
    /// many columns of a terminal that takes.
    pub fn write_for_eyes(&self, record: &SocketRecord, text: &mut Text) -> usize {
        let start = text.len();
        // Of what comes from elsewhere bytes may be more than columns; of all else each is one.
        let (mut bytes, mut columns) = (0, 0);
        let mut append_foreign = |foreign: &str, text: &mut Text| {
            let escaped = human::escape(foreign);
            bytes += escaped.len();
            columns += human::display_width(&escaped);
            text.push_str(&escaped);
        };
        match self.value(record) {
            Value::Unknown if self.shown == Shown::Netns && record.facts.netns.is_some() => {
                number(record.facts.netns).append_text(text);
            }
            Value::Unknown => text.push('-'),
            Value::Number(ms) if self.shown == Shown::Duration => {
                human::append_duration(Duration::from_millis(ms), text);
            }
            Value::Text(foreign) => append_foreign(foreign, text),
            Value::End(addr, port) if let Some(interface) = self.scope(record) => {
                // `[fe80::1%eth0]:80`, as it can be typed again (RFC 4007, section 11).
                let (open, close) = if addr.is_ipv6() { ("[", "]:") } else { ("", ":") };
                text.push_str(open);
                Value::Addr(addr).append_text(text);
                text.push('%');
                append_foreign(interface, text);
                text.push_str(close);
                Value::Number(port.into()).append_text(text);
            }
            value => value.append_text(text),
        }
        if let Some(service) = self.service_beside(record) {
            text.push_str(" (");
            append_foreign(service, text);
            text.push(')');
        }
        text.len() - start + columns - bytes
    }

    /// The interface that a table shows with the address, for an address may be in use on one interface and free on another.
    fn scope<'r>(&self, record: &'r SocketRecord<'_>) -> Option<&'r str> {
        record.interface.as_deref().filter(|_| self.shown == Shown::Local)
    }

    fn service_beside<'r>(&self, record: &SocketRecord<'r>) -> Option<&'r str> {
        match self.shown {
            Shown::Local => record.service(record.tuple.local_port()),
            Shown::RemoteService => record.remote().and_then(|(_, port)| record.service(port)),
            Shown::Exact | Shown::Duration | Shown::Netns => None,
        }
    }

    /// How many columns of a terminal [`Self::write_for_eyes`] takes. A table asks that of every row before it writes any;
    /// to make each text twice would be most of its work.
    pub(super) fn width_for_eyes(&self, record: &SocketRecord) -> usize {
        let escaped = |text: &str| human::display_width(&human::escape(text));
        let value = match self.value(record) {
            Value::Unknown if self.shown == Shown::Netns && record.facts.netns.is_some() => {
                number(record.facts.netns).width()
            }
            Value::Unknown => 1,
            Value::Number(ms) if self.shown == Shown::Duration => human::duration_width(Duration::from_millis(ms)),
            Value::Text(text) => escaped(text),
            value => value.width(),
        };
        let scope = self.scope(record).map_or(0, |interface| "%".len() + escaped(interface));
        value + scope + self.service_beside(record).map_or(0, |service| escaped(service) + " ()".len())
    }

    /// The column of a key.
    #[must_use]
    pub fn find(key: &str) -> Option<&'static Self> {
        RECORD_COLUMNS.iter().chain(JOINED_COLUMNS).find(|column| column.key == key)
    }

    /// Every key that [`Self::find`] finds.
    pub fn keys() -> impl Iterator<Item = &'static str> {
        RECORD_COLUMNS.iter().chain(JOINED_COLUMNS).map(|column| column.key)
    }
}

fn number(value: Option<impl Into<u64>>) -> Value<'static> {
    value.map_or(Value::Unknown, |number| Value::Number(number.into()))
}

fn text(value: Option<&str>) -> Value<'_> {
    value.map_or(Value::Unknown, Value::Text)
}

macro_rules! column {
    ($key:literal, $title:literal, $value:expr) => {
        Column { key: $key, title: $title, right: false, value: $value, shown: Shown::Exact }
    };
}

/// The keys of a record, in the contract's order.
pub static RECORD_COLUMNS: &[Column] = &[
    column!("netns", "NETNS INODE", |r| number(r.facts.netns)),
    Column { shown: Shown::Netns, ..column!("netns_name", "NETNS", |r| text(r.facts.netns_name.as_deref())) },
    column!("family", "FAMILY", |r| Value::Word(r.tuple.family.name())),
    column!("state", "STATE", |r| Value::Word(r.state.name())),
    column!("local_addr", "LOCAL ADDRESS", |r| Value::Addr(r.tuple.local_addr())),
    column!("local_port", "PORT", |r| number(Some(r.tuple.local_port().0))),
    column!("local_class", "CLASS", |r| Value::Word(r.tuple.local_port().class().name())),
    column!("local_service", "SERVICE", |r| text(r.service(r.tuple.local_port()))),
    column!("remote_addr", "REMOTE ADDRESS", |r| r.remote().map_or(Value::Unknown, |(addr, _)| Value::Addr(addr))),
    column!("remote_port", "REMOTE PORT", |r| number(r.remote().map(|(_, port)| port.0))),
    column!("remote_class", "REMOTE CLASS", |r| {
        r.remote().map_or(Value::Unknown, |(_, port)| Value::Word(port.class().name()))
    }),
    column!("remote_service", "REMOTE SERVICE", |r| text(r.remote().and_then(|(_, port)| r.service(port)))),
    column!("direction", "DIRECTION", |r| Value::Word(r.direction.name())),
    Column { right: true, shown: Shown::Duration, ..column!("expires_ms", "EXPIRES", |r| number(r.expires_ms)) },
    column!("interface", "INTERFACE", |r| text(r.interface.as_deref())),
    column!("mark", "MARK", |r| number(r.mark)),
    column!("cookie", "COOKIE", |r| r.cookie.map_or(Value::Unknown, |cookie| Value::Digits(cookie.number()))),
];

/// Columns that join an address and its port, for `--columns` and tables.
static JOINED_COLUMNS: &[Column] = &[
    Column {
        shown: Shown::Local,
        ..column!("local", "LOCAL", |r| Value::End(r.tuple.local_addr(), r.tuple.local_port().0))
    },
    Column {
        shown: Shown::RemoteService,
        ..column!("remote", "REMOTE", |r| r.remote().map_or(Value::Unknown, |(addr, port)| Value::End(addr, port.0)))
    },
];

/// The columns of a table where none are chosen; the namespace only where there are several, the state only where it can
/// be more than TIME_WAIT.
#[must_use]
pub fn table_columns(with_netns: bool, with_state: bool) -> Vec<&'static Column> {
    let netns = if with_netns { &["netns_name"][..] } else { &[] };
    let state = if with_state { &["state"][..] } else { &[] };
    let keys = ["local", "local_class", "remote", "remote_class", "direction", "expires_ms"];
    netns.iter().chain(state).chain(&keys).filter_map(|key| Column::find(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::tests::facts;
    use crate::model::port::Port;
    use crate::model::row::tests::row;
    use crate::model::services::Services;
    use crate::model::socket::Cookie;
    use crate::view::json;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;
    use std::num::NonZeroU32;

    #[test]
    fn an_appended_record_is_what_serde_makes_of_it() {
        let facts = facts();
        let row = row("::ffff:10.0.0.1", 80, "::ffff:10.0.0.2", 40000);
        let record = SocketRecord::of_row(&row, &facts);
        let mut json = Text::default();
        record.append_json(&mut json);
        let json = String::from(json);
        assert_eq!(json, json::to_string(&record).expect("json"));
        assert_eq!(
            json,
            "{\"netns\":4026531840,\"netns_name\":\"web\",\"family\":\"ipv4-mapped\",\"state\":\"time-wait\",\"local_addr\":\"10.0.0.1\",\
             \"local_port\":80,\"local_class\":\"well-known\",\"local_service\":\"http\",\"remote_addr\":\"10.0.0.2\",\
             \"remote_port\":40000,\"remote_class\":\"registered\",\"remote_service\":null,\"direction\":\"unknown\",\
             \"expires_ms\":10000,\"interface\":null,\"mark\":null,\"cookie\":\"1\"}"
        );
    }

    proptest! {
        #[test]
        fn records_that_are_written_out_are_those_of_the_columns(
            kind in 0..3, addrs in any::<[u32; 2]>(), ports in any::<[u16; 2]>(), expires_ms in any::<u32>(),
            mark in any::<Option<u32>>(), cookie in any::<u64>(), interface in 0_u32..3, named in any::<bool>(),
            name in proptest::option::of("[a-z]{1,3}|[0-9]:[\"\\\\,\\PC\n\x1b]{1,4}"),
        ) {
            let form = |addr: u32| match kind {
                0 => Ipv4Addr::from(addr).to_string(),
                1 => format!("::ffff:{}", Ipv4Addr::from(addr)),
                _ => format!("2001:db8:{:x}::{:x}", addr >> 16, addr & 0xffff),
            };
            let mut facts = facts();
            facts.netns_name = name;
            if named {
                facts.services = Services::new([(Port(ports[0]), ["a,\"b\""]), (Port(ports[1]), ["x"])]);
            }
            let mut row = row(&form(addrs[0]), ports[0], &form(addrs[1]), ports[1]);
            row.bucket.expires_ms = expires_ms;
            row.bucket.mark = mark;
            row.bucket.cookie = Cookie::new(cookie);
            row.bucket.interface = NonZeroU32::new(interface);
            let record = SocketRecord::of_row(&row, &facts);
            let (mut json, mut csv, mut fields) = (Text::default(), Text::default(), Text::default());
            record.append_json(&mut json);
            prop_assert_eq!(String::from(json), json::to_string(&record).expect("json"));
            record.append_csv(&mut csv);
            Value::append_csv_line(RECORD_COLUMNS.iter().map(|column| column.value(&record)), &mut fields);
            csv.push('\n');
            prop_assert_eq!(csv, fields);
            for column in RECORD_COLUMNS.iter().chain(JOINED_COLUMNS) {
                let mut cell = Text::default();
                let written = column.write_for_eyes(&record, &mut cell);
                let cell = String::from(cell);
                prop_assert_eq!(written, human::display_width(&cell), "{}: {}", column.key, cell);
                prop_assert_eq!(column.width_for_eyes(&record), written, "{}: {}", column.key, cell);
            }
        }
    }

    #[test]
    fn a_table_shows_the_service_beside_the_port_and_a_dash_for_what_is_unknown() {
        let facts = facts();
        let row = row("10.0.0.1", 80, "10.0.0.2", 40000);
        let record = SocketRecord::of_row(&row, &facts);
        let cell = |key| {
            let mut cell = Text::default();
            Column::find(key).expect(key).write_for_eyes(&record, &mut cell);
            String::from(cell)
        };
        assert_eq!(["local", "expires_ms", "mark"].map(cell), ["10.0.0.1:80 (http)", "10.0s", "-"]);
    }

    #[test]
    fn a_table_shows_the_interface_with_the_local_address() {
        let facts = facts();
        let local = |addr: &str, interface| {
            let mut row = row(addr, 80, addr, 40000);
            row.bucket.interface = NonZeroU32::new(interface);
            let mut cell = Text::default();
            let record = SocketRecord::of_row(&row, &facts);
            let column = Column::find("local").expect("a column");
            let width = column.write_for_eyes(&record, &mut cell);
            assert_eq!(width, column.width_for_eyes(&record));
            String::from(cell)
        };
        assert_eq!(local("10.0.0.1", 1), "10.0.0.1%lo:80 (http)");
        assert_eq!(local("fe80::1", 1), "[fe80::1%lo]:80 (http)");
        assert_eq!(local("10.0.0.1", 7), "10.0.0.1%if7:80 (http)", "an interface that is gone");
        assert_eq!(local("10.0.0.1", 0), "10.0.0.1:80 (http)");
    }
}
