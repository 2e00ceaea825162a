//! Watches: a selection and a starting revision come in, a stream of event lines goes out, each as soon as its write
//! is done.
//!
//! A watch is a cursor into the store's history and holds no queue. It is woken by a signal that carries only the
//! newest revision of its kind, so that a client that does not read costs nothing; once its place in the history is
//! gone it is told 410 and has to list again.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, stream};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::Sleep;

use super::ApiServer;
use super::form::View;
use super::object::set_meta;
use super::select::Selection;
use super::store::Change;

/// How long a watch runs when the client does not say. A real server takes 30 to 60 minutes.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// How often a quiet watch gets a bookmark, as in a real server.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);

/// What a client asked to watch.
pub(crate) struct Request {
    pub(crate) view: View,
    pub(crate) selection: Selection,
    /// Revision after which to start; `None` to get the present state first.
    pub(crate) from: Option<u64>,
    pub(crate) bookmarks: bool,
    pub(crate) timeout_s: Option<u64>,
}

struct Watch {
    server: ApiServer,
    request: Request,
    signal: Receiver<u64>,
    cursor: u64,
    /// Lines of the present state, sent first.
    present: Vec<u8>,
    timeout: Pin<Box<Sleep>>,
    bookmark: Pin<Box<Sleep>>,
    finished: bool,
}

/// What a watch waits for.
enum Wake {
    Written,
    BookmarkDue,
    TimedOut,
}

/// Starts a watch. The starting point is taken now, not when the stream is first read.
pub(crate) fn start(
    server: &ApiServer,
    request: Request,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + use<> {
    let signal = server.signal(request.view.resource);
    let (cursor, present) = match request.from {
        Some(revision) => (revision, Vec::new()),
        None => present_state(server, &request),
    };
    let timeout = request.timeout_s.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let watch = Watch {
        server: server.clone(),
        request,
        signal,
        cursor,
        present,
        timeout: Box::pin(tokio::time::sleep(timeout)),
        bookmark: Box::pin(tokio::time::sleep(BOOKMARK_PERIOD)),
        finished: false,
    };
    stream::unfold(watch, |mut watch| async {
        let lines = watch.next().await?;
        Some((Ok(Frame::data(Bytes::from(lines))), watch))
    })
}

fn present_state(server: &ApiServer, request: &Request) -> (u64, Vec<u8>) {
    let (revision, objects) = {
        let registry = server.registry();
        let store = registry.store();
        let wanted = store.objects(request.view.resource).filter(|(_, object)| request.selection.matches(object));
        (store.revision(), wanted.map(|(_, object)| Arc::clone(object)).collect::<Vec<_>>())
    };
    let mut lines = Vec::new();
    for object in objects {
        push_line(&mut lines, "ADDED", &request.view.one(&object));
    }
    (revision, lines)
}

impl Watch {
    /// The next lines, or `None` at the end of the watch.
    async fn next(&mut self) -> Option<Vec<u8>> {
        if !self.present.is_empty() {
            return Some(std::mem::take(&mut self.present));
        }
        while !self.finished {
            // Marked as seen before the history is read: a write in between wakes this watch once too often, never
            // once too little.
            self.signal.borrow_and_update();
            let lines = self.read_history();
            if !lines.is_empty() {
                return Some(lines);
            }
            match self.wait().await {
                Wake::Written => {}
                Wake::BookmarkDue => {
                    let next = self.bookmark.deadline() + BOOKMARK_PERIOD;
                    self.bookmark.as_mut().reset(next);
                    return Some(self.bookmark_line());
                }
                Wake::TimedOut => {
                    self.finished = true;
                    return self.request.bookmarks.then(|| self.bookmark_line());
                }
            }
        }
        None
    }

    async fn wait(&mut self) -> Wake {
        tokio::select! {
            biased;
            () = self.timeout.as_mut() => Wake::TimedOut,
            // The sender lives in the server, which this watch holds: it cannot be gone.
            _ = self.signal.changed() => Wake::Written,
            () = self.bookmark.as_mut(), if self.request.bookmarks => Wake::BookmarkDue,
        }
    }

    /// Lines for everything written since the cursor, up to the size of one read. Changes outside of the selection
    /// move the cursor too.
    fn read_history(&mut self) -> Vec<u8> {
        let mut lines = Vec::new();
        self.request.view.now = ApiServer::now();
        while lines.is_empty() {
            let read = self.server.registry().store().changes_after(self.request.view.resource, self.cursor);
            match read {
                Ok((changes, complete_to)) => {
                    self.cursor = complete_to;
                    if changes.is_empty() {
                        break;
                    }
                    for change in changes {
                        self.push_event(&mut lines, &change);
                    }
                }
                Err(status) => {
                    self.finished = true;
                    push_line(&mut lines, "ERROR", &status.to_json());
                }
            }
        }
        lines
    }

    /// An object that enters or leaves the selection is added or deleted to this client, whatever happened to it in
    /// truth.
    fn push_event(&self, lines: &mut Vec<u8>, change: &Change) {
        let selected = |side: &Option<Arc<Value>>| {
            side.as_ref().filter(|object| self.request.selection.matches(object)).map(Arc::clone)
        };
        let view = &self.request.view;
        match (selected(&change.before), selected(&change.after)) {
            (None, Some(after)) => push_line(lines, "ADDED", &view.one(&after)),
            (Some(_), Some(after)) => push_line(lines, "MODIFIED", &view.one(&after)),
            (Some(before), None) => {
                let mut last = Value::clone(&before);
                set_meta(&mut last, "resourceVersion", change.revision.to_string());
                push_line(lines, "DELETED", &view.one(&last));
            }
            (None, None) => {}
        }
    }

    fn bookmark_line(&self) -> Vec<u8> {
        let mut line = Vec::new();
        push_line(&mut line, "BOOKMARK", &self.request.view.bookmark(self.cursor));
        line
    }
}

fn push_line(lines: &mut Vec<u8>, kind: &str, object: &Value) {
    let event = json!({ "type": kind, "object": object });
    serde_json::to_writer(&mut *lines, &event).expect("a JSON value has a text form, and a vector takes it");
    lines.push(b'\n');
}
