//! The interfaces of a network namespace: one at a time (netdevice(7)), or all of them.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::os::unix::net::UnixDatagram;
use std::sync::{PoisonError, RwLock};

use nix::net::if_::if_nameindex;
use rustix::net::netdevice;

use super::netns::with_room;
use crate::model::interfaces::{Interfaces, KernelInterfaces};

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
            let name = netdevice::index_to_name(&self.socket, index.get()).ok();
            self.names.write().unwrap_or_else(PoisonError::into_inner).insert(index, name.clone());
            name
        })
    }

    fn list(&self) -> BTreeMap<NonZeroU32, String> {
        let Ok(list) = if_nameindex() else { return BTreeMap::new() };
        list.iter()
            .filter_map(|i| Some((NonZeroU32::new(i.index())?, i.name().to_string_lossy().into_owned())))
            .collect()
    }
}

/// Those of the calling thread's network namespace; none where no socket can be made.
#[must_use]
pub fn here() -> Interfaces {
    with_room(UnixDatagram::unbound).map_or_else(
        |_| Interfaces::default(),
        |socket| Interfaces::of_kernel(BySocket { socket, names: RwLock::default() }),
    )
}
