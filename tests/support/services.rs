//! Reads the TCP entries of /etc/services, like getservbyport(3), with a parser that is independent of twtool.

pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) aliases: Vec<String>,
}

/// The TCP entries, in the order of the file. Empty if there is no file.
pub(crate) fn tcp() -> Vec<Service> {
    let Ok(text) = std::fs::read_to_string("/etc/services") else { return vec![] };
    let mut found = vec![];
    for line in text.lines() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        if let [name, port, aliases @ ..] = words.as_slice()
            && let Some((port, "tcp")) = port.split_once('/')
            && let Ok(port) = port.parse()
        {
            let aliases = aliases.iter().map(|&alias| alias.to_owned()).collect();
            found.push(Service { name: (*name).to_owned(), port, aliases });
        }
    }
    found
}

/// The name of the first entry with this port.
pub(crate) fn name(port: u64) -> Option<String> {
    tcp().into_iter().find(|service| u64::from(service.port) == port).map(|service| service.name)
}
