//! Addresses that are special: what listens there trusts whoever is near, or speaks for the machine itself.
//!
//! Notations that carry an address of version 4 inside one of version 6 count as what they lead to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is special.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Special {
    /// This machine.
    Loopback,
    /// The next machines, and most metadata services: 169.254.0.0/16, fe80::/10.
    LinkLocal,
    /// No address, which means this machine.
    Unspecified,
    /// Many machines.
    Multicast,
    /// A cloud's metadata service that is elsewhere.
    Metadata,
}

impl fmt::Display for Special {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Unspecified => "an unspecified address",
            Self::Multicast => "a multicast address",
            Self::Metadata => "the address of a metadata service",
        })
    }
}

/// Metadata services outside the link-local addresses: those of Azure, Alibaba and Oracle, and AWS's over IPv6.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [u16; 2] = [0xfd00, 0x0ec2];

/// An address of version 6 that is one of version 4, as that.
pub(crate) fn plain(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => match compatible(v6).or_else(|| v6.to_ipv4_mapped()) {
            Some(v4) => v4.into(),
            None => ip,
        },
        IpAddr::V4(_) => ip,
    }
}

/// `::a.b.c.d`, which some systems still take for the address of version 4.
fn compatible(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, high, low] if (high, low) > (0, 0xffff) => {
            Some(from_segments(high, low))
        }
        _ => None,
    }
}

/// Whether an address is special, and why.
pub(crate) fn special(ip: IpAddr) -> Option<Special> {
    match plain(ip) {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    }
}

fn special_v4(v4: Ipv4Addr) -> Option<Special> {
    match v4.octets() {
        [127, ..] => Some(Special::Loopback),
        [169, 254, ..] => Some(Special::LinkLocal),
        [0, ..] => Some(Special::Unspecified),
        [224..=239, ..] | [255, 255, 255, 255] => Some(Special::Multicast),
        _ if METADATA_V4.contains(&v4) => Some(Special::Metadata),
        _ => None,
    }
}

fn special_v6(v6: Ipv6Addr) -> Option<Special> {
    match v6.segments() {
        _ if v6.is_loopback() => Some(Special::Loopback),
        _ if v6.is_unspecified() => Some(Special::Unspecified),
        [0xfe80..=0xfebf, ..] => Some(Special::LinkLocal),
        [0xff00..=0xffff, ..] => Some(Special::Multicast),
        [a, b, ..] if [a, b] == METADATA_V6 => Some(Special::Metadata),
        // A gateway or a tunnel leads to the address inside: NAT64, 6to4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            special_v4(from_segments(high, low))
        }
        _ => None,
    }
}

fn from_segments(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}

/// Addresses that begin with the same bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Network {
    base: IpAddr,
    bits: u8,
}

impl Network {
    /// Reads `10.0.0.0/8` or `fd00::/8`. Bits of the address behind the prefix are ignored.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (base, bits) = text.split_once('/')?;
        let base: IpAddr = base.trim_matches(['[', ']']).parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Self { base, bits })
    }

    /// Whether an address is in it.
    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => {
                let shift = 32 - u32::from(self.bits);
                (base.to_bits() ^ ip.to_bits())
                    .checked_shr(shift)
                    .unwrap_or(0)
                    == 0
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) => {
                let shift = 128 - u32::from(self.bits);
                (base.to_bits() ^ ip.to_bits())
                    .checked_shr(shift)
                    .unwrap_or(0)
                    == 0
            }
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_count_as_what_they_lead_to() {
        use Special::{LinkLocal, Loopback, Metadata, Multicast, Unspecified};
        for (text, class) in [
            ("127.0.0.1", Some(Loopback)),
            ("127.255.0.3", Some(Loopback)),
            ("::1", Some(Loopback)),
            ("::ffff:127.0.0.1", Some(Loopback)),
            ("::127.0.0.1", Some(Loopback)),
            ("64:ff9b::7f00:1", Some(Loopback)),
            ("2002:7f00:1::", Some(Loopback)),
            ("169.254.169.254", Some(LinkLocal)),
            ("::ffff:a9fe:a9fe", Some(LinkLocal)),
            ("64:ff9b::169.254.169.254", Some(LinkLocal)),
            ("fe80::1", Some(LinkLocal)),
            ("febf:ffff::", Some(LinkLocal)),
            ("0.0.0.0", Some(Unspecified)),
            ("0.1.2.3", Some(Unspecified)),
            ("::", Some(Unspecified)),
            ("::ffff:0.0.0.0", Some(Unspecified)),
            ("224.0.0.1", Some(Multicast)),
            ("239.255.255.255", Some(Multicast)),
            ("255.255.255.255", Some(Multicast)),
            ("ff02::1", Some(Multicast)),
            ("100.100.100.200", Some(Metadata)),
            ("168.63.129.16", Some(Metadata)),
            ("fd00:ec2::254", Some(Metadata)),
            ("10.0.0.1", None),
            ("192.168.1.1", None),
            ("52.216.1.1", None),
            ("fec0::1", None),
            ("fd00::1", None),
            ("2600:1f00::1", None),
            ("64:ff9b::8.8.8.8", None),
        ] {
            assert_eq!(special(text.parse().unwrap()), class, "{text}");
        }
    }

    #[test]
    fn a_network_has_the_addresses_that_begin_like_it() {
        for (network, ip, is_in) in [
            ("10.0.0.0/8", "10.200.3.4", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.1.2.3/32", "10.1.2.3", true),
            ("10.1.2.3/32", "10.1.2.2", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "fd00::1", false),
            ("::/0", "fd00::1", true),
            ("fd00::/8", "fdff::1", true),
            ("fd00::/8", "fe00::1", false),
        ] {
            let network = Network::parse(network).unwrap();
            assert_eq!(
                network.contains(ip.parse().unwrap()),
                is_in,
                "{network:?} {ip}"
            );
        }
        for bad in [
            "10.0.0.0",
            "10.0.0.0/33",
            "::/129",
            "x/8",
            "10.0.0.0/-1",
            "/8",
            "",
        ] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }
}
