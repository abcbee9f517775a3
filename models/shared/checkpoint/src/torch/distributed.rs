//! PyTorch's distributed checkpoints (`torch.distributed.checkpoint`): a folder of files, one or more a process, and `.metadata`, a
//! pickle that says which bytes of which file are which part of which tensor. Each part is an archive of `torch.save`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::pickle::{Id, Node, Pickle, is_foreign};
use super::{FORMAT, last_of_each, open_archive};
use crate::archive::records;
use crate::input::{Backing, Budget, Fault, Input, Parsed, Piece, Segment, bytes_of, malformed, refused};
use crate::source::Data;
use crate::{Dtype, Error, Source};

/// What names the parts.
const INDEX: &str = ".metadata";
/// More bytes are no index.
const LARGEST_INDEX: u64 = 1 << 28;
/// Rows that the parts of a tensor are put together from, at most.
const MOST_PIECES: usize = 1 << 22;

/// The folder of a distributed checkpoint that a path names: the folder, or its index.
pub(crate) fn folder_of(path: &Path) -> Option<PathBuf> {
    if path.file_name().is_some_and(|name| name == INDEX) && path.is_file() {
        return Some(path.parent()?.to_path_buf());
    }
    (path.is_dir() && path.join(INDEX).is_file()).then(|| path.to_path_buf())
}

/// Whether a file is a part of one, by its name.
pub(crate) fn is_part(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "distcp")
}

/// Where a part lies.
struct Place {
    file: String,
    range: Range<u64>,
}

/// Opens all parts of the checkpoint in `folder`.
pub(crate) fn open(folder: &Path) -> Parsed<Source> {
    let bytes = bytes_of(&folder.join(INDEX), "an index", LARGEST_INDEX).map_err(of_file)?;
    let len = bytes.len() as u64;
    let mut values = Pickle::new(Budget::of(len));
    let mut pickle = Cursor::new(bytes);
    let root = values.read(&mut pickle, len)?;
    if pickle.position() != len {
        return malformed(format!("{} bytes follow the pickle of its {INDEX}", len - pickle.position()));
    }
    let v = &values;
    let (Some(described), Some(stored)) =
        (v.attribute(root, "state_dict_metadata")?, v.attribute(root, "storage_data")?)
    else {
        return refused(format!("its {INDEX} is no description of a distributed checkpoint by PyTorch 2"));
    };
    let places = places(v, stored)?;
    let inputs = inputs(folder, &places)?;
    let all = len + inputs.values().map(|i| i.len).sum::<u64>();
    let mut source = Source::new(folder, FORMAT, all);
    // Python would make these, too.
    source.calls.extend(v.called.iter().cloned());
    source.foreign.extend(v.names.keys().filter(|name| is_foreign(name)).cloned());
    let parts = Parts { places, inputs, budget: Budget::of(all) };
    left_over(folder, &parts.inputs, &mut source)?;
    let Node::Dict { items, .. } = &v[described] else { return malformed("its tensors are no dictionary") };
    for (name, id) in last_of_each(v, items)? {
        match v.attribute(id, "size")?.and_then(|size| v.sizes(size)) {
            Some(shape) => tensor(v, &mut source, &name, id, shape, &parts)?,
            None => object(&mut source, &name, parts.open(&name, &[])?)?,
        }
    }
    source.settle().map_err(Fault::Malformed)?;
    Ok(source)
}

/// What another file's error is to the checkpoint.
fn of_file(e: Error) -> Fault {
    Fault::Refused(e.to_string())
}

/// The places of all parts, by the name of the tensor and where in it the part begins.
fn places(v: &Pickle, stored: Id) -> Parsed<BTreeMap<(String, Vec<usize>), Place>> {
    let Node::Dict { items, .. } = &v[stored] else { return malformed("its places are no dictionary") };
    let mut places = BTreeMap::new();
    for (key, value) in items {
        let name = v.attribute(*key, "fqn")?.and_then(|id| v.text(id));
        let at = v.attribute(*key, "offset")?.and_then(|id| v.sizes(id)).unwrap_or_default();
        let file = v.attribute(*value, "relative_path")?.and_then(|id| v.text(id));
        let number = |key: &str| Ok::<_, Fault>(v.attribute(*value, key)?.and_then(|id| v.size(id)).map(|n| n as u64));
        let (offset, length) = (number("offset")?, number("length")?);
        let (Some(name), Some(file), Some(first), Some(length)) = (name, file, offset, length) else {
            return malformed(format!("its {INDEX} has a part without name, file or place"));
        };
        if file.is_empty() || file.contains(['/', '\\', ':', '\0']) || file == ".." {
            return refused(format!("it names the file {file:.60?}: parts lie beside {INDEX}"));
        }
        let transformed = v.attribute(*value, "transform_descriptors")?;
        if transformed.is_some_and(|t| !matches!(&v[t], Node::None) && v.sequence(t).is_none_or(|l| !l.is_empty())) {
            return refused(format!("{name}: its bytes are compressed or changed by an extension, which is not read"));
        }
        let Some(end) = first.checked_add(length) else { return malformed(format!("{name}: an impossible place")) };
        v.budget.spend(128 + 2 * (name.len() + file.len()) + 8 * at.len())?;
        if places.insert((name.to_string(), at), Place { file: file.into(), range: first..end }).is_some() {
            return malformed(format!("a part of {name} is named twice"));
        }
    }
    Ok(places)
}

/// The files, each of which the places must cover without a gap and without an overlap.
fn inputs(folder: &Path, places: &BTreeMap<(String, Vec<usize>), Place>) -> Parsed<BTreeMap<String, Arc<Input>>> {
    let mut ranges: BTreeMap<&str, Vec<&Range<u64>>> = BTreeMap::new();
    places.values().for_each(|place| ranges.entry(&place.file).or_default().push(&place.range));
    let mut inputs = BTreeMap::new();
    for (file, mut all) in ranges {
        let input = Input::open(&folder.join(file)).map_err(of_file)?;
        all.sort_by_key(|range| range.start);
        let mut at = 0;
        for range in all {
            match range.start {
                start if start < at => return refused(format!("two parts share bytes of {file}, from {start} on")),
                start if start > at => return refused(format!("bytes {at} to {start} of {file} are of no part")),
                _ => at = range.end,
            }
        }
        if at != input.len {
            return refused(format!("the parts in {file} end at {at}, the file at {}", input.len));
        }
        inputs.insert(file.to_string(), input);
    }
    Ok(inputs)
}

/// Says of files that look like parts and are none.
fn left_over(folder: &Path, inputs: &BTreeMap<String, Arc<Input>>, source: &mut Source) -> Parsed<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_part(&path) && !inputs.contains_key(&name) {
            source.remarks.push(format!("{name} is left out: {INDEX} does not name it"));
        }
    }
    Ok(())
}

/// All parts, by what they are of.
struct Parts {
    places: BTreeMap<(String, Vec<usize>), Place>,
    inputs: BTreeMap<String, Arc<Input>>,
    /// What all of them together may cost.
    budget: Budget,
}

impl Parts {
    /// The archive of one part.
    fn open(&self, name: &str, at: &[usize]) -> Parsed<Source> {
        let place = self.places.get(&(name.to_string(), at.to_vec()));
        let input = place.and_then(|p| self.inputs.get(&p.file)?.part(p.range.clone()));
        let Some((place, input)) = place.zip(input) else {
            return refused(format!("{name}: the part that begins at {at:?} is in no file"));
        };
        let within = |fault| match fault {
            Fault::Malformed(reason) => Fault::Malformed(format!("{name} in {}: {reason}", place.file)),
            Fault::Refused(reason) => Fault::Refused(format!("{name} in {}: {reason}", place.file)),
            io => io,
        };
        records(&input).and_then(|records| open_archive(&input, records, self.budget.clone())).map_err(within)
    }
}

/// Takes in what is no tensor.
fn object(source: &mut Source, name: &str, found: Source) -> Parsed<()> {
    let first = source.segments.len();
    source.segments.extend(found.segments);
    source.rest.extend(found.rest);
    for mut t in found.tensors {
        t.data.segment += first;
        source.push(format!("{name}.{}", t.name), t.dtype, t.shape, t.data).map_err(Fault::Malformed)?;
    }
    let mut entries = found.metadata;
    // What is neither a tensor nor a dictionary.
    let value = match entries.remove("value") {
        Some(value) if entries.is_empty() => value,
        Some(value) => {
            entries.insert("value".into(), value);
            Value::Object(entries)
        }
        None if entries.is_empty() => return Ok(()),
        None => Value::Object(entries),
    };
    source.metadata.insert(name.into(), value);
    source.remarks.extend(found.remarks);
    source.foreign.extend(found.foreign);
    source.calls.extend(found.calls);
    source.left_out.extend(found.left_out.into_iter().map(|what| format!("{name}.{what}")));
    Ok(())
}

/// Takes in a tensor, from all its parts.
fn tensor(v: &Pickle, source: &mut Source, name: &str, described: Id, shape: Vec<usize>, parts: &Parts) -> Parsed<()> {
    let wrong = |what: &str| malformed(format!("tensor {name}: {what}"));
    let dtype = match v.attribute(described, "properties")?.map(|id| &v[id]) {
        Some(Node::Object { state: Some(state), .. }) => {
            let first = v.sequence(*state).and_then(|s| s.first().copied());
            let dtype = first.or(v.get(*state, "dtype")?).map(|id| &v[id]);
            match dtype {
                Some(Node::Global(name)) => name.strip_prefix("torch.").and_then(Dtype::from_torch),
                _ => None,
            }
        }
        _ => None,
    };
    let Some((dtype, size)) = dtype.and_then(|d| Some((d, d.size()?))) else { return wrong("it has no element type") };
    let chunks = v.attribute(described, "chunks")?.and_then(|id| v.sequence(id)).unwrap_or_default();
    let Some(len) = shape.iter().try_fold(size as u64, |n, d| n.checked_mul(*d as u64)) else {
        return wrong("it is too large");
    };
    let (mut pieces, mut behind, mut seen) = (vec![], vec![], BTreeSet::new());
    for chunk in chunks {
        let read = |key: &str| Ok::<_, Fault>(v.attribute(*chunk, key)?.and_then(|id| v.sizes(id)));
        let (Some(at), Some(sizes)) = (read("offsets")?, read("sizes")?) else {
            return wrong("a part without a place");
        };
        let fits = |i: usize| at[i].checked_add(sizes[i]).is_some_and(|end| end <= shape[i]);
        if at.len() != shape.len() || sizes.len() != shape.len() || !(0..shape.len()).all(fits) {
            return wrong("a part of it lies outside of it");
        }
        if !seen.insert(at.clone()) {
            return wrong("two parts of it begin at one place");
        }
        let found = parts.open(name, &at)?;
        let [t] = found.tensors.as_slice() else { return wrong("a part of it is no tensor") };
        if !found.metadata.is_empty() || !found.left_out.is_empty() || !found.calls.is_empty() {
            return wrong("a part of it holds something else, too");
        }
        let segment = &found.segments[t.data.segment];
        if t.dtype != dtype || t.shape != sizes {
            return wrong(&format!("a part has {:?} of {}, expected {sizes:?} of {dtype}", t.shape, t.dtype));
        }
        let (Backing::Stored { input, at: begins }, None) = (&segment.backing, &t.data.strides) else {
            return refused(format!("tensor {name}: a part of it is compressed or not contiguous"));
        };
        if sizes.contains(&0) {
            continue;
        }
        let first = begins + t.data.offset;
        if pieces.len() + runs(&shape, &sizes) > MOST_PIECES {
            return refused(format!("tensor {name}: its parts are cut into more than {MOST_PIECES} rows"));
        }
        let length = run(&shape, &sizes) * size as u64;
        for (number, start) in starts(&shape, &at, &sizes).enumerate() {
            let piece = Piece { start: start * size as u64, input: input.clone(), at: first + number as u64 * length };
            pieces.push((length, piece));
        }
        behind.push(segment.clone());
        // The pickle and what else has a checksum.
        source.rest.extend(found.rest);
    }
    pieces.sort_by_key(|(_, piece)| piece.start);
    let mut at = 0;
    for (length, piece) in &pieces {
        if piece.start != at {
            return wrong(if piece.start < at { "two parts of it overlap" } else { "a part of it is missing" });
        }
        at += length;
    }
    if at != len {
        return wrong("a part of it is missing");
    }
    let pieces: Vec<Piece> = pieces.into_iter().map(|(_, piece)| piece).collect();
    source.segments.push(Segment { backing: Backing::Pieces(pieces.into(), behind.into()), len, crc: None });
    let data = Data { segment: source.segments.len() - 1, offset: 0, strides: None, big_endian: false };
    source.push(name.into(), dtype, shape, data).map_err(Fault::Malformed)
}

/// The dimensions over which a part of a tensor lies in one run: the last ones, which it has whole, and the one before them.
fn whole(shape: &[usize], sizes: &[usize]) -> usize {
    let whole = shape.iter().zip(sizes).rev().take_while(|(all, own)| all == own).count();
    (whole + 1).min(shape.len())
}

/// Elements of a run.
fn run(shape: &[usize], sizes: &[usize]) -> u64 {
    sizes[shape.len() - whole(shape, sizes)..].iter().map(|n| *n as u64).product()
}

/// Runs of a part.
fn runs(shape: &[usize], sizes: &[usize]) -> usize {
    if sizes.contains(&0) {
        return 0;
    }
    sizes[..shape.len() - whole(shape, sizes)].iter().fold(1, |n: usize, d| n.saturating_mul(*d))
}

/// Where in the tensor each run of a part begins that begins at `at`, in elements.
fn starts<'a>(shape: &'a [usize], at: &'a [usize], sizes: &'a [usize]) -> impl Iterator<Item = u64> + 'a {
    let outer = shape.len() - whole(shape, sizes);
    (0..runs(shape, sizes)).map(move |mut number| {
        let mut place = at.to_vec();
        for i in (0..outer).rev() {
            place[i] += number % sizes[i];
            number /= sizes[i];
        }
        place.iter().zip(shape).fold(0u64, |n, (p, all)| n * *all as u64 + *p as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_into_the_runs_that_they_have_in_the_tensor() {
        let all = |shape: &[usize], at: &[usize], sizes: &[usize]| {
            (run(shape, sizes), starts(shape, at, sizes).collect::<Vec<u64>>())
        };
        assert_eq!(all(&[4, 3], &[0, 0], &[4, 3]), (12, vec![0]));
        assert_eq!(all(&[4, 3], &[2, 0], &[2, 3]), (6, vec![6]));
        assert_eq!(all(&[4, 3], &[1, 1], &[2, 2]), (2, vec![4, 7]));
        assert_eq!(all(&[2, 2, 3], &[0, 1, 0], &[2, 1, 3]), (3, vec![3, 9]));
        assert_eq!(all(&[], &[], &[]), (1, vec![0]));
        assert_eq!(all(&[4, 3], &[0, 0], &[0, 3]).1, Vec::<u64>::new());
    }
}
