//! The `twtool` program: passes arguments and standard streams to [`twtool::cli`] and returns its exit code.

use std::ffi::OsString;
use std::io::{self, BufReader, IsTerminal};
use std::process::ExitCode;

use twtool::cli::{self, Environment};
use twtool::sys::{descriptors, stdout::Stdout, terminal};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = cli::run_stub(&args, &mut io::stderr()) {
        return code.into();
    }
    descriptors::raise_limit();
    let mut input = BufReader::new(io::stdin());
    let mut stdout = Stdout::open();
    let environment = Environment {
        input: if io::stdin().is_terminal() { Some(&mut input) } else { None },
        out: &mut stdout,
        err: &mut io::stderr(),
        terminal: terminal::stdout_is_terminal(),
        err_terminal: io::stderr().is_terminal(),
        width: terminal::stdout_width(),
        err_width: terminal::stderr_width(),
        unicode: terminal::shows_unicode(),
        no_color: std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()),
    };
    cli::run(args, environment).into()
}
