//! `zoo pull`, `zoo push` and `zoo inspect hf://…` against a small hub on loopback, with its faults.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use base64::Engine;
use serde_json::{Value, json};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// What the hub does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Unauthorized,
    Limited,
    /// Half of the content, then nothing.
    Cut,
    /// Other bytes than its hash says.
    Wrong,
    /// More bytes than it says.
    More,
    /// A commit that is a path.
    Commit,
    /// A size that no file has.
    Size,
    /// A size that no disk has room for.
    Huge,
    /// The repository has a new name, at the hub or at another host.
    Moved,
    MovedAway,
    /// A redirect that some read as one to another host.
    Backslash,
    /// A list that goes on at another host.
    Elsewhere,
    /// A list that goes on without end.
    Circle,
    /// Files are to come by Git LFS, in parts of so many bytes if that is not zero.
    Large(usize),
}

struct Shared {
    fault: Fault,
    files: BTreeMap<String, Vec<u8>>,
    /// Every request, as `METHOD path range`.
    seen: Vec<String>,
    /// The lines of a commit.
    committed: Vec<Value>,
    /// What was put, in order, and what a list of parts says.
    put: Vec<Vec<u8>>,
    parts: Value,
}

#[derive(Clone)]
struct FakeHub {
    shared: Arc<Mutex<Shared>>,
    address: String,
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl FakeHub {
    fn start(files: &[(&str, Vec<u8>)]) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let files = files.iter().map(|(n, b)| (n.to_string(), b.clone())).collect();
        let shared = Arc::new(Mutex::new(Shared {
            fault: Fault::None,
            files,
            seen: vec![],
            committed: vec![],
            put: vec![],
            parts: Value::Null,
        }));
        let hub = Self { shared, address: format!("http://{}", listener.local_addr()?) };
        let server = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                std::thread::spawn(move || server.answer(stream));
            }
        });
        Ok(hub)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn fail(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    fn answer(&self, mut stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let (method, path) = line.trim().rsplit_once(' ')?.0.split_once(' ')?;
        let (method, path) = (method.to_string(), path.to_string());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            match line.trim().split_once(':') {
                Some((key, value)) => headers.insert(key.to_ascii_lowercase(), value.trim().to_string()),
                None => break,
            };
        }
        let mut body = vec![0; headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        let range = headers.get("range").cloned().unwrap_or_default();
        let fault = {
            let mut shared = self.lock();
            shared.seen.push(format!("{method} {path} {range}").trim().to_string());
            shared.fault
        };
        let send = |stream: &mut TcpStream, status: &str, headers: &str, body: &[u8], claimed: usize| {
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {claimed}\r\nconnection: close\r\n{headers}\r\n");
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).ok()
        };
        let reply = |stream: &mut TcpStream, value: Value| {
            let text = value.to_string();
            send(stream, "200 OK", "content-type: application/json\r\n", text.as_bytes(), text.len())
        };
        if fault == Fault::Unauthorized && headers.get("authorization").map(String::as_str) != Some("Bearer secret") {
            return send(&mut stream, "401 Unauthorized", "", b"", 0);
        }
        if fault == Fault::Limited {
            return send(&mut stream, "429 Too Many Requests", "retry-after: 7\r\n", b"", 0);
        }
        let moved = match fault {
            Fault::Moved if !path.contains("gpt-renamed") => path.replace("me/gpt", "me/gpt-renamed"),
            Fault::MovedAway => format!("http://127.0.0.2:1{path}"),
            _ => path.clone(),
        };
        if method == "POST" && moved != path && path.contains("me/gpt") {
            return send(&mut stream, "307 Temporary Redirect", &format!("location: {moved}\r\n"), b"", 0);
        }
        let path = path.replace("gpt-renamed", "gpt");
        let plain = path.split('?').next()?;
        if plain == "/api/repos/create" {
            return reply(&mut stream, json!({ "url": format!("{}/me/gpt", self.address) }));
        }
        if plain.starts_with("/api/models/me/gpt/preupload/") {
            let asked: Value = serde_json::from_slice(&body).ok()?;
            let files = asked["files"].as_array()?;
            let mode = |f: &Value| match fault {
                Fault::Large(_) if f["path"] == "model.safetensors" => "lfs",
                _ => "regular",
            };
            let files: Vec<Value> = files.iter().map(|f| json!({ "path": f["path"], "uploadMode": mode(f) })).collect();
            return reply(&mut stream, json!({ "files": files }));
        }
        if plain == "/me/gpt.git/info/lfs/objects/batch" {
            let asked: Value = serde_json::from_slice(&body).ok()?;
            let size = asked["objects"][0]["size"].as_u64()? as usize;
            let at = |path: String| format!("{}/{path}", self.address);
            let upload = match fault {
                Fault::Large(part) if part > 0 => {
                    let mut header = json!({ "chunk_size": part.to_string() });
                    (1..=size.div_ceil(part)).for_each(|i| header[format!("{i:05}")] = at(format!("put/{i}")).into());
                    json!({ "href": at("complete".into()), "header": header })
                }
                _ => json!({ "href": at("put/whole".into()), "header": { "x-signature": "s" } }),
            };
            let actions = json!({ "upload": upload, "verify": { "href": at("verify".into()) } });
            return reply(
                &mut stream,
                json!({ "objects": [{ "oid": asked["objects"][0]["oid"], "actions": actions }] }),
            );
        }
        if method == "PUT" {
            let mut shared = self.lock();
            shared.put.push(body);
            let etag = format!("etag: \"part{}\"\r\n", shared.put.len());
            return send(&mut stream, "200 OK", &etag, b"", 0);
        }
        if plain == "/complete" || plain == "/verify" {
            if plain == "/complete" {
                self.lock().parts = serde_json::from_slice(&body).ok()?;
            }
            return reply(&mut stream, json!({}));
        }
        if plain.starts_with("/api/models/me/gpt/commit/") {
            let lines = body.split(|b| *b == b'\n').filter(|l| !l.is_empty());
            self.lock().committed = lines.filter_map(|l| serde_json::from_slice(l).ok()).collect();
            return reply(
                &mut stream,
                json!({ "commitUrl": format!("{}/me/gpt/commit/{COMMIT}", self.address), "commitOid": COMMIT }),
            );
        }
        let files = self.lock().files.clone();
        if plain.starts_with("/api/models/me/gpt/tree/") {
            let file = |(path, bytes): (&String, &Vec<u8>)| json!({ "type": "file", "oid": "x", "size": bytes.len(), "path": path });
            let text = files.iter().map(file).collect::<Value>().to_string();
            let seen = self.lock().seen.len();
            let next = match fault {
                Fault::Elsewhere => "link: <http://127.0.0.2:1/api>; rel=\"next\"\r\n".to_string(),
                Fault::Circle => format!("link: <{plain}?page={seen}>; rel=\"next\"\r\n"),
                _ => String::new(),
            };
            return send(&mut stream, "200 OK", &next, text.as_bytes(), text.len());
        }
        let name = plain.strip_prefix("/me/gpt/resolve/main/");
        let Some((name, content)) = name.and_then(|n| Some((n, files.get(n)?))) else {
            let code = if plain.starts_with("/me/gpt/") { "EntryNotFound" } else { "RepoNotFound" };
            return send(&mut stream, "404 Not Found", &format!("x-error-code: {code}\r\n"), b"", 0);
        };
        let hash = zoo_checkpoint::sha256_of(content);
        if fault == Fault::Backslash {
            return send(&mut stream, "307 Temporary Redirect", "location: /\\127.0.0.2:1/x\r\n", b"", 0);
        }
        let commit = if fault == Fault::Commit { "../../../../victim" } else { COMMIT };
        let size = match fault {
            Fault::Size => u64::MAX,
            Fault::Huge => 1 << 50,
            _ => content.len() as u64,
        };
        let headers = format!("etag: \"{hash}\"\r\nx-repo-commit: {commit}\r\nx-linked-size: {size}\r\n");
        if method == "HEAD" {
            return send(&mut stream, "200 OK", &headers, b"", content.len());
        }
        if let Some((from, to)) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-')) {
            let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
            let part = content.get(from..(to + 1).min(content.len()))?;
            return send(&mut stream, "206 Partial Content", "", part, part.len());
        }
        assert!(!name.is_empty());
        match fault {
            Fault::Cut => send(&mut stream, "200 OK", &headers, &content[..content.len() / 2], content.len()),
            Fault::More => {
                let more = [&content[..], &[0; 99]].concat();
                send(&mut stream, "200 OK", &headers, &more, more.len())
            }
            Fault::Wrong => send(&mut stream, "200 OK", &headers, &vec![0; content.len()], content.len()),
            _ => send(&mut stream, "200 OK", &headers, content, content.len()),
        }
    }

    fn zoo(&self, home: &Path, args: &[&str], more: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zoo"));
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "HTTP_PROXY", "http_proxy"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.address).env("HF_HOME", home).env("NO_PROXY", "127.0.0.1");
        command.current_dir(home).args(args).envs(more.iter().copied()).output().expect("zoo starts")
    }
}

fn weights() -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    Ok(std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../weights/stock-lstm.safetensors"))?)
}

fn failure(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    assert!(output.stdout.is_empty());
    text
}

#[test]
fn weights_are_fetched_once_checked_and_used_offline() -> Outcome {
    let hub = FakeHub::start(&[
        ("model.safetensors", weights()?),
        ("README.md", b"a card".to_vec()),
        ("other.bin", vec![1; 9]),
    ])?;
    let home = tempfile::tempdir()?;
    let pulled = hub.zoo(home.path(), &["pull", "me/gpt", "--json"], &[]);
    let said: Value = serde_json::from_slice(&pulled.stdout)
        .map_err(|e| format!("{e}: {}", String::from_utf8_lossy(&pulled.stderr)))?;
    let names: Vec<&str> = said["files"].as_array().ok_or("files")?.iter().filter_map(|f| f["name"].as_str()).collect();
    assert_eq!(names, ["model.safetensors", "README.md"]);
    let path = said["files"][0]["path"].as_str().ok_or("a path")?.to_string();
    assert!(Path::new(&path).starts_with(home.path().canonicalize()?.join("hub")) || path.contains("hub"), "{path}");
    assert_eq!(std::fs::read(&path)?, weights()?);
    let used = hub.zoo(home.path(), &["params", "stock-lstm", "--checkpoint", &path, "--json"], &[]);
    assert!(used.status.success());
    let gets = |hub: &FakeHub| hub.lock().seen.iter().filter(|s| s.starts_with("GET /me/gpt/resolve")).count();
    assert_eq!(gets(&hub), 2);
    // Again: not fetched again.
    assert!(hub.zoo(home.path(), &["pull", "me/gpt"], &[]).status.success());
    assert_eq!(gets(&hub), 2);
    // Offline, and with no hub at all: from the cache.
    let offline = hub.zoo(
        home.path(),
        &["pull", "me/gpt", "--file", "model.safetensors"],
        &[("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://127.0.0.1:1")],
    );
    assert!(offline.status.success(), "{}", String::from_utf8_lossy(&offline.stderr));
    let missing = hub.zoo(home.path(), &["pull", "me/gpt", "--file", "none"], &[("HF_HUB_OFFLINE", "1")]);
    assert!(failure(&missing).contains("not in the cache"));
    Ok(())
}

#[test]
fn every_fault_is_one_line_and_leaves_nothing() -> Outcome {
    let hub = FakeHub::start(&[("model.safetensors", weights()?)])?;
    let home = tempfile::tempdir()?;
    let pull = ["pull", "me/gpt", "--file", "model.safetensors"];
    for (fault, says) in [
        (Fault::Unauthorized, "set HF_TOKEN"),
        (Fault::Limited, "try again in 7 s"),
        (Fault::Cut, "no answer from the hub"),
        (Fault::Wrong, "is not what the hub says it has: removed again"),
        (Fault::More, "is not what the hub says it has: removed again"),
        (Fault::Commit, "does not say the commit, hash and size"),
        (Fault::Size, "does not say the commit, hash and size"),
        (Fault::Huge, "free: nothing was fetched"),
        (Fault::Backslash, "leads to an address that cannot be"),
    ] {
        hub.fail(fault);
        let error = failure(&hub.zoo(home.path(), &pull, &[]));
        assert!(error.contains(says) && error.contains("me/gpt"), "{error}");
        // Nothing that could be taken for the file.
        let offline = hub.zoo(home.path(), &pull, &[("HF_HUB_OFFLINE", "1")]);
        assert!(failure(&offline).contains("not in the cache"));
    }
    for (fault, says) in [(Fault::Elsewhere, "goes on at another place"), (Fault::Circle, "does not end")] {
        hub.fail(fault);
        let error = failure(&hub.zoo(home.path(), &["pull", "me/gpt"], &[("HF_TOKEN", "secret")]));
        assert!(error.contains(says), "{error}");
    }
    hub.fail(Fault::Unauthorized);
    assert!(hub.zoo(home.path(), &pull, &[("HF_TOKEN", "secret")]).status.success());
    hub.fail(Fault::None);
    let other = tempfile::tempdir()?;
    let error = failure(&hub.zoo(other.path(), &["pull", "me/gpt", "--file", "modle.safetensors"], &[]));
    assert!(error.contains("there is no such file") && error.contains("its files: model.safetensors"), "{error}");
    let error = failure(&hub.zoo(other.path(), &["pull", "me/other"], &[]));
    assert!(error.contains("no such repository"), "{error}");
    let error = failure(&hub.zoo(other.path(), &pull, &[("HF_ENDPOINT", "http://127.0.0.1:1")]));
    assert!(error.contains("no answer from the hub"), "{error}");
    // A name that leads elsewhere, by the user or by the hub's listing.
    let error = failure(&hub.zoo(other.path(), &["pull", "me/gpt", "--file", "../evil.safetensors"], &[]));
    assert!(error.contains("leads out of the folder"), "{error}");
    hub.lock().files.insert("../evil.safetensors".into(), weights()?);
    let error = failure(&hub.zoo(other.path(), &["pull", "me/gpt"], &[]));
    assert!(error.contains("leads out of the folder"), "{error}");
    let wrong = hub.zoo(other.path(), &["pull", "gpt"], &[]);
    assert_eq!(wrong.status.code(), Some(2));
    Ok(())
}

#[test]
fn a_remote_file_is_inspected_by_its_header_alone() -> Outcome {
    let whole = weights()?;
    let hub = FakeHub::start(&[("model.safetensors", whole.clone()), ("other.bin", vec![1; 99])])?;
    let home = tempfile::tempdir()?;
    let remote = hub.zoo(home.path(), &["inspect", "hf://me/gpt/model.safetensors", "--json"], &[]);
    let remote: Value = serde_json::from_slice(&remote.stdout)?;
    assert_eq!(
        (remote["total_parameters"].as_u64(), remote["file_bytes"].as_u64()),
        (Some(31_051), Some(whole.len() as u64))
    );
    let header = 8 + u64::from_le_bytes(whole[..8].try_into()?);
    let ranges: Vec<String> =
        hub.lock().seen.iter().filter(|s| s.starts_with("GET /me/gpt/resolve")).cloned().collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(ranges[1].ends_with(&format!("bytes=8-{}", header - 1)), "{ranges:?}");
    let error = failure(&hub.zoo(home.path(), &["inspect", "hf://me/gpt/other.bin"], &[]));
    assert!(error.contains("zoo pull it"), "{error}");
    assert_eq!(
        hub.zoo(home.path(), &["inspect", "hf://me/gpt/model.safetensors", "--stats"], &[]).status.code(),
        Some(2)
    );
    Ok(())
}

#[test]
fn a_run_is_pushed_with_a_card_that_says_what_it_is() -> Outcome {
    let hub = FakeHub::start(&[])?;
    let home = tempfile::tempdir()?;
    let run = [
        "train",
        "stock-lstm",
        "--steps",
        "3",
        "--set",
        "data.simulated_days=200",
        "--set",
        "model.hidden=8",
        "--out",
        "run",
    ];
    assert!(hub.zoo(home.path(), &run, &[]).status.success());
    let card = hub.zoo(home.path(), &["push", "run", "me/gpt", "--dry-run"], &[]);
    assert!(hub.lock().seen.is_empty(), "a dry run asks nobody");
    let pushed = hub.zoo(home.path(), &["push", "run", "me/gpt", "--json"], &[("HF_TOKEN", "secret")]);
    let said: Value = serde_json::from_slice(&pushed.stdout)
        .map_err(|e| format!("{e}: {}", String::from_utf8_lossy(&pushed.stderr)))?;
    assert_eq!(said["files"], json!(["model.safetensors", "README.md", "config.toml"]));
    let committed = hub.lock().committed.clone();
    let content = |path: &str| {
        let line = committed.iter().find(|l| l["value"]["path"] == path)?;
        base64::engine::general_purpose::STANDARD.decode(line["value"]["content"].as_str()?).ok()
    };
    let best = std::fs::read(home.path().join("run/best.safetensors"))?;
    assert_eq!(content("model.safetensors").as_ref(), Some(&best));
    let config = String::from_utf8(content("config.toml").ok_or("a configuration")?)?;
    assert!(config.contains("hidden = 8") && config.contains("[train.optimizer]"), "{config}");
    let readme = String::from_utf8(content("README.md").ok_or("a card")?)?;
    assert_eq!(readme.as_bytes(), card.stdout);
    for part in ["library_name: zoo", "`stock-lstm`", "| seed | 42 |", "loss", &zoo_checkpoint::sha256_of(&best)] {
        assert!(readme.contains(part), "{part} in {readme}");
    }
    // Large files by Git LFS before the commit, as a whole or in parts.
    for part in [0, 1000] {
        hub.fail(Fault::Large(part));
        hub.lock().put.clear();
        let pushed = hub.zoo(home.path(), &["push", "run", "me/gpt"], &[("HF_TOKEN", "secret")]);
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
        let shared = hub.lock();
        assert_eq!(shared.put.concat(), best);
        let line = shared.committed.iter().find(|l| l["key"] == "lfsFile").ok_or("a large file")?;
        assert_eq!(line["value"]["oid"], zoo_checkpoint::sha256_of(&best));
        assert!(
            part == 0
                || shared.put.len() == best.len().div_ceil(part) && shared.parts["parts"][1]["etag"] == "\"part2\""
        );
    }
    // A renamed repository takes what is pushed to its old name; what leads to another host does not get it.
    hub.fail(Fault::Moved);
    let pushed = hub.zoo(home.path(), &["push", "run", "me/gpt"], &[("HF_TOKEN", "secret")]);
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    assert!(hub.lock().seen.iter().any(|s| s.starts_with("POST /api/models/me/gpt-renamed/commit/")));
    hub.fail(Fault::MovedAway);
    let pushed = hub.zoo(home.path(), &["push", "run", "me/gpt"], &[("HF_TOKEN", "secret")]);
    assert!(failure(&pushed).contains("nothing is sent there"));
    hub.fail(Fault::Unauthorized);
    assert!(failure(&hub.zoo(home.path(), &["push", "run", "me/gpt"], &[])).contains("set HF_TOKEN"));
    Ok(())
}
