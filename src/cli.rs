//! The command line: argument parser, dispatch, error output, exit code, completions and manual pages.

mod manual;
mod parse;

use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::{fs, iter};

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use self::parse::{DeferredArgs, parse};
use crate::commands::{
    self, ColorChoice, CommandError, Context, Escaping, ExitStatus, Format, GlobalArgs, Machine, Prompt,
};
use crate::sys::caller::caller;
use crate::sys::confinement::{self, ActiveConfinement};
use crate::sys::{exec, socket_calls, terminal};

/// Defines a macro that gives a comma and the name of a feature as a literal, or an empty literal if the feature is off.
macro_rules! if_feature {
    ($name:ident, $feature:literal) => {
        #[cfg(feature = $feature)]
        macro_rules! $name {
            () => {
                concat!(", ", $feature)
            };
        }
        #[cfg(not(feature = $feature))]
        macro_rules! $name {
            () => {
                ""
            };
        }
    };
}
if_feature!(watch_feature, "watch");
if_feature!(exporter_feature, "exporter");
if_feature!(trace_feature, "trace");
if_feature!(tls_feature, "tls");

/// The features of this build, as a literal.
macro_rules! features {
    () => {
        concat!("\nfeatures: cli", watch_feature!(), exporter_feature!(), trace_feature!(), tls_feature!())
    };
}

/// The output of `--version` after the name. `-V` prints only the version.
const VERSION: &str = git_version::git_version!(
    args = ["--always", "--dirty=-modified", "--abbrev=12"],
    prefix = concat!(env!("CARGO_PKG_VERSION"), "\ncommit: "),
    suffix = features!(),
    cargo_prefix = concat!(env!("CARGO_PKG_VERSION"), "\ncommit: "),
    cargo_suffix = features!(),
    fallback = concat!(env!("CARGO_PKG_VERSION"), "\ncommit: unknown", features!()),
);

const ABOUT: &str = "Inspect TIME_WAIT sockets and TCP ports";

const LONG_ABOUT: &str = "\
Inspect TIME_WAIT sockets and TCP ports on Linux: list TIME_WAIT sockets with the remaining time that the kernel reports, \
classify ports, explain why bind() fails with EADDRINUSE and what helps, and count the connections that can still be opened \
to a destination.

twtool covers TCP only. It reads the network namespace that it runs in (trace: every network namespace); --netns, --container \
and --all-netns choose others. Most commands need no privileges. The exceptions are: removing sockets (kill), tracing closes \
(trace), seeing the processes of other users, entering other network namespaces, reading the mark of a socket, testing a bind \
to a port below ip_unprivileged_port_start, watching a running process of another user (why --pid), and the options --user and \
--transparent.";

const AFTER_LONG_HELP: &str = "\
Exit codes: 0 success, or the answer is yes; 1 the answer is no; 2 wrong usage, or the answer is missing or incomplete. \
Some commands have further exit codes; the help of each command lists them.

Examples:
  twtool list                     list every TIME_WAIT socket, the next to expire first
  twtool list --json | jq '.sockets | length'
  twtool list --all-netns         list the sockets of every network namespace, also of containers
  twtool summary                  count TIME_WAIT sockets and the closes of the last minute
  twtool watch -o ndjson          print the number of TIME_WAIT sockets and each event, as JSON records
  twtool trace                    show live which process closes connections
  twtool port https 8080          show class, service, port ranges and listeners
  twtool bind-test 8080           explain why a server cannot bind, and how to fix it
  twtool bind-test 8080 --demo    reproduce the failure in a private network namespace
  twtool wait 8080 -- ./server    start a server as soon as it can bind
  twtool why ./server             run a server, and explain why it cannot listen
  twtool capacity                 show which destinations have few ports left, and when the ports run out
  twtool connect-test 192.0.2.1:443   test whether connect() would get a source port
  twtool doctor                   check settings, counters and sockets
  twtool kill --local-port 8080   remove the TIME_WAIT sockets of a port
  twtool demo                     list experiments that show why TIME_WAIT exists";

#[derive(Parser, Debug)]
#[command(name = "twtool", version, long_version = VERSION, about = ABOUT, long_about = LONG_ABOUT, after_long_help = AFTER_LONG_HELP)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    options: LeadingOptions,
    #[command(subcommand)]
    command: Command,
}

/// The options that twtool takes before a command.
#[derive(Args, Debug)]
struct LeadingOptions {
    #[command(flatten)]
    global: GlobalArgs,
    /// With --version: also show whether this machine supports the sandbox (landlock, seccomp) of --replay and the exporter
    #[arg(long)]
    verbose: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List TIME_WAIT sockets with their remaining time
    List(DeferredArgs<commands::list::ListArgs>),
    /// Summarize TIME_WAIT sockets and the closes of the last minute
    Summary(DeferredArgs<commands::summary::SummaryArgs>),
    /// Watch TIME_WAIT sockets: their number, the closes per second, and what happens to each socket
    #[cfg(feature = "watch")]
    Watch(DeferredArgs<commands::watch::WatchArgs>),
    /// Print metrics for Prometheus, or write them to a file for node_exporter
    #[cfg(feature = "exporter")]
    Metrics(DeferredArgs<commands::metrics::MetricsArgs>),
    /// Serve metrics to Prometheus
    #[cfg(feature = "exporter")]
    Exporter(DeferredArgs<commands::exporter::ExporterArgs>),
    /// Show live which process, unit or container closes connections and so makes TIME_WAIT sockets
    #[cfg(feature = "trace")]
    Trace(DeferredArgs<commands::trace::TraceArgs>),
    /// Classify ports and show how this machine uses them
    Port(DeferredArgs<commands::port::PortArgs>),
    /// Explain why bind() fails on a port, and how to fix it
    BindTest(DeferredArgs<commands::bind_test::BindTestArgs>),
    /// Wait until a server can bind a port, then optionally start it
    Wait(DeferredArgs<commands::wait::WaitArgs>),
    /// Run a program, and explain its bind(), listen() and connect() calls that fail
    Why(DeferredArgs<commands::why::WhyArgs>),
    /// Count how many more connections to each destination can get a local port, and show when the ports run out
    Capacity(DeferredArgs<commands::capacity::CapacityArgs>),
    /// Test whether connect() would get a source address and port, without connecting
    ConnectTest(DeferredArgs<commands::connect_test::ConnectTestArgs>),
    /// Check TCP settings, counters and sockets, and explain each check
    Doctor(DeferredArgs<commands::doctor::DoctorArgs>),
    /// Remove TIME_WAIT sockets before they expire; never remove a socket that a process has open
    Kill(DeferredArgs<commands::kill::KillArgs>),
    /// Run experiments that show why TIME_WAIT exists (private namespaces, no root, no effect on the host)
    Demo(DeferredArgs<commands::demo::DemoArgs>),
    /// Print a completion script for a shell
    #[command(after_long_help = "\
Exit codes: 0 the script was printed, 2 wrong usage.

Examples:
  twtool completions bash > ~/.local/share/bash-completion/completions/twtool
  twtool completions zsh > ~/.zfunc/_twtool
  twtool completions fish > ~/.config/fish/completions/twtool.fish
")]
    Completions(DeferredArgs<CompletionsArgs>),
    /// Print a manual page, or write all of them
    #[command(after_long_help = "\
Exit codes: 0 the page was printed, or all pages were written. 2 wrong usage, or a file cannot be written.

Examples:
  twtool man | man -l -                            show the page of twtool
  twtool man list | man -l -                       show the page of a command
  twtool man --dir /usr/local/share/man/man1       install the page of twtool and of each command
")]
    Man(DeferredArgs<ManArgs>),
    /// Complete a word; the completion scripts call this command
    #[command(name = "__complete", hide = true)]
    Complete(DeferredArgs<commands::complete::CompleteArgs>),
}

impl Command {
    /// The recording that the command reads instead of the kernel.
    fn replayed(&self) -> Option<&Path> {
        match self {
            Self::List(args) => args.replayed(),
            Self::Summary(args) => args.replayed(),
            #[cfg(feature = "watch")]
            Self::Watch(args) => args.replayed(),
            _ => None,
        }
    }
}

#[derive(Args, Debug)]
#[command(mut_args(commands::hide_format_and_version_options))]
struct CompletionsArgs {
    /// Shell to generate the script for
    #[arg(value_enum)]
    shell: CompletionShell,
}

#[derive(Args, Debug)]
#[command(mut_args(commands::hide_format_and_version_options))]
struct ManArgs {
    /// Command whose page to print [default: the page of twtool]
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
    /// Write the page of twtool and of each command to this folder; create the folder if necessary
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CompletionShell {
    Bash,
    Zsh,
    Fish,
}

/// The standard streams and the terminal, as `main` finds them.
#[expect(clippy::struct_excessive_bools, reason = "the fields are independent facts")]
pub struct Environment<'a> {
    /// Standard input if it is a terminal. Otherwise twtool does not read it.
    pub input: Option<&'a mut (dyn BufRead + Send)>,
    /// Standard output.
    pub out: &'a mut (dyn Write + Send),
    /// Standard error.
    pub err: &'a mut (dyn Write + Send),
    /// Whether standard output is a terminal.
    pub terminal: bool,
    /// Whether standard error is a terminal.
    pub err_terminal: bool,
    /// Width of standard output in columns.
    pub width: Option<usize>,
    /// Width of standard error in columns.
    pub err_width: Option<usize>,
    /// Whether the terminal shows characters beyond ASCII.
    pub unicode: bool,
    /// Whether `NO_COLOR` is set and not empty (no-color.org).
    pub no_color: bool,
}

/// Runs the program that `twtool why` watches, if these are the arguments of the stub (the second twtool process, which `why` starts).
/// Returns `None` for other arguments, and an exit code if the program cannot be run.
pub fn run_stub(args: &[OsString], err: &mut dyn Write) -> Option<u8> {
    let (program, source) = socket_calls::run_stub(args)?;
    let error = CommandError::Exec { program, source };
    error.report(err);
    Some(error.code())
}

/// Runs twtool with these arguments and returns the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>, mut environment: Environment) -> u8 {
    let status = dispatch(args, &mut environment);
    // Output that was produced before a failure is shown as well.
    let flushed = environment.out.flush().map_err(CommandError::Output);
    match status.and_then(|code| flushed.map(|()| code)) {
        Ok(code) => code,
        // If the reader closes the pipe, it has read enough, so this is not an error.
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            error.report(environment.err);
            error.code()
        }
    }
}

fn dispatch(args: impl IntoIterator<Item = OsString>, environment: &mut Environment) -> Result<u8, CommandError> {
    let Environment { input, out, err, terminal, err_terminal, width, err_width, unicode, no_color } = environment;
    let args = without_help_word(args.into_iter().collect());
    let wanted = |choice, terminal: bool| match choice {
        ColorChoice::Auto => terminal && !*no_color,
        ColorChoice::Always => true,
        ColorChoice::Never => false,
    };
    let cli = match parse(&args) {
        Ok(cli) => cli,
        Err(message) if matches!(message.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            out.write_all(clap_text(&message, wanted(typed_color(&args), *terminal)).as_bytes())?;
            if message.kind() == ErrorKind::DisplayVersion && args.iter().any(|arg| arg == "--verbose") {
                write!(out, "{}", confinement_lines(confinement::for_open_descriptors_only()))?;
            }
            return Ok(0);
        }
        Err(message) => {
            let color = wanted(typed_color(&args), *err_terminal);
            commands::report_usage(&args, &message, color, |args| Cli::try_parse_from(args).err(), err);
            return Ok(2);
        }
    };
    if cli.options.verbose {
        return Err(CommandError::Usage("--verbose can only be used with --version".into()));
    }
    // A completion script or a manual page is never csv, even with -o csv.
    let csv =
        cli.options.global.format() == Format::Csv && !matches!(cli.command, Command::Completions(_) | Command::Man(_));
    let mut escaping;
    let out: &mut (dyn Write + Send) = if csv && *terminal {
        escaping = Escaping::new(&mut **out);
        &mut escaping
    } else {
        *out
    };
    let mut context = Context::new(
        out,
        *err,
        wanted(cli.options.global.color, *terminal),
        *width,
        *unicode,
        caller(&args),
        Machine { stderr_width: terminal::stderr_width, become_program: exec::replace, find_program: exec::find },
    );
    if let Some(input) = input
        && *err_terminal
    {
        context.prompt =
            Some(Prompt::new(*input, wanted(cli.options.global.color, *err_terminal), *err_width, *unicode));
    }
    context.err_terminal = *err_terminal;
    // The confinement begins here, because the context has already read everything that it needs about this process.
    if let Some(recording) = cli.command.replayed() {
        // An error does not matter, because a replay also works without the confinement.
        let _ = confinement::for_replay(recording);
    }
    let status = match &cli.command {
        Command::List(args) => commands::list::run(args, &cli.options.global, &mut context)?,
        Command::Summary(args) => commands::summary::run(args, &cli.options.global, &mut context)?,
        #[cfg(feature = "watch")]
        Command::Watch(args) => commands::watch::run(args, &cli.options.global, &mut context)?,
        #[cfg(feature = "exporter")]
        Command::Metrics(args) => commands::metrics::run(args, &cli.options.global, &mut context)?,
        #[cfg(feature = "exporter")]
        Command::Exporter(args) => commands::exporter::run(args, &cli.options.global)?,
        #[cfg(feature = "trace")]
        Command::Trace(args) => commands::trace::run(args, &cli.options.global, &mut context)?,
        Command::Port(args) => commands::port::run(args, &cli.options.global, &mut context)?,
        Command::BindTest(args) => commands::bind_test::run(args, &cli.options.global, &mut context)?,
        Command::Wait(args) => commands::wait::run(args, &cli.options.global, &mut context)?,
        Command::Why(args) => commands::why::run(args, &cli.options.global, &mut context)?,
        Command::Capacity(args) => commands::capacity::run(args, &cli.options.global, &mut context)?,
        Command::ConnectTest(args) => commands::connect_test::run(args, &cli.options.global, &mut context)?,
        Command::Doctor(args) => commands::doctor::run(args, &cli.options.global, &mut context)?,
        Command::Demo(args) => commands::demo::run(args, &cli.options.global, &mut context)?,
        Command::Kill(args) => commands::kill::run(args, &cli.options.global, &mut context)?,
        Command::Completions(args) => {
            context.out.write_all(completions(args.shell).as_bytes())?;
            ExitStatus::Yes
        }
        Command::Complete(args) => {
            commands::complete::run(args, command(), context.out)?;
            ExitStatus::Yes
        }
        Command::Man(args) => {
            manual_pages(args, context.out)?;
            ExitStatus::Yes
        }
    };
    Ok(match status {
        ExitStatus::Yes => 0,
        ExitStatus::No => 1,
        ExitStatus::Incomplete => 2,
        ExitStatus::Code(code) => code,
    })
}

/// The lines that `--verbose` adds to `--version`.
fn confinement_lines(ActiveConfinement { landlock, seccomp }: ActiveConfinement) -> String {
    let landlock = landlock.map_or_else(|| "not available".to_owned(), |version| format!("active (ABI {version})"));
    format!("landlock: {landlock}\nseccomp: {}\n", if seccomp { "active" } else { "not available" })
}

/// Returns the arguments with `help COMMAND` written as `COMMAND --help`, because people know both from other programs.
fn without_help_word(mut args: Vec<OsString>) -> Vec<OsString> {
    if args.get(1).is_some_and(|word| word == "help") {
        args.remove(1);
        args.push("--help".into());
    }
    args
}

fn clap_text(message: &clap::Error, color: bool) -> String {
    let text = message.render();
    if color { text.ansi().to_string() } else { text.to_string() }
}

/// The `--color` choice in arguments for which clap returns a text or an error.
fn typed_color(args: &[OsString]) -> ColorChoice {
    let texts = || args.iter().map(|arg| arg.to_string_lossy());
    let joined = texts().find_map(|arg| arg.strip_prefix("--color=").map(str::to_owned));
    let apart = || texts().skip_while(|arg| arg != "--color").nth(1).map(std::borrow::Cow::into_owned);
    let typed = joined.or_else(apart).and_then(|choice| ColorChoice::from_str(&choice, false).ok());
    typed.unwrap_or(ColorChoice::Auto)
}

/// The clap definition of the command line.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

const fn completions(shell: CompletionShell) -> &'static str {
    match shell {
        CompletionShell::Bash => include_str!("../completions/twtool.bash"),
        CompletionShell::Zsh => include_str!("../completions/_twtool"),
        CompletionShell::Fish => include_str!("../completions/twtool.fish"),
    }
}

fn manual_pages(args: &ManArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let pages = manual::pages(command());
    if let Some(dir) = &args.dir {
        let failed = |path: &Path, error| CommandError::Usage(format!("writing '{}' failed: {error}", path.display()));
        fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
        for page in pages {
            let path = dir.join(page.name + ".1");
            fs::write(&path, page.text).map_err(|error| failed(&path, error))?;
        }
        return Ok(());
    }
    let wanted = iter::once("twtool").chain(args.command.as_deref()).collect::<Vec<_>>().join("-");
    match pages.iter().find(|page| page.name == wanted) {
        Some(page) => Ok(out.write_all(page.text.as_bytes())?),
        None => Err(unknown_command(args.command.as_deref().unwrap_or_default())),
    }
}

fn unknown_command(name: &str) -> CommandError {
    let program = command();
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set());
    let names: Vec<&str> = commands.map(clap::Command::get_name).collect();
    CommandError::Usage(format!("there is no command '{name}'; the commands are {}", names.join(", ")))
}
