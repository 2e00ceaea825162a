//! The options in a request's query: pairs of texts come in, typed options go out. Pure; unknown options are ignored,
//! as Kubernetes does.

use super::status::{FieldError, Status};

/// Options of a list or watch, and the few of writes that matter here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) label_selector: String,
    pub(crate) field_selector: String,
    pub(crate) limit: Option<usize>,
    pub(crate) continue_token: String,
    /// `None` when absent or empty; `Some(0)` means "any version".
    pub(crate) resource_version: Option<u64>,
    pub(crate) exact_version: bool,
    pub(crate) watch: bool,
    pub(crate) bookmarks: bool,
    pub(crate) timeout_s: Option<u64>,
    pub(crate) include_object: String,
    pub(crate) dry_run: bool,
}

impl Query {
    pub(crate) fn parse(pairs: Vec<(String, String)>) -> Result<Self, Status> {
        let mut query = Self::default();
        let (mut match_rule, mut initial_events) = (String::new(), false);
        for (option, value) in pairs {
            match option.as_str() {
                "labelSelector" => query.label_selector = value,
                "fieldSelector" => query.field_selector = value,
                "limit" => query.limit = number(&option, &value)?.filter(|limit| *limit > 0),
                "continue" => query.continue_token = value,
                "resourceVersion" => query.resource_version = number(&option, &value)?,
                "resourceVersionMatch" => match_rule = value,
                "watch" => query.watch = flag(&value),
                "allowWatchBookmarks" => query.bookmarks = flag(&value),
                "sendInitialEvents" => initial_events = flag(&value),
                "timeoutSeconds" => query.timeout_s = number(&option, &value)?,
                "includeObject" => query.include_object = value,
                "dryRun" => query.dry_run = dry_run(&value)?,
                _ => {}
            }
        }
        query.exact_version = match_rule == "Exact";
        query.check(&match_rule, initial_events)?;
        Ok(query)
    }

    /// Refuses what an API server without streaming lists refuses, so that clients fall back to list and watch.
    fn check(&self, match_rule: &str, initial_events: bool) -> Result<(), Status> {
        let mut errors = Vec::new();
        if self.watch && initial_events {
            let detail = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            errors.push(FieldError::forbidden("sendInitialEvents", detail));
        }
        if self.watch && !match_rule.is_empty() {
            let detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(FieldError::forbidden("resourceVersionMatch", detail));
        }
        if !self.watch && !match_rule.is_empty() && self.resource_version.is_none() {
            let detail = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            errors.push(FieldError::forbidden("resourceVersionMatch", detail));
        }
        if !["", "Exact", "NotOlderThan"].contains(&match_rule) {
            let supported = ["Exact", "NotOlderThan"];
            errors.push(FieldError::unsupported("resourceVersionMatch", match_rule, &supported));
        }
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid_list_options(errors)) }
    }
}

fn number<T: std::str::FromStr>(option: &str, value: &str) -> Result<Option<T>, Status> {
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|_| Status::bad_request(format!("invalid value for {option}: {value:?}")))
}

/// Go's reading of a flag in a query: present and not negated.
fn flag(value: &str) -> bool {
    !matches!(value, "false" | "0")
}

/// A dry run that is not understood must never become a write.
fn dry_run(value: &str) -> Result<bool, Status> {
    match value {
        "" => Ok(false),
        "All" => Ok(true),
        _ => Err(Status::bad_request(format!("invalid value for dryRun: {value:?}"))),
    }
}
