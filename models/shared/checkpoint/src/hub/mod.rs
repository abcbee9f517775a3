//! Files of a hub: fetched once into the cache that Python's tools share, checked, and pushed.
//!
//! A hub may be anybody's: what it names is checked before it is written, what it sends has limits, and the token goes to the
//! endpoint's own origin alone.
//!
//! The environment is read as Python's huggingface_hub reads it: `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`,
//! `HF_HUB_DISABLE_IMPLICIT_TOKEN`.

mod http;
mod push;

use std::env;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use sha1::{Digest, Sha1};

use crate::{Error, Result, Source, atomic, bytes_of, open};
use http::{Client, Failure, Got, bytes, header, wrong};

/// Where a file is: `owner/name`, a revision and a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubPath {
    /// `owner/name`.
    pub repository: String,
    /// A branch, tag or commit; `None` for the main branch.
    pub revision: Option<String>,
    /// The file; `None` for all of a checkpoint.
    pub file: Option<String>,
}

impl HubPath {
    /// From `owner/name[@revision]`, with or without `hf://` before it and `/path/to/file` behind the name.
    ///
    /// # Errors
    /// It has not that form.
    pub fn parse(text: &str) -> Result<Self> {
        let plain = text.strip_prefix("hf://").unwrap_or(text);
        let mut parts = plain.splitn(3, '/');
        let (owner, name, file) = (parts.next(), parts.next(), parts.next());
        let wrong = || Error::Hub { repository: text.into(), reason: "expected OWNER/NAME[@REVISION]".into() };
        let (owner, name) = owner.zip(name).ok_or_else(wrong)?;
        let (name, revision) = name.split_once('@').map_or((name, None), |(n, r)| (n, Some(r)));
        let plain = |s: &str| {
            !s.is_empty()
                && !s.starts_with('.')
                && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if !plain(owner) || !plain(name) || revision.is_some_and(str::is_empty) || file.is_some_and(str::is_empty) {
            return Err(wrong());
        }
        let own = |s: &str| s.to_string();
        Ok(Self { repository: format!("{owner}/{name}"), revision: revision.map(own), file: file.map(own) })
    }
}

/// A fetched file.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its name in the repository.
    pub name: String,
    /// Where it is now.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// What is told of progress: the file, bytes done, bytes in all.
pub type Report = Arc<dyn Fn(&str, u64, u64) + Send + Sync>;

/// The hub that the environment names.
pub struct Hub {
    client: Client,
    cache: PathBuf,
    offline: bool,
}

fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|v| !v.trim().is_empty())
}

fn truth(name: &str) -> bool {
    set(name).is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

/// `$HF_HOME`, or where Python's tools put it.
fn home() -> PathBuf {
    if let Some(home) = set("HF_HOME") {
        return home.into();
    }
    let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| env::home_dir().map(|h| h.join(".cache"))).unwrap_or_else(|| PathBuf::from(".cache"));
    cache.join("huggingface")
}

fn token() -> Option<String> {
    if let Some(token) = set("HF_TOKEN") {
        return Some(token.trim().into());
    }
    if truth("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let path = set("HF_TOKEN_PATH").map_or_else(|| home().join("token"), PathBuf::from);
    let text = String::from_utf8(bytes_of(&path, "a token", 1 << 16).ok()?).ok()?;
    Some(text.trim().to_string()).filter(|t| !t.is_empty())
}

impl Hub {
    /// The hub, token and cache that the environment names.
    ///
    /// # Errors
    /// The token or the endpoint cannot be one.
    pub fn from_environment() -> Result<Self> {
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| home().join("hub"));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let client = Client::new(&endpoint, token()).map_err(|e| failed("the hub", e))?;
        Ok(Self { client, cache, offline: truth("HF_HUB_OFFLINE") })
    }

    fn revision(place: &HubPath) -> String {
        escaped(place.revision.as_deref().unwrap_or("main"), "")
    }

    /// The address of a file.
    fn address(&self, place: &HubPath, file: &str) -> String {
        self.client.at(&format!("{}/resolve/{}/{}", place.repository, Self::revision(place), escaped(file, "/")))
    }

    /// The repository's files and their sizes.
    fn list(&self, place: &HubPath) -> Result<Vec<(String, u64)>> {
        self.pages(place).map_err(|e| failed(&place.repository, e))
    }

    fn pages(&self, place: &HubPath) -> Got<Vec<(String, u64)>> {
        #[derive(Deserialize)]
        struct Entry {
            r#type: String,
            path: String,
            #[serde(default)]
            size: u64,
        }
        const MOST: usize = 100;
        let first = format!("api/models/{}/tree/{}?recursive=true", place.repository, Self::revision(place));
        let (mut files, mut seen) = (vec![], vec![self.client.at(&first)]);
        loop {
            let (entries, next): (Vec<Entry>, _) = self.client.page(&seen[seen.len() - 1])?;
            files.extend(entries.into_iter().filter(|e| e.r#type == "file").map(|e| (e.path, e.size)));
            match next {
                None => return Ok(files),
                Some(next) if seen.contains(&next) || seen.len() == MOST => {
                    return wrong("the hub's list of files does not end");
                }
                Some(next) => seen.push(next),
            }
        }
    }

    /// Fetches a file, or those of a checkpoint: safetensors if there are any, else GGUF, else PyTorch's; with their
    /// index, configuration and card. Sizes and hashes are compared with those that the hub says; a file in the cache is
    /// not fetched again. With `HF_HUB_OFFLINE=1` only the cache is looked at.
    ///
    /// # Errors
    /// No such repository, revision or file, no permission, no connection, or content that is not what the hub says: that
    /// is removed again.
    pub fn pull(&self, place: &HubPath, report: &Report) -> Result<Vec<Fetched>> {
        if let Some(file) = &place.file {
            return Ok(vec![self.fetch(place, file, None, report)?]);
        }
        if self.offline {
            let reason = "offline (HF_HUB_OFFLINE), its files cannot be listed: name the file that you want".into();
            return Err(Error::Hub { repository: place.repository.clone(), reason });
        }
        let files = self.list(place)?;
        let of =
            |endings: &[&str]| files.iter().filter(|(f, _)| endings.iter().any(|e| f.ends_with(e))).collect::<Vec<_>>();
        let weights = [&[".safetensors"][..], &[".gguf"], &[".bin", ".pt", ".pth", ".ckpt"], &[".npz"]];
        let Some(found) = weights.iter().map(|w| of(w)).find(|f| !f.is_empty()) else {
            let names = files.iter().map(|(f, _)| f.as_str()).take(8).collect::<Vec<_>>().join(", ");
            let reason = format!("it has no file of weights; its files: {names}");
            return Err(Error::Hub { repository: place.repository.clone(), reason });
        };
        let beside = of(&[".index.json"])
            .into_iter()
            .chain(files.iter().filter(|(f, _)| matches!(f.as_str(), "config.json" | "README.md")));
        found.into_iter().chain(beside).map(|(f, size)| self.fetch(place, f, Some(*size), report)).collect()
    }

    fn fetch(&self, place: &HubPath, file: &str, size: Option<u64>, report: &Report) -> Result<Fetched> {
        let named = format!("{}: {file}", place.repository);
        if !file.split('/').all(is_plain) {
            let reason = "its name leads out of the folder: nothing was fetched".into();
            return Err(Error::Hub { repository: named, reason });
        }
        let folder = self.cache.join(format!("models--{}", place.repository.replace('/', "--")));
        let revision = place.revision.as_deref().unwrap_or("main");
        if self.offline {
            return cached(&folder, revision, file).ok_or_else(|| Error::Hub {
                repository: named,
                reason: "it is not in the cache, and HF_HUB_OFFLINE is set".into(),
            });
        }
        let facts = self.facts(place, file).map_err(|e| self.explain(place, file, e))?;
        let refused = |reason: String| Err(Error::Hub { repository: named.clone(), reason });
        if size.is_some_and(|s| s != facts.size) {
            return refused(format!("the hub says that it has {} bytes, and lists it with others", facts.size));
        }
        let blob = folder.join("blobs").join(&facts.etag);
        if !facts.is(&blob)? {
            let blobs = folder.join("blobs");
            std::fs::create_dir_all(&blobs).map_err(Error::io(&blobs))?;
            atomic::clear(&blobs);
            if let Some(free) = free_space(&blobs).filter(|free| *free < facts.size) {
                let (size, disk) = (facts.size, blobs.display());
                return refused(format!(
                    "it has {size} bytes, and the disk of {disk} has {free} free: nothing was fetched"
                ));
            }
            let mut builder = tempfile::Builder::new();
            builder.prefix(atomic::PREFIX).suffix(atomic::SUFFIX);
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
            let mut file_there = builder.tempfile_in(&blobs).map_err(Error::io(&blobs))?;
            let _ = file_there.as_file().try_lock();
            let answer = self
                .client
                .get(&self.address(place, file), &[], facts.size)
                .map_err(|e| self.explain(place, file, e))?;
            // One byte more than there should be shows that there is more.
            let mut reader = answer.into_body().into_reader().take(facts.size.saturating_add(1));
            let (mut buffer, mut done) = (vec![0; 1 << 16], 0);
            loop {
                let n = match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => n,
                    Err(e) => return Err(failed(&named, Failure::Network(e.to_string()))),
                };
                done += n as u64;
                if done > facts.size {
                    break;
                }
                file_there.write_all(&buffer[..n]).map_err(Error::io(&blobs))?;
                report(file, done, facts.size);
            }
            if !facts.is(file_there.path())? {
                return refused(format!(
                    "what came ({done} bytes) is not what the hub says it has: removed again; try once more"
                ));
            }
            file_there.as_file().sync_all().map_err(Error::io(&blobs))?;
            file_there.persist(&blob).map_err(|e| Error::io(&blob)(e.error))?;
        }
        let path = snapshot(&folder, &facts, revision, file, &blob)?;
        Ok(Fetched { name: file.into(), path, bytes: facts.size, sha256: atomic::sha256(&blob)? })
    }

    /// What the hub says of a file, before any of it comes.
    fn facts(&self, place: &HubPath, file: &str) -> Got<Facts> {
        let answer = self.client.head(&self.address(place, file))?;
        let either = |a: &str, b: &str| header(&answer, a).or_else(|| header(&answer, b)).map(str::to_string);
        let commit = header(&answer, "x-repo-commit").unwrap_or_default().to_string();
        let etag = either("x-linked-etag", "etag").unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_string();
        let size = either("x-linked-size", "content-length").and_then(|n| n.parse().ok());
        // They become names in the cache.
        let is_hash = |text: &str, lengths: &[usize]| {
            lengths.contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        match size {
            Some(size) if is_hash(&commit, &[40]) && is_hash(&etag, &[40, 64]) && size <= LARGEST => {
                Ok(Facts { commit, etag, size })
            }
            _ => wrong("the hub does not say the commit, hash and size of the file: nothing was fetched"),
        }
    }

    /// The file that a name was meant for, if there is none of that name.
    fn explain(&self, place: &HubPath, file: &str, e: Failure) -> Error {
        let error = failed(&format!("{}: {file}", place.repository), e);
        match (&error, self.offline) {
            (Error::Hub { repository, reason }, false) if reason.starts_with("there is no such file") => {
                let names =
                    self.list(place).unwrap_or_default().into_iter().map(|(f, _)| f).take(8).collect::<Vec<_>>();
                let reason = format!("{reason}; its files: {}", names.join(", "));
                Error::Hub { repository: repository.clone(), reason }
            }
            _ => error,
        }
    }

    /// Opens a safetensors file by its header alone: names, shapes and metadata, but no values.
    ///
    /// # Errors
    /// As for [`Hub::pull`], or the file is of another format.
    pub fn inspect(&self, place: &HubPath) -> Result<Source> {
        let Some(file) = &place.file else {
            let reason = "name a file: hf://OWNER/NAME/FILE".into();
            return Err(Error::Hub { repository: place.repository.clone(), reason });
        };
        let named = format!("{}: {file}", place.repository);
        let refuse = |reason: &str| Err(Error::Hub { repository: named.clone(), reason: reason.into() });
        if self.offline {
            return refuse("offline (HF_HUB_OFFLINE)");
        }
        if !file.split('/').all(is_plain) {
            return refuse("its name leads out of the folder");
        }
        let size = self.facts(place, file).map_err(|e| self.explain(place, file, e))?.size;
        let range = |from: u64, to: u64| {
            let range = format!("bytes={from}-{}", to - 1);
            let answer = self.client.get(&self.address(place, file), &[("range", &range)], to - from);
            answer.and_then(|answer| bytes(answer, to - from)).map_err(|e| failed(&named, e))
        };
        const NO_HEADER: &str = "only safetensors files say how long their header is: zoo pull it, then inspect it";
        if size < 10 {
            return refuse(NO_HEADER);
        }
        let start = range(0, 9)?;
        let length = start.get(..8).and_then(|b| b.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes);
        if start.len() != 9 || start[8] != b'{' || length > (size - 8).min(100_000_000) {
            return refuse(NO_HEADER);
        }
        let header = range(8, 8 + length)?;
        if header.len() as u64 != length {
            return refuse("the hub sent another part of it than it was asked for");
        }
        // The header in a file as long as the whole one, whose values are a hole.
        let mut stand_in = tempfile::NamedTempFile::new().map_err(Error::io(Path::new(file)))?;
        let fill = |to: &mut std::fs::File| {
            to.write_all(&start[..8])?;
            to.write_all(&header)?;
            to.set_len(size)
        };
        fill(stand_in.as_file_mut()).map_err(Error::io(stand_in.path()))?;
        let mut source = open(stand_in.path()).map_err(|e| match e {
            Error::Malformed { reason, format, .. } => {
                Error::Hub { repository: named.clone(), reason: format!("not a valid {format} file: {reason}") }
            }
            other => other,
        })?;
        source.path = PathBuf::from(format!("hf://{}/{file}", place.repository));
        Ok(source)
    }
}

/// The bytes that a user may still write to the disk of a folder, where the system tells.
fn free_space(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let found = rustix::fs::statvfs(folder).ok()?;
        // Some file systems do not tell, and give zeros.
        if found.f_blocks == 0 { None } else { found.f_bavail.checked_mul(found.f_frsize) }
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// More is no file.
const LARGEST: u64 = 1 << 50;

/// A part of a path that leads nowhere else.
fn is_plain(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && !part.contains(['\\', ':', '\0']) && !part.chars().any(char::is_control)
}

/// A text as a part of an address, but for what `kept` has.
fn escaped(text: &str, kept: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b) || kept.as_bytes().contains(&b);
    let one = |b: u8| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(one).collect()
}

/// A file as the hub describes it.
struct Facts {
    /// The commit that the revision stands for.
    commit: String,
    /// The hash of its content, by which the cache names it: SHA-256, or Git's.
    etag: String,
    size: u64,
}

impl Facts {
    /// Whether a file that is there is this one.
    fn is(&self, path: &Path) -> Result<bool> {
        match path.metadata() {
            Ok(found) if found.is_file() && found.len() == self.size => {}
            _ => return Ok(false),
        }
        Ok(match self.etag.len() {
            64 => atomic::sha256(path)? == self.etag,
            _ => git_hash(path, self.size)? == self.etag,
        })
    }
}

/// Gives a file in the cache its name in a commit, as Python's tools do.
fn snapshot(folder: &Path, facts: &Facts, revision: &str, file: &str, blob: &Path) -> Result<PathBuf> {
    let path = folder.join("snapshots").join(&facts.commit).join(file);
    let parent = atomic::folder_of(&path);
    std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    if path.canonicalize().ok().is_none_or(|p| Some(p) != blob.canonicalize().ok()) {
        let _ = std::fs::remove_file(&path);
        #[cfg(unix)]
        {
            // From its folder to that of the blobs.
            let up = "../".repeat(2 + file.matches('/').count());
            std::os::unix::fs::symlink(format!("{up}blobs/{}", facts.etag), &path).map_err(Error::io(&path))?;
        }
        #[cfg(not(unix))]
        std::fs::copy(blob, &path).map_err(Error::io(&path))?;
    }
    if revision != facts.commit && revision.split('/').all(is_plain) {
        let name = folder.join("refs").join(revision);
        let parent = atomic::folder_of(&name);
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let written = atomic::replace(&name, |to| to.write_all(facts.commit.as_bytes()));
        // Another process may fetch the same revision at the same time.
        if named_commit(&name).as_ref() != Some(&facts.commit) {
            written?;
        }
    }
    Ok(path)
}

/// The commit that a file of the cache's `refs` names.
fn named_commit(path: &Path) -> Option<String> {
    let text = bytes_of(path, "a revision", 1 << 10).ok()?;
    Some(String::from_utf8(text).ok()?.trim().to_string())
}

/// A file that the cache has of a revision.
fn cached(folder: &Path, revision: &str, file: &str) -> Option<Fetched> {
    let is_commit = |text: &str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let commit = match is_commit(revision) {
        true => revision.to_string(),
        false if revision.split('/').all(is_plain) => named_commit(&folder.join("refs").join(revision))?,
        false => return None,
    };
    let path = folder.join("snapshots").join(Some(commit).filter(|c| is_commit(c))?).join(file);
    let (bytes, sha256) = (path.metadata().ok().filter(std::fs::Metadata::is_file)?.len(), atomic::sha256(&path).ok()?);
    Some(Fetched { name: file.into(), path, bytes, sha256 })
}

/// What Git calls a file's content.
fn git_hash(path: &Path, bytes: u64) -> Result<String> {
    let mut hash = Sha1::new_with_prefix(format!("blob {bytes}\0"));
    let mut file = crate::regular(path, "a file")?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// One line, and the way out.
fn failed(what: &str, e: Failure) -> Error {
    const NO_TOKEN: &str = "the hub asks for a token, or refuses the one it got: set HF_TOKEN";
    const ABSENT: &str = "there is no such repository or revision, or it is private and HF_TOKEN is not set";
    let reason = match e {
        Failure::Status(404, code, _) if code == "EntryNotFound" => "there is no such file".into(),
        Failure::Status(404, code, _) if code == "RevisionNotFound" => "there is no such revision".into(),
        Failure::Status(404, ..) => ABSENT.into(),
        Failure::Status(401, ..) => NO_TOKEN.into(),
        Failure::Status(403, ..) => "this token may not do that".into(),
        Failure::Status(429, _, Some(wait)) => format!("the hub limits requests: try again in {wait} s"),
        Failure::Status(429, ..) => "the hub limits requests: try again later".into(),
        Failure::Status(status, ..) => format!("the hub answers with status {status}"),
        Failure::Network(cause) => {
            format!("no answer from the hub ({cause}); with HF_HUB_OFFLINE=1 pull uses what its cache has")
        }
        Failure::Answer(what) => what,
    };
    Error::Hub { repository: what.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() -> Result<()> {
        let place = HubPath::parse("hf://me/gpt@v1/folder/model.safetensors")?;
        assert_eq!(
            place,
            HubPath {
                repository: "me/gpt".into(),
                revision: Some("v1".into()),
                file: Some("folder/model.safetensors".into())
            }
        );
        assert_eq!(HubPath::parse("me/gpt")?, HubPath { repository: "me/gpt".into(), revision: None, file: None });
        for wrong in ["", "gpt", "me/", "/gpt", "me/gpt@", "m e/gpt", "me/gpt/", "../gpt"] {
            assert!(HubPath::parse(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }
}
