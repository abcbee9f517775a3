//! Requests to a hub: with limits on time and size, and the token for its own origin alone.

use std::io::Read;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{Method, Request, Response, Uri};
use ureq::{Agent, Body, SendBody};

/// Nothing arrives, or is taken, for so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// An answer takes so long at most, and a file of so many bytes a second.
const ANSWER: Duration = Duration::from_secs(60);
const SLOWEST: u64 = 20_000;
/// What is asked again after a failure of the network or the hub.
const TRIES: u32 = 3;
const REDIRECTS: usize = 5;
const ENDLESS: &str = "the hub redirects without end";
/// Bytes of an answer that is no file.
const LARGEST_ANSWER: u64 = 1 << 24;

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The way there.
    Network(String),
    /// A status that is no success, the hub's code for it, and how long to wait.
    Status(u16, String, Option<u64>),
    /// An answer that cannot be, or a request that is not made.
    Answer(String),
}

pub(super) type Got<T> = Result<T, Failure>;

pub(super) fn wrong<T>(what: impl Into<String>) -> Got<T> {
    Err(Failure::Answer(what.into()))
}

/// A hub's endpoint and the token for it.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Uri,
    token: Option<String>,
}

/// A header of an answer, as text.
pub(super) fn header<'a>(answer: &'a Response<Body>, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

fn redirects(answer: &Response<Body>) -> bool {
    matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308)
}

impl Client {
    pub(super) fn new(endpoint: &str, token: Option<String>) -> Got<Self> {
        let endpoint = endpoint.trim_end_matches('/').to_string();
        let origin: Uri = match endpoint.parse() {
            Ok(uri) => uri,
            Err(_) => return wrong(format!("{endpoint:.60?} is no address of a hub")),
        };
        if !matches!(origin.scheme_str(), Some("http" | "https")) || origin.host().is_none() {
            return wrong(format!("{endpoint:.60?} is no address of a hub: expected https://…"));
        }
        if token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return wrong("the token of the hub has characters that no token has");
        }
        let config = Agent::config_builder()
            .user_agent(concat!("zoo/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Each is looked at here: what leads elsewhere takes no token along.
            .max_redirects(0)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .timeout_per_write(Some(PATIENCE));
        Ok(Self { agent: config.build().into(), endpoint, origin, token })
    }

    /// An address at the hub.
    pub(super) fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    fn is_own(&self, uri: &Uri) -> bool {
        let same = |a: Option<&str>, b: Option<&str>| a.zip(b).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b));
        same(uri.scheme_str(), self.origin.scheme_str())
            && same(uri.authority().map(|a| a.as_str()), self.origin.authority().map(|a| a.as_str()))
    }

    /// Where a link or redirect from `from` leads; nothing leads from an encrypted connection to a plain one.
    fn leads(&self, from: &str, to: &str) -> Got<String> {
        let plain = to.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
        let from: Uri = from.parse().or_else(|_| wrong("an address that cannot be"))?;
        let (scheme, authority) = (from.scheme_str().unwrap_or("https"), from.authority().map_or("", |a| a.as_str()));
        let whole = match to {
            _ if !plain => return wrong("the hub leads to an address that cannot be"),
            to if to.starts_with("//") => {
                return wrong("the hub leads to another place without saying how to get there");
            }
            to if to.starts_with('/') => format!("{scheme}://{authority}{to}"),
            to => to.to_string(),
        };
        let uri: Uri = whole.parse().or_else(|_| wrong("the hub leads to an address that cannot be"))?;
        match uri.scheme_str() {
            Some("https") => Ok(whole),
            Some("http") if scheme == "http" => Ok(whole),
            _ => wrong("the hub leads from an encrypted connection to one that is not"),
        }
    }

    /// One request, and its answer whatever it says.
    pub(super) fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: SendBody,
        patience: Duration,
    ) -> Got<Response<Body>> {
        let uri: Uri = url.parse().or_else(|_| wrong("an address that cannot be"))?;
        if self.origin.scheme_str() == Some("https") && uri.scheme_str() != Some("https") {
            return wrong("the hub leads from an encrypted connection to one that is not");
        }
        let given = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        let mut request = Request::builder().method(method).uri(&uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = self.token.as_ref().filter(|_| self.is_own(&uri) && !given) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(body).or_else(|e| wrong(e.to_string()))?;
        let request = self.agent.configure_request(request).timeout_recv_body(Some(patience)).build();
        self.agent.run(request).map_err(|e| Failure::Network(e.to_string()))
    }

    /// A request without a body, tried again where the network or the hub fails, that succeeds or is redirected.
    fn ask(&self, method: &Method, url: &str, headers: &[(&str, &str)], patience: Duration) -> Got<Response<Body>> {
        let mut tries = 1;
        loop {
            let answer = self.send(method.clone(), url, headers, SendBody::none(), patience);
            let again = match &answer {
                Ok(answer) => answer.status().is_server_error(),
                Err(e) => matches!(e, Failure::Network(_)),
            };
            if !again || tries == TRIES {
                return answer.and_then(|answer| if redirects(&answer) { Ok(answer) } else { succeeded(answer) });
            }
            std::thread::sleep(Duration::from_millis(200) * tries);
            tries += 1;
        }
    }

    /// What a file's address says of it: redirects within the hub are followed, one that leads elsewhere is the answer.
    pub(super) fn head(&self, url: &str) -> Got<Response<Body>> {
        let mut url = url.to_string();
        for _ in 0..REDIRECTS {
            let answer = self.ask(&Method::HEAD, &url, &[("accept-encoding", "identity")], ANSWER)?;
            let next = match header(&answer, "location").filter(|_| redirects(&answer)) {
                Some(to) => self.leads(&url, to)?,
                None => return Ok(answer),
            };
            if !next.parse().is_ok_and(|uri| self.is_own(&uri)) {
                return Ok(answer);
            }
            url = next;
        }
        wrong(ENDLESS)
    }

    /// A file of so many bytes, wherever the hub has it.
    pub(super) fn get(&self, url: &str, headers: &[(&str, &str)], size: u64) -> Got<Response<Body>> {
        let patience = ANSWER + Duration::from_secs(size / SLOWEST);
        let mut url = url.to_string();
        for _ in 0..REDIRECTS {
            let headers = [headers, &[("accept-encoding", "identity")]].concat();
            let answer = self.ask(&Method::GET, &url, &headers, patience)?;
            match header(&answer, "location").filter(|_| redirects(&answer)) {
                Some(to) => url = self.leads(&url, to)?,
                None => return succeeded(answer),
            }
        }
        wrong(ENDLESS)
    }

    /// A page of JSON and the address of the next, which is at the hub itself.
    pub(super) fn page<T: DeserializeOwned>(&self, url: &str) -> Got<(T, Option<String>)> {
        let answer = self.get(url, &[], 0)?;
        let next = header(&answer, "link").and_then(|links| {
            let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
            Some(next.split_once('<')?.1.split_once('>')?.0.to_string())
        });
        let next = next.map(|to| self.leads(url, &to)).transpose()?;
        if next.as_ref().is_some_and(|next| !next.parse().is_ok_and(|uri| self.is_own(&uri))) {
            return wrong("the hub's list goes on at another place: it is not followed there");
        }
        Ok((json(answer)?, next))
    }

    /// Sends a text. Where the hub has moved a repository it is sent again to its new address, which is at the hub itself.
    pub(super) fn post(&self, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Got<Response<Body>> {
        let length = body.len().to_string();
        let headers = [headers, &[("content-length", &length)]].concat();
        let mut url = url.to_string();
        for _ in 0..REDIRECTS {
            let answer = self.send(Method::POST, &url, &headers, SendBody::from_reader(&mut &*body), ANSWER)?;
            let moved = matches!(answer.status().as_u16(), 307 | 308);
            url = match header(&answer, "location").filter(|_| moved) {
                Some(to) => self.leads(&url, to)?,
                None => return succeeded(answer),
            };
            if !url.parse().is_ok_and(|uri| self.is_own(&uri)) {
                return wrong("the hub leads what is sent to it to another place: nothing is sent there");
            }
        }
        wrong(ENDLESS)
    }

    /// Brings a body of known length to an address.
    pub(super) fn put(&self, url: &str, headers: &[(&str, &str)], body: SendBody) -> Got<Response<Body>> {
        succeeded(self.send(Method::PUT, url, headers, body, ANSWER)?)
    }
}

/// An answer that is no success as a failure.
fn succeeded(answer: Response<Body>) -> Got<Response<Body>> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let code = header(&answer, "x-error-code").unwrap_or_default().to_string();
    let wait = header(&answer, "retry-after").and_then(|seconds| seconds.parse().ok());
    Err(Failure::Status(answer.status().as_u16(), code, wait))
}

/// At most so many bytes of an answer.
pub(super) fn bytes(answer: Response<Body>, most: u64) -> Got<Vec<u8>> {
    let mut bytes = vec![];
    let read = answer.into_body().into_reader().take(most.saturating_add(1)).read_to_end(&mut bytes);
    match (bytes.len() as u64 > most, read) {
        (true, _) => wrong(format!("the hub sends more than {most} bytes")),
        (false, Ok(_)) => Ok(bytes),
        (false, Err(e)) => Err(Failure::Network(e.to_string())),
    }
}

pub(super) fn json<T: DeserializeOwned>(answer: Response<Body>) -> Got<T> {
    serde_json::from_slice(&bytes(answer, LARGEST_ANSWER)?)
        .or_else(|e| wrong(format!("the hub's answer is no JSON: {e}")))
}
