//! `twtool port`: classifies ports and shows how this machine uses them.

use clap::Args;

use super::netns::NetnsArgs;
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs};
use crate::model::port::PortArg;
use crate::view;
use crate::view::json::Envelope;
use crate::view::port::PortRecord;

/// Arguments of `twtool port`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Exit codes: 0 the answer is complete, 2 the answer is missing or incomplete, or wrong usage.

Examples:
  twtool port 443                  show class, service, listeners and TIME_WAIT sockets
  twtool port https 8080 1020-1026
  twtool port 0                    show port 0: with port 0, bind() gets a free port from the kernel
  twtool port 8080 --netns web     use the network namespace web of `ip netns`
  twtool port 8000-8099 --json | jq '.ports[] | select(.listening)'
")]
pub struct PortArgs {
    /// Port: a number, a range like 8000-8099, or a TCP service name from /etc/services
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<PortArg>,
    #[command(flatten)]
    netns: NetnsArgs,
}

/// Runs `twtool port`.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &PortArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let answer = args.netns.snapshot()?.port_uses(&args.ports, global.ipv4_on_the_wire())?;
    let (facts, complete) = (&answer.value.facts, answer.complete);
    let record = |(port, port_use): &(_, _)| PortRecord::new(*port, facts, *port_use);
    let records: Vec<PortRecord> = answer.value.ports.iter().map(record).collect();
    context.warn(&answer.warnings);
    match global.format() {
        Format::Table => view::port::table(context.out, &records, facts, context.style)?,
        Format::Json => {
            let envelope = Envelope { schema: "twtool.port/1", facts, complete, warnings: &answer.warnings };
            view::port::document(context.out, envelope, &records)?;
        }
        Format::Ndjson => view::port::ndjson(context.out, &records)?,
        Format::Csv => view::port::csv(context.out, &records)?,
    }
    Ok(ExitStatus::complete(complete))
}
