//! The names of the interfaces of a network namespace: from a recording, or from the kernel, one at a time when needed.
//!
//! twtool does not list the interfaces in advance, because few sockets are bound to an interface, and a machine with containers can
//! have hundreds of interfaces. Listing takes 8 µs for each interface (measured). It also needs the kernel's RTNL lock, which other
//! processes can hold for a long time while containers start and stop.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

/// Access to the kernel's interfaces of one network namespace. It has no look-up by name, because the kernel's look-up accepts
/// `eth0:80` as a name of eth0, and loads a module for an unknown name (`dev_ioctl` in net/core/dev_ioctl.c).
pub trait KernelInterfaces: fmt::Debug + Send + Sync {
    /// The name of the interface with this index; `None` if there is no such interface, or if the request failed. Any thread may call
    /// this function.
    fn name(&self, index: NonZeroU32) -> Option<String>;

    /// All interfaces; empty if they cannot be listed. The calling thread must be in the namespace.
    fn list(&self) -> BTreeMap<NonZeroU32, String>;

    /// Why names are missing, if a request to the kernel failed.
    fn failure(&self) -> Option<String>;
}

/// The interfaces of a network namespace.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    listed: BTreeMap<NonZeroU32, String>,
    kernel: Option<Arc<dyn KernelInterfaces>>,
    /// Why names are missing, once [`Self::store_names`] has dropped the access to the kernel.
    failure: Option<String>,
}

impl Interfaces {
    /// The interfaces of the running kernel.
    #[must_use]
    pub fn of_kernel(kernel: impl KernelInterfaces + 'static) -> Self {
        Self { listed: BTreeMap::new(), kernel: Some(Arc::new(kernel)), failure: None }
    }

    /// The name of the interface with this index.
    #[must_use]
    pub fn name(&self, index: NonZeroU32) -> Option<String> {
        self.listed.get(&index).cloned().or_else(|| self.kernel.as_ref()?.name(index))
    }

    /// All interfaces. The calling thread must be in their namespace.
    #[must_use]
    pub fn list(&self) -> BTreeMap<NonZeroU32, String> {
        let mut all = self.kernel.as_ref().map(|kernel| kernel.list()).unwrap_or_default();
        all.extend(self.listed.clone());
        all
    }

    /// Looks up the names of these interfaces now, so that [`Self::failure`] can report a failed look-up.
    pub fn look_up(&self, indices: impl IntoIterator<Item = NonZeroU32>) {
        for index in indices {
            let _ = self.name(index);
        }
    }

    /// Stores the names of these interfaces and drops the access to the kernel. So the facts of many namespaces do not keep a socket
    /// open for each namespace.
    pub fn store_names(&mut self, indices: impl IntoIterator<Item = NonZeroU32>) {
        for index in indices {
            if let Some(name) = self.name(index) {
                self.listed.insert(index, name);
            }
        }
        self.failure = self.failure();
        self.kernel = None;
    }

    /// Why requested names are missing; `None` if no request to the kernel failed.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.failure.clone().or_else(|| self.kernel.as_ref()?.failure())
    }

    /// Adds names that only other namespaces have, with indices that the kernel never assigns (above 2^31 - 1). A filter that names such
    /// an interface can then be evaluated in this namespace, too, and matches no socket.
    pub fn add_absent<'n>(&mut self, names: impl IntoIterator<Item = &'n String>) {
        let here: BTreeSet<String> = self.list().into_values().collect();
        for (below, name) in (0..).zip(names) {
            if !here.contains(name) {
                self.listed.extend(NonZeroU32::new(u32::MAX - below).map(|number| (number, name.clone())));
            }
        }
    }
}

impl FromIterator<(NonZeroU32, String)> for Interfaces {
    fn from_iter<T: IntoIterator<Item = (NonZeroU32, String)>>(listed: T) -> Self {
        Self { listed: listed.into_iter().collect(), ..Self::default() }
    }
}

/// Equal if both have the same indices and names.
impl PartialEq for Interfaces {
    fn eq(&self, other: &Self) -> bool {
        self.list() == other.list()
    }
}
