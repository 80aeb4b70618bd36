//! The addresses of the exporter: TCP, Unix sockets, and the sockets that systemd passes (sd_listen_fds(3)).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::sys::activation::{self, InheritedListener};

/// An address of `--listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("the path is empty; write unix:PATH".into())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let form = "write ADDR:PORT like 127.0.0.1:16060, [ADDR]:PORT like [::1]:16060, or unix:PATH; host names are not resolved";
        text.parse().map(Self::Tcp).map_err(|_| form.to_owned())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An open listener.
#[derive(Debug)]
pub enum Listener {
    /// A TCP socket.
    Tcp(std::net::TcpListener),
    /// A Unix socket. If the exporter created the socket file, the value also has the path, and dropping the listener removes the
    /// file.
    Unix(std::os::unix::net::UnixListener, Option<PathBuf>),
}

impl Listener {
    /// The address, for a log line.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| "unknown".into(), |addr| addr.to_string()),
            Self::Unix(listener, _) => {
                let path = listener.local_addr().ok().and_then(|addr| addr.as_pathname().map(Path::to_owned));
                path.map_or_else(|| "unix:".into(), |path| format!("unix:{}", path.display()))
            }
        }
    }
}

impl Listener {
    /// The folder of the socket file that dropping the listener removes; `None` if there is no such file.
    #[must_use]
    pub fn folder(&self) -> Option<PathBuf> {
        let Self::Unix(_, Some(path)) = self else { return None };
        // A relative path without a folder has an empty parent.
        path.parent().map(|folder| Path::new(".").join(folder))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, Some(path)) = self {
            // drop() cannot report an error.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Address {
    /// 127.0.0.1:16060. The port is outside Linux's default ephemeral range, so connect() does not choose it while the exporter is down.
    pub const DEFAULT: Self = Self::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 16060));

    /// Listens on the address. A Unix socket that no process listens on any more is replaced.
    ///
    /// # Errors
    /// The address is in use, or cannot be used.
    pub fn bind(&self) -> io::Result<Listener> {
        match self {
            Self::Tcp(addr) => {
                let listener = std::net::TcpListener::bind(addr)?;
                listener.set_nonblocking(true)?;
                Ok(Listener::Tcp(listener))
            }
            Self::Unix(path) => {
                if is_abandoned(path) {
                    std::fs::remove_file(path)?;
                }
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok(Listener::Unix(listener, Some(path.clone())))
            }
        }
    }
}

/// Whether the path is a socket on which no process listens. The function checks the type of the file first, because connect() to a
/// regular file fails with ECONNREFUSED, too (unix(7)).
fn is_abandoned(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The listeners that systemd has passed to this process.
///
/// # Errors
/// One of them is not a listening stream socket.
pub fn inherited_listeners() -> io::Result<Vec<Listener>> {
    let listener = |inherited| match inherited {
        InheritedListener::Tcp(listener) => Listener::Tcp(listener),
        InheritedListener::Unix(listener) => Listener::Unix(listener, None),
    };
    Ok(activation::listeners()?.into_iter().map(listener).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_host_names_are_refused() {
        for text in ["127.0.0.1:16060", "[::1]:16060", "0.0.0.0:0", "unix:/run/twtool.sock", "unix:x"] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "localhost:16060", "16060", ":16060", "127.0.0.1", "::1:16060", "unix:", "127.0.0.1:65536"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_abandoned_unix_socket_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let address = Address::Unix(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        let listener = address.bind().expect("replaced");
        assert_eq!(address.bind().map_err(|error| error.kind()).expect_err("in use"), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "text").expect("written");
        assert!(address.bind().is_err());
        assert!(path.exists(), "a file that is no socket stays");
    }
}
