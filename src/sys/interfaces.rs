//! Reads the names of the interfaces of a network namespace, one at a time (netdevice(7)) or all of them.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::mem;
use std::num::NonZeroU32;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, PoisonError, RwLock};

use nix::net::if_::if_nameindex;

use super::errno::{if_present, retry};
use crate::model::interfaces::{Interfaces, KernelInterfaces};
use crate::model::name::text_of;

/// Reads interface names of the network namespace of a socket. Any thread can look up a single name. Only a thread in the namespace can
/// read the list of all names.
#[derive(Debug)]
struct BySocket {
    /// The socket for single names, or why it could not be created.
    socket: io::Result<UnixDatagram>,
    /// A cache of names, because a list may have a hundred thousand sockets on one interface.
    names: RwLock<BTreeMap<NonZeroU32, Option<String>>>,
    failure: Mutex<Option<String>>,
}

impl BySocket {
    /// Stores the first failure. It becomes a warning in the answer that lacks a name.
    fn failed(&self, why: &io::Error) {
        let text = format!("the names of interfaces could not be read: {why}");
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
    }
}

impl KernelInterfaces for BySocket {
    fn name(&self, index: NonZeroU32) -> Option<String> {
        if let Some(known) = self.names.read().unwrap_or_else(PoisonError::into_inner).get(&index) {
            return known.clone();
        }
        let name = match &self.socket {
            Ok(socket) => if_present(retry(|| name_of(socket, index))),
            Err(error) => {
                self.failed(error);
                return None;
            }
        };
        let name = name.unwrap_or_else(|error| {
            self.failed(&error);
            None
        });
        self.names.write().unwrap_or_else(PoisonError::into_inner).insert(index, name.clone());
        name
    }

    fn list(&self) -> BTreeMap<NonZeroU32, String> {
        match retry(|| Ok(if_nameindex()?)) {
            Ok(list) => {
                list.iter().filter_map(|i| Some((NonZeroU32::new(i.index())?, text_of(i.name().to_bytes())))).collect()
            }
            Err(error) => {
                self.failed(&error);
                BTreeMap::new()
            }
        }
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads the name of an interface in the socket's network namespace (SIOCGIFNAME in netdevice(7)). The wrapper of
/// rustix is not used, because it refuses names that are not UTF-8.
#[expect(unsafe_code, reason = "no safe wrapper returns the name as bytes")]
fn name_of(socket: &UnixDatagram, index: NonZeroU32) -> io::Result<String> {
    // SAFETY: a request is plain data, and zeros are valid in each of its fields.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = index.get().cast_signed();
    // SAFETY: the call reads the index in the request, and writes the name in it.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFNAME, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.map(|byte| byte.to_ne_bytes()[0]);
    let name = CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    Ok(text_of(name.to_bytes()))
}

/// The interfaces of the calling thread's network namespace.
#[must_use]
pub fn here() -> Interfaces {
    let socket = retry(UnixDatagram::unbound);
    Interfaces::of_kernel(BySocket { socket, names: RwLock::default(), failure: Mutex::default() })
}
