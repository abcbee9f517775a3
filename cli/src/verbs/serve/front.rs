//! The thread of the connections: who may ask, how much, and how answers are written.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::unfold;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::{Map, Number, Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::counters::Counters;
use super::engine::{About, Answer, Ask, Does, Job, Load, Order, Predicted, Refusal, Room};
use super::openai::{Allowed, Asked, Shape};
use super::page;
use super::patient::Patient;
use crate::output::{csv_text, message, remark, warn};

/// Connections that are open at once; further ones wait to be accepted.
const CONNECTIONS: usize = 512;
/// Requests that wait or are being answered.
const REQUESTS: usize = 256;
/// Bodies of the largest size that memory has room for.
const BODIES: usize = 32;
/// How long a client may keep the server waiting for the next piece of a request, or for room to send the next of an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that a body in JSON may have: what is read of it takes many times as much.
const JSON: usize = 4 << 20;

/// What both threads know.
pub(super) struct Shared {
    pub(super) counters: Counters,
    abouts: RwLock<Vec<About>>,
}

impl Shared {
    pub(super) fn new(abouts: Vec<About>) -> Self {
        Self { counters: Counters::new(), abouts: RwLock::new(abouts) }
    }

    pub(super) fn abouts(&self) -> Vec<About> {
        self.abouts.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// So many checkpoints were read again, and this is what is known of all now.
    pub(super) fn reloaded(&self, abouts: Vec<About>, good: usize) {
        self.counters.reloads.inc_by(good as u64);
        self.counters.failed_reloads.inc_by((abouts.len() - good) as u64);
        *self.abouts.write().unwrap_or_else(|e| e.into_inner()) = abouts;
    }
}

/// What a server lets in.
pub(super) struct Limits {
    pub(super) token: Option<String>,
    /// Names that a request may call this machine, if not any.
    pub(super) hosts: Option<Vec<String>>,
    /// Names under which a proxy passes requests on.
    pub(super) names: Vec<String>,
    pub(super) body: usize,
    pub(super) time: Duration,
    pub(super) allowed: Allowed,
}

/// What asks a server to end, or to read its checkpoints again.
pub(super) struct Signals {
    pub(super) stop: Arc<AtomicBool>,
    pub(super) reload: Arc<AtomicBool>,
}

struct Front {
    shared: Arc<Shared>,
    limits: Limits,
    orders: Sender<Order>,
    load: Arc<Load>,
}

/// The answers to a request, until its time has passed.
struct Answers {
    receiver: UnboundedReceiver<(usize, Answer)>,
    until: tokio::time::Instant,
}

impl Answers {
    /// The next, if it is no refusal.
    async fn next(&mut self) -> Result<(usize, Answer), Refusal> {
        match tokio::time::timeout_at(self.until, self.receiver.recv()).await {
            Ok(Some((_, Answer::Refused(refusal)))) => Err(refusal),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Refusal::new(500, "the work was given up")),
            Err(_) => Err(Refusal::late()),
        }
    }
}

impl Refusal {
    fn json(&self) -> Value {
        let kind = if (400..500).contains(&self.status) { "invalid_request_error" } else { "server_error" };
        json!({ "error": { "message": self.message, "type": kind, "param": null, "code": null } })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.json())).into_response();
        let more = match self.status {
            401 => Some((header::WWW_AUTHENTICATE, "Bearer")),
            503 => Some((header::RETRY_AFTER, "1")),
            _ => None,
        };
        if let Some((name, value)) = more {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// Accepts connections until a signal ends it, and then lets requests finish.
pub(super) fn run(
    listener: TcpListener,
    shared: Arc<Shared>,
    limits: Limits,
    orders: Sender<Order>,
    signals: &Signals,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.context("starting the thread of the connections")?;
    let time = limits.time;
    let front = Arc::new(Front { shared, limits, orders: orders.clone(), load: Arc::default() });
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).context("listening")?;
        let service = router(front.clone());
        let (places, ending) = (Arc::new(Semaphore::new(CONNECTIONS)), GracefulShutdown::new());
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let mut place = None;
        loop {
            let accept = async {
                if place.is_none() {
                    place = places.clone().acquire_owned().await.ok();
                }
                listener.accept().await
            };
            tokio::select! {
                accepted = accept => match accepted {
                    Ok((stream, _)) => {
                        // Tokens are to leave as they come.
                        let _ = stream.set_nodelay(true);
                        let service = TowerToHyperService::new(service.clone());
                        let mut builder = http1::Builder::new();
                        builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(64 * 1024);
                        let connection = ending.watch(builder.serve_connection(Patient::new(stream, PATIENCE), service));
                        let place: Option<OwnedSemaphorePermit> = place.take();
                        tokio::spawn(async move {
                            // A client that went away is no error of ours.
                            let _ = connection.await;
                            drop(place);
                        });
                    }
                    // Too many open files: others end meanwhile.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
                _ = tick.tick() => {
                    if signals.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    if signals.reload.swap(false, Ordering::Relaxed) {
                        let _ = orders.send(Order::Reload);
                    }
                }
            }
        }
        drop(listener);
        match front.load.requests.load(Ordering::Relaxed) {
            0 => {}
            n => remark(format!("{n} requests are finished first; a second Ctrl-C ends the server at once")),
        }
        // Requests end by themselves within their time.
        if tokio::time::timeout(time + PATIENCE, ending.shutdown()).await.is_err() {
            warn("requests that did not end in time are cut off");
        }
        Ok(())
    })
}

fn router(front: Arc<Front>) -> Router {
    let known = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/predict", post(predict))
        .route("/metrics", get(metrics))
        .route_layer(from_fn_with_state(front.clone(), allowed))
        .route("/", get(index))
        .route("/healthz", get(async || "ok\n"))
        .method_not_allowed_fallback(async || Refusal::new(405, "this path takes another method"))
        .route_layer(from_fn_with_state(front.clone(), observed));
    let paths = "/v1/models, /v1/completions, /v1/chat/completions, /predict, /metrics, /healthz and /";
    let unknown = async move || Refusal::new(404, format!("there is no such path; there are {paths}"));
    known.fallback(unknown).layer(from_fn_with_state(front.clone(), at_home)).with_state(front)
}

/// Counts a request, until its answer was sent or nobody waits for it.
struct Observed {
    front: Arc<Front>,
    path: String,
    code: u16,
    started: Instant,
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.front.shared.counters.open.dec();
        self.front.shared.counters.answered(&self.path, self.code, self.started.elapsed());
    }
}

async fn observed(State(front): State<Arc<Front>>, path: MatchedPath, request: Request, next: Next) -> Response {
    front.shared.counters.open.inc();
    // What others call a client that closed its request.
    let mut observed = Observed { front, path: path.as_str().into(), code: 499, started: Instant::now() };
    let response = next.run(request).await;
    observed.code = response.status().as_u16();
    response.map(|body| Body::new(Sent { body, _observed: observed }))
}

/// The body of an answer, which is observed until it was sent.
struct Sent {
    body: Body,
    _observed: Observed,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Refuses what pages of other sites ask in a browser, which can reach servers that only listen to their own machine.
async fn at_home(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    // A link may lead to the page.
    let is_page = request.method() == "GET" && request.uri().path() == "/";
    match front.strange(request.headers(), is_page) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    }
}

/// Refuses who does not know the token.
async fn allowed(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    if let Some(token) = &front.limits.token {
        let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let given = match given.split_at_checked(7) {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"Bearer ") => given,
            _ => &[],
        };
        // Takes as long for a token that is nearly right.
        let differs = given.iter().zip(token.as_bytes()).fold(given.len() != token.len(), |d, (a, b)| d | (a != b));
        if differs {
            let said = "this server wants its token: Authorization: Bearer TOKEN";
            return Refusal::new(401, said).into_response();
        }
    }
    next.run(request).await
}

async fn index(State(front): State<Arc<Front>>) -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src blob:; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)];
    let abouts = front.shared.abouts();
    (headers, page::of(front.limits.token.is_none().then_some(&abouts))).into_response()
}

async fn metrics(State(front): State<Arc<Front>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], front.shared.counters.text()).into_response()
}

async fn models(State(front): State<Arc<Front>>) -> Response {
    let data: Vec<Value> = front.shared.abouts().iter().map(page::described).collect();
    Json(json!({ "object": "list", "data": data })).into_response()
}

async fn model(State(front): State<Arc<Front>>, Path(id): Path<String>) -> Response {
    match front.served(Some(&id), |_| true, "answers") {
        Ok((_, about)) => Json(page::described(&about)).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn completions(State(front): State<Arc<Front>>, body: Body) -> Response {
    front.write(body, false).await.unwrap_or_else(Refusal::into_response)
}

async fn chat(State(front): State<Arc<Front>>, body: Body) -> Response {
    front.write(body, true).await.unwrap_or_else(Refusal::into_response)
}

async fn predict(
    State(front): State<Arc<Front>>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    front.predict(query, &headers, body).await.unwrap_or_else(Refusal::into_response)
}

impl Front {
    /// Why headers are those of a page of another site.
    fn strange(&self, headers: &HeaderMap, is_page: bool) -> Option<Refusal> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?").to_ascii_lowercase());
        let host = text(header::HOST).unwrap_or_default();
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => name,
            _ => &host,
        };
        if self.limits.hosts.as_ref().is_some_and(|hosts| !hosts.iter().any(|known| known == name)) {
            return Some(Refusal::new(403, format!("this server is not called {name:.100}")));
        }
        let foreign = |what: &str| Some(Refusal::new(403, format!("a page of {what:.100} may not ask this server")));
        if text(HeaderName::from_static("sec-fetch-site")).is_some_and(|site| site == "cross-site") && !is_page {
            return foreign("another site");
        }
        let origin = text(header::ORIGIN)?;
        let from = origin.split_once("://").map_or("", |(_, from)| from);
        let bare = from.rsplit_once(':').map_or(from, |(name, _)| name);
        if from == host || self.limits.names.iter().any(|known| known == bare) { None } else { foreign(&origin) }
    }

    /// The body of a request of at most `limit` bytes, and the room that it takes until the answer is there.
    async fn read(self: &Arc<Self>, mut body: Body, limit: usize) -> Result<(Vec<u8>, Arc<Room>), Refusal> {
        if self.load.requests.fetch_add(1, Ordering::Relaxed) >= REQUESTS {
            self.load.requests.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::new(503, format!("{REQUESTS} requests wait already")));
        }
        let (mut read, mut room) = (vec![], Room { load: self.load.clone(), bytes: 0 });
        let late = || Refusal::new(408, "the body does not arrive");
        let until = tokio::time::Instant::now() + self.limits.time;
        loop {
            let next = (tokio::time::Instant::now() + PATIENCE).min(until);
            let frame = tokio::time::timeout_at(next, body.frame()).await.map_err(|_| late())?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|_| Refusal::bad("the body did not arrive whole"))?;
            let piece: Bytes = frame.into_data().unwrap_or_default();
            if read.len() + piece.len() > limit {
                let said =
                    format!("the body has more than {} MiB (--max-body; one in JSON, {})", limit >> 20, JSON >> 20);
                return Err(Refusal::new(413, said));
            }
            room.bytes += piece.len();
            let all = self.load.bytes.fetch_add(piece.len(), Ordering::Relaxed) + piece.len();
            if all > BODIES * self.limits.body.max(JSON) {
                return Err(Refusal::new(503, "the bodies of other requests take all the room there is"));
            }
            read.extend_from_slice(&piece);
        }
        Ok((read, Arc::new(room)))
    }

    /// The number of the model that a request names, or of the only one that can do it.
    fn served(&self, id: Option<&str>, able: fn(&Does) -> bool, lacks: &str) -> Result<(usize, About), Refusal> {
        let abouts = self.shared.abouts();
        let list =
            |of: &mut dyn Iterator<Item = &About>| of.map(|about| about.id.as_str()).collect::<Vec<_>>().join(", ");
        let found = match id {
            Some(id) => {
                let there = || format!("there is no model {id:.100}; there are {}", list(&mut abouts.iter()));
                abouts.iter().position(|about| about.id == id).ok_or_else(|| Refusal::new(404, there()))?
            }
            None => {
                let mut can = abouts.iter().enumerate().filter(|(_, about)| able(&about.does)).map(|(i, _)| i);
                match (can.next(), can.next()) {
                    (Some(one), None) => one,
                    (None, _) => return Err(Refusal::bad(format!("no model here {lacks}"))),
                    _ => {
                        let names = list(&mut abouts.iter().filter(|about| able(&about.does)));
                        return Err(Refusal::bad(format!("model: name one of {names}")));
                    }
                }
            }
        };
        let about = abouts[found].clone();
        match able(&about.does) {
            true => Ok((found, about)),
            false => Err(Refusal::bad(format!("{} is not a model that {lacks}", about.id))),
        }
    }

    fn order(&self, served: usize, asks: Vec<Ask>, room: &Arc<Room>) -> Result<Answers, Refusal> {
        let (answer, answers) = unbounded_channel();
        let until = Instant::now() + self.limits.time;
        for (index, ask) in asks.into_iter().enumerate() {
            let job = Job { served, index, ask, answer: answer.clone(), until, _room: room.clone() };
            self.orders.send(Order::Job(job)).map_err(|_| Refusal::new(503, "the server is ending"))?;
        }
        Ok(Answers { receiver: answers, until: until.into() })
    }

    async fn write(self: &Arc<Self>, body: Body, chat: bool) -> Result<Response, Refusal> {
        let (body, room) = self.read(body, JSON.min(self.limits.body)).await?;
        let Asked { model, choices, each, stream, usage } = Asked::parse(&body, chat, self.limits.allowed)?;
        drop(body);
        // Without a name, one that converses is meant by a conversation.
        let (served, about) = match (chat, &model) {
            (true, None) => self.served(None, |does| matches!(does, Does::Write { chat: true, .. }), "converses")?,
            _ => self.served(model.as_deref(), |does| matches!(does, Does::Write { .. }), "writes text")?,
        };
        if chat && matches!(about.does, Does::Write { chat: false, .. }) {
            let said = "goes on with texts, and was not made for conversations: POST /v1/completions";
            return Err(Refusal::bad(format!("{} {said}", about.id)));
        }
        let n = choices.len();
        let asks = choices.into_iter().map(|(prompt, sampling)| Ask::Text { prompt, sampling: Box::new(sampling) });
        let mut answers = self.order(served, asks.collect(), &room)?;
        drop(room);
        let shape = Shape::new(chat, &about.id);
        if !stream {
            return whole(answers, &shape, [n, each]).await.map(IntoResponse::into_response);
        }
        // A prompt that is refused is refused before the stream begins.
        let first = answers.next().await?;
        let state = Streamed { answers, shape, usage, tokens: [0; 2], open: n, each, first: Some(first), last: vec![] };
        let events = unfold(state, |mut state| async move { Some((Ok::<_, Infallible>(state.next().await?), state)) });
        Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
    }

    async fn predict(
        self: &Arc<Self>,
        query: Vec<(String, String)>,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, Refusal> {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
        let kind = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let limit = if kind == "application/json" { JSON.min(self.limits.body) } else { self.limits.body };
        let (bytes, room) = self.read(body, limit).await?;
        let mut input = Input { bytes, options: vec![], named: HashMap::new() };
        for (name, value) in query {
            input.option(name, value);
        }
        let ending = match (input.named.remove("format"), kind.as_str()) {
            (Some(format), _) if format.len() <= 8 && format.chars().all(|c| c.is_ascii_alphanumeric()) => format,
            (Some(format), _) => {
                return Err(Refusal::bad(format!("format {format:.40}: expected an ending such as csv or npz")));
            }
            (None, "application/json") => input.of_json()?,
            (None, "text/csv") => "csv".into(),
            (None, "text/tab-separated-values") => "tsv".into(),
            _ => {
                let said = "expected Content-Type: application/json or text/csv, or ?format= with the ending of such a file (npz, mat, edf, …)";
                return Err(Refusal::new(415, said));
            }
        };
        let Input { bytes, options, mut named } = input;
        let predicts = |does: &Does| matches!(does, Does::Predict { .. });
        let (served, about) = self.served(named.get("model").map(String::as_str), predicts, "predicts")?;
        let last = named
            .remove("last")
            .map(|n| n.parse::<usize>().map_err(|_| Refusal::bad(format!("last {n:.40}: expected a number of rows"))));
        let last = last.transpose()?;
        let accept = text(header::ACCEPT);
        let svg = accept.contains("image/svg+xml");
        let picture = match named.get("picture").map(String::as_str) {
            Some("true" | "1" | "") => true,
            Some("false" | "0") | None => svg,
            Some(other) => return Err(Refusal::bad(format!("picture {other:.40}: expected true or false"))),
        };
        let mut answers = self.order(served, vec![Ask::Input { bytes, ending, options, picture }], &room)?;
        drop(room);
        let (_, Answer::Predicted(predicted)) = answers.next().await? else {
            return Err(Refusal::new(500, "no prediction"));
        };
        let Predicted { summary, remarks, header, mut rows, picture } = *predicted;
        if let Some(last) = last {
            rows.drain(..rows.len().saturating_sub(last));
        }
        if svg {
            return Ok(([(header::CONTENT_TYPE, "image/svg+xml")], picture.unwrap_or_default()).into_response());
        }
        if accept.contains("text/csv") {
            let table = csv_text(&header, &rows).map_err(|e| Refusal::new(500, message(&e)))?;
            return Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], table).into_response());
        }
        let record = |row: Vec<String>| header.iter().cloned().zip(row.iter().map(|cell| cell_value(cell))).collect();
        let rows: Vec<Map<String, Value>> = rows.into_iter().map(record).collect();
        let mut document = json!({ "model": about.id, "remarks": remarks });
        if let Value::Object(document) = &mut document {
            document.extend(summary);
            document.extend(picture.map(|svg| ("picture".to_string(), svg.into())));
            document.insert("rows".into(), json!(rows));
        }
        Ok(Json(document).into_response())
    }
}

/// All of `n` texts, `each` of them of one prompt.
async fn whole(mut answers: Answers, shape: &Shape, [n, each]: [usize; 2]) -> Result<Json<Value>, Refusal> {
    let (mut texts, mut ends, mut tokens) = (vec![String::new(); n], vec![None; n], [0; 2]);
    while ends.contains(&None) {
        match answers.next().await? {
            (index, Answer::Begun(prompt)) => tokens[0] += if index % each == 0 { prompt } else { 0 },
            (index, Answer::Piece(piece)) => texts[index].push_str(&piece),
            (index, Answer::Ended(end, written)) => {
                tokens[1] += written;
                ends[index] = Some(end);
            }
            _ => return Err(Refusal::new(500, "no text")),
        }
    }
    Ok(Json(shape.whole(texts.into_iter().zip(ends.into_iter().flatten()).collect(), tokens)))
}

/// A stream of the pieces of texts.
struct Streamed {
    answers: Answers,
    shape: Shape,
    usage: bool,
    tokens: [usize; 2],
    /// Texts that have not ended, and texts of a prompt.
    open: usize,
    each: usize,
    first: Option<(usize, Answer)>,
    /// What is still to be said behind all texts, the last first.
    last: Vec<String>,
}

impl Streamed {
    async fn next(&mut self) -> Option<Event> {
        if let Some(text) = self.last.pop() {
            return Some(Event::default().data(text));
        }
        if self.open == 0 {
            return None;
        }
        let (index, answer) = match self.first.take() {
            Some(first) => Ok(first),
            None => self.answers.next().await,
        }
        .unwrap_or_else(|refusal| (0, Answer::Refused(refusal)));
        let data = match answer {
            Answer::Begun(prompt) => {
                self.tokens[0] += if index % self.each == 0 { prompt } else { 0 };
                self.shape.piece(index, None, None)
            }
            Answer::Piece(piece) => self.shape.piece(index, Some(&piece), None),
            Answer::Ended(end, written) => {
                self.tokens[1] += written;
                self.open -= 1;
                if self.open == 0 {
                    self.last.push("[DONE]".into());
                    self.last.extend(self.usage.then(|| self.shape.usage(self.tokens).to_string()));
                }
                self.shape.piece(index, None, Some(end))
            }
            Answer::Refused(refusal) => {
                self.open = 0;
                refusal.json()
            }
            Answer::Predicted(_) => Value::Null,
        };
        Some(Event::default().data(data.to_string()))
    }
}

/// What a prediction is made from, and what is said of it.
struct Input {
    bytes: Vec<u8>,
    options: Vec<(String, String)>,
    /// What is the server's, not the model's.
    named: HashMap<&'static str, String>,
}

impl Input {
    fn option(&mut self, name: String, value: String) {
        match ["model", "format", "last", "picture"].into_iter().find(|own| *own == name) {
            Some(own) => drop(self.named.insert(own, value)),
            None => self.options.push((name, value)),
        }
    }

    /// Turns `columns` (lists by name) or `records` (objects) of a JSON body into CSV; its other keys are options.
    fn of_json(&mut self) -> Result<String, Refusal> {
        let refuse = |e: &dyn std::fmt::Display| Refusal::bad(format!("the body: {e}"));
        let body: Map<String, Value> = serde_json::from_slice(&self.bytes).map_err(|e| refuse(&e))?;
        let mut table = None;
        for (name, value) in body {
            match (name.as_str(), value) {
                ("columns", Value::Object(columns)) if table.is_none() => table = Some(of_columns(columns)?),
                ("records", Value::Array(records)) if table.is_none() => table = Some(of_records(records)?),
                ("columns" | "records", _) => {
                    let said = "expected either columns, an object of lists, or records, a list of objects";
                    return Err(refuse(&said));
                }
                (_, Value::String(text)) => self.option(name, text),
                (_, value @ (Value::Number(_) | Value::Bool(_))) => self.option(name, value.to_string()),
                _ => return Err(refuse(&format!("{name:.60}: expected a text, a number, true or false"))),
            }
        }
        let (header, rows) = table.ok_or_else(|| refuse(&"it has neither columns nor records"))?;
        self.bytes = csv_text(&header, &rows).map_err(|e| Refusal::new(500, message(&e)))?.into_bytes();
        Ok("csv".into())
    }
}

type Rows = (Vec<String>, Vec<Vec<String>>);

fn of_columns(columns: Map<String, Value>) -> Result<Rows, Refusal> {
    let (mut header, mut rows) = (vec![], vec![]);
    for (name, column) in columns {
        let Value::Array(cells) = column else {
            return Err(Refusal::bad(format!("columns: {name:.60} is no list")));
        };
        if header.is_empty() {
            rows = vec![vec![]; cells.len()];
        }
        if cells.len() != rows.len() {
            let said = format!("columns: {name:.60} has {} values, and the first {}", cells.len(), rows.len());
            return Err(Refusal::bad(said));
        }
        for (row, cell) in rows.iter_mut().zip(cells) {
            row.push(cell_text(cell)?);
        }
        header.push(name);
    }
    Ok((header, rows))
}

fn of_records(records: Vec<Value>) -> Result<Rows, Refusal> {
    let mut header: Vec<String> = vec![];
    let mut rows = vec![];
    for (i, record) in records.into_iter().enumerate() {
        let Value::Object(mut record) = record else {
            return Err(Refusal::bad(format!("records: number {} is no object", i + 1)));
        };
        if i == 0 {
            header = record.keys().cloned().collect();
        }
        if record.len() != header.len() {
            return Err(Refusal::bad(format!("records: number {} has other names than the first", i + 1)));
        }
        let of = |name: &String| {
            record.remove(name).ok_or_else(|| Refusal::bad(format!("records: number {} lacks {name:.60}", i + 1)))
        };
        let row: Vec<Value> = header.iter().map(of).collect::<Result<_, _>>()?;
        rows.push(row.into_iter().map(cell_text).collect::<Result<Vec<_>, _>>()?);
    }
    Ok((header, rows))
}

fn cell_text(cell: Value) -> Result<String, Refusal> {
    match cell {
        Value::String(text) => Ok(text),
        Value::Null => Ok(String::new()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(Refusal::bad("a cell of the table is neither a number nor a text")),
    }
}

/// A cell of a result: a number if it is one, nothing if it is empty.
fn cell_value(cell: &str) -> Value {
    if cell.is_empty() {
        return Value::Null;
    }
    if let Ok(whole) = cell.parse::<i64>() {
        return whole.into();
    }
    cell.parse().ok().and_then(Number::from_f64).map_or_else(|| cell.into(), Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csv(body: &str) -> Result<(String, Vec<(String, String)>), String> {
        let mut input = Input { bytes: body.into(), options: vec![], named: HashMap::new() };
        input.of_json().map_err(|refusal| refusal.message)?;
        Ok((String::from_utf8_lossy(&input.bytes).into_owned(), input.options))
    }

    #[test]
    fn a_table_in_json_becomes_one_of_csv() {
        let columns =
            r#"{"columns": {"date": ["2020-01-02", "2020-01-03"], "close": [1.5, 2]}, "horizon": 3, "model": "m"}"#;
        let records = r#"{"records": [{"date": "2020-01-02", "close": 1.5}, {"close": 2, "date": "2020-01-03"}], "horizon": "3"}"#;
        let expected = ("date,close\n2020-01-02,1.5\n2020-01-03,2\n".to_string(), vec![("horizon".into(), "3".into())]);
        for body in [columns, records] {
            assert_eq!(csv(body), Ok(expected.clone()), "{body}");
        }
        for (body, reason) in [
            (r#"{"columns": {"a": [1, 2], "b": [1]}}"#, "b has 1 values, and the first 2"),
            (r#"{"columns": {"a": 1}}"#, "a is no list"),
            (r#"{"records": [{"a": 1}, {"a": 1, "b": 2}]}"#, "number 2 has other names"),
            (r#"{"records": [{"a": 1, "b": 2}, {}]}"#, "number 2 has other names"),
            (r#"{"records": [{"a": 1}, {"b": 1}]}"#, "number 2 lacks a"),
            (r#"{"records": [1]}"#, "number 1 is no object"),
            (r#"{"columns": {"a": [[1]]}}"#, "neither a number nor a text"),
            (r#"{"columns": {"a": []}, "records": []}"#, "either columns"),
            (r#"{"horizon": 1}"#, "neither columns nor records"),
            (r#"{"columns": {}, "horizon": []}"#, "horizon: expected"),
        ] {
            let refused = csv(body).err().unwrap_or_else(|| panic!("{body} is taken"));
            assert!(refused.contains(reason), "{body}: {refused}");
        }
        assert_eq!(
            [cell_value("3"), cell_value("1.50"), cell_value(""), cell_value("NaN")],
            [json!(3), json!(1.5), Value::Null, json!("NaN")]
        );
    }
}
