//! The MPI library: which one it is, where it lies, and its functions.

use std::ffi::{c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use zoo_training::{Error, Result};

/// A communicator, data type or error handler: a pointer or an `int`, as the library has it. An `int` argument is the lower half of
/// the register that a pointer would be passed in, on the 64-bit machines that this is built for.
pub(crate) type Handle = usize;
type Bytes = *const c_void;
type BytesMut = *mut c_void;
type Counts = *const c_int;

/// Names of Open MPI's library and of others, as the launcher's own folder or the system's linker finds them.
const OPEN_MPI: [&str; 2] = ["libmpi.so.40", "libmpi.dylib"];
const OTHERS: [&str; 4] = ["libmpi_abi.so.1", "libmpi.so.12", "libmpich.so.12", "libmpi_abi.dylib"];
/// Bytes of the longest text that MPI writes (its version), with room to spare.
const TEXT: usize = 8192;

/// Handles and numbers that differ from one library to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abi {
    pub(crate) world: Handle,
    pub(crate) byte: Handle,
    pub(crate) float: Handle,
    pub(crate) sum: Handle,
    pub(crate) errors_return: Handle,
    pub(crate) funneled: c_int,
}

macro_rules! functions {
    ($($field:ident $name:literal ($($argument:ty),*);)*) => {
        /// The functions that are called.
        pub(crate) struct Functions {
            $(pub(crate) $field: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Functions {
            fn of(library: &Library) -> std::result::Result<Self, libloading::Error> {
                // SAFETY: these are the prototypes of MPI-3, which every MPI has.
                unsafe { Ok(Self { $($field: *library.get(concat!($name, "\0").as_bytes())?,)* }) }
            }
        }
    };
}

functions! {
    version "MPI_Get_library_version" (*mut c_char, *mut c_int);
    init "MPI_Init_thread" (*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int);
    finalize "MPI_Finalize" ();
    set_errhandler "MPI_Comm_set_errhandler" (Handle, Handle);
    error_string "MPI_Error_string" (c_int, *mut c_char, *mut c_int);
    processor_name "MPI_Get_processor_name" (*mut c_char, *mut c_int);
    size "MPI_Comm_size" (Handle, *mut c_int);
    rank "MPI_Comm_rank" (Handle, *mut c_int);
    broadcast "MPI_Bcast" (BytesMut, c_int, Handle, c_int, Handle);
    allgather "MPI_Allgather" (Bytes, c_int, Handle, BytesMut, c_int, Handle, Handle);
    allgatherv "MPI_Allgatherv" (Bytes, c_int, Handle, BytesMut, Counts, Counts, Handle, Handle);
    allreduce "MPI_Allreduce" (Bytes, BytesMut, c_int, Handle, Handle, Handle);
    alltoallv "MPI_Alltoallv" (Bytes, Counts, Counts, Handle, BytesMut, Counts, Counts, Handle, Handle);
}

/// A loaded library.
pub(crate) struct Found {
    pub(crate) functions: Functions,
    pub(crate) abi: Abi,
    /// Its name and version.
    pub(crate) version: String,
    pub(crate) path: PathBuf,
    /// Never unloaded: its threads may outlive the last call.
    _library: std::mem::ManuallyDrop<Library>,
}

/// A text that MPI writes.
pub(crate) fn text(write: impl FnOnce(*mut c_char, *mut c_int) -> c_int) -> String {
    let (mut bytes, mut length) = (vec![0u8; TEXT], 0);
    if write(bytes.as_mut_ptr().cast(), &mut length) != 0 {
        return String::new();
    }
    bytes.truncate((length.max(0) as usize).min(TEXT));
    let text = String::from_utf8_lossy(&bytes);
    text.trim_end_matches('\0').lines().next().unwrap_or_default().trim().to_string()
}

/// The names in the order in which they are tried: the launcher's own kind first.
fn names() -> Vec<&'static str> {
    match std::env::var_os("OMPI_COMM_WORLD_SIZE") {
        Some(_) => OPEN_MPI.into_iter().chain(OTHERS).collect(),
        None => OTHERS.into_iter().chain(OPEN_MPI).collect(),
    }
}

/// Where the launcher's own libraries may be: beside the program that started this process.
fn beside_launcher() -> Vec<PathBuf> {
    let parent = std::os::unix::process::parent_id();
    let Ok(launcher) = std::fs::read_link(format!("/proc/{parent}/exe")) else { return vec![] };
    let Some(root) = launcher.parent().and_then(Path::parent) else { return vec![] };
    let folders = ["lib", "lib64", "lib/release"].map(|folder| root.join(folder));
    let paths = names().into_iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    paths.filter(|path| path.is_file()).collect()
}

/// Loads the MPI that `ZOO_MPI` names, or else the launcher's, or else the system's.
pub(crate) fn load() -> Result<Found> {
    let named = std::env::var_os("ZOO_MPI").map(PathBuf::from);
    let candidates = match &named {
        Some(path) => vec![path.clone()],
        None => beside_launcher().into_iter().chain(names().into_iter().map(PathBuf::from)).collect(),
    };
    let mut reasons = vec![];
    for path in candidates {
        match open(&path) {
            Ok(found) => return Ok(found),
            Err(reason) => reasons.push(reason),
        }
    }
    let reason = match &named {
        Some(path) => format!("ZOO_MPI={}: {}", path.display(), reasons.join("; ")),
        None => "this process was started by an MPI launcher, but no MPI library was found beside it or in the system's folders \
                 (ZOO_MPI=PATH names one, ZOO_MPI=off trains alone)"
            .into(),
    };
    Err(Error::Usage(reason))
}

/// Why the linker refused, in its own words.
fn reason(e: &libloading::Error) -> String {
    std::error::Error::source(e).map_or_else(|| e.to_string(), ToString::to_string)
}

fn open(path: &Path) -> std::result::Result<Found, String> {
    // SAFETY: an MPI library's initialisation has no other demands than those that MPI_Init makes. Its parts look for its symbols
    // among the global ones.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|e| reason(&e))?;
    let functions = Functions::of(&library).map_err(|e| format!("it is no MPI: {}", reason(&e)))?;
    // SAFETY: the buffer is longer than MPI_MAX_LIBRARY_VERSION_STRING of every MPI; this may be called before MPI_Init.
    let version = text(|to, length| unsafe { (functions.version)(to, length) });
    // What follows names the packager and the day.
    let version = version.split(',').next().unwrap_or_default().replace(['\t', ' '], " ");
    let symbol = |name: &str| -> Option<Handle> {
        // SAFETY: only the address is taken.
        unsafe { library.get::<*const c_void>(name.as_bytes()) }.ok().map(|s| s.as_raw_ptr() as Handle)
    };
    let names = ["comm_world", "byte", "float", "op_sum", "errors_return"];
    let open_mpi: Option<Vec<Handle>> = names.iter().map(|name| symbol(&format!("ompi_mpi_{name}\0"))).collect();
    let is_standard = path.file_name().is_some_and(|name| name.to_string_lossy().contains("mpi_abi"));
    let abi = match open_mpi.as_deref() {
        Some(&[world, byte, float, sum, errors_return]) => Abi { world, byte, float, sum, errors_return, funneled: 1 },
        // MPI 5.0, chapter 20.
        _ if is_standard => {
            Abi { world: 0x101, byte: 0x247, float: 0x210, sum: 0x21, errors_return: 0x143, funneled: 1024 }
        }
        // The ABI that MPICH, Intel MPI, MVAPICH and Cray's have agreed on.
        _ if ["MPICH", "Intel", "MVAPICH", "CRAY"].iter().any(|name| version.contains(name)) => Abi {
            world: 0x4400_0000,
            byte: 0x4c00_010d,
            float: 0x4c00_040a,
            sum: 0x5800_0003,
            errors_return: 0x5400_0001,
            funneled: 1,
        },
        _ => return Err(format!("its version is {version:?}, which is none of the MPIs that are known")),
    };
    let _library = std::mem::ManuallyDrop::new(library);
    Ok(Found { functions, abi, version, path: path.into(), _library })
}
