//! The first line of a recording: the facts.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::RecordingLine;
use crate::model::facts::{Facts, UnreadFacts};
use crate::model::interfaces::Interfaces;
use crate::model::kernel_counts::{BucketFacts, TcpExt, TcpSockstat};
use crate::model::name::json_escaped;
use crate::model::port::{LocalPortRange, LocalReservedPorts, Port, PortRange};
use crate::model::services::Services;
use crate::model::time::milliseconds;

const FORMAT: &str = "twtool-recording/1";
const BYTE_ORDER: &str = if cfg!(target_endian = "little") { "little" } else { "big" };

/// The maximum length of the first line in bytes. The facts of a machine with 10,000 interfaces and services need less than 1 MiB.
pub(super) const MAX_HEADER_LENGTH: u64 = 16 << 20;

/// The end of the year 9999 in ms since 1970: the last time that RFC 3339 can write.
pub(super) const LATEST_MS: u64 = 253_402_300_799_999;

#[derive(Serialize, Deserialize)]
pub(super) struct Header {
    format: String,
    byte_order: String,
    taken_at_ms: u64,
    kernel: String,
    netns: Option<u64>,
    netns_name: Option<String>,
    local_port_range: Option<(u16, u16)>,
    local_reserved_ports: Option<Vec<(u16, u16)>>,
    unprivileged_port_start: Option<u32>,
    interfaces: BTreeMap<u32, String>,
    services: Vec<(u16, Vec<String>)>,
    /// The facts that could not be read, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unread: Vec<(String, String)>,
    /// The kernel's counts and settings about buckets. Recordings of older versions of twtool do not have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    buckets: Option<RecordedBucketFacts>,
}

#[derive(Serialize, Deserialize)]
struct RecordedBucketFacts {
    max_tw_buckets: Option<i64>,
    tw_timeout_s: Option<u64>,
    sockstat: Option<Sockstat>,
    tcp_ext: Option<BTreeMap<String, u64>>,
    bucket_bytes: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Sockstat {
    inuse: u64,
    orphan: u64,
    tw: u64,
    alloc: u64,
    mem: u64,
}

impl RecordedBucketFacts {
    fn new(facts: &BucketFacts) -> Self {
        let BucketFacts { max_tw_buckets, tw_timeout_s, sockstat, tcp_ext, bucket_bytes } = facts.clone();
        let sockstat =
            sockstat.map(|TcpSockstat { inuse, orphan, tw, alloc, mem }| Sockstat { inuse, orphan, tw, alloc, mem });
        Self { max_tw_buckets, tw_timeout_s, sockstat, tcp_ext: tcp_ext.map(|counters| counters.0), bucket_bytes }
    }

    fn facts(self) -> BucketFacts {
        let Self { max_tw_buckets, tw_timeout_s, sockstat, tcp_ext, bucket_bytes } = self;
        let sockstat =
            sockstat.map(|Sockstat { inuse, orphan, tw, alloc, mem }| TcpSockstat { inuse, orphan, tw, alloc, mem });
        BucketFacts { max_tw_buckets, tw_timeout_s, sockstat, tcp_ext: tcp_ext.map(TcpExt), bucket_bytes }
    }
}

impl Header {
    pub(super) fn new(facts: &Facts, buckets: &BucketFacts) -> Self {
        let pair = |range: &PortRange| (range.first().0, range.last().0);
        let taken_at = facts.taken_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            format: FORMAT.into(),
            byte_order: BYTE_ORDER.into(),
            taken_at_ms: milliseconds(taken_at),
            kernel: facts.kernel.clone(),
            netns: facts.netns,
            netns_name: facts.netns_name.clone(),
            local_port_range: facts.local_port_range.map(|range| pair(&range.0)),
            local_reserved_ports: facts.local_reserved_ports.as_ref().map(|list| list.0.iter().map(pair).collect()),
            unprivileged_port_start: facts.unprivileged_port_start,
            interfaces: facts.interfaces.list().into_iter().map(|(index, name)| (index.get(), name)).collect(),
            services: facts
                .services
                .entries()
                .map(|(port, names)| (port.0, names.map(str::to_owned).collect()))
                .collect(),
            unread: facts.unread.0.clone(),
            buckets: (*buckets != BucketFacts::default()).then(|| RecordedBucketFacts::new(buckets)),
        }
    }

    /// Returns the first line of the recording. Fails if a replay would not read the same facts from it.
    pub(super) fn line(&self, facts: &Facts, buckets: &BucketFacts) -> Result<String, String> {
        let mut line = json_escaped(serde_json::to_string(self).map_err(|error| error.to_string())?);
        line.push('\n');
        let header = Self::read(line.as_bytes())?;
        if line.len() as u64 > MAX_HEADER_LENGTH {
            return Err(format!(
                "its facts need more than {MAX_HEADER_LENGTH} bytes; /etc/services may have too many names"
            ));
        }
        let (read_facts, read_buckets) = header.content()?;
        let same_time = facts.taken_at.duration_since(read_facts.taken_at).is_ok_and(|rest| rest.as_millis() == 0);
        if !same_time {
            return Err("the system clock is wrong: a recording can store only times from 1970 to 9999".into());
        }
        // Do not compare the interfaces: the list is read from the kernel at each comparison, and may have changed.
        let rest =
            |taken: &Facts| Facts { taken_at: facts.taken_at, interfaces: Interfaces::default(), ..taken.clone() };
        let same = rest(&read_facts) == rest(facts) && read_buckets == *buckets;
        if same { Ok(line) } else { Err("a replay would read different facts from it".into()) }
    }

    pub(super) fn read(line: &[u8]) -> Result<Self, String> {
        let header = serde_json::from_slice(line).ok().filter(|header: &Self| header.format == FORMAT);
        header.ok_or_else(|| {
            if serde_json::from_slice::<RecordingLine>(line).is_ok() {
                "its beginning is missing".into()
            } else {
                format!("its first line is not a header of the format {FORMAT}")
            }
        })
    }

    pub(super) fn content(mut self) -> Result<(Facts, BucketFacts), String> {
        let buckets = self.buckets.take().map(RecordedBucketFacts::facts).unwrap_or_default();
        Ok((self.facts()?, buckets))
    }

    fn facts(self) -> Result<Facts, String> {
        if self.byte_order != BYTE_ORDER {
            return Err(format!(
                "it was made on a {}-endian machine, and this machine is {BYTE_ORDER}-endian",
                self.byte_order
            ));
        }
        let range = |(first, last): (u16, u16)| {
            PortRange::new(Port(first), Port(last)).ok_or_else(|| format!("the port range {first}-{last} is reversed"))
        };
        let index = |(index, name)| Some((NonZeroU32::new(index)?, name));
        Ok(Facts {
            taken_at: SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_millis(self.taken_at_ms))
                .filter(|_| self.taken_at_ms <= LATEST_MS)
                .ok_or("its time is after the year 9999")?,
            kernel: self.kernel,
            netns: self.netns,
            netns_name: self.netns_name,
            local_port_range: self.local_port_range.map(range).transpose()?.map(LocalPortRange),
            local_reserved_ports: self
                .local_reserved_ports
                .map(|list| list.into_iter().map(range).collect::<Result<_, _>>())
                .transpose()?
                .map(|ranges| LocalReservedPorts(ranges).with([])),
            unprivileged_port_start: self.unprivileged_port_start,
            services: Services::new(self.services.into_iter().map(|(port, names)| (Port(port), names))),
            interfaces: self.interfaces.into_iter().filter_map(index).collect(),
            unread: UnreadFacts(self.unread),
        })
    }
}
