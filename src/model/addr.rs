//! Addresses as people type them: with a scope (`fe80::1%eth0`), with a port (`192.0.2.1:443`), or as a prefix (`10.0.0.0/8`).
//!
//! This module does not check whether the interface of a scope exists. Host names are never resolved.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::port::PortArg;
use super::socket::Family;

/// The error for a text that is not an address, a prefix or a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddrError(String);

impl fmt::Display for AddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for AddrError {}

fn parse_addr(text: &str) -> Result<IpAddr, AddrError> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| {
        AddrError(format!(
            "'{text}' is not an address; use IPv4 like 192.0.2.1 or IPv6 like 2001:db8::1 (host names are not resolved)"
        ))
    })
}

/// Splits `fe80::1%eth0` into the address and the scope. An empty scope, or a scope after an IPv4 address, is an error.
fn parse_scoped(text: &str) -> Result<(IpAddr, Option<String>), AddrError> {
    // The brackets may enclose the address alone, or the address and its scope.
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).filter(|text| text.contains('%'));
    let Some((addr, scope)) = bare.unwrap_or(text).split_once('%') else { return Ok((parse_addr(text)?, None)) };
    let addr = parse_addr(addr)?;
    if scope.is_empty() || addr.is_ipv4() {
        return Err(AddrError(format!(
            "'%{scope}' is not a scope; a scope is an interface after an IPv6 address, like fe80::1%eth0"
        )));
    }
    Ok((addr, Some(scope.to_owned())))
}

/// An address with an optional scope, by interface name or number (RFC 4007, section 11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopedAddr {
    /// The address as typed. An IPv4-mapped address stays mapped, because bind() does not treat it like IPv4.
    pub addr: IpAddr,
    /// The text after `%`.
    pub scope: Option<String>,
}

impl FromStr for ScopedAddr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let (addr, scope) = parse_scoped(text)?;
        Ok(Self { addr, scope })
    }
}

impl fmt::Display for ScopedAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.addr)?;
        self.scope.as_ref().map_or(Ok(()), |scope| write!(f, "%{scope}"))
    }
}

/// An address with an optional port, as typed: `192.0.2.1`, `192.0.2.1:443`, `2001:db8::1`, `[2001:db8::1]:443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopedEnd {
    /// The address.
    pub addr: ScopedAddr,
    /// The port, if one was typed.
    pub port: Option<PortArg>,
}

impl FromStr for ScopedEnd {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once("]:"));
        // Without brackets, a text with more than one colon is an IPv6 address.
        let parts = bracketed.or_else(|| text.split_once(':').filter(|(_, port)| !port.contains(':')));
        let Some((addr, port)) = parts else { return Ok(Self { addr: text.parse()?, port: None }) };
        let port = port.parse().map_err(|why| AddrError(format!("'{port}' is not a port: {why}")))?;
        Ok(Self { addr: addr.parse()?, port: Some(port) })
    }
}

impl fmt::Display for ScopedEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.port {
            None => self.addr.fmt(f),
            // A service name may have colons, and without brackets they would belong to the address.
            Some(port) if self.addr.addr.is_ipv6() || port.to_string().contains(':') => {
                write!(f, "[{}]:{port}", self.addr)
            }
            Some(port) => write!(f, "{}:{port}", self.addr),
        }
    }
}

/// An address prefix, or a single address, in the condition of a filter. The rules are the kernel's (`inet_diag_bc_run` in
/// net/ipv4/inet_diag.c):
/// - An IPv4 prefix contains IPv4 and IPv4-mapped addresses.
/// - An IPv6 prefix contains addresses of `AF_INET6` sockets, and compares mapped addresses in their mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The address. Its host bits are zero, and IPv4 is in its mapped form.
    bits: u128,
    /// The number of leading bits to compare. For IPv4 this is the typed length plus 96.
    length: u8,
    ipv4: bool,
}

/// A prefix with an optional scope, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopedPrefix {
    /// The prefix itself.
    pub prefix: Prefix,
    /// The text after `%`, if there is one: the socket must be bound to that interface.
    pub scope: Option<String>,
}

impl Prefix {
    /// Every IPv4 address, including IPv4-mapped addresses.
    pub const ANY_IPV4: Self = Self { bits: 0xffff_0000_0000, length: 96, ipv4: true };

    /// Every address of an `AF_INET6` socket, including IPv4-mapped addresses.
    pub const ANY_IPV6: Self = Self { bits: 0, length: 0, ipv4: false };

    /// The IPv4-mapped addresses, without plain IPv4.
    pub const MAPPED: Self = Self { bits: 0xffff_0000_0000, length: 96, ipv4: false };

    /// Whether the prefix contains an address of a socket of this family. `bits` is the address as
    /// [`super::socket::FourTuple`] stores it, IPv4 in its mapped form.
    #[must_use]
    pub fn contains(&self, family: Family, bits: u128) -> bool {
        let family_fits = if self.ipv4 { family.ipv4_on_the_wire() } else { family != Family::Ipv4 };
        family_fits && bits & mask(self.length) == self.bits
    }

    /// The address of the prefix.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        let v6 = Ipv6Addr::from_bits(self.bits);
        if self.ipv4 { v6.to_canonical() } else { v6.into() }
    }

    /// The number of leading bits of [`Self::addr`] to compare.
    #[must_use]
    pub const fn length(&self) -> u8 {
        if self.ipv4 { self.length - 96 } else { self.length }
    }
}

const fn mask(length: u8) -> u128 {
    match length {
        0 => 0,
        length => u128::MAX << (128 - length),
    }
}

impl FromStr for ScopedPrefix {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let (addr_text, length_text) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let (addr, scope) = parse_scoped(addr_text)?;
        let width: u8 = if addr.is_ipv4() { 32 } else { 128 };
        let length =
            match length_text {
                None => width,
                Some(l) => l.parse().ok().filter(|&n| n <= width && l.bytes().all(|b| b.is_ascii_digit())).ok_or_else(
                    || AddrError(format!("'/{l}' is not a prefix length for {addr}; use a number 0-{width}")),
                )?,
            };
        let (bits, ipv4) = match addr {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped().to_bits(), true),
            IpAddr::V6(v6) => (v6.to_bits(), false),
        };
        let length = length + if ipv4 { 96 } else { 0 };
        Ok(Self { prefix: Prefix { bits: bits & mask(length), length, ipv4 }, scope })
    }
}

/// Prints the prefix in the form of filter expressions: `10.0.0.0/8`, `[2001:db8::1]`.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr() {
            IpAddr::V4(v4) => write!(f, "{v4}")?,
            IpAddr::V6(v6) => write!(f, "[{v6}]")?,
        }
        if self.length < 128 { write!(f, "/{}", self.length()) } else { Ok(()) }
    }
}

/// Prints the prefix as a user types it: `10.0.0.0/8`, `fe80::1%eth0`. The host bits are zero.
impl fmt::Display for ScopedPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.prefix.addr())?;
        self.scope.as_ref().map_or(Ok(()), |scope| write!(f, "%{scope}"))?;
        let whole = if self.prefix.ipv4 { 32 } else { 128 };
        if self.prefix.length() < whole { write!(f, "/{}", self.prefix.length()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::port::Port;
    use crate::model::socket::FourTuple;

    fn contains(prefix: &str, addr: &str) -> bool {
        let end = (addr.parse().expect(addr), Port(80));
        let tuple = FourTuple::new(end, end);
        prefix.parse::<ScopedPrefix>().expect(prefix).prefix.contains(tuple.family, tuple.local_bits())
    }

    #[test]
    fn a_prefix_holds_the_addresses_that_share_its_bits() {
        assert!(contains("10.0.0.0/8", "10.255.0.1"));
        assert!(!contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("10.1.2.3/8", "10.9.9.9"), "host bits are ignored, as in ss");
        assert!(contains("127.0.0.1", "127.0.0.1"));
        assert!(contains("0.0.0.0/0", "192.0.2.1"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1"));
        assert!(contains("::/0", "2001:db8::1"));
        assert!(contains("2001:db8::1/128", "2001:db8::1"));
    }

    #[test]
    fn an_ipv4_prefix_contains_mapped_addresses_and_an_ipv6_prefix_compares_their_mapped_form() {
        assert!(!contains("0.0.0.0/0", "::1"));
        assert!(!contains("::/0", "127.0.0.1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.1.1"));
        assert!(contains("0.0.0.0/0", "::ffff:10.1.1.1"));
        assert!(contains("::ffff:10.0.0.0/104", "::ffff:10.1.1.1"));
        assert!(!contains("::ffff:10.0.0.0/104", "10.1.1.1"));
        assert!(contains("::/0", "::ffff:10.1.1.1"));
    }

    #[test]
    fn a_printed_prefix_can_be_parsed_again() {
        for text in ["10.0.0.0/8", "127.0.0.1", "[2001:db8::1]", "[2001:db8::]/32", "0.0.0.0/0", "[::]/0"] {
            assert_eq!(text.parse::<ScopedPrefix>().map(|typed| typed.prefix.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn the_error_for_a_bad_address_names_the_bad_word() {
        for (bad, word) in [
            ("1.2.3", "'1.2.3'"),
            ("::g", "'::g'"),
            ("10.0.0.0/33", "'/33'"),
            ("::/129", "'/129'"),
            ("10.0.0.0/", "'/'"),
            ("10.0.0.0/+8", "'/+8'"),
            ("", "''"),
            ("localhost", "'localhost'"),
            ("127.0.0.1%lo", "'%lo'"),
            ("fe80::1%", "'%'"),
        ] {
            let error = bad.parse::<ScopedPrefix>().expect_err(bad).to_string();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }

    #[test]
    fn a_scoped_address_is_parsed_and_printed_with_its_scope() {
        let addr: ScopedAddr = "fe80::1%eth0".parse().expect("scoped");
        assert_eq!((addr.scope.as_deref(), addr.to_string().as_str()), (Some("eth0"), "fe80::1%eth0"));
        assert_eq!("[::1]".parse::<ScopedAddr>().map(|a| a.to_string()), Ok("::1".into()));
        for bracketed in ["[fe80::1%eth0]", "[fe80::1]%eth0"] {
            assert_eq!(bracketed.parse(), Ok(addr.clone()), "{bracketed}");
        }
        for bad in ["[fe80::1%eth0", "[fe80::1", "[]", "[%eth0]", "[127.0.0.1%lo]"] {
            assert!(bad.parse::<ScopedAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_with_or_without_a_port_is_parsed_and_printed() {
        for text in
            ["192.0.2.1", "192.0.2.1:443", "2001:db8::1", "[2001:db8::1]:443", "[fe80::1%eth0]:https", "::1:443"]
        {
            assert_eq!(text.parse::<ScopedEnd>().map(|end| end.to_string()).as_deref(), Ok(text));
        }
        let colon = "[192.0.2.1]:a:b";
        assert_eq!(colon.parse::<ScopedEnd>().map(|end| end.to_string()).as_deref(), Ok(colon));
        assert_eq!("[::1]".parse::<ScopedEnd>().map(|end| end.to_string()).as_deref(), Ok("::1"));
        let port = |text: &str| text.parse::<ScopedEnd>().expect(text).port;
        assert_eq!(
            (port("::1:443"), port("[::1]:443").is_some()),
            (None, true),
            "without brackets the whole text is the address"
        );
        for (bad, word) in [
            ("localhost:443", "'localhost'"),
            ("192.0.2.1:", "''"),
            ("192.0.2.1:65536", "'65536'"),
            ("[::1]443", "'[::1]443'"),
            ("[::1]:x y", "'x y'"),
            (":443", "''"),
            ("", "''"),
        ] {
            let error = bad.parse::<ScopedEnd>().expect_err(bad).to_string();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
