//! Reads and writes settings under /proc/sys/net, with code that is independent of twtool.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name.replace('.', "/"))
}

/// Reads a setting with one read(2) into 1 MiB, without the line feed: `read("ipv4.ip_local_reserved_ports")`.
#[track_caller]
pub(crate) fn read(name: &str) -> String {
    let mut buffer = vec![0; 1 << 20];
    let mut file = File::open(path(name)).unwrap_or_else(|error| panic!("opening {name}: {error}"));
    let length = file.read(&mut buffer).unwrap_or_else(|error| panic!("reading {name}: {error}"));
    assert!(length < buffer.len(), "{name} fills the buffer");
    String::from_utf8(buffer[..length].to_vec()).expect("ASCII").trim().to_owned()
}

/// The ports of a list in the kernel's notation, such as `8080,9000-9005`.
pub(crate) fn ports(text: &str) -> Vec<u16> {
    let number = |word: &str| word.parse::<u16>().unwrap_or_else(|_| panic!("not a port: {word}"));
    let items = text.split(',').filter(|item| !item.is_empty());
    items
        .flat_map(|item| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            number(first)..=number(last)
        })
        .collect()
}

#[track_caller]
pub(crate) fn reserved() -> Vec<u16> {
    ports(&read("ipv4.ip_local_reserved_ports"))
}

/// Reserves exactly these ports. Opens the file once, and writes at most 500 ports with each write(2). The kernel reads at most one page
/// of each write, so a longer write could end within a number.
#[track_caller]
pub(crate) fn reserve(ports: &[u16]) {
    let name = "ipv4.ip_local_reserved_ports";
    let mut file = OpenOptions::new().write(true).open(path(name)).expect("the namespace is ours");
    if ports.is_empty() {
        file.write_all(b"\n").expect("an empty list");
    }
    for part in ports.chunks(500) {
        let texts: Vec<String> = part.iter().map(ToString::to_string).collect();
        file.write_all(texts.join(",").as_bytes()).expect("ports");
    }
    assert_eq!(reserved(), ports);
}

/// `count` ports, which are every second port from `from` on.
pub(crate) fn every_second(from: u16, count: u16) -> Vec<u16> {
    (0..count).map(|i| from + 2 * i).collect()
}
