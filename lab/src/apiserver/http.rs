//! Requests and answers: an HTTP request comes in, its answer goes out. It translates and decides nothing: paths are
//! `route`'s, options `query`'s, forms `form`'s, rules `registry`'s.
//!
//! Any bearer token is taken, and none is needed: the lab has no tenants.

use std::convert::Infallible;

use axum::extract::Query as Pairs;
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, USER_AGENT};
use http::request::Parts;
use http::{HeaderName, Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::form::{Form, View};
use super::list::{self, Page};
use super::object::{meta, text};
use super::patch::PatchFormat;
use super::query::Query;
use super::registry::{Part, Preconditions, Target};
use super::resources::Resource;
use super::route::Route;
use super::select::Selection;
use super::status::Status;
use super::{ApiServer, audit, convert, discovery, watch};
use crate::world::clock::now_ns;

/// Largest body that is read, as in a real server.
const BODY_LIMIT_BYTES: usize = 3 * 1024 * 1024;

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An answer before it is bytes.
enum Reply {
    Json(u16, Value),
    Text(&'static str),
    Watch(Box<watch::Request>),
}

/// Answers one request. Failures are answers too.
pub(crate) async fn answer(server: ApiServer, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let latency = server.latency();
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let (parts, body) = request.into_parts();
    let is_read = parts.method == Method::GET;
    let reply = match Limited::new(body, BODY_LIMIT_BYTES).collect().await {
        Ok(body) => reply(&server, &parts, &body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Status::too_large(BODY_LIMIT_BYTES)),
        Err(error) => Err(Status::bad_request(format!("the body of the request could not be read: {error}"))),
    };
    let reply = reply.unwrap_or_else(|status| Reply::Json(status.code(), status.to_json()));
    server.keep(audited(&parts, &reply));
    if !is_read && server.takes_silence() {
        // Whoever waits gives up long before, and with the connection this ends.
        std::future::pending::<()>().await;
    }
    Ok(response(&server, reply))
}

/// The request as the audit keeps it.
fn audited(parts: &Parts, reply: &Reply) -> audit::Request {
    let path = parts.uri.path();
    let (resource, served, namespace, name, is_status) = match Route::parse(path) {
        None => (None, None, "", "", false),
        Some(Route::Collection { resource, served, namespace }) => {
            (Some(resource), Some(served), namespace.unwrap_or_default(), "", false)
        }
        Some(Route::Object { resource, served, namespace, name }) => {
            (Some(resource), Some(served), namespace, name, false)
        }
        Some(Route::Status { resource, served, namespace, name }) => {
            (Some(resource), Some(served), namespace, name, true)
        }
    };
    let is_write = parts.method != Method::GET;
    let (code, left) = match reply {
        Reply::Json(code, object) => {
            let is_kept = is_write && (200..300).contains(code) && resource == Some(Resource::TrafficSplits);
            (*code, is_kept.then(|| object.clone()))
        }
        Reply::Text(_) | Reply::Watch(_) => (200, None),
    };
    audit::Request {
        at_ns: now_ns(),
        verb: audit::verb(&parts.method, resource.is_some() && name.is_empty(), matches!(reply, Reply::Watch(_))),
        path: path.to_owned(),
        resource,
        api_version: served.map(|served| served.api_version()).unwrap_or_default(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        is_status,
        client: header(parts, &USER_AGENT).to_owned(),
        code,
        left,
    }
}

fn response(server: &ApiServer, reply: Reply) -> Response<Body> {
    let (code, content_type, body) = match reply {
        Reply::Json(code, value) => (code, "application/json", full(value.to_string())),
        Reply::Text(text) => (200, "text/plain; charset=utf-8", full(text.to_owned())),
        Reply::Watch(request) => {
            let lines = StreamBody::new(watch::start(server, *request));
            (200, "application/json", lines.boxed_unsync())
        }
    };
    Response::builder()
        .status(code)
        .header(CONTENT_TYPE, content_type)
        .header(CACHE_CONTROL, "no-cache, private")
        .body(body)
        .expect("the status codes and headers of this server are valid")
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).boxed_unsync()
}

fn reply(server: &ApiServer, parts: &Parts, body: &[u8]) -> Result<Reply, Status> {
    let path = parts.uri.path();
    if let Some(route) = Route::parse(path) {
        if server.is_withheld(route.resource()) {
            return Err(Status::no_such_path());
        }
        return route_reply(server, parts, route, body);
    }
    if parts.method != Method::GET {
        return Err(Status::no_such_path());
    }
    match path {
        "/healthz" | "/livez" | "/readyz" => Ok(Reply::Text("ok")),
        _ => discovery::document(path, &server.served())
            .map(|found| Reply::Json(200, found))
            .ok_or_else(Status::no_such_path),
    }
}

fn route_reply(server: &ApiServer, parts: &Parts, route: Route<'_>, body: &[u8]) -> Result<Reply, Status> {
    let pairs: Pairs<Vec<(String, String)>> =
        Pairs::try_from_uri(&parts.uri).map_err(|error| Status::bad_request(error.to_string()))?;
    let query = Query::parse(pairs.0)?;
    let form = Form::negotiate(header(parts, &ACCEPT), &query.include_object)?;
    if parts.method != Method::GET {
        server.scripted_refusal()?;
    }
    let call =
        |resource, served| Call { server, parts, query, view: View { resource, served, form, now: ApiServer::now() } };
    match route {
        Route::Collection { resource, served, namespace } => call(resource, served).collection(namespace, body),
        Route::Object { resource, served, namespace, name } => {
            call(resource, served).object(Target { resource, served, namespace, name }, Part::Main, body)
        }
        Route::Status { resource, served, namespace, name } => {
            call(resource, served).object(Target { resource, served, namespace, name }, Part::Status, body)
        }
    }
}

fn header<'a>(parts: &'a Parts, name: &HeaderName) -> &'a str {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// One request to a kind.
struct Call<'a> {
    server: &'a ApiServer,
    parts: &'a Parts,
    query: Query,
    view: View,
}

impl Call<'_> {
    fn collection(self, namespace: Option<&str>, body: &[u8]) -> Result<Reply, Status> {
        let row = self.view.resource.row();
        let field_of = |label: &str| convert::field_of(self.view.resource, self.view.served, label);
        let selection = Selection::parse(namespace, &self.query.label_selector, &self.query.field_selector, field_of)?;
        match self.parts.method {
            Method::GET if self.query.watch => Ok(Reply::Watch(Box::new(watch::Request {
                view: self.view,
                selection,
                from: self.query.resource_version.filter(|revision| *revision > 0),
                bookmarks: self.query.bookmarks,
                timeout_s: self.query.timeout_s,
            }))),
            Method::GET => self.page(&selection).map(|page| self.show(&page)),
            Method::POST if row.namespaced && namespace.is_none() => Err(Status::method_not_allowed()),
            Method::POST => self.create(namespace.unwrap_or_default(), body),
            Method::DELETE => self.delete_all(&selection, body),
            _ => Err(Status::method_not_allowed()),
        }
    }

    fn page(&self, selection: &Selection) -> Result<Page, Status> {
        list::page(self.server.registry().store(), self.view.resource, selection, &self.query)
    }

    fn show(&self, page: &Page) -> Reply {
        Reply::Json(200, self.view.list(page.objects.iter().map(AsRef::as_ref), page.metadata()))
    }

    fn create(&self, namespace: &str, body: &[u8]) -> Result<Reply, Status> {
        let object = self.json_body(body)?;
        let target = self.target(namespace, "");
        let dry_run = self.query.dry_run;
        let created =
            self.server.write(dry_run, |registry, attempt| registry.create(target, object, Part::Main, attempt))?;
        Ok(Reply::Json(201, self.shown(&created)))
    }

    fn delete_all(&self, selection: &Selection, body: &[u8]) -> Result<Reply, Status> {
        let options = DeleteOptions::parse(body)?;
        let page = self.page(selection)?;
        let dry_run = self.query.dry_run || options.dry_run;
        for object in &page.objects {
            let (namespace, name) = (meta(object, "namespace"), meta(object, "name"));
            let target = self.target(namespace, name);
            let deleted = self
                .server
                .write(dry_run, |registry, attempt| registry.delete(target, &Preconditions::default(), attempt));
            // Somebody else may have deleted it since the list was read; that is what was wanted.
            deleted.map(drop).or_else(|status| if status.code() == 404 { Ok(()) } else { Err(status) })?;
        }
        Ok(self.show(&page))
    }

    fn object(self, target: Target<'_>, part: Part, body: &[u8]) -> Result<Reply, Status> {
        let dry_run = self.query.dry_run;
        match self.parts.method {
            Method::GET => {
                let found = self.server.registry().get(target)?;
                Ok(Reply::Json(200, self.shown(&found)))
            }
            Method::PUT => {
                let object = self.json_body(body)?;
                let put =
                    self.server.write(dry_run, |registry, attempt| registry.replace(target, object, part, attempt))?;
                Ok(Reply::Json(200, self.shown(&put)))
            }
            Method::PATCH => {
                let format = PatchFormat::of_content_type(header(self.parts, &CONTENT_TYPE))?;
                let patched = self
                    .server
                    .write(dry_run, |registry, attempt| registry.patch(target, format, body, part, attempt))?;
                Ok(Reply::Json(200, self.shown(&patched)))
            }
            Method::DELETE if part == Part::Main => self.delete(target, body),
            _ => Err(Status::method_not_allowed()),
        }
    }

    fn delete(&self, target: Target<'_>, body: &[u8]) -> Result<Reply, Status> {
        let options = DeleteOptions::parse(body)?;
        let dry_run = self.query.dry_run || options.dry_run;
        let deleted =
            self.server.write(dry_run, |registry, attempt| registry.delete(target, &options.preconditions, attempt))?;
        // An object that finalizers hold is answered as it is; one that is gone with a Status.
        if !meta(&deleted, "deletionTimestamp").is_empty() {
            return Ok(Reply::Json(200, self.shown(&deleted)));
        }
        let details = json!({
            "name": target.name, "group": target.served.group, "kind": target.resource.row().plural,
            "uid": meta(&deleted, "uid"),
        });
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
        });
        Ok(Reply::Json(200, status))
    }

    fn target<'n>(&self, namespace: &'n str, name: &'n str) -> Target<'n> {
        Target { resource: self.view.resource, served: self.view.served, namespace, name }
    }

    /// Objects of writes come back in the served version; the view starts from the stored one.
    fn shown(&self, served: &Value) -> Value {
        match self.view.form {
            Form::Object => served.clone(),
            Form::Metadata | Form::Table(_) => {
                self.view.one(&convert::to_stored(self.view.resource, self.view.served, served.clone()))
            }
        }
    }

    fn json_body(&self, body: &[u8]) -> Result<Value, Status> {
        let content_type = header(self.parts, &CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
        if !matches!(content_type, "" | "application/json") {
            return Err(Status::unsupported_media_type(&["application/json"]));
        }
        serde_json::from_slice(body).map_err(|error| Status::bad_request(format!("the object is not JSON: {error}")))
    }
}

/// The part of a `DeleteOptions` body that matters here. Grace periods do not: nothing in the lab shuts down slowly.
struct DeleteOptions {
    preconditions: Preconditions,
    dry_run: bool,
}

impl DeleteOptions {
    fn parse(body: &[u8]) -> Result<Self, Status> {
        let options: Value = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(body)
                .map_err(|error| Status::bad_request(format!("the delete options are not JSON: {error}")))?
        };
        let preconditions = Preconditions {
            uid: text(&options, "/preconditions/uid").to_owned(),
            resource_version: text(&options, "/preconditions/resourceVersion").to_owned(),
        };
        let dry_run = options["dryRun"].as_array().is_some_and(|values| !values.is_empty());
        Ok(Self { preconditions, dry_run })
    }
}
