//! Names of a network namespace's interfaces: those that a recording has, or the kernel's, one at a time as they are needed.
//!
//! Hardly any socket is bound to an interface, and a machine with containers has hundreds of them. To list them takes 8 µs
//! each, measured, and the kernel's RTNL lock, which may be taken for long where containers come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

/// What the kernel knows of the interfaces of one network namespace. There is no look-up by name, which is typed rarely: to
/// the kernel `eth0:80` is eth0 as well, and for a name that it does not know it loads a module (`dev_ioctl` in
/// net/core/dev_ioctl.c).
pub trait KernelInterfaces: fmt::Debug + Send + Sync {
    /// The name, whichever thread asks; `None`: it has no interface of this index, or it does not say.
    fn name(&self, index: NonZeroU32) -> Option<String>;

    /// All of them, asked for by a thread that is in the namespace; none where they cannot be listed.
    fn list(&self) -> BTreeMap<NonZeroU32, String>;

    /// Why names are missing, where the kernel could not be asked for some.
    fn failure(&self) -> Option<String>;
}

/// The interfaces of a network namespace.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    listed: BTreeMap<NonZeroU32, String>,
    kernel: Option<Arc<dyn KernelInterfaces>>,
    /// Why names are missing, of a kernel that is not asked any more.
    failure: Option<String>,
}

impl Interfaces {
    /// Those that the kernel has.
    #[must_use]
    pub fn of_kernel(kernel: impl KernelInterfaces + 'static) -> Self {
        Self { listed: BTreeMap::new(), kernel: Some(Arc::new(kernel)), failure: None }
    }

    /// The name of one.
    #[must_use]
    pub fn name(&self, index: NonZeroU32) -> Option<String> {
        self.listed.get(&index).cloned().or_else(|| self.kernel.as_ref()?.name(index))
    }

    /// All of them. The calling thread must be in their namespace.
    #[must_use]
    pub fn list(&self) -> BTreeMap<NonZeroU32, String> {
        let mut all = self.kernel.as_ref().map(|kernel| kernel.list()).unwrap_or_default();
        all.extend(self.listed.clone());
        all
    }

    /// Looks up these now, so that [`Self::failure`] knows of them.
    pub fn look_up(&self, indices: impl IntoIterator<Item = NonZeroU32>) {
        for index in indices {
            let _ = self.name(index);
        }
    }

    /// Looks up these, and forgets how: what is kept of many namespaces may not hold a socket in each.
    pub fn keep(&mut self, indices: impl IntoIterator<Item = NonZeroU32>) {
        for index in indices {
            if let Some(name) = self.name(index) {
                self.listed.insert(index, name);
            }
        }
        self.failure = self.failure();
        self.kernel = None;
    }

    /// Why names are missing that were asked for; `None`: none is.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.failure.clone().or_else(|| self.kernel.as_ref()?.failure())
    }

    /// Adds names that only other namespaces have, under numbers that the kernel never gives (they are positive ints): a
    /// test for such a name can then be judged here as well, and no socket is bound to it.
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

/// The same where they have the same names.
impl PartialEq for Interfaces {
    fn eq(&self, other: &Self) -> bool {
        self.list() == other.list()
    }
}
