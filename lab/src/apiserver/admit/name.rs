//! Names and labels of objects: an object comes in, what is wrong with them goes out. Pure.
//!
//! Kubernetes takes most names as DNS-1123 subdomains; namespaces and Services become single DNS labels and are
//! stricter.

use serde_json::Value;

use crate::apiserver::object::meta;
use crate::apiserver::resources::Resource;
use crate::apiserver::status::FieldError;

/// Length limits of RFC 1123.
const LABEL_LIMIT: usize = 63;
const SUBDOMAIN_LIMIT: usize = 253;

pub(super) fn check(resource: Resource, object: &Value) -> Vec<FieldError> {
    let name = meta(object, "name");
    if name.is_empty() {
        return vec![FieldError::required("metadata.name", "name or generateName is required")];
    }
    let fault = match resource {
        Resource::Namespaces if !is_label(name) => {
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or \
             '-', and must start and end with an alphanumeric character"
        }
        Resource::Services if !is_label(name) || name.starts_with(|first: char| first.is_ascii_digit()) => {
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character"
        }
        _ if !is_subdomain(name) => {
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character"
        }
        _ => return Vec::new(),
    };
    vec![FieldError::invalid("metadata.name", name, fault)]
}

/// A DNS-1123 label.
pub(super) fn is_label(text: &str) -> bool {
    text.len() <= LABEL_LIMIT && is_word(text)
}

/// A DNS-1123 subdomain. Kubernetes limits the length of the whole, not that of the labels between its dots.
fn is_subdomain(text: &str) -> bool {
    text.len() <= SUBDOMAIN_LIMIT && text.split('.').all(is_word)
}

fn is_word(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

/// A qualified name as label keys and an Event's reporting controller have it: an optional DNS prefix, a slash, up to
/// 63 letters, digits, `-`, `_` and `.`.
pub(super) fn is_qualified(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let edge = |byte: &u8| byte.is_ascii_alphanumeric();
    let bytes = name.as_bytes();
    prefix.is_none_or(is_subdomain)
        && name.len() <= LABEL_LIMIT
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|byte| edge(byte) || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_name(resource: Resource, name: &str, valid: bool) {
        let object = json!({ "metadata": { "name": name } });
        assert_eq!(check(resource, &object).is_empty(), valid, "{name}");
    }

    #[test]
    fn names_are_as_strict_as_their_kind() {
        let long = "a".repeat(200);
        for (name, as_split, as_namespace, as_service) in [
            ("web", true, true, true),
            ("web.v1", true, false, false),
            ("1web", true, true, false),
            ("Web", false, false, false),
            ("-web", false, false, false),
            ("web-", false, false, false),
            ("we_b", false, false, false),
            ("", false, false, false),
            ("web..v1", false, false, false),
            (long.as_str(), true, false, false),
        ] {
            check_name(Resource::TrafficSplits, name, as_split);
            check_name(Resource::Namespaces, name, as_namespace);
            check_name(Resource::Services, name, as_service);
        }
    }

    #[test]
    fn qualified_names_may_have_one_prefix() {
        for (name, valid) in [
            ("splitsecond", true),
            ("splitsecond.dev/controller", true),
            ("a_B.c", true),
            ("", false),
            ("a/b/c", false),
            ("/b", false),
            ("a b", false),
        ] {
            assert_eq!(is_qualified(name), valid, "{name}");
        }
    }
}
