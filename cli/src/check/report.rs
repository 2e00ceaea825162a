//! What was found, and how it is printed. In: checks in categories. Out: text or JSON in the form of `linkerd check`. Pure.

use std::error::Error;

use serde_json::{Value, json};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    /// Something is less than it could be; an agent works all the same.
    Warned,
    Failed,
    /// Something before it failed.
    NotTried,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    outcome: Outcome,
    description: String,
    /// What is wrong.
    error: String,
    /// What to do.
    hint: String,
}

impl Check {
    /// It is as it should be.
    pub(super) fn passed(description: impl Into<String>) -> Self {
        Self { outcome: Outcome::Passed, description: description.into(), error: String::new(), hint: String::new() }
    }

    /// An agent works, but.
    pub(super) fn warned(description: impl Into<String>, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { outcome: Outcome::Warned, ..Self::failed(description, error, hint) }
    }

    /// An agent does not work: what is wrong, and what to do.
    pub(super) fn failed(description: impl Into<String>, error: impl Into<String>, hint: impl Into<String>) -> Self {
        let (description, error, hint) = (description.into(), error.into(), hint.into());
        Self { outcome: Outcome::Failed, description, error, hint }
    }

    /// It could not be tried, because `first` failed.
    pub(super) fn not_tried(description: impl Into<String>, first: &str) -> Self {
        let hint = format!("first see to it that this holds: {first}");
        Self { outcome: Outcome::NotTried, ..Self::failed(description, "not tried", hint) }
    }

    fn text(&self) -> String {
        let Self { description, error, hint, .. } = self;
        let reason = format!("    {error}\n    hint: {hint}\n");
        match self.outcome {
            Outcome::Passed => format!("√ {description}\n"),
            Outcome::Warned => format!("‼ {description}\n{reason}"),
            Outcome::Failed => format!("× {description}\n{reason}"),
            Outcome::NotTried => format!("× {description}: not tried\n"),
        }
    }

    fn json(&self) -> Value {
        let mut check = json!({
            "description": self.description,
            "result": match self.outcome {
                Outcome::Passed => "success",
                Outcome::Warned => "warning",
                Outcome::Failed | Outcome::NotTried => "error",
            },
        });
        if self.outcome != Outcome::Passed {
            check["error"] = json!(self.error);
            check["hint"] = json!(self.hint);
        }
        check
    }
}

/// Checks that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Category {
    name: &'static str,
    pub(super) checks: Vec<Check>,
}

impl Category {
    pub(super) const fn new(name: &'static str, checks: Vec<Check>) -> Self {
        Self { name, checks }
    }
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    categories: Vec<Category>,
}

impl Report {
    pub(super) const fn new(categories: Vec<Category>) -> Self {
        Self { categories }
    }

    /// Whether nothing failed. A warning is no failure.
    pub(crate) fn is_well(&self) -> bool {
        let mut checks = self.categories.iter().flat_map(|category| &category.checks);
        checks.all(|check| matches!(check.outcome, Outcome::Passed | Outcome::Warned))
    }

    /// A category is a headline and a line for each check.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for category in &self.categories {
            text.push_str(&format!("{}\n{}\n", category.name, "-".repeat(category.name.len())));
            category.checks.iter().for_each(|check| text.push_str(&check.text()));
            text.push('\n');
        }
        let verdict = if self.is_well() { '√' } else { '×' };
        text + &format!("Status check results are {verdict}\n")
    }

    /// As `linkerd check --output json`. A category's name stands under both keys that are in use: Linkerd reads the first,
    /// scripts around linkerd-failover the second.
    pub(crate) fn json(&self) -> Value {
        let category = |category: &Category| {
            json!({
                "categoryName": category.name,
                "category_name": category.name,
                "checks": category.checks.iter().map(Check::json).collect::<Vec<_>>(),
            })
        };
        json!({
            "success": self.is_well(),
            "categories": self.categories.iter().map(category).collect::<Vec<_>>(),
        })
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Libraries repeat their cause in their own words; the verifier's log has many lines, and says nothing of rights.
        let next = error.to_string();
        let next = next.lines().next().unwrap_or_default().trim_end().trim_end_matches(". Verifier output:");
        if !text.contains(next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_report(last: Check) -> Report {
        let ones = vec![Check::passed("one"), Check::warned("two", "it is old", "renew it")];
        Report::new(vec![Category::new("first", ones), Category::new("second", vec![last])])
    }

    #[test]
    fn a_report_reads_like_linkerd_check() {
        let failed = mk_report(Check::failed("three", "it is gone", "bring it back"));
        assert_eq!(
            failed.text(),
            "first\n-----\n√ one\n‼ two\n    it is old\n    hint: renew it\n\n\
             second\n------\n× three\n    it is gone\n    hint: bring it back\n\n\
             Status check results are ×\n"
        );
        assert!(!failed.is_well());
        assert!(mk_report(Check::passed("three")).is_well(), "a warning is no failure");
    }

    #[test]
    fn what_was_not_tried_is_one_line_and_no_success() {
        let report = mk_report(Check::not_tried("three", "two"));
        assert!(report.text().contains("\n× three: not tried\n\n"), "{}", report.text());
        assert!(!report.is_well());
        assert_eq!(report.json()["categories"][1]["checks"][0]["error"], "not tried");
    }

    #[test]
    fn json_has_both_names_of_a_category() {
        let json = mk_report(Check::failed("three", "it is gone", "bring it back")).json();
        assert_eq!(json["success"], false);
        assert_eq!(json["categories"][1]["categoryName"], "second");
        assert_eq!(json["categories"][1]["category_name"], "second");
        assert_eq!(
            json["categories"][1]["checks"][0],
            json!({"description": "three", "result": "error", "error": "it is gone", "hint": "bring it back"})
        );
        assert_eq!(json["categories"][0]["checks"][0], json!({"description": "one", "result": "success"}));
    }
}
