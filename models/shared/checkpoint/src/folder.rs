//! A folder that may be somebody else's: what is in it is named by single plain names, and a link in it is refused.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions};

use crate::atomic::{PREFIX, SUFFIX, buffered};
use crate::input::{Input, limited};
use crate::write::{fill_with, on_cpu};
use crate::{Error, Result, Source, atomic, open};

/// A folder, opened once. Names in it are single plain names; nothing reaches out of it, whatever its contents are made to
/// be meanwhile, and links in it are refused.
#[derive(Debug)]
pub struct Folder {
    dir: Dir,
    path: PathBuf,
}

/// What a name in a [`Folder`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A link, a device, a pipe or a socket.
    Other,
}

impl Folder {
    /// Opens the folder at `path`, which may be a link to one.
    ///
    /// # Errors
    /// There is none, or the operating system refuses.
    pub fn open(path: &Path) -> Result<Self> {
        let dir = Dir::open_ambient_dir(path, ambient_authority()).map_err(Error::io(path))?;
        Ok(Self { dir, path: path.into() })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A name in it, as messages have it.
    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn refused<T>(&self, name: &str, reason: &str) -> Result<T> {
        Err(Error::Refused { path: self.at(name), reason: reason.into() })
    }

    /// Refuses what is no single plain name.
    fn plain(&self, name: &str) -> Result<()> {
        let plain = !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', ':', '\0']);
        if plain { Ok(()) } else { self.refused(name, "it is no plain name of a file in that folder") }
    }

    /// What `name` stands for, if it is there.
    ///
    /// # Errors
    /// It is no plain name, or the operating system refuses.
    pub fn kind(&self, name: &str) -> Result<Option<Kind>> {
        self.plain(name)?;
        match self.dir.symlink_metadata(name) {
            Ok(found) if found.is_file() => Ok(Some(Kind::File)),
            Ok(found) if found.is_dir() => Ok(Some(Kind::Folder)),
            Ok(_) => Ok(Some(Kind::Other)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(&self.at(name))(e)),
        }
    }

    /// Refuses what is there and is neither a regular file nor, with `folders`, a folder; whether it is there.
    fn usual(&self, name: &str, folders: bool) -> Result<bool> {
        match self.kind(name)? {
            None => Ok(false),
            Some(Kind::File) if !folders => Ok(true),
            Some(Kind::Folder) if folders => Ok(true),
            Some(_) if folders => self.refused(name, "it is no folder, or a link to one: nothing was read or changed"),
            Some(_) => self.refused(name, "it is no regular file, or a link to one: nothing was read or changed"),
        }
    }

    /// The folder `name` in it; made if it is not there yet and `make` is set.
    ///
    /// # Errors
    /// It is a link or no folder, or the operating system refuses.
    pub fn folder(&self, name: &str, make: bool) -> Result<Self> {
        let path = self.at(name);
        if !self.usual(name, true)? && make {
            self.dir.create_dir(name).map_err(Error::io(&path))?;
        }
        Ok(Self { dir: self.dir.open_dir(name).map_err(Error::io(&path))?, path })
    }

    /// Whether nothing is in it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.dir.entries().map_err(Error::io(&self.path))?.next().is_none())
    }

    /// Everything in it that has a name in UTF-8, sorted.
    ///
    /// # Errors
    /// The operating system's.
    pub fn names(&self) -> Result<Vec<String>> {
        let read = || -> std::io::Result<Vec<String>> {
            let names = self.dir.entries()?.map(|e| e.map(|e| e.file_name().into_string().ok()));
            let mut names = names.filter_map(std::io::Result::transpose).collect::<std::io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        };
        read().map_err(Error::io(&self.path))
    }

    /// A regular file, to read.
    ///
    /// # Errors
    /// It is a link or no regular file, or the operating system refuses.
    pub fn file(&self, name: &str) -> Result<File> {
        self.usual(name, false)?;
        self.opened(name, OpenOptions::new().read(true))
    }

    /// Opens what was a regular file a moment ago, if it still is one: no link is followed, and no pipe waited for.
    fn opened(&self, name: &str, options: &mut OpenOptions) -> Result<File> {
        #[cfg(unix)]
        {
            use cap_std::fs::OpenOptionsExt;
            options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        }
        let file = self.dir.open_with(name, options).map_err(Error::io(&self.at(name)))?.into_std();
        match file.metadata().is_ok_and(|found| found.is_file()) {
            true => Ok(file),
            false => self.refused(name, "it is no regular file any more: nothing was read or changed"),
        }
    }

    /// The bytes of a regular file of at most `most` bytes.
    ///
    /// # Errors
    /// As [`Folder::file`]; or it is longer.
    pub fn bytes(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        limited(self.file(name)?, &self.at(name), most)
    }

    /// [`Folder::bytes`] as text.
    ///
    /// # Errors
    /// As there; or it is not UTF-8.
    pub fn text(&self, name: &str, most: u64) -> Result<String> {
        String::from_utf8(self.bytes(name, most)?).or_else(|_| self.refused(name, "it is not UTF-8"))
    }

    /// A checkpoint of any format.
    ///
    /// # Errors
    /// As [`Folder::file`] and [`open()`](crate::open()).
    pub fn checkpoint(&self, name: &str) -> Result<Source> {
        open::safe(open::open_input(&Input::of(self.file(name)?, self.at(name))?, false)?)
    }

    /// The number of bytes and the SHA-256 of a regular file, in hexadecimal.
    ///
    /// # Errors
    /// As [`Folder::file`].
    pub fn sha256(&self, name: &str) -> Result<(u64, String)> {
        let (file, path) = (self.file(name)?, self.at(name));
        let len = file.metadata().map_err(Error::io(&path))?.len();
        Ok((len, atomic::hash_of(file).map_err(Error::io(&path))?))
    }

    /// A regular file to lock, made if it is not there yet. It is not changed.
    ///
    /// # Errors
    /// As [`Folder::file`].
    pub fn lock(&self, name: &str) -> Result<File> {
        self.usual(name, false)?;
        self.opened(name, OpenOptions::new().create(true).append(true))
    }

    /// A regular file to append to, made if it is not there yet.
    ///
    /// # Errors
    /// As [`Folder::file`].
    pub fn append(&self, name: &str) -> Result<File> {
        let file = self.lock(name)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            // What has another name elsewhere, such as in a copy of links, stays there as it is.
            if file.metadata().is_ok_and(|found| found.nlink() > 1) {
                let mut shared = self.file(name)?;
                self.replace(name, |own| std::io::copy(&mut shared, own).map(|_| ()))?;
                return self.opened(name, OpenOptions::new().append(true));
            }
        }
        Ok(file)
    }

    /// Writes a file by `fill` under a temporary name, makes it durable, and moves it to `name`: a crash leaves the old
    /// file or the new one.
    ///
    /// # Errors
    /// `name` is a link or no regular file; what `fill` or the operating system reports. Nothing is left behind then.
    pub fn replace(&self, name: &str, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
        let path = self.at(name);
        self.replace_file(name, |file| buffered(file, &path, fill))
    }

    /// [`write()`](crate::write()) for a file in it.
    ///
    /// # Errors
    /// As there, and as [`Folder::replace`].
    pub fn write(&self, name: &str, tensors: &[(String, Tensor)], metadata: &BTreeMap<String, String>) -> Result<()> {
        let path = self.at(name);
        let (outline, values) = on_cpu(&path, tensors, metadata)?;
        self.replace_file(name, |file| fill_with(file, &path, &outline, &values))
    }

    fn replace_file(&self, name: &str, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
        self.usual(name, false)?;
        let path = self.at(name);
        let (temporary, file) = self.temporary(|t| self.new_file(t))?;
        let written = filled(file, &path, fill);
        let moved = written.and_then(|()| self.dir.rename(&temporary, &self.dir, name).map_err(Error::io(&path)));
        if moved.is_err() {
            let _ = self.dir.remove_file(&temporary);
        }
        moved?;
        self.sync()
    }

    fn new_file(&self, name: &str) -> std::io::Result<File> {
        let file = self.dir.open_with(name, OpenOptions::new().create_new(true).write(true).read(true))?.into_std();
        // Held while it is written: what nobody holds was left by a killed process.
        let _ = file.try_lock();
        Ok(file)
    }

    /// Makes a file that is not there yet and makes its contents, but not its name, durable: for a folder that gets its name
    /// when all is in it, after [`Folder::sync`].
    ///
    /// # Errors
    /// What `fill` or the operating system reports; half a file may be left.
    pub fn create(&self, name: &str, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
        let path = self.at(name);
        self.plain(name)?;
        let file = self.new_file(name).map_err(Error::io(&path))?;
        filled(file, &path, |file| buffered(file, &path, fill))
    }

    /// [`Folder::create`] of weights: see [`write()`](crate::write()).
    ///
    /// # Errors
    /// As there, and as [`Folder::create`].
    pub fn create_weights(
        &self,
        name: &str,
        tensors: &[(String, Tensor)],
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        let path = self.at(name);
        self.plain(name)?;
        let (outline, values) = on_cpu(&path, tensors, metadata)?;
        filled(self.new_file(name).map_err(Error::io(&path))?, &path, |f| fill_with(f, &path, &outline, &values))
    }

    /// Makes something exclusively under a name that nobody can foresee.
    fn temporary<T>(&self, make: impl Fn(&str) -> std::io::Result<T>) -> Result<(String, T)> {
        for number in 0..16 {
            // Its keys are the system's random numbers.
            let name = format!("{}{:016x}{}", PREFIX, RandomState::new().hash_one(number), SUFFIX);
            match make(&name) {
                Ok(made) => return Ok((name, made)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(&self.path)(e)),
            }
        }
        self.refused(PREFIX, "no free name for a temporary file")
    }

    /// Makes `to` another name of the file `name` of the folder `from`, or a copy of it where the file system has no such
    /// names. What `to` was before is replaced at once.
    ///
    /// # Errors
    /// Either is a link or no regular file; the operating system's.
    pub fn link(&self, from: &Folder, name: &str, to: &str) -> Result<()> {
        from.usual(name, false)?;
        self.usual(to, false)?;
        let path = self.at(to);
        let Ok((temporary, ())) = self.temporary(|t| from.dir.hard_link(name, &self.dir, t)) else {
            let mut source = from.file(name)?;
            return self.replace(to, |file| std::io::copy(&mut source, file).map(|_| ()));
        };
        let moved = self.dir.rename(&temporary, &self.dir, to).map_err(Error::io(&path));
        // A rename between two names of one file does nothing at all, so the temporary one may still be there.
        let _ = self.dir.remove_file(&temporary);
        moved?;
        self.sync()
    }

    /// Gives what is called `from` the name `to`, which must be free unless both are files.
    ///
    /// # Errors
    /// `from` is a link or a device; the operating system's.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.plain(to)?;
        if self.kind(from)? == Some(Kind::Other) {
            return self.refused(from, "it is no regular file, or a link to one: nothing was changed");
        }
        self.dir.rename(from, &self.dir, to).map_err(Error::io(&self.at(from)))
    }

    /// Removes a file, or a folder with all that is in it; of a link, the link.
    ///
    /// # Errors
    /// The operating system's.
    pub fn remove(&self, name: &str) -> Result<()> {
        let removed = match self.kind(name)? {
            Some(Kind::Folder) => self.dir.remove_dir_all(name),
            _ => self.dir.remove_file(name),
        };
        removed.map_err(Error::io(&self.at(name)))
    }

    /// Removes what interrupted writing left behind here.
    ///
    /// # Errors
    /// The operating system's.
    pub fn clear(&self) -> Result<()> {
        let ours = |n: &String| n.starts_with(PREFIX) && n.ends_with(SUFFIX);
        for name in self.names()?.iter().filter(|n| ours(n)) {
            if self.kind(name)? == Some(Kind::File) && self.file(name)?.try_lock().is_ok() {
                self.remove(name)?;
            }
        }
        Ok(())
    }

    /// Makes the names in it durable (Unix; elsewhere the system does not offer it).
    ///
    /// # Errors
    /// The operating system's.
    pub fn sync(&self) -> Result<()> {
        if cfg!(unix) {
            // The folder itself is open for names in it alone.
            let sync = || self.dir.open(".")?.sync_all();
            sync().map_err(Error::io(&self.path))?;
        }
        Ok(())
    }
}

fn filled(mut file: File, path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    fill(&mut file)?;
    file.sync_all().map_err(Error::io(path))
}
