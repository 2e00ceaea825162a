//! resourceVersions that keep their order when a server begins to count anew. Pure.
//!
//! In: a version as the server writes it, and how often the server has begun anew while we watched. Out: the version as the
//! core and the loop know it, and back. A version says only "this write"; but the core also asks which of two came first, and
//! after a restore of the server's storage the later one may have the smaller number. So the number of the era stands in
//! front of it here, and nothing of that is ever sent to a server. In the first era both are the same.

/// The first number of an era. etcd's revisions stay below it for ever: at 10,000 writes a second they take three million
/// years. A `u64` holds 18 eras.
const ERA: u64 = 1_000_000_000_000_000_000;

/// The last era that fits; later ones share it, and with it the order is no longer told in the rare case that needs it.
const LAST_ERA: u64 = u64::MAX / ERA - 1;

/// `version`, as the server writes it, in the order of all versions that were seen. One that is no number stays as it is.
pub(crate) fn ordered(era: u64, version: &str) -> String {
    match version.parse::<u64>() {
        Ok(number) if number < ERA => (era.min(LAST_ERA) * ERA + number).to_string(),
        Ok(_) | Err(_) => version.to_owned(),
    }
}

/// The same version as the server writes it.
pub(crate) fn raw(ordered: &str) -> String {
    ordered.parse::<u64>().map_or_else(|_| ordered.to_owned(), |number| (number % ERA).to_string())
}

/// `version`, as the server writes it, in the era of another one: what the server answered to a write that it guarded.
pub(crate) fn in_era_of(other: &str, version: &str) -> String {
    ordered(other.parse::<u64>().map_or(0, |number| number / ERA), version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_era_changes_nothing() {
        for version in ["1", "17", "999999999999999999", "abc", ""] {
            assert_eq!(ordered(0, version), version);
            assert_eq!(raw(version), version);
        }
    }

    #[test]
    fn a_later_era_comes_later_whatever_its_numbers() {
        let number = |text: String| text.parse::<u64>().expect("a number");
        assert!(number(ordered(1, "3")) > number(ordered(0, "500")));
        assert!(number(ordered(2, "1")) > number(ordered(1, "999999")));
        assert_eq!(raw(&ordered(3, "42")), "42");
        assert_eq!(in_era_of(&ordered(2, "17"), "18"), ordered(2, "18"));
        assert_eq!(in_era_of("abc", "18"), "18");
        assert!(number(ordered(1_000, "5")) > number(ordered(0, "5")), "no overflow");
    }
}
