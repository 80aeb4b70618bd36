//! The TCP services of /etc/services (services(5)): a name for a port, and ports for names and aliases.
//!
//! Every start of a program makes the table and most ask it little, so it is a few pieces of memory and not one a name.

use std::ops::Range;
use std::sync::Arc;

use super::port::Port;
use super::port_set::PortSet;

/// The table. A clone shares it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services(Arc<Table>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Table {
    /// All names and aliases, one behind the other.
    text: String,
    /// Where in `text` each is.
    names: Vec<Range<usize>>,
    /// A port, and which of `names` are its official name and then its aliases.
    entries: Vec<(Port, Range<usize>)>,
    /// Ports that have an entry: most of those that a list asks for have none.
    ports: PortSet,
    /// Each of them, lowest first, with the number of its first entry.
    first: Vec<(Port, usize)>,
}

impl Services {
    /// The table of these entries: a port with its official name and then its aliases. As in getservbyport(3) and
    /// getservbyname(3), the first entry of a port or name wins.
    #[must_use]
    pub fn new<N: AsRef<str>>(entries: impl IntoIterator<Item = (Port, impl IntoIterator<Item = N>)>) -> Self {
        let mut table = Table::default();
        for (port, names) in entries {
            let begin = table.names.len();
            for name in names {
                let at = table.text.len();
                table.text.push_str(name.as_ref());
                table.names.push(at..table.text.len());
            }
            table.ports.insert(port);
            table.first.push((port, table.entries.len()));
            table.entries.push((port, begin..table.names.len()));
        }
        table.first.sort_unstable();
        table.first.dedup_by_key(|(port, _)| *port);
        Self(Arc::new(table))
    }

    /// What the table was made of.
    pub fn entries(&self) -> impl Iterator<Item = (Port, impl Iterator<Item = &str>)> {
        self.0.entries.iter().map(|(port, names)| (*port, self.names(names.clone())))
    }

    fn names(&self, which: Range<usize>) -> impl Iterator<Item = &str> {
        self.0.names[which].iter().map(|name| &self.0.text[name.clone()])
    }

    /// The official name of a port.
    #[must_use]
    pub fn name(&self, port: Port) -> Option<&str> {
        if !self.0.ports.contains(port) {
            return None;
        }
        let at = self.0.first.binary_search_by_key(&port, |(port, _)| *port).ok()?;
        let (_, names) = &self.0.entries[self.0.first[at].1];
        self.names(names.clone()).next()
    }

    /// The port of a name or alias.
    #[must_use]
    pub fn port(&self, name: &str) -> Option<Port> {
        self.entries().find_map(|(port, mut names)| names.any(|other| other == name).then_some(port))
    }
}
