//! Files that are either there, whole, or not there.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Writes a file by `fill` under a temporary name beside `path`, makes it durable, and moves it into place: a crash
/// leaves the old file or the new one. The file's mode follows the umask.
///
/// # Errors
/// What `fill` or the operating system reports; nothing is left behind then.
pub fn replace(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    replace_file(path, |file| {
        let mut buffered = BufWriter::with_capacity(1 << 20, file);
        fill(&mut buffered).and_then(|()| buffered.flush()).map_err(Error::io(path))
    })
}

/// [`replace`] with the file itself, to seek in, and errors of our own.
pub(crate) fn replace_file(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    replace_checked(path, fill, |_| Ok(()))
}

/// [`replace_file`] if the written file, still under its temporary name, passes `check`.
pub(crate) fn replace_checked(
    path: &Path,
    fill: impl FnOnce(&mut File) -> Result<()>,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let directory = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".zoo-").suffix(".tmp");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    // Without the temporary name, which the error has in it.
    let mut file = builder.tempfile_in(directory).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::Refused { path: path.into(), reason: format!("there is no folder {}", directory.display()) }
        }
        kind => Error::io(path)(kind.into()),
    })?;
    fill(file.as_file_mut())?;
    file.as_file().sync_all().map_err(Error::io(path))?;
    check(file.path())?;
    file.persist(path).map_err(|e| Error::io(path)(e.error))?;
    sync_directory(directory)
}

/// Writes a file by `fill` and makes its contents, but not yet its name, durable: for files of a directory that is moved
/// into place as a whole, after [`sync_directory`].
///
/// # Errors
/// What `fill` or the operating system reports.
pub fn create(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut buffered = BufWriter::with_capacity(1 << 20, File::create(path)?);
        fill(&mut buffered)?;
        buffered.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(Error::io(path))
}

/// Makes `to` another name of the file `from`, or a copy of it where the file system has no such names. What `to` was
/// before is replaced at once.
///
/// # Errors
/// The operating system's.
pub fn link(from: &Path, to: &Path) -> Result<()> {
    let directory = to.parent().unwrap_or(Path::new("."));
    // A name that is free: a temporary file's, given up for the link.
    let temporary = tempfile::Builder::new().prefix(".zoo-").suffix(".tmp").tempfile_in(directory);
    let temporary = temporary.map_err(Error::io(to))?.into_temp_path();
    std::fs::remove_file(&temporary).map_err(Error::io(&temporary))?;
    if std::fs::hard_link(from, &temporary).is_err() {
        let mut source = File::open(from).map_err(Error::io(from))?;
        return replace(to, |file| std::io::copy(&mut source, file).map(|_| ()));
    }
    let name = temporary.to_path_buf();
    temporary.persist(to).map_err(|e| Error::io(to)(e.error))?;
    // A rename between two names of one file does nothing at all, so the temporary one may still be there.
    let _ = std::fs::remove_file(name);
    sync_directory(directory)
}

/// Makes the names in a directory durable (Unix; elsewhere the system does not offer it).
///
/// # Errors
/// The operating system's.
pub fn sync_directory(directory: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(directory).and_then(|d| d.sync_all()).map_err(Error::io(directory))?;
    }
    Ok(())
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// The operating system's.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
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
    fn a_link_replaces_what_was_there() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::io(Path::new("temporary")))?;
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for text in ["one", "two"] {
            replace(&from, |w| w.write_all(text.as_bytes()))?;
            link(&from, &to)?;
            link(&from, &to)?;
            assert_eq!(std::fs::read(&to).map_err(Error::io(&to))?, text.as_bytes());
        }
        assert_eq!(std::fs::read_dir(dir.path()).map_err(Error::io(&to))?.count(), 2);
        assert!(link(&dir.path().join("none"), &to).unwrap_err().to_string().contains("none: "));
        assert_eq!(std::fs::read(&to).map_err(Error::io(&to))?, b"two");
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
