//! Data by name: fetched once, checked, and kept in the user's cache.

use std::path::{Path, PathBuf};

use anyhow::Context;
use zoo_checkpoint::Source;
use zoo_training::{Dataset, Recipe};

/// A file of this beginning is one of the hub.
pub(crate) const SCHEME: &str = "hf://";

/// What `--data` stands for: a file, or one of the task's data sets, which is fetched if it is not there yet. A file of
/// that name comes first.
pub(crate) fn found<T: Recipe>(data: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    let Some(path) = data else { return Ok(None) };
    match T::DATASETS.iter().find(|d| Path::new(d.name) == path && !path.exists()) {
        Some(dataset) => Ok(Some(fetched(dataset)?)),
        None => Ok(Some(path.to_path_buf())),
    }
}

/// The text of a file, such as one of rules, of 16 MB at most.
pub(crate) fn text_of(path: &Path, expected: &str) -> anyhow::Result<String> {
    let bytes = zoo_checkpoint::bytes_of(path, expected, 1 << 24)?;
    String::from_utf8(bytes).with_context(|| path.display().to_string())
}

#[cfg(not(feature = "hub"))]
fn fetched(dataset: &Dataset) -> anyhow::Result<PathBuf> {
    let Dataset { name, url, .. } = *dataset;
    Err(crate::output::not_built(&format!("fetching {url} for --data {name} (or give its path)"), "hub"))
}

/// The header of a file of the hub.
pub(crate) fn remote_header(name: &str) -> anyhow::Result<Source> {
    #[cfg(feature = "hub")]
    return crate::verbs::hub::inspect(name);
    #[cfg(not(feature = "hub"))]
    Err(crate::output::not_built(&format!("reading {name:.200}"), "hub"))
}

/// Where the system keeps what a program can get again.
#[cfg(feature = "hub")]
fn cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::home_dir().filter(|path| path.is_absolute());
    match std::env::consts::OS {
        "windows" => set("LOCALAPPDATA"),
        "macos" => Some(home()?.join("Library/Caches")),
        _ => set("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache"))),
    }
}

#[cfg(feature = "hub")]
fn fetched(dataset: &Dataset) -> anyhow::Result<PathBuf> {
    use std::io::Read;
    use std::time::Duration;

    use anyhow::bail;

    use crate::output::note;
    let Dataset { name, url, bytes, sha256 } = *dataset;
    let Some(cache) = cache() else { bail!("--data {name}: this user has no cache folder; give a file") };
    let path = cache.join("zoo").join(format!("{name}.txt"));
    let right = |path: &Path| {
        path.metadata().is_ok_and(|m| m.len() == bytes) && zoo_checkpoint::sha256(path).is_ok_and(|s| s == sha256)
    };
    if right(&path) {
        return Ok(path);
    }
    let url = std::env::var("ZOO_DATA_URL").unwrap_or_else(|_| url.to_string());
    let help =
        || format!("--data {name}: {url}: not fetched; offline, bring that file along and give its path to --data");
    note(&format!("fetching {url}"));
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(120))).build().into();
    let mut body = vec![];
    let mut response = agent.get(&url).call().with_context(help)?;
    // One more than there should be shows that there is more.
    response.body_mut().as_reader().take(bytes + 1).read_to_end(&mut body).with_context(help)?;
    if zoo_checkpoint::sha256_of(&body) != sha256 {
        bail!("--data {name}: {url} is not the file it should be ({bytes} bytes, SHA-256 {sha256}): nothing was kept");
    }
    let folder = path.parent().unwrap_or(&cache);
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    match zoo_checkpoint::replace(&path, |to| to.write_all(&body)) {
        // Another process may have fetched it at the same time.
        Err(_) if right(&path) => Ok(path),
        written => Ok(written.map(|()| path)?),
    }
}
