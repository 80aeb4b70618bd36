//! Runs a function as another user, on a new thread.
//!
//! In Linux, each thread has its own user, groups and capabilities (credentials(7)). The functions of the C library change all threads
//! of a process; rustix makes the system calls for the calling thread only. The new thread drops its capabilities itself, because the
//! kernel drops them only when root becomes another user (capabilities(7)).

use std::io;
use std::panic::resume_unwind;
use std::thread;

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::capabilities::effective_user;
use super::errno::retry;
use crate::model::bind::UserIds;

const NO_CAPABILITIES: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

/// The name of the step that failed, and its error.
pub(super) type StepError = (&'static str, io::Error);

/// Runs a function as another user, on a new thread. Without a user, or if root is to remain root, runs it on the calling thread.
pub(super) fn run_as<T: Send>(user: Option<UserIds>, run: impl FnOnce() -> T + Send) -> Result<T, StepError> {
    let Some(user) = user else { return Ok(run()) };
    match (user.uid, effective_user()) {
        (0, 0) => return Ok(run()),
        // CAP_SETUID lets a process become user 0, but not with the capabilities of root. A bind as such a user would not show what a
        // server of root can do, so it is refused.
        (0, _) => return Err(("setresuid()", io::Error::from_raw_os_error(libc::EPERM))),
        _ => {}
    }
    let become_and_run = || {
        if user.uid != effective_user() {
            become_user(user)?;
        }
        retry(|| Ok(set_capabilities(None, NO_CAPABILITIES)?)).map_err(|error| ("capset()", error))?;
        Ok(run())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("user".into()).spawn_scoped(scope, become_and_run);
        let thread = thread.map_err(|error| ("starting a thread", error))?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Changes the groups and the user of the calling thread. The groups come first, because root loses CAP_SETGID when it
/// becomes another user.
fn become_user(UserIds { uid, gid }: UserIds) -> Result<(), StepError> {
    let step = |name| move |error| (name, error);
    retry(|| Ok(set_thread_groups(&[])?)).map_err(step("setgroups()"))?;
    if let Some(gid) = gid.map(Gid::from_raw) {
        retry(|| Ok(set_thread_res_gid(gid, gid, gid)?)).map_err(step("setresgid()"))?;
    }
    let uid = Uid::from_raw(uid);
    retry(|| Ok(set_thread_res_uid(uid, uid, uid)?)).map_err(step("setresuid()"))
}
