//! Files that are either there, whole, or not there.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::input::regular;
use crate::{Error, Result};

/// Where a result goes.
enum Target {
    /// A file, new or replaced as a whole, by its own name: links were followed.
    File(PathBuf),
    /// A device or a pipe, which is written to as it is.
    Stream,
}

impl Target {
    /// What `path` stands for.
    fn of(path: &Path) -> Result<Self> {
        let refuse = |reason: &str| Err(Error::Refused { path: path.into(), reason: reason.into() });
        if is_stream(path) {
            return Ok(Self::Stream);
        }
        let found = match std::fs::metadata(path) {
            Ok(found) => found,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return match std::fs::symlink_metadata(path) {
                    Ok(_) => refuse("it is a link that leads nowhere: name the file that is to be written"),
                    Err(_) => Ok(Self::File(path.into())),
                };
            }
            Err(e) => return Err(Error::io(path)(e)),
        };
        match () {
            () if found.is_dir() => refuse("it is a folder: name a file in it"),
            () if !found.is_file() => refuse("it is neither a file nor a pipe: nothing is written there"),
            () if found.permissions().readonly() => refuse("it is read-only: it stays as it is"),
            () => Ok(Self::File(path.canonicalize().map_err(Error::io(path))?)),
        }
    }
}

/// Whether an output of that name is a pipe or a device like a terminal, which is written to and never replaced.
pub fn is_stream(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        // Standard output is one, whatever it leads to.
        let number = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
        let open =
            number && path.parent().is_some_and(|p| p == Path::new("/dev/fd") || p == Path::new("/proc/self/fd"));
        let own = open || path == Path::new("/dev/stdout") || path == Path::new("/dev/stderr");
        let kind = || std::fs::metadata(path).map(|found| found.file_type());
        own || kind().is_ok_and(|k| k.is_fifo() || k.is_char_device())
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Writes a file by `fill` under a temporary name beside `path`, makes it durable, and moves it into place: a crash
/// leaves the old file or the new one. A new file's mode follows the umask, another keeps its own; a link is followed; what
/// [is a stream](is_stream) is written to.
///
/// # Errors
/// `path` is a folder, a disk, a link that leads nowhere, or read-only; a file that was not there before appears while this
/// one is written, and stays; what `fill` or the operating system reports. Nothing is left behind then.
pub fn replace(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    replace_file(path, |file| buffered(file, path, fill))
}

/// Fills `file`, which errors call `path`, through a buffer.
pub(crate) fn buffered(
    file: &mut File,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let mut buffered = BufWriter::with_capacity(1 << 20, file);
    fill(&mut buffered).and_then(|()| buffered.flush()).map_err(Error::io(path))
}

/// [`replace`] with the file itself, to seek in, and errors of our own.
pub(crate) fn replace_file(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    replace_checked(path, fill, |_| Ok(()))
}

/// [`replace_file`] if the written file, still under its temporary name, passes `check`. What goes to a stream is checked
/// before it goes there.
pub(crate) fn replace_checked(
    path: &Path,
    fill: impl FnOnce(&mut File) -> Result<()>,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let target = Target::of(path)?;
    let (directory, mode) = match &target {
        Target::File(file) => (folder_of(file).to_path_buf(), std::fs::metadata(file).map(|m| m.permissions()).ok()),
        Target::Stream => (std::env::temp_dir(), None),
    };
    clear(&directory);
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(match target {
        Target::File(_) if mode.is_none() => 0o666,
        _ => 0o600,
    }));
    // Without the temporary name, which the error has in it.
    let mut file = builder.tempfile_in(&directory).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            Error::Refused { path: path.into(), reason: format!("there is no folder {}", directory.display()) }
        }
        kind => Error::io(path)(kind.into()),
    })?;
    // Held while this process lives: see `clear`.
    let _ = file.as_file().try_lock();
    fill(file.as_file_mut())?;
    if let Target::Stream = target {
        check(file.path())?;
        let copy = || -> std::io::Result<()> {
            // Behind what is there: a shell may have opened it to append to.
            let mut stream = File::options().append(true).open(path)?;
            std::io::copy(&mut file.reopen()?, &mut stream).map(|_| ())
        };
        return copy().map_err(Error::io(path));
    }
    if let Some(mode) = &mode {
        file.as_file().set_permissions(mode.clone()).map_err(Error::io(path))?;
    }
    file.as_file().sync_all().map_err(Error::io(path))?;
    check(file.path())?;
    let Target::File(place) = target else { return Ok(()) };
    match mode {
        Some(_) => file.persist(place).map(drop).map_err(|e| e.error),
        None => persist_new(file, &place),
    }
    .map_err(Error::io(path))?;
    sync_directory(&directory)
}

/// Moves a file to a name that must not exist yet.
fn persist_new(file: NamedTempFile, place: &Path) -> std::io::Result<()> {
    match file.persist_noclobber(place) {
        Ok(_) => Ok(()),
        Err(e) if e.error.kind() == ErrorKind::AlreadyExists => {
            let reason = "a file of that name appeared while this one was written: it stays, and nothing was written";
            Err(std::io::Error::new(ErrorKind::AlreadyExists, reason))
        }
        // Some file systems, such as FAT, have neither hard links nor a rename that spares what is there.
        Err(e) if std::fs::symlink_metadata(place).is_err() => e.file.persist(place).map(drop).map_err(|e| e.error),
        Err(e) => Err(e.error),
    }
}

/// What the names of temporary files begin and end with.
pub(crate) const PREFIX: &str = ".zoo-";
pub(crate) const SUFFIX: &str = ".tmp";

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What holds the lock of a temporary folder.
pub(crate) const LOCK: &str = "lock";

/// Removes temporary files and folders that a killed process left in a folder: nobody holds their locks. Failing only costs
/// their room.
pub(crate) fn clear(directory: &Path) {
    let ours = |name: &str| name.starts_with(PREFIX) && name.ends_with(SUFFIX);
    // Opening a pipe would wait for somebody to write into it.
    let is_file = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    let left = |path: &Path| is_file(path) && File::open(path).is_ok_and(|file| file.try_lock().is_ok());
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type());
        if !entry.file_name().to_str().is_some_and(ours) {
            continue;
        }
        match kind {
            Ok(kind) if kind.is_file() && left(&path) => drop(std::fs::remove_file(path)),
            Ok(kind) if kind.is_dir() && left(&path.join(LOCK)) => drop(std::fs::remove_dir_all(path)),
            _ => {}
        }
    }
}

/// Makes the names in a directory durable (Unix; elsewhere the system does not offer it).
///
/// # Errors
/// The operating system's.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(directory).and_then(|d| d.sync_all()).map_err(Error::io(directory))?;
    }
    Ok(())
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// It is no regular file; the operating system's.
pub fn sha256(path: &Path) -> Result<String> {
    hash_of(regular(path, "a file")?).map_err(Error::io(path))
}

pub(crate) fn hash_of(mut file: impl Read) -> std::io::Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hexadecimal(hash)),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// The SHA-256 of bytes, in hexadecimal.
pub fn sha256_of(bytes: &[u8]) -> String {
    hexadecimal(Sha256::new_with_prefix(bytes))
}

pub(crate) fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
        let path = dir.path().join("file");
        replace(&path, |w| w.write_all(b"old"))?;
        let failed = replace(&path, |w| {
            w.write_all(b"half of the new")?;
            Err(std::io::Error::other("disk full"))
        });
        assert!(failed.unwrap_err().to_string().ends_with("file: disk full"));
        assert_eq!(std::fs::read(&path).map_err(Error::io(&path))?, b"old");
        assert_eq!(std::fs::read_dir(dir.path()).map_err(Error::io(&path))?.count(), 1);
        assert_eq!(sha256(&path)?, "cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4");
        Ok(())
    }

    #[test]
    fn a_file_that_appears_meanwhile_stays() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
        let path = dir.path().join("file");
        let raced = replace(&path, |w| {
            std::fs::write(&path, b"another's")?;
            w.write_all(b"ours")
        });
        assert!(raced.unwrap_err().to_string().contains("appeared while this one was written"));
        assert_eq!(std::fs::read(&path).map_err(Error::io(&path))?, b"another's");
        assert_eq!(std::fs::read_dir(dir.path()).map_err(Error::io(&path))?.count(), 1);
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn the_mode_follows_the_umask() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
        let (ours, plain) = (dir.path().join("ours"), dir.path().join("plain"));
        replace(&ours, |w| w.write_all(b"x"))?;
        std::fs::write(&plain, b"x").map_err(Error::io(&plain))?;
        let mode = |p: &Path| std::fs::metadata(p).map(|m| m.permissions().mode()).map_err(Error::io(p));
        assert_eq!(mode(&ours)?, mode(&plain)?);
        Ok(())
    }
}
