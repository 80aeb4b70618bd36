//! Defines the columns of a socket record. [`COLUMNS`] describes each column once. JSON, ndjson, csv, tables, and `--columns` with its
//! help, completions and errors use this list.
//!
//! docs/architecture.md has the steps to add a column.

use std::time::Duration;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::human;
use super::record::SocketRecord;
use super::text::Text;
use super::value::Value;

/// The description of a column.
#[derive(Debug)]
pub struct Column {
    /// The JSON key, the csv header, and the name for `--columns`.
    pub key: &'static str,
    /// The header of the column in a table.
    pub title: &'static str,
    /// One line of documentation, for `--help` and completions.
    pub help: &'static str,
    /// Whether a table aligns the column to the right.
    pub right: bool,
    /// The order in which a table leaves out columns on a narrow terminal: the highest number first. A column with 0 always stays.
    pub drop_order: u8,
    /// Whether JSON, ndjson and csv have the column by default. `--columns` can name every column.
    in_record: bool,
    in_table: InTable,
    value: for<'r> fn(&'r SocketRecord<'_>) -> Value<'r>,
    cell: CellForm,
}

/// The condition under which a table shows a column if `--columns` is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InTable {
    Always,
    /// If rows can come from several network namespaces.
    SeveralNamespaces,
    /// If rows can be in another state than TIME_WAIT.
    SeveralStates,
    Never,
}

/// How a table shows a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CellForm {
    Exact,
    /// Milliseconds, as a rounded time.
    Duration,
    /// The name of the network namespace, or the inode number of a namespace without a name.
    Netns,
    /// Address and port, with the interface that the socket is bound to and the service of the local port.
    Local,
    /// Address and port, with the service of the remote port.
    Remote,
}

/// The defaults of a column.
const PLAIN: Column = Column {
    key: "",
    title: "",
    help: "",
    right: false,
    drop_order: 0,
    in_record: true,
    in_table: InTable::Never,
    value: |_| Value::Unknown,
    cell: CellForm::Exact,
};

macro_rules! columns {
    ($($key:literal => $column:expr;)*) => {
        /// Every column, in the order of JSON and csv records and, from left to right, of tables. Scripts rely on the order of
        /// records, so it must not change.
        pub static COLUMNS: &[Column] = &[$(Column { key: $key, ..$column }),*];

        /// Appends the columns of a record: a JSON object without its closing brace, or csv fields. `CONTINUES`: the JSON object
        /// is already open and has keys.
        ///
        /// The code is generated for each column. A loop over [`COLUMNS`] would call a function pointer per column, and `list -o
        /// ndjson` of 100,000 buckets would take 1.29 times the processor time (whole command, median of 21 pairs, 2 busy
        /// cores, Linux 6.18, 2026-11-27). `cargo bench --bench pure -- ndjson` shows both ways.
        fn append_record<const JSON: bool, const CONTINUES: bool>(record: &SocketRecord, text: &mut Text) {
            let mut first = !CONTINUES;
            $({
                const COLUMN: Column = $column;
                if COLUMN.in_record {
                    // The text before the value is a constant, so the compiler copies it with a few moves.
                    let before = match (JSON, first) {
                        (true, true) => concat!("{\"", $key, "\":"),
                        (true, false) => concat!(",\"", $key, "\":"),
                        (false, true) => "",
                        (false, false) => ",",
                    };
                    text.push_str(before);
                    let value = (COLUMN.value)(record);
                    if JSON { value.append_json(text) } else { value.append_csv(text) }
                    first = false;
                }
            })*
            let _ = first;
        }
    };
}

columns! {
    "netns" => Column {
        title: "NETNS INODE",
        help: "Inode number of the network namespace",
        value: |r| number(r.facts.netns),
        ..PLAIN
    };
    "netns_name" => Column {
        title: "NETNS",
        help: "Name of the network namespace, or PID:COMM of its process with the lowest pid",
        in_table: InTable::SeveralNamespaces,
        value: |r| text(r.facts.netns_name.as_deref()),
        cell: CellForm::Netns,
        ..PLAIN
    };
    "family" => Column {
        title: "FAMILY",
        help: "ipv4, ipv6 or ipv4-mapped",
        value: |r| Value::Word(r.tuple.family.name()),
        ..PLAIN
    };
    "state" => Column {
        title: "STATE",
        help: "State of the socket: time-wait or fin-wait-2",
        in_table: InTable::SeveralStates,
        value: |r| Value::Word(r.state.name()),
        ..PLAIN
    };
    "local" => Column {
        title: "LOCAL",
        help: "Local address and port",
        in_record: false,
        in_table: InTable::Always,
        value: |r| Value::End(r.tuple.local_addr(), r.tuple.local_port().0),
        cell: CellForm::Local,
        ..PLAIN
    };
    "local_addr" => Column {
        title: "LOCAL ADDRESS",
        help: "Local address",
        value: |r| Value::Addr(r.tuple.local_addr()),
        ..PLAIN
    };
    "local_port" => Column {
        title: "PORT",
        help: "Local port",
        value: |r| number(Some(r.tuple.local_port().0)),
        ..PLAIN
    };
    "local_class" => Column {
        title: "CLASS",
        help: "Class of the local port: well-known, registered or dynamic (RFC 6335)",
        drop_order: 2,
        in_table: InTable::Always,
        value: |r| Value::Word(r.tuple.local_port().class().name()),
        ..PLAIN
    };
    "local_service" => Column {
        title: "SERVICE",
        help: "Name of the local port in /etc/services",
        value: |r| text(r.service(r.tuple.local_port())),
        ..PLAIN
    };
    "remote" => Column {
        title: "REMOTE",
        help: "Remote address and port",
        in_record: false,
        in_table: InTable::Always,
        value: |r| r.remote().map_or(Value::Unknown, |(addr, port)| Value::End(addr, port.0)),
        cell: CellForm::Remote,
        ..PLAIN
    };
    "remote_addr" => Column {
        title: "REMOTE ADDRESS",
        help: "Remote address",
        value: |r| r.remote().map_or(Value::Unknown, |(addr, _)| Value::Addr(addr)),
        ..PLAIN
    };
    "remote_port" => Column {
        title: "REMOTE PORT",
        help: "Remote port",
        value: |r| number(r.remote().map(|(_, port)| port.0)),
        ..PLAIN
    };
    "remote_class" => Column {
        title: "REMOTE CLASS",
        help: "Class of the remote port",
        drop_order: 3,
        in_table: InTable::Always,
        value: |r| r.remote().map_or(Value::Unknown, |(_, port)| Value::Word(port.class().name())),
        ..PLAIN
    };
    "remote_service" => Column {
        title: "REMOTE SERVICE",
        help: "Name of the remote port in /etc/services",
        value: |r| text(r.remote().and_then(|(_, port)| r.service(port))),
        ..PLAIN
    };
    "direction" => Column {
        title: "DIRECTION",
        help: "Side that opened the connection, inferred: inbound, outbound or unknown",
        drop_order: 1,
        in_table: InTable::Always,
        value: |r| Value::Word(r.direction.name()),
        ..PLAIN
    };
    "expires_ms" => Column {
        title: "EXPIRES",
        help: "Remaining time (in milliseconds in csv)",
        right: true,
        in_table: InTable::Always,
        value: |r| number(r.expires_ms),
        cell: CellForm::Duration,
        ..PLAIN
    };
    "interface" => Column {
        title: "INTERFACE",
        help: "Interface that the socket is bound to",
        value: |r| text(r.interface.as_deref()),
        ..PLAIN
    };
    "mark" => Column {
        title: "MARK",
        help: "Mark of the socket (SO_MARK), which the kernel reports only to callers with CAP_NET_ADMIN",
        value: |r| number(r.mark),
        ..PLAIN
    };
    "cookie" => Column {
        title: "COOKIE",
        help: "Number by which the kernel identifies the socket",
        value: |r| r.cookie.map_or(Value::Unknown, |cookie| Value::Digits(cookie.number())),
        ..PLAIN
    };
}

#[inline]
fn number(value: Option<impl Into<u64>>) -> Value<'static> {
    value.map_or(Value::Unknown, |number| Value::Number(number.into()))
}

#[inline]
fn text(value: Option<&str>) -> Value<'_> {
    value.map_or(Value::Unknown, Value::Text)
}

impl Column {
    /// Finds the column with this key.
    #[must_use]
    pub fn find(key: &str) -> Option<&'static Self> {
        COLUMNS.iter().find(|column| column.key == key)
    }

    /// The columns of JSON, ndjson and csv, in their fixed order.
    pub fn of_record() -> impl Iterator<Item = &'static Self> {
        COLUMNS.iter().filter(|column| column.in_record)
    }

    /// The default columns of a table, for rows from one or several network namespaces and in one or several states.
    #[must_use]
    pub fn of_table(several_namespaces: bool, several_states: bool) -> Vec<&'static Self> {
        let shown = |column: &&Self| match column.in_table {
            InTable::Always => true,
            InTable::SeveralNamespaces => several_namespaces,
            InTable::SeveralStates => several_states,
            InTable::Never => false,
        };
        COLUMNS.iter().filter(shown).collect()
    }

    /// Returns the exact value of this column.
    #[must_use]
    pub fn value<'r>(&self, record: &'r SocketRecord<'_>) -> Value<'r> {
        (self.value)(record)
    }

    /// Appends the value as a table shows it: `-` for unknown, a rounded time, a port with its service. Returns the width in
    /// terminal columns.
    pub fn append_cell(&self, record: &SocketRecord, text: &mut Text) -> usize {
        let start = text.len();
        match (self.value(record), self.cell) {
            (Value::Unknown, CellForm::Netns) => match record.facts.netns {
                Some(inode) => text.push_number(inode),
                None => text.push('-'),
            },
            (Value::Unknown, _) => text.push('-'),
            (Value::Number(ms), CellForm::Duration) => human::append_duration(Duration::from_millis(ms), text),
            (Value::Text(foreign), _) => text.push_str(&human::escape(foreign)),
            (value, _) => match (value, &record.interface) {
                (Value::End(addr, port), Some(interface)) if matches!(self.cell, CellForm::Local) => {
                    // `[fe80::1%eth0]:80`, which twtool accepts as an argument (RFC 4007, section 11).
                    let (open, close) = if addr.is_ipv6() { ("[", "]:") } else { ("", ":") };
                    text.push_str(open);
                    Value::Addr(addr).append_text(text);
                    text.push('%');
                    text.push_str(&human::escape(interface));
                    text.push_str(close);
                    text.push_number(port.into());
                }
                (value, _) => value.append_text(text),
            },
        }
        let port = match self.cell {
            CellForm::Local => Some(record.tuple.local_port()),
            CellForm::Remote => record.remote().map(|(_, port)| port),
            CellForm::Exact | CellForm::Duration | CellForm::Netns => None,
        };
        if let Some(service) = port.and_then(|port| record.service(port)) {
            text.push_str(" (");
            text.push_str(&human::escape(service));
            text.push(')');
        }
        text.width_from(start)
    }
}

impl SocketRecord<'_> {
    /// Appends the record as a JSON object.
    pub fn append_json(&self, json: &mut Text) {
        append_record::<true, false>(self, json);
        json.push('}');
    }

    /// Appends the keys and values to a JSON object that already has keys.
    pub fn append_json_keys(&self, json: &mut Text) {
        append_record::<true, true>(self, json);
    }

    /// Appends the record as csv without a line end.
    pub fn append_csv(&self, csv: &mut Text) {
        append_record::<false, false>(self, csv);
    }
}

/// Serializes the keys and values of a socket record. Larger records contain them beside their own keys (`#[serde(flatten)]`).
impl Serialize for SocketRecord<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for column in Column::of_record() {
            map.serialize_entry(column.key, &column.value(self))?;
        }
        map.end()
    }
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
    fn an_appended_record_is_the_same_as_a_record_from_serde() {
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
        fn a_record_has_the_values_of_its_columns(
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
            Value::append_csv_line(Column::of_record().map(|column| column.value(&record)), &mut fields);
            csv.push('\n');
            prop_assert_eq!(csv, fields);
            for column in COLUMNS {
                let mut cell = Text::from("before ".to_owned());
                let width = column.append_cell(&record, &mut cell);
                let cell = String::from(cell);
                prop_assert_eq!(width + "before ".len(), human::display_width(&cell), "{}: {}", column.key, cell);
            }
        }
    }

    #[test]
    fn every_column_has_help_and_a_unique_key_and_title() {
        for (i, column) in COLUMNS.iter().enumerate() {
            assert!(!column.title.is_empty() && !column.help.is_empty() && !column.help.ends_with('.'), "{column:?}");
            assert!(
                COLUMNS[..i].iter().all(|other| other.key != column.key && other.title != column.title),
                "{column:?}"
            );
        }
    }

    #[test]
    fn docs_json_md_has_every_key_of_a_record() {
        let page = include_str!("../../docs/json.md");
        for column in Column::of_record() {
            let key = format!("`{}`", column.key);
            assert!(page.lines().any(|line| line.starts_with("| `") && line.contains(&key)), "{key}");
        }
    }

    #[test]
    fn a_table_has_the_namespace_and_the_state_only_if_rows_can_differ_in_them() {
        let keys = |several_namespaces, several_states| {
            let columns = Column::of_table(several_namespaces, several_states);
            columns.into_iter().map(|column| column.key).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(keys(false, false), "local local_class remote remote_class direction expires_ms");
        assert_eq!(keys(true, true), "netns_name state local local_class remote remote_class direction expires_ms");
    }

    #[test]
    fn a_table_shows_the_service_beside_the_port_and_a_dash_for_an_unknown_value() {
        let facts = facts();
        let row = row("10.0.0.1", 80, "10.0.0.2", 40000);
        let record = SocketRecord::of_row(&row, &facts);
        let cell = |key| {
            let mut cell = Text::default();
            Column::find(key).expect(key).append_cell(&record, &mut cell);
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
            column.append_cell(&record, &mut cell);
            String::from(cell)
        };
        assert_eq!(local("10.0.0.1", 1), "10.0.0.1%lo:80 (http)");
        assert_eq!(local("fe80::1", 1), "[fe80::1%lo]:80 (http)");
        assert_eq!(local("10.0.0.1", 7), "10.0.0.1%if7:80 (http)", "an interface that is gone");
        assert_eq!(local("10.0.0.1", 0), "10.0.0.1:80 (http)");
    }
}
