//! Answers the HTTP requests to the exporter.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

use super::collector::{Collector, NoCollection};
use super::connections::Connections;
use super::page;
use crate::metrics::survey::NO_LABELS;
use crate::metrics::{MetricFamily, MetricsFormat, encoding};

/// A response body of pieces in memory. All responses with the samples of one collection in the same format share the first piece.
#[derive(Debug, Default)]
pub(super) struct Pieces(VecDeque<Bytes>);

impl Pieces {
    fn new(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        Self(pieces.into_iter().filter(|piece| !piece.is_empty()).collect())
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

/// Answers one request, and counts the response.
pub(super) async fn respond(
    request: Request<Incoming>,
    permitted: bool,
    collector: Arc<Collector>,
    connections: Arc<Connections>,
) -> Response<Pieces> {
    let response = if permitted {
        answer(request.method(), request.uri().path(), request.headers(), &collector, &connections).await
    } else {
        unauthorized()
    };
    connections.responded(response.status());
    response
}

async fn answer(
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    collector: &Arc<Collector>,
    connections: &Connections,
) -> Response<Pieces> {
    if !matches!(path, "/" | "/metrics" | "/-/healthy") {
        return text(StatusCode::NOT_FOUND, "not found: the paths are /, /metrics and /-/healthy\n");
    }
    // hyper sends no body in the response to HEAD.
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if path == "/-/healthy" {
        return text(StatusCode::OK, "twtool exporter is healthy\n");
    }
    let outcome = match collector.latest().await {
        Ok(outcome) => outcome,
        Err(NoCollection::Deadline) => {
            return text(StatusCode::SERVICE_UNAVAILABLE, "the collection takes longer than the deadline\n");
        }
        Err(NoCollection::Broken) => {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "the collection could not be run\n");
        }
    };
    let samples = match &outcome.samples {
        Ok(samples) => samples,
        Err(why) => return text(StatusCode::SERVICE_UNAVAILABLE, format!("the collection failed: {why}\n")),
    };
    if path == "/" {
        return with_type(StatusCode::OK, "text/html; charset=utf-8", [page::html(samples).into()]);
    }
    let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = MetricsFormat::accepted(Some(&accept.join(",")));
    let (mut self_counts, collections, failures) = collector.self_counts();
    self_counts.add(MetricFamily::ExporterCollections, NO_LABELS, collections);
    self_counts.add(MetricFamily::ExporterFailures, NO_LABELS, failures);
    connections.add(&mut self_counts);
    let pieces = [outcome.text(samples, format), encoding::encode(&self_counts, format).into()];
    with_type(StatusCode::OK, format.content_type(), pieces)
}

fn unauthorized() -> Response<Pieces> {
    let mut response = text(StatusCode::UNAUTHORIZED, "a user and a password are needed\n");
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"twtool\""));
    response
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Pieces> {
    with_type(status, "text/plain; charset=utf-8", [text.into()])
}

fn with_type(
    status: StatusCode,
    content_type: &'static str,
    pieces: impl IntoIterator<Item = Bytes>,
) -> Response<Pieces> {
    let mut response = Response::new(Pieces::new(pieces));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers
        .insert("content-security-policy", HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"));
    response
}
