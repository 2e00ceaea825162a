//! The ring of first failures in, plain records out.

use aya::maps::{MapData, RingBuf};
use probe_common::abi::{self, FirstFailure};
use tokio::io::{Interest, unix::AsyncFd};

use super::MapError;

/// First failures as they happen, one record per destination, CPU and round.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    /// Has to be called inside a tokio runtime with IO.
    pub(super) fn new(ring: RingBuf<MapData>) -> Result<Self, MapError> {
        // SAFETY: the ring owns its descriptor, returns the same one every time, and goes with the `AsyncFd`.
        let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self { ring: registered.map_err(|error| waiting(error.into()))? })
    }

    /// Waits until there is at least one record, then appends all there are, oldest first.
    ///
    /// Cancel-safe: a record is either appended or still in the kernel's ring.
    ///
    /// # Errors
    /// When the ring cannot be waited for: the runtime is shutting down.
    pub async fn next(&mut self, into: &mut Vec<FirstFailure>) -> Result<(), MapError> {
        let before = into.len();
        loop {
            let mut ready = self.ring.readable_mut().await.map_err(waiting)?;
            let ring = ready.get_inner_mut();
            while let Some(item) = ring.next() {
                into.extend(record(&item));
            }
            ready.clear_ready();
            if into.len() > before {
                return Ok(());
            }
        }
    }
}

fn waiting(source: std::io::Error) -> MapError {
    MapError::Wait { map: abi::maps::EVENTS, source }
}

/// The kernel writes whole records only; another length is another version's, and cannot come from our own object.
fn record(bytes: &[u8]) -> Option<FirstFailure> {
    if bytes.len() != size_of::<FirstFailure>() {
        return None;
    }
    // SAFETY: the length is right, every bit pattern is a value (`Pod`), and no alignment is assumed.
    Some(unsafe { bytes.as_ptr().cast::<FirstFailure>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_field_by_field_and_a_torn_one_not_at_all() {
        let words: [u32; 8] = [1, 2, 3, 4, 5, 6, 3, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let record_of = record(&bytes).expect("is whole");
        assert_eq!((record_of.index, record_of.generation, record_of.cause), (5, 6, 3));
        assert_eq!(record(&bytes[..31]), None);
    }
}
