//! Commits to a hub: small files within the commit, large ones by Git LFS before it.
//!
//! <https://huggingface.co/docs/hub/api> and <https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md>.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use ureq::SendBody;

use super::http::{Failure, Got, header, json, wrong};
use super::{Hub, HubPath, Report, failed};
use crate::{Error, Result, atomic, regular};

/// Bytes of a file that goes into a commit itself.
const LARGEST_REGULAR: u64 = 1 << 26;
const LFS: [(&str, &str); 2] =
    [("accept", "application/vnd.git-lfs+json"), ("content-type", "application/vnd.git-lfs+json")];
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// A file to push.
struct Upload<'a> {
    name: &'a str,
    path: &'a Path,
    size: u64,
    sha256: String,
}

impl Hub {
    /// Commits files, by their names in the repository, which is made if it is not there. The commit's address is
    /// returned.
    ///
    /// # Errors
    /// No permission, no connection; a file cannot be read.
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
            let reason = "offline (HF_HUB_OFFLINE): nothing was pushed".into();
            return Err(Error::Hub { repository: repository.clone(), reason });
        }
        let mut uploads = vec![];
        for (name, path) in files {
            let size = regular(path, "a file")?.metadata().map_err(Error::io(path))?.len();
            uploads.push(Upload { name, path, size, sha256: atomic::sha256(path)? });
        }
        self.commit(place, &uploads, private, message, report).map_err(|e| failed(repository, e))
    }

    fn commit(
        &self,
        place: &HubPath,
        uploads: &[Upload],
        private: bool,
        message: &str,
        report: &Report,
    ) -> Got<String> {
        let (repository, revision) = (&place.repository, Self::revision(place));
        let (owner, name) = repository.split_once('/').unwrap_or(("", repository));
        let new = json!({ "name": name, "organization": owner, "type": "model", "private": private });
        match self.client.post(&self.client.at("api/repos/create"), &JSON, new.to_string().as_bytes()) {
            // It is there already, or the token is for what is there.
            Ok(_) | Err(Failure::Status(403 | 409, ..)) => {}
            Err(e) => return Err(e),
        }
        let large = self.large(repository, &revision, uploads)?;
        let mut lines = vec![json!({ "key": "header", "value": { "summary": message, "description": "" } })];
        let total: u64 = uploads.iter().map(|u| u.size).sum();
        let mut done = 0;
        for (upload, large) in uploads.iter().zip(large) {
            lines.push(if large {
                self.upload(repository, upload)?;
                json!({ "key": "lfsFile", "value": {
                    "path": upload.name, "algo": "sha256", "oid": upload.sha256, "size": upload.size,
                } })
            } else {
                let content = STANDARD.encode(part(upload, 0, upload.size)?);
                json!({ "key": "file", "value": { "path": upload.name, "content": content, "encoding": "base64" } })
            });
            done += upload.size;
            report(repository, done, total);
        }
        let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let url = self.client.at(&format!("api/models/{repository}/commit/{revision}"));
        let said: Value =
            json(self.client.post(&url, &[("content-type", "application/x-ndjson")], lines.as_bytes())?)?;
        let text = |key: &str| said[key].as_str().map(String::from);
        text("commitUrl")
            .or_else(|| text("commitOid"))
            .map_or_else(|| wrong("the hub does not say what it committed"), Ok)
    }

    /// Which files the hub wants by Git LFS.
    fn large(&self, repository: &str, revision: &str, uploads: &[Upload]) -> Got<Vec<bool>> {
        let mut files = vec![];
        for upload in uploads {
            let sample = STANDARD.encode(part(upload, 0, upload.size.min(512))?);
            files.push(json!({ "path": upload.name, "size": upload.size, "sample": sample }));
        }
        let url = self.client.at(&format!("api/models/{repository}/preupload/{revision}"));
        let said: Value = json(self.client.post(&url, &JSON, json!({ "files": files }).to_string().as_bytes())?)?;
        let mode = |upload: &Upload| {
            let files = said["files"].as_array().into_iter().flatten();
            let file = files.into_iter().find(|f| f["path"] == upload.name);
            match file.and_then(|f| f["uploadMode"].as_str()) {
                Some("lfs") => Ok(true),
                Some("regular") if upload.size <= LARGEST_REGULAR => Ok(false),
                _ => wrong(format!("the hub does not say how {} is to be pushed", upload.name)),
            }
        };
        uploads.iter().map(mode).collect()
    }

    /// Brings a file to where the hub wants it.
    fn upload(&self, repository: &str, upload: &Upload) -> Got<()> {
        let object = json!({ "oid": upload.sha256, "size": upload.size });
        let asked = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256", "objects": [object],
        });
        let url = self.client.at(&format!("{repository}.git/info/lfs/objects/batch"));
        let said: Value = json(self.client.post(&url, &LFS, asked.to_string().as_bytes())?)?;
        let answer = &said["objects"][0];
        if let Some(error) = answer["error"]["message"].as_str() {
            return wrong(format!("the hub refuses {}: {error:.100}", upload.name));
        }
        // Without an action it has the content already.
        let action = &answer["actions"]["upload"];
        let Some(href) = action["href"].as_str() else { return Ok(()) };
        match chunks(&action["header"])? {
            Some((size, addresses)) => self.in_parts(upload, href, size, &addresses)?,
            None => {
                let headers = action["header"].as_object().into_iter().flatten();
                let own = |name: &str| name.eq_ignore_ascii_case("content-length");
                let headers: Vec<(&str, &str)> = headers
                    .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
                    .filter(|(name, _)| !own(name))
                    .collect();
                self.put(href, &headers, upload, 0, upload.size)?;
            }
        }
        let verify = &answer["actions"]["verify"];
        if let Some(href) = verify["href"].as_str() {
            self.client.post(href, &LFS, object.to_string().as_bytes())?;
        }
        Ok(())
    }

    fn in_parts(&self, upload: &Upload, href: &str, size: u64, addresses: &[String]) -> Got<()> {
        if addresses.len() as u64 != upload.size.div_ceil(size) {
            return wrong(format!("the hub's parts are not those of {}", upload.name));
        }
        let mut parts = vec![];
        for (i, address) in addresses.iter().enumerate() {
            let from = i as u64 * size;
            let etag = self.put(address, &[], upload, from, size.min(upload.size - from))?;
            if etag.is_empty() {
                return wrong(format!("the hub does not say what it calls part {} of {}", i + 1, upload.name));
            }
            parts.push(json!({ "partNumber": i + 1, "etag": etag }));
        }
        self.client.post(href, &LFS, json!({ "oid": upload.sha256, "parts": parts }).to_string().as_bytes()).map(|_| ())
    }

    /// Puts a part of a file to an address; what is there is called so.
    fn put(&self, url: &str, headers: &[(&str, &str)], upload: &Upload, from: u64, len: u64) -> Got<String> {
        let mut file = regular(upload.path, "a file").map_err(unreadable)?.take(0);
        file.get_mut().seek(SeekFrom::Start(from)).map_err(|e| Failure::Answer(e.to_string()))?;
        file.set_limit(len);
        let length = len.to_string();
        let headers = [headers, &[("content-length", &length)]].concat();
        let answer = self.client.put(url, &headers, SendBody::from_reader(&mut file))?;
        Ok(header(&answer, "etag").unwrap_or_default().to_string())
    }
}

fn unreadable(e: Error) -> Failure {
    Failure::Answer(e.to_string())
}

/// Bytes of a file.
fn part(upload: &Upload, from: u64, len: u64) -> Got<Vec<u8>> {
    let read = |mut file: File| -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![];
        file.seek(SeekFrom::Start(from))?;
        file.take(len).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    regular(upload.path, "a file").map_err(unreadable).and_then(|f| read(f).or_else(|e| wrong(e.to_string())))
}

/// The size of parts and the address of each, if a file is to come in parts.
fn chunks(header: &Value) -> Got<Option<(u64, Vec<String>)>> {
    let Some(size) = header.get("chunk_size") else { return Ok(None) };
    let size = size.as_u64().or_else(|| size.as_str()?.parse().ok()).filter(|n| *n > 0);
    let address = |i: usize| header[i.to_string()].as_str().or_else(|| header[format!("{i:05}")].as_str());
    let addresses: Vec<String> = (1..).map_while(|i| address(i).map(String::from)).collect();
    size.map_or_else(|| wrong("the hub's parts have no size"), |size| Ok(Some((size, addresses))))
}
