//! The record of a socket: what the columns of `column.rs` read.

use std::net::IpAddr;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::column::RECORD_COLUMNS;
use super::text::Text;
use super::value::{Value, append_addr};
use crate::model::facts::Facts;
use crate::model::port::Port;
use crate::model::row::{Direction, Row};
use crate::model::socket::{Cookie, FourTuple, Socket, TcpState, TimeWaitBucket};

/// One socket with the facts that name its parts.
#[derive(Clone, Debug)]
pub struct SocketRecord<'a> {
    pub(super) tuple: &'a FourTuple,
    pub(super) state: TcpState,
    pub(super) direction: Direction,
    pub(super) expires_ms: Option<u32>,
    pub(super) interface: Option<String>,
    pub(super) mark: Option<u32>,
    pub(super) cookie: Option<Cookie>,
    pub(super) facts: &'a Facts,
}

impl<'a> SocketRecord<'a> {
    /// The record of a list's row.
    #[must_use]
    #[inline]
    pub fn of_row(row: &'a Row, facts: &'a Facts) -> Self {
        Self::of_bucket(&row.bucket, row.direction, facts)
    }

    /// The record of a bucket.
    #[inline]
    pub(super) fn of_bucket(bucket: &'a TimeWaitBucket, direction: Direction, facts: &'a Facts) -> Self {
        Self {
            tuple: &bucket.tuple,
            state: bucket.state(),
            direction,
            expires_ms: Some(bucket.expires_ms),
            interface: bucket.interface.map(|index| facts.interface_name(index)),
            mark: bucket.mark,
            cookie: bucket.cookie,
            facts,
        }
    }

    /// The record of any socket.
    #[must_use]
    pub fn new(socket: &'a Socket, direction: Direction, facts: &'a Facts) -> Self {
        match socket {
            Socket::Bucket(bucket) => Self::of_bucket(bucket, direction, facts),
            Socket::Full(full) => Self {
                tuple: &full.tuple,
                state: full.state,
                direction,
                expires_ms: None,
                interface: full.interface.map(|index| facts.interface_name(index)),
                mark: full.mark,
                cookie: full.cookie,
                facts,
            },
        }
    }

    /// The other end. A socket that is connected to nobody has none; the kernel's zeros are placeholders.
    pub(super) fn remote(&self) -> Option<(IpAddr, Port)> {
        let connected = !matches!(self.state, TcpState::Listen | TcpState::Closed | TcpState::BoundInactive);
        connected.then(|| (self.tuple.remote_addr(), self.tuple.remote_port()))
    }

    pub(super) fn service(&self, port: Port) -> Option<&'a str> {
        self.facts.services.name(port)
    }

    /// Appends the record as a JSON object.
    pub fn append_json(&self, json: &mut Text) {
        self.append(&mut Fields::<true>(json));
        json.push('}');
    }

    /// Appends the record as csv, without a line end.
    pub fn append_csv(&self, csv: &mut Text) {
        self.append(&mut Fields::<false>(csv));
    }

    /// Every field of `RECORD_COLUMNS` in its order, written out: where all of a million rows are wanted, going through
    /// the columns one by one takes most of the time. A property test holds the two together.
    fn append<const JSON: bool>(&self, out: &mut Fields<JSON>) {
        let tuple = self.tuple;
        let (local_port, remote) = (tuple.local_port(), self.remote());
        out.key("{\"netns\":", "").number(self.facts.netns);
        out.key(",\"netns_name\":", ",").text(self.facts.netns_name.as_deref());
        out.key(",\"family\":", ",").word(Some(tuple.family.name()));
        out.key(",\"state\":", ",").word(Some(self.state.name()));
        out.key(",\"local_addr\":", ",").addr(Some(tuple.local_addr()));
        out.key(",\"local_port\":", ",").number(Some(local_port.0.into()));
        out.key(",\"local_class\":", ",").word(Some(local_port.class().name()));
        out.key(",\"local_service\":", ",").text(self.service(local_port));
        out.key(",\"remote_addr\":", ",").addr(remote.map(|(addr, _)| addr));
        out.key(",\"remote_port\":", ",").number(remote.map(|(_, port)| port.0.into()));
        out.key(",\"remote_class\":", ",").word(remote.map(|(_, port)| port.class().name()));
        out.key(",\"remote_service\":", ",").text(remote.and_then(|(_, port)| self.service(port)));
        out.key(",\"direction\":", ",").word(Some(self.direction.name()));
        out.key(",\"expires_ms\":", ",").number(self.expires_ms.map(u64::from));
        out.key(",\"interface\":", ",").text(self.interface.as_deref());
        out.key(",\"mark\":", ",").number(self.mark.map(u64::from));
        out.key(",\"cookie\":", ",").digits(self.cookie.map(Cookie::number));
    }
}

/// Fields of JSON, or of csv.
struct Fields<'a, const JSON: bool>(&'a mut Text);

impl<const JSON: bool> Fields<'_, JSON> {
    /// What stands before a field: its key, or what parts it from the one before. Inlined, so that each is copied as a
    /// constant.
    #[expect(clippy::inline_always, reason = "the copy of a constant is a few moves, a call to memcpy is not")]
    #[inline(always)]
    fn key(&mut self, json: &'static str, csv: &'static str) -> &mut Self {
        self.0.push_str(if JSON { json } else { csv });
        self
    }

    #[inline]
    fn unknown(&mut self) {
        if JSON {
            self.0.push_str("null");
        }
    }

    /// What needs no escaping, in the quotes that JSON wants.
    #[inline]
    fn quoted(&mut self, append: impl FnOnce(&mut Text)) {
        if JSON {
            self.0.push('"');
        }
        append(self.0);
        if JSON {
            self.0.push('"');
        }
    }

    fn number(&mut self, number: Option<u64>) {
        match number {
            Some(number) => self.0.push_number(number),
            None => self.unknown(),
        }
    }

    fn digits(&mut self, number: Option<u64>) {
        match number {
            Some(number) => self.quoted(|text| text.push_number(number)),
            None => self.unknown(),
        }
    }

    fn word(&mut self, word: Option<&'static str>) {
        match word {
            Some(word) => self.quoted(|text| text.push_str(word)),
            None => self.unknown(),
        }
    }

    fn addr(&mut self, addr: Option<IpAddr>) {
        match addr {
            Some(addr) => self.quoted(|text| append_addr(addr, text)),
            None => self.unknown(),
        }
    }

    fn text(&mut self, text: Option<&str>) {
        match text {
            Some(text) if JSON => Value::Text(text).append_json(self.0),
            Some(text) => Value::Text(text).append_csv(self.0),
            None => self.unknown(),
        }
    }
}

/// The same keys and values, for records that have more.
impl Serialize for SocketRecord<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(RECORD_COLUMNS.len()))?;
        for column in RECORD_COLUMNS {
            map.serialize_entry(column.key, &column.value(self))?;
        }
        map.end()
    }
}
