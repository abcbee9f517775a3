//! A file of given bytes, in memory where the system has such a folder.

use std::cell::OnceCell;
use std::path::Path;

thread_local! {
    static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

/// A folder that is there as long as the process.
pub fn folder<R>(of: impl FnOnce(&Path) -> R) -> R {
    FOLDER.with(|folder| {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        of(folder.get_or_init(|| tempfile::tempdir_in(parent).expect("a folder")).path())
    })
}

/// Does something with a file of that name and these bytes.
#[allow(dead_code)] // Some targets make their files themselves.
pub fn with<R>(name: &str, bytes: &[u8], of: impl FnOnce(&Path) -> R) -> R {
    folder(|folder| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("a file");
        of(&path)
    })
}
