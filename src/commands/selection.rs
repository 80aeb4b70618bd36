//! The filter expression and the selection flags of `list`, `watch`, `trace` and `kill`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::GlobalArgs;
use crate::filter::parser::parse_duration;
use crate::filter::{End, Filter};
use crate::model::addr::ScopedPrefix;
use crate::model::port::{PortArg, PortClass};
use crate::model::row::Direction;
use crate::snapshot::query::{AnyOf, Selection, Test};

/// The selection of buckets: a filter expression, and flags that are short forms of tests in such an expression.
#[derive(Args, Clone, Debug)]
pub(super) struct SelectionArgs {
    /// Select rows by a filter expression, like 'dst 10.0.0.0/8 and expires < 5s'
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Local or remote port: a number, range or service name; separate several by commas or repeat
    #[arg(long, value_name = "PORT", value_delimiter = ',', allow_negative_numbers = true)]
    port: Vec<PortArg>,
    /// Local port; separate several by commas or repeat
    #[arg(long, value_name = "PORT", value_delimiter = ',', allow_negative_numbers = true)]
    local_port: Vec<PortArg>,
    /// Remote port; separate several by commas or repeat
    #[arg(long, value_name = "PORT", value_delimiter = ',', allow_negative_numbers = true)]
    remote_port: Vec<PortArg>,
    /// Local address or prefix, like 10.0.0.0/8; repeat for more
    #[arg(long, value_name = "ADDR")]
    local: Vec<ScopedPrefix>,
    /// Remote address or prefix; repeat for more
    #[arg(long, value_name = "ADDR")]
    remote: Vec<ScopedPrefix>,
    /// RFC 6335 class of the local port; repeat for more
    #[arg(long, value_enum, value_name = "CLASS")]
    class: Vec<ClassArg>,
    /// Which side opened the connection; repeat for more. list, watch and kill infer it from listeners and port ranges. trace uses
    /// the role of the process that closed: accepted is inbound, connected is outbound
    #[arg(long, value_enum, value_name = "DIRECTION")]
    direction: Vec<DirectionArg>,
    /// Less remaining time than this, like 500ms, 10s or 1m (not in trace)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    expires_under: Option<Duration>,
    /// Include FIN_WAIT_2 sockets that the kernel keeps as timewait buckets (watch and trace always do)
    #[arg(long = "fin-wait-2")]
    fin_wait_2: bool,
}

impl SelectionArgs {
    /// The selection. The names in it (services, interfaces) are not resolved yet.
    pub(super) fn selection(&self, global: &GlobalArgs) -> Selection {
        let ports = |argument, list: &[PortArg], ends: &[End]| AnyOf {
            argument,
            tests: list.iter().flat_map(|port| ends.iter().map(|&end| Test::Port(end, port.clone()))).collect(),
        };
        let prefixes = |argument, list: &[ScopedPrefix], end| AnyOf {
            argument,
            tests: list.iter().map(|prefix| Test::Prefix(end, prefix.clone())).collect(),
        };
        let class = |class: &ClassArg| Test::Resolved(Filter::Port(End::Local, PortClass::from(*class).bounds()));
        let direction = |direction: &DirectionArg| Test::Resolved(Filter::Direction((*direction).into()));
        let groups = vec![
            ports("--port <PORT>", &self.port, &[End::Local, End::Remote]),
            ports("--local-port <PORT>", &self.local_port, &[End::Local]),
            ports("--remote-port <PORT>", &self.remote_port, &[End::Remote]),
            prefixes("--local <ADDR>", &self.local, End::Local),
            prefixes("--remote <ADDR>", &self.remote, End::Remote),
            AnyOf { argument: "--class <CLASS>", tests: self.class.iter().map(class).collect() },
            AnyOf { argument: "--direction <DIRECTION>", tests: self.direction.iter().map(direction).collect() },
        ];
        Selection {
            expression: self.filter.join(" "),
            groups,
            expires_under: self.expires_under,
            ipv4: global.ipv4_on_the_wire(),
            fin_wait_2: self.fin_wait_2,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClassArg {
    /// 0-1023
    WellKnown,
    /// 1024-49151
    Registered,
    /// 49152-65535
    Dynamic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DirectionArg {
    /// A listener covers the local address and port. In trace: the process accepted the connection
    Inbound,
    /// No listener covers the local end, and one of these is true: the local port is ephemeral and the remote port is not, or a
    /// listener covers the remote end. A socket that is connected to itself is outbound, too. In trace: the process probably
    /// called connect()
    Outbound,
    /// Neither can be inferred. In trace: the role is unknown
    Unknown,
}

impl From<ClassArg> for PortClass {
    fn from(class: ClassArg) -> Self {
        match class {
            ClassArg::WellKnown => Self::WellKnown,
            ClassArg::Registered => Self::Registered,
            ClassArg::Dynamic => Self::Dynamic,
        }
    }
}

impl From<DirectionArg> for Direction {
    fn from(direction: DirectionArg) -> Self {
        match direction {
            DirectionArg::Inbound => Self::Inbound,
            DirectionArg::Outbound => Self::Outbound,
            DirectionArg::Unknown => Self::Unknown,
        }
    }
}
