//! `twtool connect-test`: tests whether connect() would get a source address and port, without connecting.

use clap::{Args, ValueEnum};

use super::netns::NetnsArgs;
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value, ends_orphans, hide_refused};
use crate::analysis::connect::{ConnectVerdict, advice, headline};
use crate::model::addr::ScopedEnd;
use crate::snapshot::Answer;
use crate::snapshot::connect::ConnectQuestion;
use crate::view;
use crate::view::connect_test::ConnectTest;
use crate::view::json::Envelope;

/// Arguments of `twtool connect-test`.
#[derive(Args, Clone, Debug)]
#[command(mut_args(|arg| hide_refused(arg, &[], &[Format::Csv])), after_long_help = "\
The test sends nothing and leaves every socket as it is. It does not call connect() on a TCP socket towards the destination. \
It tests whether the kernel finds a source address and port. It does not test whether a server answers, or whether a firewall \
lets packets pass.

With a source port (--from ADDR:PORT), twtool binds that address and port for a moment and looks for a socket with the same \
addresses and ports. If the bind works and this socket is in TIME_WAIT, connect() takes it over only if the old connection had \
TCP timestamps. The kernel does not report whether that connection had timestamps, so the verdict is unknown. Use \
--from 0.0.0.0:PORT or [::]:PORT for a client that binds only the port and no address.

Without --from, connect() chooses the source port. twtool then counts the ports that are left for this destination, as \
`twtool capacity` does. With --from ADDR (no port), bind() chooses the port, so twtool binds the address with port 0. The \
exception is a client that sets IP_BIND_ADDRESS_NO_PORT (--with bind-address-no-port): then connect() chooses the port.

Side effects: a bind holds its port for microseconds. A server that starts at that moment can get EADDRINUSE. On kernels \
before 6.18, the bind also marks the port as explicitly bound until the last socket on it ends. Until then, connect() does not \
choose the port.

Exit codes: 0 connect() gets a source address and port, 1 it does not, 2 the answer is unknown or incomplete.

Examples:
  twtool connect-test 192.0.2.10:443                      test for a client that lets connect() choose the port
  twtool connect-test 192.0.2.10:443 --from 10.0.0.1      test for a client that binds its address
  twtool connect-test 192.0.2.10:443 --from 10.0.0.1 --with bind-address-no-port
  twtool connect-test 192.0.2.10:5060 --from 10.0.0.1:15060 --with reuseaddr
  twtool connect-test '[2001:db8::1]:https' --netns web   use the network namespace web of `ip netns`
  twtool connect-test 192.0.2.10:443 --json | jq '.free'
")]
pub struct ConnectTestArgs {
    /// Destination, like 192.0.2.1:443 or [2001:db8::1]:https; a port is a number or a service name
    #[arg(value_name = "ADDR:PORT")]
    to: ScopedEnd,
    /// Address, or address and port, that the client binds before connect()
    #[arg(long, value_name = "ADDR[:PORT]")]
    from: Option<ScopedEnd>,
    /// Socket option that the client sets before bind()
    #[arg(long, value_enum, default_value_t = ClientOption::None, value_name = "OPTION")]
    with: ClientOption,
    #[command(flatten)]
    netns: NetnsArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClientOption {
    /// No option
    None,
    /// SO_REUSEADDR; it matters only with a source port
    Reuseaddr,
    /// IP_BIND_ADDRESS_NO_PORT; it has an effect only if --from has an address and no port
    BindAddressNoPort,
}

/// Runs the command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &ConnectTestArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(
            &"csv",
            "--output <FORMAT>",
            "a connect test is not a flat table; use table, json or ndjson",
        ));
    }
    let question = ConnectQuestion {
        to: args.to.clone(),
        from: args.from.clone(),
        reuseaddr: args.with == ClientOption::Reuseaddr,
        bind_address_no_port: args.with == ClientOption::BindAddressNoPort,
        ipv4: global.ipv4_on_the_wire(),
    };
    let Answer { value: situation, complete, mut warnings, .. } = args.netns.snapshot()?.connect(&question)?;
    let conclusion = situation.conclude();
    warnings.extend(advice::ignored_option(&situation).map(str::to_owned));
    warnings.extend(headline::unknown_because(&situation, &conclusion).map(str::to_owned));
    let shell = args.netns.shell(context);
    let help = advice::advise(&situation, &conclusion, &shell, ends_orphans(&situation.facts, &situation.holders));
    let complete = complete && conclusion.verdict != ConnectVerdict::Unknown;
    let test = ConnectTest { situation: &situation, conclusion, help: &help };

    context.warn(&warnings);
    let envelope = Envelope { schema: "twtool.connect-test/1", facts: &situation.facts, complete, warnings: &warnings };
    match global.format() {
        Format::Json => view::connect_test::document(context.out, envelope, &test)?,
        Format::Ndjson => view::connect_test::ndjson(context.out, &test)?,
        Format::Table | Format::Csv => view::connect_test::page(context.out, &test, context.style)?,
    }
    Ok(match conclusion.verdict {
        _ if !complete => ExitStatus::Incomplete,
        ConnectVerdict::Free => ExitStatus::Yes,
        _ => ExitStatus::No,
    })
}
