//! Declares the command line to clap, and parses the arguments. To save time, twtool declares only what the arguments need.

use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::ops::Deref;

use clap::builder::Resettable;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Subcommand};

use super::{Cli, Command, LeadingOptions};

pub(super) fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    if let Some(Ok(cli)) = declare_typed(args).map(|declarations| parse_with(declarations, args)) {
        return Ok(cli);
    }
    // Errors and help texts can mention every command.
    parse_with(Cli::command(), args)
}

/// Declares to clap only the command whose name is the first argument. clap copies the options of `GlobalArgs` into each declared
/// command. With all commands, that takes 5 % of the time of a short run and 27 page faults (`list` and `port 80`, whole command, no
/// bucket, median of 401 pairs, Linux 6.18, 2026-11-29). To repeat the measurement, compare `twtool list -o table` with
/// `twtool -o table list`, which declares all commands.
fn declare_typed(args: &[OsString]) -> Option<clap::Command> {
    let name = args.get(1)?.to_str()?;
    let all = ManuallyDrop::new(Command::augment_subcommands(clap::Command::default()));
    let typed = all.find_subcommand(name)?.clone();
    let program = clap::Command::new("twtool").disable_help_subcommand(true);
    Some(LeadingOptions::augment_args(program).subcommand(typed))
}

/// The declarations are never freed, because the process parses only one command line. Freeing them would take 5 % of the
/// instructions of a short run (72,000 of 1,456,000 for `port 80`, callgrind, 2026-11-28).
fn parse_with(declarations: clap::Command, args: &[OsString]) -> Result<Cli, clap::Error> {
    let mut declarations = ManuallyDrop::new(declarations);
    let mut matches = declarations.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut declarations))
}

/// Arguments that are declared to clap only when their command is used, or when a text lists every command.
///
/// Declaring the arguments of every command takes 3.9 % of the processor time of a short list (`list` without a bucket, whole
/// command, median of 601 pairs, 2 busy cores, Linux 6.18, 2026-11-27). `cargo bench --bench pure -- arguments` shows both ways.
#[derive(Debug)]
pub(super) struct DeferredArgs<T>(Box<T>);

impl<T> Deref for DeferredArgs<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Args> DeferredArgs<T> {
    /// Adds the arguments but keeps the description of the subcommand, which the doc comment of `T` would replace.
    fn augment(command: clap::Command) -> clap::Command {
        let (about, long_about) = (command.get_about().cloned(), command.get_long_about().cloned());
        T::augment_args(command).about(Resettable::from(about)).long_about(Resettable::from(long_about))
    }
}

impl<T: Args> Args for DeferredArgs<T> {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.defer(Self::augment)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        command.defer(Self::augment)
    }
}

impl<T: FromArgMatches> FromArgMatches for DeferredArgs<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        T::from_arg_matches(matches).map(|arguments| Self(Box::new(arguments)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_declared_alone_gets_the_same_arguments() {
        let lines = [
            #[cfg(feature = "watch")]
            "watch --interval 2s -o ndjson --count 3 sport = 443",
            #[cfg(feature = "exporter")]
            "metrics --format openmetrics --all-netns",
            #[cfg(feature = "exporter")]
            "exporter --listen 127.0.0.1:9100 --netns blue",
            #[cfg(feature = "trace")]
            "trace --by process --duration 5s dport = 443",
            "list",
            "list -4 --json --columns local,remote sport = 443",
            "summary --by local-port,class -o ndjson",
            "port 80 https 8000-8099 --color never",
            "bind-test -6 8080",
            "wait 8080 --timeout 5s -- ./server list --json",
            "why -o json -- ./server -o --json",
            "capacity --to 192.0.2.1:443",
            "connect-test 192.0.2.1:443",
            "doctor --netns blue",
            "kill --local-port 8080",
            "demo reuse",
            "completions zsh",
            "man list",
            "__complete 2 -- twtool list",
        ];
        for line in lines {
            let args: Vec<OsString> = format!("twtool {line}").split(' ').map(OsString::from).collect();
            let alone = parse_with(declare_typed(&args).expect(line), &args).expect(line);
            let among_all = parse_with(Cli::command(), &args).expect(line);
            assert_eq!(format!("{alone:?}"), format!("{among_all:?}"), "{line}");
        }
    }

    #[test]
    fn a_command_is_declared_alone_only_if_its_name_is_the_first_argument() {
        for line in ["twtool", "twtool lis", "twtool --json list", "twtool help list", "twtool list2"] {
            let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert!(declare_typed(&args).is_none(), "{line}");
        }
    }
}
