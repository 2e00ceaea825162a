//! The two kernel changes that a drill times to the microsecond, as netlink messages: an element of a packet filter's
//! set comes or goes, an interface goes down or up. In: names. Out: the kernel's acknowledgement. Starting `nft` or `ip`
//! for the same costs milliseconds of a busy machine, which would lie between `t0` and the fault.
//!
//! Layouts are those of the kernel's own headers: linux/netlink.h, linux/netfilter/nfnetlink.h,
//! linux/netfilter/nf_tables.h, linux/rtnetlink.h. Everything that is not timed is left to the tools.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use super::netns::Netns;

/// NLM_F_REQUEST and NLM_F_ACK.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
/// NLM_F_CREATE.
const CREATE: u16 = 0x400;
/// NLMSG_ERROR: also carries acknowledgements, as error 0.
const ERROR: u16 = 2;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;
/// NFNL_MSG_BATCH_BEGIN and NFNL_MSG_BATCH_END.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// NFNL_SUBSYS_NFTABLES, the upper byte of a message's type.
const NFTABLES: u16 = 10;
/// NFT_MSG_NEWSETELEM and NFT_MSG_DELSETELEM.
const NEW_ELEMENT: u16 = (NFTABLES << 8) | 12;
const DELETE_ELEMENT: u16 = (NFTABLES << 8) | 14;
/// NFPROTO_INET.
const INET: u8 = 1;
/// RTM_NEWLINK, and the only flag of an interface that is changed here, IFF_UP.
const SET_LINK: u16 = 16;
const UP: u32 = 1;
/// IFLA_IFNAME.
const INTERFACE_NAME: u16 = 3;
/// The kernel answers before send() returns; a lost answer must not hang the lab.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// A netlink socket inside a network namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    seq: u32,
}

impl Netlink {
    /// To the packet filter of a namespace.
    pub(crate) fn to_filter(netns: &Netns) -> Result<Netlink> {
        Netlink::connect(netns, Some(netlink::NETFILTER))
    }

    /// To the interfaces of a namespace; NETLINK_ROUTE is protocol 0.
    pub(crate) fn to_links(netns: &Netns) -> Result<Netlink> {
        Netlink::connect(netns, None)
    }

    fn connect(netns: &Netns, protocol: Option<Protocol>) -> Result<Netlink> {
        let open = || {
            let socket =
                rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))?;
            Ok::<OwnedFd, rustix::io::Errno>(socket)
        };
        let socket = netns.within(open)?.context("cannot open a netlink socket")?;
        Ok(Netlink { socket, seq: 0 })
    }

    /// Adds `key` to a set of an `inet` table, or takes it away.
    pub(crate) fn set_element(&mut self, table: &str, set: &str, key: &[u8], present: bool) -> Result<()> {
        let (kind, flags) =
            if present { (NEW_ELEMENT, REQUEST | ACK | CREATE) } else { (DELETE_ELEMENT, REQUEST | ACK) };
        self.seq += 3;
        let seq = self.seq;
        let mut batch = Vec::with_capacity(256);
        message(&mut batch, BATCH_BEGIN, REQUEST, seq - 1, |body| body.extend(family_header(0, NFTABLES)));
        message(&mut batch, kind, flags, seq, |body| {
            body.extend(family_header(INET, 0));
            attribute(body, 1, |value| push_name(value, table));
            attribute(body, 2, |value| push_name(value, set));
            // The list, its one element, the element's key, the key's value.
            attribute(body, NESTED | 3, |list| {
                attribute(list, NESTED | 1, |element| {
                    attribute(element, NESTED | 1, |data| attribute(data, 1, |value| value.extend(key)));
                });
            });
        });
        message(&mut batch, BATCH_END, REQUEST, seq + 1, |body| body.extend(family_header(0, NFTABLES)));
        self.exchange(&batch, seq)
    }

    /// Sets an interface up or down.
    pub(crate) fn set_link(&mut self, name: &str, up: bool) -> Result<()> {
        self.seq += 1;
        let seq = self.seq;
        let mut bytes = Vec::with_capacity(64);
        message(&mut bytes, SET_LINK, REQUEST | ACK, seq, |body| {
            // struct ifinfomsg: family, padding, type and index are zero, the name below selects the interface.
            body.extend([0; 8]);
            body.extend(if up { UP } else { 0 }.to_ne_bytes());
            body.extend(UP.to_ne_bytes());
            attribute(body, INTERFACE_NAME, |value| push_name(value, name));
        });
        self.exchange(&bytes, seq)
    }

    /// Sends and waits for the answer to message `seq`.
    fn exchange(&self, bytes: &[u8], seq: u32) -> Result<()> {
        rustix::net::send(&self.socket, bytes, SendFlags::empty()).context("cannot send to the kernel")?;
        loop {
            let mut buffer = [0; 1024];
            let (length, _) = rustix::net::recv(&self.socket, &mut buffer, RecvFlags::empty())
                .context("the kernel does not answer")?;
            for (answered, errno) in answers(&buffer[..length])? {
                if errno != 0 {
                    let error = std::io::Error::from_raw_os_error(-errno);
                    return Err(error).context("the kernel refused a change of the network");
                }
                if answered == seq {
                    return Ok(());
                }
            }
        }
    }
}

/// struct nfgenmsg: family, version 0, a resource id in network order.
fn family_header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// struct nlmsghdr (length, type, flags, sequence, port 0) and its body, padded to four bytes.
fn message(out: &mut Vec<u8>, kind: u16, flags: u16, seq: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(seq.to_ne_bytes());
    out.extend([0; 4]);
    body(out);
    let length = u32::try_from(out.len() - start).expect("a message of some dozen bytes");
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// struct nlattr (length without padding, type) and its value, padded to four bytes.
fn attribute(out: &mut Vec<u8>, kind: u16, value: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 2]);
    out.extend(kind.to_ne_bytes());
    value(out);
    let length = u16::try_from(out.len() - start).expect("an attribute of some dozen bytes");
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

fn push_name(out: &mut Vec<u8>, name: &str) {
    out.extend(name.as_bytes());
    out.push(0);
}

/// Sequence number and errno (0 or negative) of each answer in a datagram.
fn answers(mut bytes: &[u8]) -> Result<Vec<(u32, i32)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| -> Result<[u8; 4]> {
            let slice = bytes.get(at..at + 4).context("a cut answer of the kernel")?;
            slice.try_into().context("a cut answer of the kernel")
        };
        let length = usize::try_from(u32::from_ne_bytes(word(0)?))?;
        let [low, high, ..] = word(4)?;
        ensure!(length >= 20 && u16::from_ne_bytes([low, high]) == ERROR, "the kernel answers in another way");
        found.push((u32::from_ne_bytes(word(8)?), i32::from_ne_bytes(word(16)?)));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    if found.is_empty() {
        bail!("an empty answer of the kernel");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_count_their_own_header() {
        let mut out = Vec::new();
        attribute(&mut out, 1, |value| push_name(value, "t1"));
        attribute(&mut out, 2, |value| value.push(6));
        let [length, kind] = [7_u16.to_ne_bytes(), 1_u16.to_ne_bytes()];
        assert_eq!(out[..8], [length[0], length[1], kind[0], kind[1], b't', b'1', 0, 0]);
        assert_eq!(out.len(), 16);
    }

    #[test]
    fn an_answer_is_read_by_its_sequence_number_and_errno() {
        let mut bytes = Vec::new();
        for (seq, errno) in [(7_u32, 0_i32), (8, -2)] {
            message(&mut bytes, ERROR, 0, seq, |body| {
                body.extend(errno.to_ne_bytes());
                body.extend([0; 16]);
            });
        }
        assert_eq!(answers(&bytes).unwrap(), [(7, 0), (8, -2)]);
        assert!(answers(&bytes[..10]).is_err());
    }
}
