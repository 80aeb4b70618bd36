//! Completes a word of a command line, for the scripts in completions/. The scripts call the hidden command `__complete`.
//!
//! 1. The engine of clap_complete finds out whether the word is a command, an option, or the value of an argument.
//! 2. Values that clap lists (formats, columns, scenarios) and paths come from the engine.
//! 3. Values of this machine come from the snapshot layer. The name of the value in the help (`PORT`, `FILTER`) selects the kind of
//!    values.
//!
//! Values that cannot be read are left out without a message, because an error would appear in the prompt.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};

use clap::builder::ValueHint;
use clap::{Arg, Args, Command};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _, complete};

use crate::filter::parser;
use crate::model::name::is_hidden;
use crate::model::netns::NetnsArg;
use crate::model::port::Port;
use crate::snapshot::{Namespaces, Snapshot, names};

/// The maximum number of ports that are offered.
const MAX_PORTS: usize = 40;

/// The heading of the options that every command has.
const GLOBAL: &str = "Global options";

/// Arguments of the hidden command.
#[derive(Args, Clone, Debug)]
pub struct CompleteArgs {
    /// Number of the word to complete; 0 is the program
    index: usize,
    /// Words of the command line up to that word
    #[arg(last = true)]
    words: Vec<OsString>,
}

/// Writes a line for each completion: the whole word, a tab and a description.
///
/// # Errors
/// The lines cannot be written.
pub fn run(args: &CompleteArgs, mut program: Command, out: &mut dyn Write) -> io::Result<()> {
    let before = args.words.get(..args.index).unwrap_or_default();
    let word = args.words.get(args.index).cloned().unwrap_or_default();
    let is_container =
        |word: &OsString| word.to_str().is_some_and(|word| word == "--container" || word.starts_with("--container="));
    let context = CompletionContext {
        netns: selected_netns(before),
        container: before.iter().any(is_container),
        previous: before.last().cloned().unwrap_or_default(),
    };
    program.build();
    let commands: Vec<String> =
        program.get_subcommands().filter(|one| !one.is_hide_set()).map(|one| one.get_name().to_owned()).collect();
    let mut program = program.mut_subcommands(|command| command.mut_args(|arg| with_values(arg, &context, &commands)));
    let folder = std::env::current_dir().ok();
    let mut candidates = complete(&mut program, args.words.clone(), args.index, folder.as_deref()).unwrap_or_default();
    // As in the help, the global options come last.
    candidates.sort_by_key(|one| one.get_tag().is_some_and(|tag| tag.to_string() == GLOBAL));
    // Options are offered if the word begins with a hyphen, or if there are no other candidates.
    let is_option = |one: &CompletionCandidate| one.get_value().as_encoded_bytes().starts_with(b"-");
    let values = word.is_empty() && !candidates.iter().all(is_option);
    for candidate in candidates.iter().filter(|one| !(values && is_option(one))) {
        let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
        // A value with a hidden character could look like another line or another name, and could change the terminal.
        if let Some(value) = candidate.get_value().to_str()
            && !value.contains(is_hidden)
        {
            writeln!(out, "{value}\t{}", help.lines().next().unwrap_or_default().replace(is_hidden, " "))?;
        }
    }
    Ok(())
}

/// The words before the completed word that affect its values.
#[derive(Clone, Debug)]
struct CompletionContext {
    netns: Option<OsString>,
    /// Whether `--container` is given. The search for the namespace of a container takes too long for a completion.
    container: bool,
    previous: OsString,
}

impl CompletionContext {
    fn snapshot(&self) -> Option<Snapshot> {
        if self.container {
            return None;
        }
        let netns = self.netns.clone().map(NetnsArg::try_from).transpose().ok()?;
        Namespaces::named(netns.as_slice()).ok().map(Snapshot::of)
    }
}

/// The last value of `--netns`.
fn selected_netns(words: &[OsString]) -> Option<OsString> {
    let joined = |word: &OsString| Some(OsString::from(word.to_str()?.strip_prefix("--netns=")?));
    let apart = |at: usize| Some(words[at].clone()).filter(|_| at > 0 && words[at - 1] == "--netns");
    (0..words.len()).rev().find_map(|at| joined(&words[at]).or_else(|| apart(at)))
}

/// Adds the values of this machine to an argument.
fn with_values(arg: Arg, context: &CompletionContext, commands: &[String]) -> Arg {
    let name = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string).unwrap_or_default();
    let context = context.clone();
    let remote = arg.get_id().as_str().starts_with("remote");
    match name.as_str() {
        "PORT" => offer_matching(arg, move |word| ports(&context, remote, word)),
        "FILTER" => offer_matching(arg, move |_| filter_words(&context)),
        "IFACE" => offer_matching(arg, move |_| interfaces(&context)),
        "COMMAND" if arg.is_last_set() || arg.is_trailing_var_arg_set() => arg.value_hint(ValueHint::AnyPath),
        "COMMAND" => {
            let commands = commands.to_vec();
            offer_matching(arg, move |_| commands.iter().map(CompletionCandidate::new).collect())
        }
        _ if arg.get_id() == "netns" => offer_matching(arg, namespaces),
        _ => arg,
    }
}

fn offer_matching(arg: Arg, values: impl Fn(&str) -> Vec<CompletionCandidate> + Send + Sync + 'static) -> Arg {
    arg.add(ArgValueCompleter::new(move |word: &OsStr| {
        let Some(word) = word.to_str() else { return vec![] };
        let mut values = values(word);
        values.retain(|value| value.get_value().to_str().is_some_and(|value| value.starts_with(word)));
        values
    }))
}

/// Ports in use: first the ports of listeners, then the ports with the most TIME_WAIT sockets. If the word begins with a letter,
/// also the names of services.
fn ports(context: &CompletionContext, remote: bool, word: &str) -> Vec<CompletionCandidate> {
    let Some((ports, services)) = context.snapshot().and_then(|snapshot| snapshot.used_ports(remote).ok()) else {
        return vec![];
    };
    let mut ports: Vec<_> = ports.into_iter().filter(|(port, _)| port.to_string().starts_with(word)).collect();
    ports.sort_by_key(|(_, used)| (!used.listening, std::cmp::Reverse(used.time_wait)));
    let port = |(port, used): (Port, names::UsedPort)| {
        let name = services.name(port).map(str::to_owned);
        let listening = used.listening.then(|| "listening".to_owned());
        let waiting = (used.time_wait > 0).then(|| format!("{} TIME_WAIT", used.time_wait));
        let help = name.into_iter().chain(listening).chain(waiting).collect::<Vec<_>>().join(", ");
        CompletionCandidate::new(port.to_string()).help(Some(help.into()))
    };
    let mut offered: Vec<_> = ports.into_iter().take(MAX_PORTS).map(port).collect();
    if word.starts_with(char::is_alphabetic) {
        for (port, names) in services.entries() {
            let name = |name: &str| CompletionCandidate::new(name).help(Some(port.to_string().into()));
            offered.extend(names.map(name));
        }
    }
    offered
}

/// The names of network namespaces (ip-netns(8)). If the typed word contains a slash, paths instead.
fn namespaces(word: &str) -> Vec<CompletionCandidate> {
    if word.contains('/') {
        return PathCompleter::any().complete(OsStr::new(word));
    }
    names::netns_names().into_iter().map(CompletionCandidate::new).collect()
}

fn interfaces(context: &CompletionContext) -> Vec<CompletionCandidate> {
    let names = context.snapshot().and_then(|snapshot| snapshot.interface_names().ok()).unwrap_or_default();
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// The words that begin a test of the filter language. After the word `dev`, the names of interfaces instead.
fn filter_words(context: &CompletionContext) -> Vec<CompletionCandidate> {
    if context.previous == "dev" {
        interfaces(context)
    } else {
        parser::words().map(CompletionCandidate::new).collect()
    }
}
