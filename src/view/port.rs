//! Prints the facts about ports, in each output format.

use std::io::{self, Write};

use serde::Serialize;

use super::human;
use super::json::{self, Envelope};
use super::style::TextStyle;
use super::table::{self, Heading};
use super::text::Text;
use super::value::Value;
use crate::model::facts::Facts;
use crate::model::port::{Port, PortClass, PortUse};

/// The facts about one port. The order of fields is the order of keys in JSON and csv.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "docs/json.md describes the keys")]
pub struct PortRecord<'a> {
    pub port: u16,
    pub class: &'static str,
    pub service: Option<&'a str>,
    pub reserved_by_rfc: bool,
    pub ephemeral: Option<bool>,
    pub locally_reserved: Option<bool>,
    pub privileged: Option<bool>,
    pub listening: Option<bool>,
    pub time_wait: Option<u64>,
}

impl<'a> PortRecord<'a> {
    /// Creates the record of a port.
    #[must_use]
    pub fn new(port: Port, facts: &'a Facts, usage: Option<PortUse>) -> Self {
        Self {
            port: port.0,
            class: port.class().name(),
            service: facts.services.name(port),
            reserved_by_rfc: port.reserved_by_rfc(),
            ephemeral: facts.ephemeral(port),
            locally_reserved: facts.locally_reserved(port),
            privileged: facts.privileged(port),
            listening: usage.and_then(|usage| usage.listening),
            time_wait: usage.map(|usage| usage.time_wait),
        }
    }
}

/// Writes the JSON document.
pub fn document(out: &mut (dyn Write + Send), envelope: Envelope, ports: &[PortRecord]) -> io::Result<()> {
    #[derive(Serialize)]
    struct Payload<'a> {
        ports: &'a [PortRecord<'a>],
    }
    json::document(out, envelope, Payload { ports })
}

/// Writes one JSON record per port.
pub fn ndjson(out: &mut (dyn Write + Send), ports: &[PortRecord]) -> io::Result<()> {
    ports.iter().try_for_each(|port| json::line(out, port))
}

/// Writes csv with a header line.
pub fn csv(out: &mut (dyn Write + Send), ports: &[PortRecord]) -> io::Result<()> {
    const KEYS: &str = "port,class,service,reserved_by_rfc,ephemeral,locally_reserved,privileged,listening,time_wait";
    let yes = |value: Option<bool>| value.map_or(Value::Unknown, |yes| Value::Word(if yes { "true" } else { "false" }));
    let mut text = Text::from(format!("{KEYS}\n"));
    for p in ports {
        let fields = [
            Value::Number(p.port.into()),
            Value::Word(p.class),
            p.service.map_or(Value::Unknown, Value::Text),
            yes(Some(p.reserved_by_rfc)),
            yes(p.ephemeral),
            yes(p.locally_reserved),
            yes(p.privileged),
            yes(p.listening),
            p.time_wait.map_or(Value::Unknown, Value::Number),
        ];
        Value::append_csv_line(fields, &mut text);
    }
    out.write_all(text.as_bytes())
}

/// Writes the table, and explanations below it.
pub fn table(out: &mut (dyn Write + Send), ports: &[PortRecord], facts: &Facts, style: TextStyle) -> io::Result<()> {
    let yes = |value: Option<bool>| value.map_or("unknown", |yes| if yes { "yes" } else { "no" }).to_owned();
    let cells = |p: &PortRecord| {
        vec![
            p.port.to_string(),
            human::escape(p.service.unwrap_or("-")).into_owned(),
            p.class.to_owned(),
            yes(p.ephemeral),
            yes(p.locally_reserved),
            yes(p.privileged),
            yes(p.listening),
            p.time_wait.map_or("unknown".into(), |count| count.to_string()),
        ]
    };
    let rows: Vec<Vec<String>> = ports.iter().map(cells).collect();
    let headings = [
        Heading::new("PORT").right(),
        Heading::new("SERVICE"),
        Heading::new("CLASS"),
        Heading::new("EPHEMERAL"),
        Heading::new("RESERVED"),
        Heading::new("PRIVILEGED"),
        Heading::new("LISTENS"),
        Heading::new("TIME_WAIT").right(),
    ];
    table::write(out, &headings, true, rows.as_slice(), style)?;
    writeln!(out)?;
    explain(ports, facts).iter().try_for_each(|line| human::break_lines(out, line, "", "  ", style.width))
}

/// Explains the port classes that occur, the columns EPHEMERAL, RESERVED and PRIVILEGED, and port 0 if the table has it.
fn explain(ports: &[PortRecord], facts: &Facts) -> Vec<String> {
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
    let mut lines = vec![];
    for class in PortClass::ALL {
        if ports.iter().any(|port| port.class == class.name()) {
            let rfc = match class {
                PortClass::WellKnown => "System Ports",
                PortClass::Registered => "User Ports",
                PortClass::Dynamic => "Dynamic or Private Ports",
            };
            lines.push(format!("{}: {} ({rfc}, RFC 6335)", class.name(), class.bounds()));
        }
    }
    lines.push(format!(
        "ephemeral: in net.ipv4.ip_local_port_range ({}), from which connect() and bind(0) choose",
        or_unknown(facts.local_port_range.map(|range| range.0.to_string()))
    ));
    let reserved = facts.local_reserved_ports.as_ref().map(ToString::to_string);
    lines.push(format!(
        "reserved: in net.ipv4.ip_local_reserved_ports ({}), which connect() and bind(0) skip",
        or_unknown(reserved.map(|list| if list.is_empty() { "empty".into() } else { list }))
    ));
    lines.push(format!(
        "privileged: below net.ipv4.ip_unprivileged_port_start ({}), needs CAP_NET_BIND_SERVICE",
        or_unknown(facts.unprivileged_port_start.map(|start| start.to_string()))
    ));
    if ports.iter().any(|port| port.reserved_by_rfc) {
        lines.push(
            "port 0: reserved (RFC 6335); no connection uses it, and bind() to it asks the kernel to choose".into(),
        );
    }
    lines
}
