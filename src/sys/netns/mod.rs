//! Network namespaces: the one of the calling thread, and entering another.
//!
//! A thread is in a network namespace, not a process (setns(2)). So [`within`] runs a function on a new thread in another
//! namespace: its sockets, /proc/thread-self/net and /proc/sys/net belong to that namespace, and the caller stays where it is.
//!
//! | file | owns |
//! |---|---|
//! | `error` | why a namespace cannot be used |
//! | `names` | identities, and the names of /run/netns |
//! | `processes` | the namespaces of processes |
//! | `open` | opens the namespace of an argument |
//! | `all` | finds every namespace |

mod all;
mod error;
mod names;
mod open;
mod processes;

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd as _;
use std::panic::resume_unwind;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

pub use self::all::{Found, all};
pub use self::error::{NetnsError, NetnsErrorKind};
use self::names::{given_name, own_id};
use self::open::{Handle, open_again};
pub use self::open::{OpenNetns, open};
use self::processes::process_name;
use crate::model::netns::Netns;
use crate::sys::errno::if_present;

thread_local! {
    /// The namespace that [`within`] has brought the thread into.
    static ENTERED: RefCell<Option<Netns>> = const { RefCell::new(None) };
}

/// The calling thread's namespace.
///
/// Where nobody has asked for it by [`within`], its name is looked for only where that costs next to nothing: in
/// /run/netns, and process 1, for no process has a lower number. Else it has none here.
///
/// `None` where /proc does not show it.
pub fn current() -> io::Result<Option<Netns>> {
    if let Some(entered) = ENTERED.with_borrow(Clone::clone) {
        return Ok(Some(entered));
    }
    let Some(id) = if_present(own_id())? else { return Ok(None) };
    let name = match given_name(id)? {
        None => process_name(1, id)?,
        given => given,
    };
    Ok(Some(Netns { id, name }))
}

/// Runs something in the namespace, on a thread of its own. One's own is not entered, so that it needs no privilege.
pub fn within<T: Send>(netns: &OpenNetns, run: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let failed = |why| NetnsError::new(&netns.netns, why);
    let own = own_id().is_ok_and(|id| id == netns.netns.id);
    let enter_and_run = || {
        if !own {
            let reopened;
            let file = match &netns.handle {
                Handle::Open(file) => file.as_fd(),
                Handle::Path(path) => {
                    reopened = open_again(&netns.netns, path)?;
                    reopened.as_fd()
                }
            };
            setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
                Errno::EINVAL => NetnsErrorKind::AnotherThing("a namespace of another kind".into()),
                errno => NetnsErrorKind::NotEntered(errno.into()),
            })?;
        }
        ENTERED.set(Some(netns.netns.clone()));
        Ok(run())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, enter_and_run);
        let thread = thread.map_err(|error| failed(NetnsErrorKind::NoThread(error)))?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic)).map_err(failed)
    })
}

/// `uname -r`.
#[must_use]
pub fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}
