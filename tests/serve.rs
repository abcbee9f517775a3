//! `zoo serve`: what it answers, what it refuses, and that nothing is lost when it reloads or ends.
#![cfg(unix)]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn weights(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../weights").join(name)
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zoo"));
    command.args(args).env_remove("ZOO_TOKEN");
    command
}

fn zoo(args: &[&str]) -> Output {
    command(args).output().expect("zoo starts")
}

/// A server that ends with the test.
struct Server {
    child: Child,
    address: String,
    /// What it said where it began.
    said: Value,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A response: status, headers, body.
struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn json(&self) -> Outcome<Value> {
        serde_json::from_str(&self.body).map_err(|e| format!("{e}: {} {}", self.status, self.body).into())
    }

    fn error(&self) -> String {
        self.json().map_or(self.body.clone(), |body| body["error"]["message"].as_str().unwrap_or_default().into())
    }
}

impl Server {
    fn start(args: &[&str]) -> Outcome<Self> {
        let mut command = command(&[&["serve", "--port", "0", "--json"], args].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut said = String::new();
        while serde_json::from_str::<Value>(&said).is_err() {
            if stdout.read_line(&mut said)? == 0 {
                let mut why = String::new();
                child.stderr.take().ok_or("no stderr")?.read_to_string(&mut why)?;
                return Err(format!("the server does not start: {said}{why}").into());
            }
        }
        let said: Value = serde_json::from_str(&said)?;
        let address = said["url"].as_str().and_then(|url| url.strip_prefix("http://")).ok_or("no url")?.to_string();
        Ok(Self { child, address, said })
    }

    /// A connection on which a request was sent; the body is sent as far as the server takes it.
    fn open(&self, request: &str, headers: &[&str], body: &[u8]) -> Outcome<TcpStream> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut head = format!("{request} HTTP/1.1\r\nConnection: close\r\n");
        let given = |name: &str| headers.iter().any(|h| h.to_ascii_lowercase().starts_with(name));
        if !given("host:") {
            head += &format!("Host: {}\r\n", self.address);
        }
        if !given("content-length:") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        headers.iter().for_each(|line| head += &format!("{line}\r\n"));
        stream.write_all((head + "\r\n").as_bytes())?;
        match stream.write_all(body) {
            Err(e) if !matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Err(e.into()),
            _ => Ok(stream),
        }
    }

    fn ask(&self, request: &str, headers: &[&str], body: &[u8]) -> Outcome<Response> {
        read(self.open(request, headers, body)?)
    }

    fn get(&self, path: &str) -> Outcome<Response> {
        self.ask(&format!("GET {path}"), &[], b"")
    }

    fn post(&self, path: &str, body: &Value) -> Outcome<Response> {
        self.ask(&format!("POST {path}"), &["Content-Type: application/json"], body.to_string().as_bytes())
    }

    fn signal(&self, name: &str) -> Outcome {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status()?;
        if sent.success() { Ok(()) } else { Err("no signal was sent".into()) }
    }

    /// Its exit code, soon.
    fn wait(&mut self) -> Outcome<Option<i32>> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            sleep(Duration::from_millis(20));
        }
        Err("the server does not end".into())
    }
}

/// A whole response; pieces of a chunked body are put together.
fn read(mut stream: TcpStream) -> Outcome<Response> {
    let mut bytes = vec![];
    match stream.read_to_end(&mut bytes) {
        // A server that had enough of a body closes with some of it unread.
        Err(e) if e.kind() != ErrorKind::ConnectionReset || bytes.is_empty() => return Err(e.into()),
        _ => {}
    }
    let text = String::from_utf8(bytes)?;
    let (head, rest) = text.split_once("\r\n\r\n").ok_or_else(|| format!("no response: {text}"))?;
    let status = head.split(' ').nth(1).ok_or("no status")?.parse()?;
    let mut body = String::new();
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        let mut rest = rest;
        while let Some((size, more)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16)?;
            body += more.get(..size).ok_or("a chunk is cut off")?;
            rest = more.get(size + 2..).unwrap_or_default();
        }
    } else {
        body += rest;
    }
    Ok(Response { status, head: head.to_ascii_lowercase(), body })
}

/// The documents of a stream of events, and the last line.
fn events(body: &str) -> Outcome<(Vec<Value>, String)> {
    let mut lines: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let last = lines.pop().ok_or("no events")?.to_string();
    Ok((lines.into_iter().map(serde_json::from_str).collect::<Result<_, _>>()?, last))
}

/// The characters that the command line writes.
fn written(tokens: usize, seed: u64) -> Outcome<String> {
    let checkpoint = weights("char-gpt-cpu.safetensors").display().to_string();
    let (tokens, seed) = (tokens.to_string(), seed.to_string());
    let args = ["generate", "char-gpt", "--checkpoint", &checkpoint, "--prompt", "ROMEO:", "--json"];
    let output = zoo(&[&args[..], &["--tokens", &tokens, "--seed", &seed]].concat());
    let said: Value = serde_json::from_slice(&output.stdout)?;
    Ok(said["samples"][0]["text"].as_str().ok_or("no text")?.into())
}

fn text_of(response: &Response) -> Outcome<String> {
    Ok(response.json()?["choices"][0]["text"].as_str().ok_or_else(|| response.body.clone())?.into())
}

#[test]
fn texts_are_those_of_the_command_line_whoever_else_writes() -> Outcome {
    let gpt = weights("char-gpt-cpu.safetensors").display().to_string();
    let server = Server::start(&[&gpt])?;
    assert_eq!(server.said["models"][0]["id"], "char-gpt-cpu");
    let asked = |seed: u64, tokens: usize| json!({ "prompt": "ROMEO:", "seed": seed, "max_tokens": tokens });
    let whole = server.post("/v1/completions", &asked(5, 300))?;
    let answer = whole.json()?;
    assert_eq!((whole.status, &answer["object"]), (200, &json!("text_completion")));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"], json!({ "prompt_tokens": 6, "completion_tokens": 300, "total_tokens": 306 }));
    assert_eq!(text_of(&whole)?, written(300, 5)?);

    // The same among others that begin and end beside it.
    let alone: Vec<String> = (0..12)
        .map(|i| text_of(&server.post("/v1/completions", &asked(i, 100 + 20 * i as usize))?))
        .collect::<Outcome<_>>()?;
    let streams = (0..12)
        .map(|i| {
            let body = asked(i, 100 + 20 * i as usize).to_string();
            server.open("POST /v1/completions", &["Content-Type: application/json"], body.as_bytes())
        })
        .collect::<Outcome<Vec<_>>>()?;
    for (stream, alone) in streams.into_iter().zip(alone) {
        assert_eq!(text_of(&read(stream)?)?, alone);
    }
    let counted = server.get("/metrics")?.body;
    let together = counted.lines().find(|l| l.starts_with("zoo_batch_size_bucket{le=\"1.0\"")).ok_or("no count")?;
    let steps = counted.lines().find(|l| l.starts_with("zoo_batch_size_count")).ok_or("no count")?;
    assert_ne!(together.rsplit(' ').next(), steps.rsplit(' ').next(), "no two texts were written together");

    // As it comes, with the numbers of tokens at the end.
    let mut streamed = asked(5, 300);
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({ "include_usage": true });
    let response = server.post("/v1/completions", &streamed)?;
    assert!(response.head.contains("content-type: text/event-stream"), "{}", response.head);
    let (parts, last) = events(&response.body)?;
    let pieces: Vec<&str> = parts.iter().filter_map(|part| part["choices"][0]["text"].as_str()).collect();
    assert_eq!((pieces.concat(), last.as_str()), (text_of(&whole)?, "[DONE]"));
    assert!(pieces.len() > 250, "{} pieces", pieces.len());
    assert_eq!(parts[parts.len() - 2]["choices"][0]["finish_reason"], "length");
    assert_eq!(parts[parts.len() - 1]["usage"]["completion_tokens"], 300);

    // Several choices, a stop.
    let several =
        server.post("/v1/completions", &json!({ "prompt": "ROMEO:", "n": 3, "max_tokens": 40, "stop": ["\n\n"] }))?;
    let several = several.json()?;
    let choices = several["choices"].as_array().ok_or("no choices")?;
    assert_eq!(choices.iter().map(|c| &c["index"]).collect::<Vec<_>>(), [&json!(0), &json!(1), &json!(2)]);
    assert!(choices.iter().all(|c| !c["text"].as_str().unwrap_or("\n\n").contains("\n\n")));
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    assert_eq!(several["usage"]["prompt_tokens"], 6);
    let one = server.get("/v1/models/char-gpt-cpu")?.json()?;
    assert_eq!((&one["id"], &one["object"], one["created"].is_u64()), (&json!("char-gpt-cpu"), &json!("model"), true));
    Ok(())
}

#[test]
fn predictions_are_those_of_the_command_line_in_any_form() -> Outcome {
    let lstm = weights("stock-lstm.safetensors").display().to_string();
    let (gpt, trading) = (weights("char-gpt-cpu.safetensors"), weights("trading-transformer.safetensors"));
    let server = Server::start(&[&lstm, &trading.display().to_string(), &gpt.display().to_string()])?;
    let dir = tempfile::tempdir()?;
    // Prices that swing about a line.
    let close = |day: usize| 90. + 0.05 * day as f64 + 4. * (day as f64 / 9.).sin();
    let dates: Vec<String> =
        (0..300).map(|day| format!("20{:02}-{:02}-{:02}", 10 + day / 336, 1 + day / 28 % 12, 1 + day % 28)).collect();
    let rows: String = dates.iter().enumerate().map(|(day, date)| format!("{date},{:.4}\n", close(day))).collect();
    let csv = format!("date,close\n{rows}");
    let input = dir.path().join("prices.csv");
    std::fs::write(&input, &csv)?;
    let (table, input) = (dir.path().join("out.csv"), input.display().to_string());
    let out = table.display().to_string();
    let args = [
        "predict",
        "stock-lstm",
        "--checkpoint",
        &lstm,
        "--input",
        &input,
        "--horizon",
        "3",
        "--output",
        &out,
        "--json",
    ];
    let expected: Value = serde_json::from_slice(&zoo(&args).stdout)?;

    let path = "POST /predict?model=stock-lstm&horizon=3&last=2";
    let of_csv = server.ask(path, &["Content-Type: text/csv"], csv.as_bytes())?;
    let answer = of_csv.json()?;
    assert_eq!((of_csv.status, &answer["forecasts"]), (200, &expected["forecasts"]), "{answer}");
    assert_eq!((&answer["remarks"], &answer["model"]), (&expected["remarks"], &json!("stock-lstm")));
    assert_eq!(answer["rows"].as_array().map(Vec::len), Some(2));
    assert!(answer["rows"][1]["forecast"].is_f64() && answer["rows"][1]["actual"].is_null(), "{answer}");
    let closes: Vec<f64> = (0..300).map(|day| (close(day) * 1e4).round() / 1e4).collect();
    let records: Vec<Value> =
        dates.iter().zip(&closes).map(|(date, close)| json!({ "date": date, "close": close })).collect();
    for body in [json!({ "columns": { "date": dates, "close": closes } }), json!({ "records": records })] {
        let mut body = body;
        body["model"] = "stock-lstm".into();
        body["horizon"] = 3.into();
        assert_eq!(server.post("/predict", &body)?.json()?["forecasts"], expected["forecasts"]);
    }
    let as_csv = server.ask(
        "POST /predict?model=stock-lstm&horizon=3",
        &["Content-Type: text/csv", "Accept: text/csv"],
        csv.as_bytes(),
    )?;
    assert_eq!(as_csv.body, std::fs::read_to_string(&table)?);
    let picture = server.ask(path, &["Content-Type: text/csv", "Accept: image/svg+xml"], csv.as_bytes())?;
    assert!(
        picture.head.contains("content-type: image/svg+xml") && picture.body.starts_with("<svg"),
        "{}",
        picture.head
    );

    // What cannot be done is said in a line.
    for (path, headers, body, status, reason) in [
        (
            "POST /predict?horizon=3",
            "Content-Type: text/csv",
            csv.as_str(),
            400,
            "name one of stock-lstm, trading-transformer",
        ),
        (
            "POST /predict?model=stock-lstm&horizon=0",
            "Content-Type: text/csv",
            &csv,
            400,
            "horizon 0: expected 1 to 10000",
        ),
        (
            "POST /predict?model=stock-lstm&horizo=3",
            "Content-Type: text/csv",
            &csv,
            400,
            "there is no option horizo; it has",
        ),
        ("POST /predict?model=stock-lstm&last=x", "Content-Type: text/csv", &csv, 400, "last x: expected a number"),
        (
            "POST /predict?model=stock-lstm",
            "Content-Type: text/csv",
            "date,close\n2020-01-02,1\n",
            400,
            "the input: 1 days",
        ),
        ("POST /predict?model=stock-lstm", "Content-Type: text/csv", "", 400, "the input: "),
        (
            "POST /predict?model=stock-lstm",
            "Content-Type: text/html",
            &csv,
            415,
            "Content-Type: application/json or text/csv",
        ),
        ("POST /predict?model=stock-lstm&format=../x", "Accept: */*", &csv, 400, "expected an ending"),
        ("POST /predict?model=stock-lstm", "Content-Type: application/json", "{\"columns\": 1}", 400, "either columns"),
        ("POST /predict?model=char-gpt-cpu", "Content-Type: text/csv", &csv, 400, "is not a model that predicts"),
        (
            "POST /v1/completions",
            "Accept: */*",
            "{\"model\": \"stock-lstm\", \"prompt\": \"a\"}",
            400,
            "is not a model that writes text",
        ),
        (
            "POST /v1/completions",
            "Accept: */*",
            "{\"model\": \"x\", \"prompt\": \"a\"}",
            404,
            "there is no model x; there are stock-lstm",
        ),
        ("POST /v1/completions", "Accept: */*", "{\"prompt\": \"a€\"}", 400, "the character '€'"),
        (
            "POST /v1/completions",
            "Accept: */*",
            "{\"prompt\": \"a\", \"tools\": [1]}",
            400,
            "tools: this server does not have it",
        ),
        (
            "POST /v1/chat/completions",
            "Accept: */*",
            "{\"model\": \"char-gpt-cpu\", \"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
            400,
            "was not made for conversations",
        ),
        (
            "POST /v1/chat/completions",
            "Accept: */*",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
            400,
            "no model here converses",
        ),
        ("GET /predict", "Accept: */*", "", 405, "another method"),
        ("GET /nothing", "Accept: */*", "", 404, "there is no such path"),
        (
            "POST /v1/completions",
            "Accept: */*",
            "{\"model\": \"char-gpt-cpu\", \"prompt\": [1]}",
            400,
            "expected a text or a list of texts",
        ),
        ("GET /v1/models", "Sec-Fetch-Site: cross-site", "", 403, "a page of another site may not ask"),
        ("GET /v1/models", "Origin: http://elsewhere.org", "", 403, "a page of http://elsewhere.org may not ask"),
        ("GET /v1/models", "Host: elsewhere.org", "", 403, "this server is not called elsewhere.org"),
    ] {
        let refused = server.ask(path, &[headers], body.as_bytes())?;
        assert_eq!(refused.status, status, "{path}: {}", refused.body);
        assert!(refused.error().contains(reason), "{path}: {}", refused.body);
        assert!(!refused.body.contains("/tmp"), "{path}: {}", refused.body);
    }
    let page = server.get("/")?;
    assert!(page.head.contains("content-security-policy: default-src 'none'") && page.body.contains("stock-lstm"));
    assert_eq!(server.get("/healthz")?.body, "ok\n");
    Ok(())
}

#[test]
fn who_may_ask_and_how_much_is_limited() -> Outcome {
    let gpt = weights("char-gpt-cpu.safetensors").display().to_string();
    let alone = zoo(&["serve", &gpt, "--host", "0.0.0.0", "--port", "0"]);
    let said = String::from_utf8_lossy(&alone.stderr);
    assert_eq!(alone.status.code(), Some(2), "{said}");
    assert!(said.contains("--host 0.0.0.0: without a token everybody"), "{said}");
    for (args, reason) in [
        (vec!["missing.safetensors"], "missing.safetensors: "),
        (vec![&gpt, &gpt], "two checkpoints are called char-gpt-cpu"),
        (vec![&gpt, "--token", ""], "expected visible ASCII"),
        (vec![&gpt, "--name", "http://a"], "--name http://a: expected the name of a host"),
        (vec![&gpt, "--base", &gpt], "is a whole model"),
    ] {
        let refused = zoo(&[&["serve", "--port", "0"], &args[..]].concat());
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(reason) && said.lines().count() == 1, "{args:?}: {said}");
    }
    let mut server =
        Server::start(&[&gpt, "--token", "secret", "--max-body", "1", "--max-tokens", "1000000", "--timeout", "2"])?;
    let asked = json!({ "prompt": "a", "max_tokens": 3 }).to_string();
    for headers in [&["Accept: */*"][..], &["Authorization: Bearer secreT"], &["Authorization: Bearer secret1"]] {
        let refused = server.ask("POST /v1/completions", headers, asked.as_bytes())?;
        assert_eq!(refused.status, 401, "{}", refused.body);
    }
    let known = "Authorization: Bearer secret";
    assert_eq!(server.ask("POST /v1/completions", &[known], asked.as_bytes())?.status, 200);
    assert_eq!(
        [server.get("/healthz")?.status, server.get("/")?.status, server.get("/metrics")?.status],
        [200, 200, 401]
    );
    assert!(!server.get("/")?.body.contains("char-gpt"), "the page tells what the token protects");
    // Too large, however it is sent, and never more than that in memory.
    let large = vec![b' '; 3 << 20];
    let refused = server.ask("POST /v1/completions", &[known], &large)?;
    assert_eq!((refused.status, refused.error().contains("more than 1 MiB")), (413, true), "{}", refused.body);
    let mut endless = server.open("POST /v1/completions", &[known, "Content-Length: 10000000000"], b"")?;
    let mut sent = 0;
    while sent < 64 << 20 {
        match endless.write(&large) {
            Ok(n) => sent += n,
            Err(_) => break,
        }
    }
    assert!(sent < 64 << 20, "the server took {sent} bytes");
    let deep = "[".repeat(900_000);
    let refused = server.ask("POST /v1/completions", &[known], deep.as_bytes())?;
    assert_eq!(refused.status, 400, "{}", refused.body);
    // Too long: what has been written by then is not an answer.
    let late = server.ask(
        "POST /v1/completions",
        &[known],
        json!({ "prompt": "a", "max_tokens": 1000000 }).to_string().as_bytes(),
    )?;
    assert_eq!((late.status, late.error().contains("--timeout")), (504, true), "{}", late.body);
    // A client that has gone costs nothing more.
    let stream = json!({ "prompt": "a", "max_tokens": 1000000, "stream": true }).to_string();
    let mut gone = server.open("POST /v1/completions", &[known], stream.as_bytes())?;
    gone.read_exact(&mut [0; 500])?;
    drop(gone);
    let open = |server: &Server| -> Outcome<bool> {
        let counted = server.ask("GET /metrics", &[known], b"")?.body;
        Ok(counted.lines().any(|line| line == "zoo_open_requests 1"))
    };
    let begun = Instant::now();
    while !open(&server)? {
        // Its time would have ended it by itself.
        assert!(begun.elapsed() < Duration::from_millis(1500), "the request goes on without its client");
        sleep(Duration::from_millis(20));
    }
    assert_eq!(server.ask("POST /v1/completions", &[known], asked.as_bytes())?.status, 200);
    server.signal("-TERM")?;
    assert_eq!(server.wait()?, Some(0));
    Ok(())
}

#[test]
fn a_reload_and_an_end_drop_no_request() -> Outcome {
    let dir = tempfile::tempdir()?;
    let checkpoint = dir.path().join("model.safetensors");
    std::fs::copy(weights("char-gpt-cpu.safetensors"), &checkpoint)?;
    let shown = checkpoint.display().to_string();
    let mut server = Server::start(&[&shown, "--max-tokens", "20000"])?;
    let long = json!({ "prompt": "ROMEO:", "max_tokens": 4000, "seed": 5, "stream": true }).to_string();
    let first = |server: &Server| -> Outcome<TcpStream> {
        let mut stream = server.open("POST /v1/completions", &[], long.as_bytes())?;
        // It has begun.
        stream.read_exact(&mut [0; 20])?;
        Ok(stream)
    };
    let text = |stream: TcpStream| -> Outcome<String> {
        let mut rest = stream;
        let mut bytes = vec![];
        rest.read_to_end(&mut bytes)?;
        let body = String::from_utf8(bytes)?;
        let data = body.lines().filter_map(|line| line.strip_prefix("data: {"));
        let parts = data.map(|line| serde_json::from_str(&format!("{{{line}"))).collect::<Result<Vec<Value>, _>>()?;
        assert!(body.contains("[DONE]"), "the stream was cut off");
        Ok(parts.iter().filter_map(|part| part["choices"][0]["text"].as_str()).collect())
    };
    let expected = written(4000, 5)?;
    // Other weights of the same model, which take the place of the file while a text is being written.
    let trained = dir.path().join("other");
    let out = trained.display().to_string();
    let output = zoo(&["train", "char-gpt", "--preset", "tiny", "--steps", "1", "--out", &out]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let parameters =
        |server: &Server| -> Outcome<Value> { Ok(server.get("/v1/models")?.json()?["data"][0]["parameters"].clone()) };
    let before = parameters(&server)?;
    let running = first(&server)?;
    std::fs::rename(trained.join("best.safetensors"), &checkpoint)?;
    server.signal("-HUP")?;
    let begun = Instant::now();
    while parameters(&server)? == before {
        assert!(begun.elapsed() < Duration::from_secs(30), "the checkpoint is not read again");
        sleep(Duration::from_millis(20));
    }
    let open = server.get("/metrics")?.body.lines().any(|line| line == "zoo_open_requests 2");
    assert!(open, "the text ended before the checkpoint was read again: the test tells nothing");
    assert_eq!(text(running)?, expected, "a text that had begun is finished by the weights that began it");
    // What cannot be read, or is of another model, leaves what is there.
    let now = parameters(&server)?;
    for (failures, content) in [(1, b"no checkpoint".to_vec()), (2, std::fs::read(weights("stock-lstm.safetensors"))?)]
    {
        std::fs::write(&checkpoint, content)?;
        server.signal("-HUP")?;
        let begun = Instant::now();
        while !server.get("/metrics")?.body.contains(&format!("zoo_failed_reloads_total {failures}")) {
            assert!(begun.elapsed() < Duration::from_secs(30), "nothing is said of the failure");
            sleep(Duration::from_millis(20));
        }
    }
    assert_eq!(parameters(&server)?, now);
    let asked = json!({ "prompt": "a", "max_tokens": 3 });
    assert_eq!(server.post("/v1/completions", &asked)?.status, 200);
    // Ctrl-C: no new requests, and the running one to its end.
    let running = first(&server)?;
    server.signal("-INT")?;
    assert_eq!(text(running)?.chars().count(), 4000);
    assert_eq!(server.wait()?, Some(0));
    assert!(TcpStream::connect(&server.address).is_err());
    let mut said = String::new();
    server.child.stderr.take().ok_or("no stderr")?.read_to_string(&mut said)?;
    assert!(said.contains("read again") && said.contains("the one before goes on"), "{said}");
    Ok(())
}
