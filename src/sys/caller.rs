//! Determines which user runs twtool, which command name starts it, and what prevents printed commands from working here.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, StatVfsMountFlags};

use super::capabilities::{self, effective_user};
use super::errno::{FailureClass, retry};
use crate::model::command::{Caller, RootPower, SettingsLock};

/// The folders of `secure_path` (sudoers(5)) in the configuration of sudo that Debian installs.
const SECURE_PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Describes the effective user of this process, and the command names that start twtool. `typed` is the command line, which begins
/// with the command name.
#[must_use]
pub fn caller(typed: &[OsString]) -> Caller {
    let (typed, arguments) =
        typed.split_first().map_or((None, &[][..]), |(first, rest)| (Some(first.as_os_str()), rest));
    let executable = std::env::current_exe().ok();
    let (twtool, twtool_for_root) = names(typed, executable.as_deref());
    let root = effective_user() == 0;
    let power = root_power(root);
    Caller {
        root,
        power,
        in_initial_netns: is_in_initial_netns(),
        twtool,
        twtool_for_root,
        arguments: arguments.to_vec(),
    }
}

/// Whether this thread is in the initial network namespace. Only that namespace has the setting net.core.dev_weight
/// (`net_core_table` in net/core/sysctl_net_core.c). The link /proc/1/ns/net is not used: only root can read it, and process 1 of
/// another pid namespace can be in any network namespace.
fn is_in_initial_netns() -> bool {
    const SETTING: &str = "/proc/sys/net/core/dev_weight";
    retry(|| Ok(rustix::fs::access(SETTING, Access::EXISTS)?)).is_ok()
}

/// What root can do in the caller's shell.
fn root_power(root: bool) -> RootPower {
    let status = capabilities::status().unwrap_or_default();
    // execve(2) gives the capabilities of the bounding set to a program that root executes, and to a program with set-user-ID root, like
    // sudo. If root runs twtool, these capabilities are already in the effective set of twtool.
    let set = if root { capabilities::parse(&status) } else { capabilities::parse_bounding(&status) };
    let no_new_privs = capabilities::parse_no_new_privs(&status) == Some(true);
    RootPower { capabilities: set, no_new_privs, settings: settings_lock() }
}

/// What prevents the caller from writing to settings. It is enough to check one file, because every file below /proc/sys/net/ipv4
/// that a printed command changes has the same owner and mode.
fn settings_lock() -> Option<SettingsLock> {
    const SETTING: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let mount = retry(|| Ok(rustix::fs::statvfs(SETTING)?)).ok()?;
    if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Some(SettingsLock::ReadOnly);
    }
    let refused = |error: &std::io::Error| FailureClass::of(error) == FailureClass::Refused;
    let access = retry(|| Ok(rustix::fs::accessat(CWD, SETTING, Access::WRITE_OK, AtFlags::EACCESS)?));
    access.is_err_and(|error| refused(&error)).then_some(SettingsLock::Refused)
}

/// The command names that start twtool: in the caller's shell, and after `sudo`.
fn names(typed: Option<&OsStr>, executable: Option<&Path>) -> (String, String) {
    let typed = typed.filter(|word| !word.is_empty()).map_or("twtool".into(), OsStr::to_string_lossy);
    if typed.contains('/') {
        return (typed.clone().into_owned(), typed.into_owned());
    }
    let found_by_sudo =
        |path: &&Path| path.parent().is_some_and(|folder| SECURE_PATH.iter().any(|one| folder == Path::new(one)));
    let absolute = executable.filter(|path| !found_by_sudo(path)).map(|path| path.to_string_lossy().into_owned());
    (typed.clone().into_owned(), absolute.unwrap_or(typed.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_sudo_a_program_outside_secure_path_is_named_by_its_path() {
        for (typed, executable, expected) in [
            (Some("twtool"), Some("/usr/bin/twtool"), ("twtool", "twtool")),
            (Some("twtool"), Some("/home/me/.cargo/bin/twtool"), ("twtool", "/home/me/.cargo/bin/twtool")),
            (Some("./twtool"), Some("/home/me/twtool"), ("./twtool", "./twtool")),
            (Some("tw"), None, ("tw", "tw")),
            (Some(""), None, ("twtool", "twtool")),
            (None, Some("/opt/twtool"), ("twtool", "/opt/twtool")),
        ] {
            let (twtool, for_root) = names(typed.map(OsStr::new), executable.map(Path::new));
            assert_eq!((twtool.as_str(), for_root.as_str()), expected);
        }
    }
}
