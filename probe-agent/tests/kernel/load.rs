//! A mixed load of one client process, and the truth about it from the process's own errnos.

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use super::{Truth, begin, fresh};
use crate::world::{ANSWERING, DROPPED, REFUSING, REJECTED, SERVER, at, pause_ms};

/// Connects that wait for nothing are closed at once, or kept until as many others have begun: then they are late.
const KEPT: usize = 8;

const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// Does `count` connects, one after the other: half are established, the rest are refused, rejected by ICMP, or given up
/// at once or late. All randomness comes from the seed.
pub fn load(seed: u64, count: u64) -> Truth {
    let mut truth = Truth::default();
    let mut random = seed | 1;
    let mut kept: VecDeque<TcpStream> = VecDeque::new();
    for number in 0..count {
        // Xorshift: <https://www.jstatsoft.org/article/view/v008i14>.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        match random % 16 {
            0..8 => establish(&mut truth, random & 0x100 != 0),
            8..12 => refuse(&mut truth),
            12 | 13 => reject(&mut truth),
            14 => drop(give_up(&mut truth)),
            _ => {
                kept.push_back(give_up(&mut truth));
                if kept.len() > KEPT {
                    drop(kept.pop_front());
                }
            }
        }
        if number % 4096 == 4095 {
            // All that are kept become late, and end so.
            pause_ms(60);
            kept.clear();
        }
    }
    pause_ms(60);
    truth
}

fn establish(truth: &mut Truth, talk: bool) {
    let mut stream = TcpStream::connect(at(SERVER, ANSWERING)).expect("the server accepts");
    truth.established += 1;
    if talk {
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("is not zero");
        let mut byte = [1];
        stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte)).expect("the server answers");
        truth.answered += 1;
    }
}

fn refuse(truth: &mut Truth) {
    let error = TcpStream::connect(at(SERVER, REFUSING)).expect_err("nothing listens there");
    assert_eq!(error.raw_os_error(), Some(ECONNREFUSED));
    truth.refused += 1;
}

fn reject(truth: &mut Truth) {
    let limit = Duration::from_secs(2);
    let error = TcpStream::connect_timeout(&at(REJECTED, ANSWERING), limit).expect_err("the node rejects it");
    match error.raw_os_error() {
        Some(ECONNREFUSED | EHOSTUNREACH) => truth.unreachable += 1,
        other => panic!("rejected with {other:?}"),
    }
}

fn give_up(truth: &mut Truth) -> TcpStream {
    let socket = fresh(at(DROPPED, ANSWERING));
    let errno = begin(&socket, at(DROPPED, ANSWERING));
    assert_eq!(errno, rustix::io::Errno::INPROGRESS.raw_os_error());
    truth.cancelled += 1;
    socket
}
