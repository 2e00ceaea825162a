//! Whom a mesh's proxy would dial. In: the weights of splits and their Services' ready endpoints. Out: a leaf and an
//! endpoint for random numbers. Pure.

use std::net::SocketAddr;

use serde_json::Value;

/// The leaves of each split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Routes {
    pub(crate) splits: Vec<Vec<Leaf>>,
}

/// A backend of a split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// The Service's name.
    pub(crate) name: String,
    /// Thousandths of a weight: SMI allows `900m`.
    pub(crate) weight_milli: u64,
    /// Ready ones only.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Sent first; a gateway chooses the mirrored Service by it.
    pub(crate) first_byte: u8,
}

impl Routes {
    /// Any of the splits, and of its leaves one by weight, whether it has endpoints or not: as in a mesh, an empty leaf
    /// keeps its share of the traffic and fails it. None when no leaf has a weight.
    pub(crate) fn leaf(&self, random_split: u64, random_leaf: u64) -> Option<&Leaf> {
        let count = u64::try_from(self.splits.len()).unwrap_or(u64::MAX);
        let leaves = self.splits.get(usize::try_from(random_split.checked_rem(count)?).ok()?)?;
        let total: u64 = leaves.iter().map(|leaf| leaf.weight_milli).sum();
        let mut left = random_leaf.checked_rem(total)?;
        for leaf in leaves {
            if left < leaf.weight_milli {
                return Some(leaf);
            }
            left -= leaf.weight_milli;
        }
        None
    }
}

impl Leaf {
    /// One of the ready endpoints.
    pub(crate) fn endpoint(&self, random: u64) -> Option<SocketAddr> {
        let count = u64::try_from(self.endpoints.len()).unwrap_or(0);
        let index = random.checked_rem(count)?;
        self.endpoints.get(usize::try_from(index).ok()?).copied()
    }
}

/// A weight as SMI's versions write it: a number, or a quantity such as `1`, `0.5` or `900m`. None for anything else,
/// which gets no traffic.
pub(crate) fn weight_milli(weight: &Value) -> Option<u64> {
    match weight {
        Value::Number(number) => decimal_milli(&number.to_string()),
        Value::String(text) => match text.strip_suffix('m') {
            Some(milli) => milli.parse().ok().filter(|milli| *milli <= MAX_MILLI),
            None => decimal_milli(text),
        },
        _ => None,
    }
}

/// A million; larger weights are mistakes.
const MAX_MILLI: u64 = 1_000_000_000;

fn decimal_milli(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let thousandths: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let milli = whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(thousandths)?;
    (milli <= MAX_MILLI).then_some(milli)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_leaf(name: &str, weight_milli: u64) -> Leaf {
        Leaf { name: name.into(), weight_milli, ..Leaf::default() }
    }

    #[test]
    fn weights_are_read_as_smi_writes_them() {
        for (text, milli) in [
            ("1", 1000),
            ("0", 0),
            ("\"900m\"", 900),
            ("0.5", 500),
            ("\"0.5\"", 500),
            ("\"12\"", 12_000),
            ("1000", 1_000_000),
        ] {
            assert_eq!(weight_milli(&serde_json::from_str(text).unwrap()), Some(milli), "{text}");
        }
        for text in ["\"abc\"", "-1", "1e30", "\"\"", "null", "\"m\"", "[1]"] {
            assert_eq!(weight_milli(&serde_json::from_str(text).unwrap()), None, "{text}");
        }
    }

    #[test]
    fn leaves_get_traffic_by_weight() {
        let routes = Routes { splits: vec![vec![mk_leaf("a", 900), mk_leaf("b", 0), mk_leaf("c", 100)]] };
        let mut counts = [0, 0, 0];
        for random in 0..1000 {
            let leaf = routes.leaf(random, random).unwrap();
            counts[usize::from(leaf.name.as_bytes()[0] - b'a')] += 1;
        }
        assert_eq!(counts, [900, 0, 100]);
    }

    #[test]
    fn no_weight_means_no_leaf_and_no_endpoint_means_none() {
        assert_eq!(Routes { splits: vec![vec![mk_leaf("a", 0)]] }.leaf(7, 7), None);
        assert_eq!(Routes::default().leaf(7, 7), None);
        assert_eq!(mk_leaf("a", 1).endpoint(7), None);
    }

    #[test]
    fn every_split_gets_its_share() {
        let routes = Routes { splits: vec![vec![mk_leaf("a", 1000)], vec![mk_leaf("b", 500), mk_leaf("c", 500)]] };
        let names: Vec<&str> = (0..4).filter_map(|random| Some(routes.leaf(random, 0)?.name.as_str())).collect();
        assert_eq!(names, ["a", "b", "a", "b"]);
    }
}
