//! Files of a hub: fetched once into the cache that Python's tools share, checked, and pushed.
//!
//! The environment is read here, as Python's huggingface_hub reads it, and told to the library, whose later versions do
//! not: `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`,
//! `HF_HUB_DISABLE_IMPLICIT_TOKEN`.

use std::env;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hf_hub::progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::{AddSource, CommitOperation, RepoTreeEntry, RepoTypeModel};
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync};
use sha1::{Digest, Sha1};

use crate::{Error, Result, Source, atomic, open};

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

struct Handler {
    name: String,
    report: Report,
}

impl ProgressHandler for Handler {
    fn on_progress(&self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                files.iter().for_each(|f| (self.report)(&self.name, f.bytes_completed, f.total_bytes));
            }
            ProgressEvent::Download(DownloadEvent::AggregateProgress { bytes_completed, total_bytes, .. })
            | ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, total_bytes, .. }) => {
                (self.report)(&self.name, *bytes_completed, *total_bytes);
            }
            _ => {}
        }
    }
}

/// The hub that the environment names.
pub struct Hub {
    client: HFClientSync,
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
    std::fs::read_to_string(path).ok().map(|t| t.trim().to_string()).filter(|t| !t.is_empty())
}

impl Hub {
    /// The hub, token and cache that the environment names.
    ///
    /// # Errors
    /// The token or the endpoint cannot be one.
    pub fn from_environment() -> Result<Self> {
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| home().join("hub"));
        let mut client = HFClient::builder()
            .cache_dir(&cache)
            .user_agent(concat!("zoo/", env!("CARGO_PKG_VERSION")))
            .retry_max_attempts(3)
            .retry_base_delay(Duration::from_millis(200));
        if let Some(endpoint) = set("HF_ENDPOINT") {
            client = client.endpoint(endpoint.trim_end_matches('/'));
        }
        if let Some(token) = token() {
            client = client.token(token);
        }
        let client = client.build_sync().map_err(|e| failed("the hub", e))?;
        Ok(Self { client, cache, offline: truth("HF_HUB_OFFLINE") })
    }

    fn repository(&self, place: &HubPath) -> HFRepositorySync<RepoTypeModel> {
        let (owner, name) = hf_hub::split_id(&place.repository);
        self.client.model(owner, name)
    }

    /// The repository's files and their sizes.
    fn list(&self, place: &HubPath) -> Result<Vec<(String, u64)>> {
        let list = self.repository(place).list_tree().maybe_revision(place.revision.clone()).recursive(true).send();
        let file = |e| match e {
            RepoTreeEntry::File { path, size, .. } => Some((path, size)),
            _ => None,
        };
        Ok(list.map_err(|e| failed(&place.repository, e))?.into_iter().filter_map(file).collect())
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
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':', '\0']);
        if !file.split('/').all(plain) {
            return Err(Error::Hub {
                repository: named,
                reason: "its name leads out of the folder: nothing was fetched".into(),
            });
        }
        let progress = Progress::new(Handler { name: file.into(), report: report.clone() });
        let sent = self
            .repository(place)
            .download_file()
            .filename(file)
            .maybe_revision(place.revision.clone())
            .local_files_only(self.offline)
            .progress(progress)
            .send();
        let path = sent.map_err(|e| self.explain(place, file, e))?;
        // The library does not look at what it received, not even at the status of the answer. The cache names a file's
        // content after the hub's hash of it.
        let blob = path.canonicalize().map_err(Error::io(&path))?;
        let bytes = blob.metadata().map_err(Error::io(&blob))?.len();
        let sha256 = atomic::sha256(&blob)?;
        let said = blob.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let right = match said.len() {
            64 => said == sha256,
            40 => said == git_hash(&blob, bytes)?,
            _ => false,
        };
        if !right || size.is_some_and(|s| s != bytes) {
            // A hub that lies may have named any file: only what is in the cache is removed.
            let cache = self.cache.canonicalize().unwrap_or_else(|_| self.cache.clone());
            if blob.starts_with(&cache) {
                for file in [&path, &blob] {
                    let _ = std::fs::remove_file(file);
                }
            }
            let reason =
                format!("what came ({bytes} bytes) is not what the hub says it has: removed again; try once more");
            return Err(Error::Hub { repository: named, reason });
        }
        Ok(Fetched { name: file.into(), path, bytes, sha256 })
    }

    /// The file that a name was meant for, if there is none of that name.
    fn explain(&self, place: &HubPath, file: &str, e: HFError) -> Error {
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
        let Some((_, size)) = self.list(place)?.into_iter().find(|(f, _)| f == file) else {
            return Err(self.explain(
                place,
                file,
                HFError::EntryNotFound { path: file.clone(), repo_id: place.repository.clone(), context: None },
            ));
        };
        let range = |from: u64, to: u64| {
            let repository = self.repository(place);
            let sent =
                repository.download_file_to_bytes().filename(file.as_str()).maybe_revision(place.revision.clone());
            sent.range(from..to).send().map_err(|e| failed(&named, e))
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

    /// Commits files, by their names in the repository, which is made if it is not there. The commit's address is
    /// returned.
    ///
    /// # Errors
    /// No permission, no connection.
    pub fn push(
        &self,
        place: &HubPath,
        files: &[(String, PathBuf)],
        private: bool,
        message: &str,
        report: &Report,
    ) -> Result<String> {
        let repository = &place.repository;
        if self.offline {
            return Err(Error::Hub {
                repository: repository.clone(),
                reason: "offline (HF_HUB_OFFLINE): nothing was pushed".into(),
            });
        }
        let made = self
            .client
            .create_repository()
            .repo_id(repository)
            .repo_type(RepoTypeModel)
            .private(private)
            .exist_ok(true)
            .send();
        made.map_err(|e| failed(repository, e))?;
        let add = |(name, path): &(String, PathBuf)| CommitOperation::Add {
            path_in_repo: name.clone(),
            source: AddSource::File(path.clone()),
        };
        let progress = Progress::new(Handler { name: repository.clone(), report: report.clone() });
        let commit = self
            .repository(place)
            .create_commit()
            .operations(files.iter().map(add).collect())
            .commit_message(message)
            .maybe_revision(place.revision.clone())
            .progress(progress)
            .send();
        let commit = commit.map_err(|e| failed(repository, e))?;
        Ok(commit.commit_url.or(commit.commit_oid).unwrap_or_default())
    }
}

/// What Git calls a file's content.
fn git_hash(path: &Path, bytes: u64) -> Result<String> {
    let mut hash = Sha1::new_with_prefix(format!("blob {bytes}\0"));
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
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
fn failed(what: &str, e: HFError) -> Error {
    const NO_TOKEN: &str = "the hub asks for a token, or refuses the one it got: set HF_TOKEN";
    const ABSENT: &str = "there is no such repository or revision, or it is private and HF_TOKEN is not set";
    let reason = match &e {
        // Listings come with the status alone.
        HFError::Http { context } if context.status.as_u16() == 404 => ABSENT.into(),
        HFError::Http { context } if context.status.as_u16() == 401 => NO_TOKEN.into(),
        HFError::AuthRequired { .. } => NO_TOKEN.into(),
        HFError::Forbidden { .. } => "this token may not do that".into(),
        HFError::RepoNotFound { .. } => ABSENT.into(),
        HFError::RevisionNotFound { revision, .. } => format!("there is no revision {revision}"),
        HFError::EntryNotFound { .. } => "there is no such file".into(),
        HFError::LocalEntryNotFound { .. } => "it is not in the cache, and HF_HUB_OFFLINE is set".into(),
        HFError::RateLimited { retry_after, .. } => match retry_after {
            Some(wait) => format!("the hub limits requests: try again in {} s", wait.as_secs()),
            None => "the hub limits requests: try again later".into(),
        },
        HFError::Request { source, .. } => {
            let mut cause: &dyn std::error::Error = source;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            format!("no answer from the hub ({cause}); with HF_HUB_OFFLINE=1 pull uses what its cache has")
        }
        other => other.to_string().lines().next().unwrap_or_default().to_string(),
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
