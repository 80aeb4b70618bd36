//! The TCP services of /etc/services (services(5)): finds the name of a port, and the port of a name or alias.
//!
//! Most commands build the table, and then look up only a few names. So the table is built with a few allocations instead of one for
//! each name.

use std::ops::Range;
use std::sync::Arc;

use super::port::Port;
use super::port_set::{PortIndex, PortSet};

/// A table of TCP services: ports with their names. Clones share one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Services(Arc<Table>);

#[derive(Debug, PartialEq, Eq)]
struct Table {
    /// All names and aliases, concatenated.
    text: String,
    /// The range of each name in `text`.
    names: Vec<Range<usize>>,
    /// Each entry: a port, and the range of `names` that has the official name and then the aliases. A port can have several entries.
    entries: Vec<(Port, Range<usize>)>,
    /// Ports that have an entry.
    ports: PortIndex,
    /// For each port in `ports`: the range of its official name in `text`. It is empty if the first entry of the port has no name.
    official: Vec<Range<usize>>,
}

impl Default for Services {
    fn default() -> Self {
        Self::new([] as [(Port, [&str; 0]); 0])
    }
}

impl Services {
    /// Makes a table from entries. An entry is a port with its official name and then its aliases. As in getservbyport(3)
    /// and getservbyname(3), the first entry of a port or name wins.
    #[must_use]
    pub fn new<N: AsRef<str>>(entries: impl IntoIterator<Item = (Port, impl IntoIterator<Item = N>)>) -> Self {
        let (mut text, mut all_names, mut table) = (String::new(), vec![], vec![]);
        let (mut ports, mut first) = (PortSet::default(), vec![]);
        for (port, names) in entries {
            let begin = all_names.len();
            for name in names {
                let at = text.len();
                text.push_str(name.as_ref());
                all_names.push(at..text.len());
            }
            if !ports.contains(port) {
                ports.insert(port);
                first.push((port, table.len()));
            }
            table.push((port, begin..all_names.len()));
        }
        first.sort_unstable();
        let name = |entry: usize| all_names[table[entry].1.clone()].first().cloned().unwrap_or_default();
        let official = first.into_iter().map(|(_, entry)| name(entry)).collect();
        Self(Arc::new(Table { text, names: all_names, entries: table, ports: ports.into(), official }))
    }

    /// The entries of the table.
    pub fn entries(&self) -> impl Iterator<Item = (Port, impl Iterator<Item = &str>)> {
        self.0.entries.iter().map(|(port, names)| (*port, self.names(names.clone())))
    }

    fn names(&self, which: Range<usize>) -> impl Iterator<Item = &str> {
        self.0.names[which].iter().map(|name| &self.0.text[name.clone()])
    }

    /// The official name of a port.
    #[must_use]
    pub fn name(&self, port: Port) -> Option<&str> {
        // A list calls this twice for each row, so it needs a few memory accesses and no search.
        let name = &self.0.text[self.0.official[self.0.ports.place(port)?].clone()];
        (!name.is_empty()).then_some(name)
    }

    /// The port of a name or alias.
    #[must_use]
    pub fn port(&self, name: &str) -> Option<Port> {
        self.entries().find_map(|(port, mut names)| names.any(|other| other == name).then_some(port))
    }
}
