//! `twtool port`: what a port number is, and what this machine makes of it.

use std::collections::HashMap;

use clap::Args;

use super::netns::NetnsArgs;
use super::{Answer, CommandError, Context, Format, GlobalArgs, bad_value, interrupted};
use crate::filter::Filter;
use crate::model::facts::Setting;
use crate::model::port::{Port, PortArg};
use crate::model::socket::{Socket, StateSet, TcpState};
use crate::source::{self, Choice, Source, SourceError, WalkEnd};
use crate::view;
use crate::view::json::Envelope;
use crate::view::port::{PortRecord, PortUse};

/// Arguments of `twtool port`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Examples:
  twtool port 443                  class, service, and whether something listens or waits there
  twtool port https 8080 1020-1026
  twtool port 0                    reserved; asks the kernel to choose
  twtool port 8080 --netns web     in the network namespace that `ip netns` calls web
  twtool port 8000-8099 --json | jq '.ports[] | select(.listening)'
")]
pub struct PortArgs {
    /// Number, range like 8000-8099, or TCP service name of /etc/services
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<PortArg>,
    #[command(flatten)]
    netns: NetnsArgs,
}

/// Answers.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &PortArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    args.netns.within(|| answer(args, global, context))
}

fn answer(args: &PortArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    let facts = source::kernel_facts();
    let mut ports = vec![];
    for argument in &args.ports {
        let range = facts.ports(argument).map_err(|why| bad_value(argument, "<PORT>...", &why))?;
        ports.extend(range.ports());
    }

    let mut warnings = facts.gaps(&Setting::ALL);
    // What the number is can be told without the sockets; what they say is then unknown, and that is said.
    let usage = usage(global.ipv4_on_the_wire()).map_err(|error| warnings.push(error.to_string())).ok();
    let mut complete = warnings.is_empty();
    if let Some(usage) = &usage {
        let unknown = ports.iter().any(|port| usage.by_port.get(port).is_some_and(|one| one.listening.is_none()));
        complete &= !unknown;
        warnings.extend(unknown.then(|| "/proc/net/tcp6 does not tell whether a listener on :: takes IPv4 too".into()));
        complete &= usage.end.complete;
        warnings.extend((!usage.end.complete).then(interrupted));
        warnings.extend(usage.warnings.iter().cloned());
    }
    let of = |port| usage.as_ref().map(|usage| *usage.by_port.get(port).unwrap_or(&UNUSED));
    let records: Vec<PortRecord> = ports.iter().map(|port| PortRecord::new(*port, &facts, of(port))).collect();

    context.warn(&warnings);
    match global.format() {
        Format::Table => view::port::table(context.out, &records, &facts, context.look)?,
        Format::Json => {
            let envelope = Envelope { schema: "twtool.port/1", facts: &facts, complete, warnings: &warnings };
            view::port::document(context.out, envelope, &records)?;
        }
        Format::Ndjson => view::port::ndjson(context.out, &records)?,
        Format::Csv => view::port::csv(context.out, &records)?,
    }
    Ok(Answer::complete(complete))
}

/// What listens and waits on each port, in this network namespace.
struct Usage {
    by_port: HashMap<Port, PortUse>,
    end: WalkEnd,
    warnings: Vec<String>,
}

fn usage(ipv4: Option<bool>) -> Result<Usage, SourceError> {
    let states = StateSet::of(&[TcpState::Listen, TcpState::TimeWait]);
    let mut source = Source::kernel(Choice::Auto)?;
    let (by_port, end) = source.collect(states, &Filter::TRUE, HashMap::new, |by_port, socket| {
        let speaks = ipv4.map_or(Some(true), |ipv4| speaks(socket, ipv4));
        let one = by_port.entry(socket.tuple().local_port()).or_insert(UNUSED);
        match socket {
            // One that surely listens outweighs one of which it is not known.
            Socket::Full(_) => {
                one.listening = match (one.listening, speaks) {
                    (Some(true), _) | (_, Some(true)) => Some(true),
                    (None, _) | (_, None) => None,
                    (Some(false), Some(false)) => Some(false),
                }
            }
            Socket::Bucket(_) => one.time_wait += u64::from(speaks == Some(true)),
        }
    })?;
    Ok(Usage { by_port, end, warnings: source.warnings() })
}

const UNUSED: PortUse = PortUse { listening: Some(false), time_wait: 0 };

/// Whether it speaks IPv4 (or IPv6) on the wire; a dual-stack listener speaks both. `None` where the source does not tell
/// whether a listener is dual-stack.
fn speaks(socket: &Socket, ipv4: bool) -> Option<bool> {
    let tuple = socket.tuple();
    match socket {
        _ if tuple.family.ipv4_on_the_wire() == ipv4 => Some(true),
        Socket::Full(full) if ipv4 && tuple.local_addr().is_unspecified() => full.v6only.map(|v6only| !v6only),
        _ => Some(false),
    }
}
