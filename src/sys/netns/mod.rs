//! Finds, names and enters network namespaces.
//!
//! setns(2) moves one thread to a network namespace, not the whole process. So [`within`] runs a function on a new thread in another
//! namespace. On that thread, new sockets, /proc/thread-self/net and /proc/sys/net belong to the other namespace. The calling thread
//! stays in its own namespace.
//!
//! | file | purpose |
//! |---|---|
//! | `error` | errors and hints |
//! | `names` | identities, and the names of /run/netns |
//! | `processes` | finds the processes of namespaces |
//! | `open` | opens the namespace of an argument |
//! | `all` | finds every namespace |
//! | `container` | finds a process of a container |

mod all;
mod container;
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

pub use self::all::{NetnsList, all};
pub use self::container::process_of_container;
pub use self::error::{NetnsError, NetnsErrorKind};
pub use self::names::ip_netns_names;
use self::names::{ip_netns_name, own_id};
use self::open::{Handle, open_again};
pub use self::open::{OpenNetns, open};
use self::processes::process_name;
use crate::model::netns::Netns;
use crate::sys::errno::if_present;

thread_local! {
    /// The namespace in which [`within`] runs the thread.
    static ENTERED: RefCell<Option<Netns>> = const { RefCell::new(None) };
}

/// Returns the calling thread's network namespace; `None` if /proc does not show it.
///
/// A namespace without a name in /run/netns is named after its process with the lowest pid. Outside [`within`], only process 1 is
/// checked, because a search over all processes takes too long. If process 1 is in another namespace, the name is unknown.
pub fn current() -> io::Result<Option<Netns>> {
    if let Some(entered) = ENTERED.with_borrow(Clone::clone) {
        return Ok(Some(entered));
    }
    let Some(id) = if_present(own_id())? else { return Ok(None) };
    let name = match ip_netns_name(id)? {
        None => process_name(1, id)?,
        given => given,
    };
    Ok(Some(Netns { id, name }))
}

/// Runs a function on a new thread in a network namespace. If that is the caller's own namespace, the thread does not call setns(2),
/// so it needs no privilege.
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
                Errno::EINVAL => NetnsErrorKind::NotNetns("a namespace of another kind".into()),
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

/// The release of the running kernel, as `uname -r` prints it.
#[must_use]
pub fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}
