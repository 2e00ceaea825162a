//! Label and field selectors: the text of a query comes in, a predicate over objects goes out. Pure; it knows no
//! resource besides the list of fields that it is handed.

use serde_json::Value;

use super::object::meta;
use super::status::Status;

/// What a list or watch restricts itself to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    namespace: Option<String>,
    labels: Vec<LabelRule>,
    fields: Vec<FieldRule>,
}

#[derive(Clone, Debug, PartialEq)]
struct LabelRule {
    key: String,
    test: LabelTest,
}

#[derive(Clone, Debug, PartialEq)]
enum LabelTest {
    Exists,
    Absent,
    In(Vec<String>),
    /// Also true for objects without the label, as in Kubernetes.
    NotIn(Vec<String>),
}

#[derive(Clone, Debug)]
struct FieldRule {
    pointer: String,
    value: String,
    equal: bool,
}

impl Selection {
    /// Reads both selectors. `field_of` gives the stored field behind a field label of the kind, besides name and
    /// namespace.
    pub(crate) fn parse(
        namespace: Option<&str>,
        labels: &str,
        fields: &str,
        field_of: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Status> {
        Ok(Self {
            namespace: namespace.map(ToOwned::to_owned),
            labels: split_requirements(labels).map(LabelRule::parse).collect::<Result<_, _>>()?,
            fields: split_requirements(fields)
                .map(|text| FieldRule::parse(text, &field_of))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Whether anything besides the namespace restricts the selection.
    pub(crate) fn is_filtered(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }

    /// Whether the object is in the selection.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| meta(object, "namespace") == namespace)
            && self.labels.iter().all(|rule| rule.matches(object))
            && self.fields.iter().all(|rule| rule.matches(object))
    }
}

impl LabelRule {
    fn parse(text: &str) -> Result<Self, Status> {
        let (key, test) = if let Some((key, value)) = text.split_once("!=") {
            (key, LabelTest::NotIn(vec![value.trim().to_owned()]))
        } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            (key, LabelTest::In(vec![value.trim().to_owned()]))
        } else if let Some((key, values)) = set_of(text, "notin") {
            (key, LabelTest::NotIn(values))
        } else if let Some((key, values)) = set_of(text, "in") {
            (key, LabelTest::In(values))
        } else if let Some(key) = text.strip_prefix('!') {
            (key, LabelTest::Absent)
        } else {
            (text, LabelTest::Exists)
        };
        let key = key.trim();
        if key.is_empty() || key.contains(|character: char| !is_label_character(character)) {
            return Err(Status::bad_request(format!("unable to parse requirement: {text:?}")));
        }
        Ok(Self { key: key.to_owned(), test })
    }

    fn matches(&self, object: &Value) -> bool {
        let label = object.get("metadata").and_then(|metadata| metadata.get("labels")?.get(&self.key)?.as_str());
        match &self.test {
            LabelTest::Exists => label.is_some(),
            LabelTest::Absent => label.is_none(),
            LabelTest::In(values) => label.is_some_and(|label| values.iter().any(|value| value == label)),
            LabelTest::NotIn(values) => label.is_none_or(|label| values.iter().all(|value| value != label)),
        }
    }
}

impl FieldRule {
    fn parse(text: &str, field_of: impl Fn(&str) -> Option<String>) -> Result<Self, Status> {
        let (label, value, equal) = if let Some((label, value)) = text.split_once("!=") {
            (label, value, false)
        } else if let Some((label, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            (label, value, true)
        } else {
            return Err(Status::bad_request(format!("invalid selector: {text:?}; can't understand it")));
        };
        let label = label.trim();
        let field = match label {
            "metadata.name" | "metadata.namespace" => Some(label.to_owned()),
            _ => field_of(label),
        };
        let field = field.ok_or_else(|| Status::bad_request(format!("field label not supported: {label}")))?;
        Ok(Self { pointer: format!("/{}", field.replace('.', "/")), value: value.trim().to_owned(), equal })
    }

    fn matches(&self, object: &Value) -> bool {
        let found = match object.pointer(&self.pointer) {
            Some(Value::String(text)) => *text == self.value,
            Some(Value::Bool(flag)) => flag.to_string() == self.value,
            // An absent field compares as Go's empty value of its type.
            _ => self.value.is_empty() || self.value == "false",
        };
        found == self.equal
    }
}

/// Splits at the commas outside of parentheses and drops empty pieces.
fn split_requirements(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_u32;
    text.split(move |character| {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|piece| !piece.is_empty())
}

/// `key in (a, b)` as the key and its values, for the given operator.
fn set_of<'a>(text: &'a str, operator: &str) -> Option<(&'a str, Vec<String>)> {
    let (head, values) = text.strip_suffix(')')?.split_once('(')?;
    let key = head.trim_end().strip_suffix(operator)?;
    // The operator is a word of its own: `within (a)` is not `with in (a)`.
    if !key.ends_with(char::is_whitespace) {
        return None;
    }
    Some((key.trim(), values.split(',').map(|value| value.trim().to_owned()).collect()))
}

fn is_label_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.' | '/')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_field(label: &str) -> Option<String> {
        (label == "spec.type").then(|| label.to_owned())
    }

    #[track_caller]
    fn check(labels: &str, fields: &str, matches: bool) {
        let object = json!({
            "metadata": { "name": "a", "namespace": "ns", "labels": { "app": "web", "example.com/tier": "front" } },
            "spec": { "type": "ClusterIP" },
        });
        let selection = Selection::parse(Some("ns"), labels, fields, mk_field).unwrap();
        assert_eq!(selection.matches(&object), matches, "{labels} {fields}");
    }

    #[test]
    fn label_selectors_mean_what_kubernetes_means() {
        for (selector, matches) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app=api", false),
            ("app!=api", true),
            ("absent!=x", true),
            ("app in (api, web)", true),
            ("app in (api)", false),
            ("app notin (api,db)", true),
            ("absent notin (x)", true),
            ("app notin (web)", false),
            ("example.com/tier", true),
            ("absent", false),
            ("!absent", true),
            ("!app", false),
            ("app in (api,web),example.com/tier=front", true),
            ("app in (api,web),example.com/tier=back", false),
        ] {
            check(selector, "", matches);
        }
    }

    #[test]
    fn field_selectors_know_name_namespace_and_the_kinds_own_fields() {
        check("", "metadata.name=a", true);
        check("", "metadata.name!=a", false);
        check("", "metadata.namespace=ns,spec.type=ClusterIP", true);
        check("", "spec.type=NodePort", false);
        let status = Selection::parse(None, "", "spec.other=1", mk_field).unwrap_err();
        assert_eq!(status.code(), 400);
    }

    #[test]
    fn a_selector_that_cannot_be_read_is_refused_and_not_ignored() {
        for selector in ["app within (a)", "=web", "app in web", "a b"] {
            assert!(Selection::parse(None, selector, "", mk_field).is_err(), "{selector}");
        }
    }
}
