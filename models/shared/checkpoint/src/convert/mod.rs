//! Conversion: a plan, its writing, and the proof that what was written is what was planned.

mod plan;
mod rules;

pub use plan::{Output, Plan};
pub use rules::Rules;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::cast::Difference;
use crate::formats::fill;
use crate::outline::{Outline, text_of};
use crate::{Error, Format, Result, atomic, open};

/// What a conversion did.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The files, an index last.
    pub files: Vec<PathBuf>,
    /// Tensors written, ties not counted.
    pub tensors: usize,
    /// Bytes of their values.
    pub bytes: u64,
    /// Those whose element type changed.
    pub changed: Vec<(String, Difference)>,
}

impl Plan<'_> {
    /// Writes the plan to `path`, then reads it back and compares every name, shape, element type and value with what was
    /// planned. With `shard_size` (bytes; safetensors only) in several files behind an index, `PATH.index.json`.
    ///
    /// # Errors
    /// Something would be lost, the format does not hold a tensor, the operating system's; then `path` is as it was.
    pub fn write(&self, path: &Path, format: Format, shard_size: Option<u64>) -> Result<Converted> {
        let refuse = |reason: String| Err(Error::Refused { path: path.into(), reason });
        if let Some(lost) = self.lost.first() {
            let more = if self.lost.len() > 1 { format!(", and {} more", self.lost.len() - 1) } else { String::new() };
            return refuse(format!("{lost} cannot be kept{more}: drop it by a rule ('{}')", self.drops(lost)));
        }
        if self.outputs.is_empty() {
            return refuse("no tensor is left to write".into());
        }
        if !format.holds_metadata() && self.outputs.len() == 1 && !self.metadata.is_empty() {
            return refuse(format!("an .{} holds no metadata: write an .npz", format.name()));
        }
        let outline = self.outline(format);
        self.check_parts()?;
        let mut done = Converted { files: vec![], tensors: 0, bytes: 0, changed: vec![] };
        let Some(size) = shard_size else {
            let all: Vec<usize> = (0..outline.tensors.len()).collect();
            return self.write_part(path, format, &outline, &all, &mut done).map(|()| done);
        };
        if !format.holds_shards() {
            return refuse("only safetensors are written in shards".into());
        }
        self.write_shards(path, format, &outline, size, done)
    }

    /// Shards and their index. What was there stays whole until the index, which is moved into place last, names the new
    /// shards: where a shard of that name is there already, the new ones get names of their own.
    fn write_shards(
        &self,
        path: &Path,
        format: Format,
        outline: &Outline,
        size: u64,
        mut done: Converted,
    ) -> Result<Converted> {
        let (parent, name) = (atomic::folder_of(path), path.file_name().unwrap_or_default());
        atomic::clear(parent);
        let folder = tempfile::Builder::new().prefix(atomic::PREFIX).suffix(atomic::SUFFIX).tempdir_in(parent);
        let folder = folder.map_err(|e| Error::io(path)(e.kind().into()))?;
        // Held while this process lives: see `clear`.
        let lock = std::fs::File::create_new(folder.path().join(atomic::LOCK)).map_err(Error::io(path))?;
        let _ = lock.try_lock();
        let hidden = folder.path().join(name);
        let mut parts = shards(&hidden, outline, size, "");
        let taken = |(file, _): &(PathBuf, Vec<usize>)| {
            std::fs::symlink_metadata(parent.join(file.file_name().unwrap_or_default())).is_ok()
        };
        if parts.iter().any(taken) {
            let own = folder.path().file_name().unwrap_or_default().to_string_lossy();
            let own = own.trim_start_matches(atomic::PREFIX).trim_end_matches(atomic::SUFFIX);
            parts = shards(&hidden, outline, size, &format!("{MARK}{own}"));
        }
        let written =
            parts.iter().try_for_each(|(file, numbers)| self.write_part(file, format, outline, numbers, &mut done));
        let written = written.and_then(|()| write_index(&hidden, outline, &parts, &mut done));
        if let Err(e) = written {
            let (hidden, shown) = (folder.path().display().to_string(), parent.display().to_string());
            let reason = format!("no shard was written: {}", e.to_string().replace(&hidden, &shown));
            return Err(Error::Refused { path: path.into(), reason });
        }
        let index = index_of(path);
        let old = open::shard_names(&index);
        for file in &mut done.files {
            let place = parent.join(file.file_name().unwrap_or_default());
            std::fs::rename(&*file, &place).map_err(Error::io(&place))?;
            *file = place;
            // All shards are there before the index that names them.
            atomic::sync_directory(parent)?;
        }
        let now: BTreeSet<_> = done.files.iter().filter_map(|f| f.file_name()).collect();
        // Those of the old set, as this program names them.
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let ours = |name: &str| {
            let name = name.strip_prefix(stem.as_ref()).and_then(|n| n.strip_suffix(".safetensors"));
            let number = |n: &str| n.len() == 5 && n.bytes().all(|b| b.is_ascii_digit());
            let is_mark = |mark: &str| mark.is_empty() || mark.strip_prefix(MARK).is_some_and(|own| own.len() == 6);
            name.and_then(|n| n.rsplit_once("-of-")).is_some_and(|(k, n)| {
                number(n) && k.rsplit_once('-').is_some_and(|(mark, k)| number(k) && is_mark(mark))
            })
        };
        for shard in old.iter().filter(|s| !now.contains(s.as_os_str()) && s.to_str().is_some_and(ours)) {
            let _ = std::fs::remove_file(parent.join(shard));
        }
        Ok(done)
    }

    /// Compares the checksums of records of which only a part is going to be read.
    fn check_parts(&self) -> Result<()> {
        let mut whole = BTreeSet::new();
        let views = || self.outputs.iter().flat_map(Output::views);
        for view in views() {
            whole.extend(view.checks(self.source));
        }
        let rest: BTreeSet<usize> = views().map(|v| v.tensor.data.segment).filter(|s| !whole.contains(s)).collect();
        let segments = rest.into_iter().map(|s| &self.source.segments[s]).filter(|s| s.has_checksum());
        segments.into_iter().try_for_each(|s| s.stream(0..s.len, 1, &mut |_| self.go_on(&self.source.path)))
    }

    fn write_part(
        &self,
        path: &Path,
        format: Format,
        whole: &Outline,
        numbers: &[usize],
        done: &mut Converted,
    ) -> Result<()> {
        let place: BTreeMap<usize, usize> = numbers.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let mut outline = Outline { tensors: vec![], ..whole.clone() };
        for old in numbers {
            let mut t = whole.tensors[*old].clone();
            t.tied_to = t.tied_to.and_then(|to| place.get(&to).copied());
            outline.tensors.push(t);
        }
        let sums = RefCell::new(BTreeMap::new());
        let mut changed = vec![];
        atomic::replace_checked(
            path,
            |file| {
                fill(format, file, path, &outline, &mut |i, sink| {
                    let output = &self.outputs[numbers[i]];
                    let mut sum = crc32fast::Hasher::new();
                    let mut difference = Difference::default();
                    output.stream(self.source, &mut difference, &mut |piece| {
                        self.go_on(path)?;
                        sum.update(piece);
                        sink(piece)
                    })?;
                    if output.source_dtype() != output.dtype {
                        changed.push((output.name.clone(), difference));
                    }
                    sums.borrow_mut().insert(i, sum.finalize());
                    Ok(())
                })
            },
            |temporary| self.verify(temporary, path, &outline, &sums.borrow()),
        )?;
        done.files.push(path.into());
        done.changed.extend(changed);
        let stored = outline.tensors.iter().filter(|t| t.tied_to.is_none());
        done.tensors += stored.clone().count();
        done.bytes += stored.map(|t| t.bytes()).sum::<u64>();
        Ok(())
    }

    fn go_on(&self, path: &Path) -> Result<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(Error::Refused { path: path.into(), reason: "stopped: nothing was written".into() }),
            false => Ok(()),
        }
    }

    /// Reads a file back: all names, shapes, types and values, and nothing else.
    fn verify(&self, temporary: &Path, path: &Path, outline: &Outline, sums: &BTreeMap<usize, u32>) -> Result<()> {
        let wrong = |what: String| {
            Err(Error::Damaged { path: path.into(), reason: format!("read back after writing, {what}") })
        };
        let written = open(temporary).map_err(|e| {
            let reason = e.to_string().replace(&temporary.display().to_string(), "it");
            Error::Damaged { path: path.into(), reason: format!("read back after writing, {reason}") }
        })?;
        let prefix = outline.entry.as_ref().filter(|_| written.format.holds_entries());
        if written.tensors.len() != outline.tensors.len() {
            return wrong(format!("it has {} tensors instead of {}", written.tensors.len(), outline.tensors.len()));
        }
        let kept = |(key, value): (&String, &Value)| written.metadata.get(key).map(text_of) == Some(text_of(value));
        if let Some((key, _)) = outline.metadata.iter().find(|e| written.format.holds_metadata() && !kept(*e)) {
            return wrong(format!("entry {key} of its metadata is missing or another"));
        }
        let found: BTreeMap<&str, &crate::TensorInfo> = written.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        for (i, planned) in outline.tensors.iter().enumerate() {
            let name = prefix.map_or_else(|| planned.name.clone(), |p| format!("{p}.{}", planned.name));
            // A single array is named after its file.
            let t = match written.format.holds_names() {
                true => found.get(name.as_str()).copied(),
                false => written.tensors.first(),
            };
            let Some(t) = t.filter(|t| t.shape == planned.shape && t.dtype == planned.dtype) else {
                return wrong(format!("tensor {} is missing or has another shape or type", planned.name));
            };
            let Some(sum) = sums.get(&i) else { continue };
            let mut hash = crc32fast::Hasher::new();
            written.stream(&crate::TensorView::whole(t), t.dtype, &mut |piece| {
                hash.update(piece);
                self.go_on(path)
            })?;
            if hash.finalize() != *sum {
                return wrong(format!("tensor {} has other values", planned.name));
            }
        }
        Ok(())
    }
}

/// What begins the part of a shard's name that tells a new set from an old one.
const MARK: &str = "-zoo";

/// Which tensors go into which file: in their order, as many as fit; tied ones with the tensor that has their values. The
/// files are named after `path` and `mark`.
fn shards(path: &Path, outline: &Outline, size: u64, mark: &str) -> Vec<(PathBuf, Vec<usize>)> {
    let mut parts: Vec<(u64, Vec<usize>)> = vec![];
    for (i, t) in outline.tensors.iter().enumerate().filter(|(_, t)| t.tied_to.is_none()) {
        let bytes = t.bytes();
        match parts.last_mut() {
            Some((used, numbers)) if *used + bytes <= size => {
                *used += bytes;
                numbers.push(i);
            }
            _ => parts.push((bytes, vec![i])),
        }
    }
    let all = parts.iter().enumerate();
    let part: BTreeMap<usize, usize> = all.flat_map(|(k, (_, numbers))| numbers.iter().map(move |i| (*i, k))).collect();
    for (i, to) in outline.tensors.iter().enumerate().filter_map(|(i, t)| Some((i, t.tied_to?))) {
        if let Some(k) = part.get(&to) {
            parts[*k].1.push(i);
        }
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let n = parts.len();
    let name = |k: usize| path.with_file_name(format!("{stem}{mark}-{:05}-of-{n:05}.safetensors", k + 1));
    parts.into_iter().enumerate().map(|(k, (_, numbers))| (name(k), numbers)).collect()
}

/// Where the index of the shards of `path` is.
pub fn index_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".index.json");
    path.with_file_name(name)
}

/// The index that others expect: which file has which tensor.
fn write_index(path: &Path, outline: &Outline, parts: &[(PathBuf, Vec<usize>)], done: &mut Converted) -> Result<()> {
    let mut files = serde_json::Map::new();
    for (file, numbers) in parts {
        let file = file.file_name().unwrap_or_default().to_string_lossy();
        // A tied tensor is an entry of its file's metadata: other readers would look for it in vain.
        for t in numbers.iter().map(|i| &outline.tensors[*i]).filter(|t| t.tied_to.is_none()) {
            files.insert(t.name.clone(), Value::from(file.as_ref()));
        }
    }
    let index = json!({ "metadata": { "total_size": done.bytes }, "weight_map": files });
    let file = index_of(path);
    atomic::replace(&file, |f| f.write_all(format!("{index:#}\n").as_bytes()))?;
    done.files.push(file.clone());
    open(&file).map(|_| ())
}
