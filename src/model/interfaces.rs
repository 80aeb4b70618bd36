//! Names of a network namespace's interfaces: those that a recording has, or the kernel's, one at a time as they are needed.
//!
//! Hardly any socket is bound to an interface, and a machine with containers has hundreds of them. To list them takes 8 µs
//! each, measured, and the kernel's RTNL lock, which may be taken for long where containers come and go.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

/// What the kernel knows of the interfaces of one network namespace. Names and indices, whichever thread asks.
pub trait KernelInterfaces: fmt::Debug + Send + Sync {
    /// The name; `None`: it has no interface of this index.
    fn name(&self, index: NonZeroU32) -> Option<String>;

    /// The index; `None`: it has no interface of this name.
    fn index(&self, name: &str) -> Option<NonZeroU32>;

    /// All of them, asked for by a thread that is in the namespace; none where they cannot be listed.
    fn list(&self) -> BTreeMap<NonZeroU32, String>;
}

/// The interfaces of a network namespace.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    listed: BTreeMap<NonZeroU32, String>,
    kernel: Option<Arc<dyn KernelInterfaces>>,
}

impl Interfaces {
    /// Those that the kernel has.
    #[must_use]
    pub fn of_kernel(kernel: impl KernelInterfaces + 'static) -> Self {
        Self { listed: BTreeMap::new(), kernel: Some(Arc::new(kernel)) }
    }

    /// The name of one.
    #[must_use]
    pub fn name(&self, index: NonZeroU32) -> Option<String> {
        self.listed.get(&index).cloned().or_else(|| self.kernel.as_ref()?.name(index))
    }

    /// The index of one.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<NonZeroU32> {
        let listed = || self.listed.iter().find(|(_, here)| *here == name).map(|(index, _)| *index);
        self.kernel.as_ref().and_then(|kernel| kernel.index(name)).or_else(listed)
    }

    /// All of them. The calling thread must be in their namespace.
    #[must_use]
    pub fn list(&self) -> BTreeMap<NonZeroU32, String> {
        let mut all = self.kernel.as_ref().map(|kernel| kernel.list()).unwrap_or_default();
        all.extend(self.listed.clone());
        all
    }

    /// Adds names that only other namespaces have, under numbers that the kernel never gives (they are positive ints): a
    /// test for such a name can then be judged here as well, and no socket is bound to it.
    pub fn add_absent<'n>(&mut self, names: impl IntoIterator<Item = &'n String>) {
        for (below, name) in (0..).zip(names) {
            if self.index(name).is_none() {
                self.listed.extend(NonZeroU32::new(u32::MAX - below).map(|number| (number, name.clone())));
            }
        }
    }
}

impl FromIterator<(NonZeroU32, String)> for Interfaces {
    fn from_iter<T: IntoIterator<Item = (NonZeroU32, String)>>(listed: T) -> Self {
        Self { listed: listed.into_iter().collect(), kernel: None }
    }
}

/// The same where they have the same names.
impl PartialEq for Interfaces {
    fn eq(&self, other: &Self) -> bool {
        self.list() == other.list()
    }
}
