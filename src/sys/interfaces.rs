//! The interfaces of a network namespace: one at a time (netdevice(7)), or all of them.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::mem;
use std::num::NonZeroU32;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{PoisonError, RwLock};

use nix::net::if_::if_nameindex;

use super::netns::with_room;
use crate::model::interfaces::{Interfaces, KernelInterfaces};
use crate::model::name::text_of;

/// A namespace by a socket in it: whichever thread asks, the answer is that namespace's.
#[derive(Debug)]
struct BySocket {
    socket: UnixDatagram,
    /// What has been asked for: a list may have a hundred thousand sockets on one interface.
    names: RwLock<BTreeMap<NonZeroU32, Option<String>>>,
}

impl KernelInterfaces for BySocket {
    fn name(&self, index: NonZeroU32) -> Option<String> {
        let known = self.names.read().unwrap_or_else(PoisonError::into_inner).get(&index).cloned();
        known.unwrap_or_else(|| {
            let name = name_of(&self.socket, index);
            self.names.write().unwrap_or_else(PoisonError::into_inner).insert(index, name.clone());
            name
        })
    }

    fn list(&self) -> BTreeMap<NonZeroU32, String> {
        let Ok(list) = if_nameindex() else { return BTreeMap::new() };
        list.iter().filter_map(|i| Some((NonZeroU32::new(i.index())?, text_of(i.name().to_bytes())))).collect()
    }
}

/// The name of an interface of the socket's network namespace (SIOCGIFNAME in netdevice(7)). The wrapper of rustix refuses a
/// name that is not UTF-8.
#[expect(unsafe_code, reason = "no safe wrapper returns the name as bytes")]
fn name_of(socket: &UnixDatagram, index: NonZeroU32) -> Option<String> {
    // SAFETY: a request is plain data, and zeros are valid in each of its fields.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = index.get().cast_signed();
    // SAFETY: the call reads the index of a request that it is given, and writes its name.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFNAME, &raw mut request) };
    let name = request.ifr_name.map(|byte| byte.to_ne_bytes()[0]);
    let name = CStr::from_bytes_until_nul(&name).ok().filter(|_| result == 0)?;
    Some(text_of(name.to_bytes()))
}

/// Those of the calling thread's network namespace; none where no socket can be made.
#[must_use]
pub fn here() -> Interfaces {
    with_room(UnixDatagram::unbound).map_or_else(
        |_| Interfaces::default(),
        |socket| Interfaces::of_kernel(BySocket { socket, names: RwLock::default() }),
    )
}
