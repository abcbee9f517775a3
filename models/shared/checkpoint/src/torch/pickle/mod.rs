//! A pickle as data. Python's unpickler is a machine that calls what the file names; this one builds plain values from an
//! exact list of names, and nothing is ever called, imported or looked up.
//!
//! Values lie in one vector and refer to each other by number: a value that is remembered and used again costs four
//! bytes, whatever is in it, and what is copied or gone through again is paid for; nothing here recurses. Opcodes:
//! <https://github.com/python/cpython/blob/main/Lib/pickletools.py>, protocols 0 to 5.

mod construct;
mod machine;
mod values;

pub(crate) use construct::runs;
pub(super) use construct::{STORAGES, is_foreign, is_inert};
pub(super) use machine::LARGEST;
pub(super) use values::{Array, Id, Node, Pickle, Storage, Strided};
