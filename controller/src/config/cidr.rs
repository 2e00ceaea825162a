//! Blocks of addresses: `198.18.0.0/15`, `2001:db8::/32`, or one address. Pure.
//!
//! In: text, and addresses to compare. Out: whether an address is in the block. Deliberately no arithmetic beyond that.

use std::fmt;
use std::net::IpAddr;

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    network: IpAddr,
    prefix: u8,
}

/// Why a text is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CidrError {
    /// What stands before the slash is no address.
    Address,
    /// What stands after it is no number from 0 to the family's bits.
    Prefix,
    /// Bits are set to the right of the prefix: a typing error more often than an intent.
    HostBits,
}

impl fmt::Display for CidrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "is not an address block, such as 198.18.0.0/15 or 2001:db8::/32",
            Self::Prefix => "has no valid prefix length: 0 to 32 for IPv4, 0 to 128 for IPv6",
            Self::HostBits => "has bits set after its prefix",
        })
    }
}

impl Cidr {
    /// Reads `text`; an address alone is the block of itself.
    pub(crate) fn parse(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let network: IpAddr = address.parse().map_err(|_| CidrError::Address)?;
        let bits = family_bits(network);
        let prefix = match prefix {
            None => bits,
            Some(text) => text.parse().ok().filter(|prefix| *prefix <= bits).ok_or(CidrError::Prefix)?,
        };
        if aligned(network) & !mask(prefix) != 0 {
            return Err(CidrError::HostBits);
        }
        Ok(Self { network, prefix })
    }

    /// Whether `address` is in it. An IPv4 address that arrived through an IPv6 socket counts as IPv4.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.network.is_ipv4() && aligned(address) & mask(self.prefix) == aligned(self.network)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

const fn family_bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The address with its first bit as the highest of 128.
fn aligned(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The highest `prefix` bits.
const fn mask(prefix: u8) -> u128 {
    if prefix == 0 { 0 } else { u128::MAX << (128 - prefix as u32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(block: &str, address: &str, expected: bool) {
        let block = Cidr::parse(block).expect("a block");
        assert_eq!(block.contains(address.parse().expect("an address")), expected, "{address} in {block}");
    }

    #[test]
    fn a_block_contains_its_first_and_last_address_and_not_its_neighbours() {
        check("198.18.0.0/15", "198.18.0.0", true);
        check("198.18.0.0/15", "198.19.255.255", true);
        check("198.18.0.0/15", "198.17.255.255", false);
        check("198.18.0.0/15", "198.20.0.0", false);
        check("198.51.100.7", "198.51.100.7", true);
        check("198.51.100.7", "198.51.100.6", false);
        check("0.0.0.0/0", "203.0.113.9", true);
        check("2001:db8::/32", "2001:db8:ffff::1", true);
        check("2001:db8::/32", "2001:db9::1", false);
        check("::/0", "2001:db8::1", true);
    }

    #[test]
    fn families_do_not_mix_except_for_mapped_addresses() {
        check("0.0.0.0/0", "2001:db8::1", false);
        check("::/0", "198.18.0.1", false);
        check("198.18.0.0/15", "::ffff:198.18.0.1", true);
    }

    #[test]
    fn everything_else_says_what_is_wrong() {
        let check = |text: &str, error| assert_eq!(Cidr::parse(text), Err(error), "{text}");
        check("", CidrError::Address);
        check("198.18.0/15", CidrError::Address);
        check("198.18.0.0/", CidrError::Prefix);
        check("198.18.0.0/33", CidrError::Prefix);
        check("2001:db8::/129", CidrError::Prefix);
        check("198.18.0.1/15", CidrError::HostBits);
    }
}
