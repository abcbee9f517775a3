//! A pickle as data. Python's unpickler is a machine that calls what the file names; this one builds plain values from an
//! exact list of names, and nothing is ever called, imported or looked up.
//!
//! Values lie in one vector and refer to each other by number: a value that is remembered and used again costs four
//! bytes, whatever is in it, so the memory is bounded by the length of the file; nothing here recurses. Opcodes:
//! <https://github.com/python/cpython/blob/main/Lib/pickletools.py>, protocols 0 to 5.

mod construct;
mod machine;
mod values;

pub(super) use construct::STORAGES;
pub(super) use machine::LARGEST;
pub(super) use values::{Array, Id, Node, Pickle, Storage, Strided};
