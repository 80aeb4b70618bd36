//! Decides when `tcp_tw_reuse` lets connect() take over a timewait bucket that has the same addresses and ports as the new connection
//! (`tcp_twsk_unique` in net/ipv4/tcp_ipv4.c; ip-sysctl in the kernel's documentation).

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

/// The value of `net.ipv4.tcp_tw_reuse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReuseMode {
    /// 0: never.
    Off,
    /// 1: any outgoing connection.
    On,
    /// 2, the default since Linux 4.19: only if one of the two addresses is a loopback address, or the socket is bound to `lo`.
    LoopbackOnly,
}

impl ReuseMode {
    /// The mode with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Off),
            1 => Some(Self::On),
            2 => Some(Self::LoopbackOnly),
            _ => None,
        }
    }

    /// The number of the mode.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::On => 1,
            Self::LoopbackOnly => 2,
        }
    }
}

/// The settings that decide whether connect() may take over a bucket. `None` means that a setting could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwReuse {
    /// `net.ipv4.tcp_tw_reuse`.
    pub mode: Option<ReuseMode>,
    /// `net.ipv4.tcp_tw_reuse_delay`: the age at which connect() may take over a bucket. See [`Self::whole_seconds`].
    pub delay: Duration,
    /// Whether the kernel compares whole seconds, because it has no `tcp_tw_reuse_delay` (before Linux 6.14). On such a kernel,
    /// connect() may take over a bucket when the next second of the monotonic clock begins (`ktime_get_seconds`), at an age between
    /// 0 and 1 s. Then [`Self::delay`] is the maximum, 1 s. Some of these kernels also let connect() take over a FIN_WAIT_2 bucket.
    pub whole_seconds: bool,
    /// Whether `net.ipv4.tcp_timestamps` is on. connect() never takes over a bucket whose connection had no timestamps. The
    /// kernel does not report whether the connection had timestamps, so this setting is the best available evidence.
    pub timestamps: Option<bool>,
}

/// The index of the interface `lo`, which is the same in every network namespace.
const LOOPBACK: u32 = 1;

impl TwReuse {
    /// The age from which connect() may take over every bucket, if the kernel compares whole seconds.
    pub const WHOLE_SECOND: Duration = Duration::from_secs(1);

    /// Whether connections between these addresses may take over buckets; `None` if that is unknown. `interface` is the
    /// interface that the sockets are bound to.
    #[must_use]
    pub fn applies(&self, local: IpAddr, remote: IpAddr, interface: Option<NonZeroU32>) -> Option<bool> {
        let loopback = || {
            let is_loopback = |addr: IpAddr| addr.to_canonical().is_loopback();
            is_loopback(local) || is_loopback(remote) || interface.is_some_and(|index| index.get() == LOOPBACK)
        };
        let by_mode = self.mode.map(|mode| match mode {
            ReuseMode::Off => false,
            ReuseMode::On => true,
            ReuseMode::LoopbackOnly => loopback(),
        });
        match (by_mode, self.timestamps) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applies(mode: Option<ReuseMode>, timestamps: Option<bool>, local: &str, remote: &str) -> Option<bool> {
        let reuse = TwReuse { mode, delay: Duration::from_secs(1), whole_seconds: false, timestamps };
        reuse.applies(local.parse().expect(local), remote.parse().expect(remote), None)
    }

    #[test]
    fn loopback_only_needs_one_loopback_address() {
        for (local, remote, expected) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("10.0.0.1", "127.0.0.1", true),
            ("127.0.0.9", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("::1", "2001:db8::1", true),
            ("2001:db8::2", "2001:db8::1", false),
        ] {
            assert_eq!(applies(Some(ReuseMode::LoopbackOnly), Some(true), local, remote), Some(expected));
            assert_eq!(applies(Some(ReuseMode::On), Some(true), local, remote), Some(true));
            assert_eq!(applies(Some(ReuseMode::Off), Some(true), local, remote), Some(false));
        }
        let (mode, delay) = (Some(ReuseMode::LoopbackOnly), Duration::ZERO);
        let lo = TwReuse { mode, delay, whole_seconds: false, timestamps: Some(true) };
        let addr = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(lo.applies(addr, addr, NonZeroU32::new(1)), Some(true), "bound to lo");
        assert_eq!(lo.applies(addr, addr, NonZeroU32::new(2)), Some(false));
    }

    #[test]
    fn without_timestamps_there_is_no_reuse_and_unread_settings_give_unknown() {
        assert_eq!(applies(Some(ReuseMode::On), Some(false), "127.0.0.1", "127.0.0.1"), Some(false));
        assert_eq!(applies(None, Some(false), "127.0.0.1", "127.0.0.1"), Some(false));
        assert_eq!(applies(None, Some(true), "127.0.0.1", "127.0.0.1"), None);
        assert_eq!(applies(Some(ReuseMode::On), None, "127.0.0.1", "127.0.0.1"), None);
        assert_eq!(applies(Some(ReuseMode::Off), None, "127.0.0.1", "127.0.0.1"), Some(false));
        for number in 0..4 {
            assert_eq!(
                ReuseMode::from_number(number).map(|mode| u64::from(mode.number())),
                (number < 3).then_some(number)
            );
        }
    }
}
