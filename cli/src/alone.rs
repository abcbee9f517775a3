//! Where there is no MPI: every process trains alone.

use std::process::ExitCode;
use std::rc::Rc;

use zoo_training::{Error, Ranks, Result};

pub(crate) fn threads(available: usize) -> usize {
    available
}

pub(crate) fn mpi() -> Option<String> {
    None
}

pub(crate) fn own_device(_: usize) -> usize {
    0
}

pub(crate) fn together(work: impl FnOnce(&Rc<Ranks>) -> anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    work(&Rc::default())
}

/// What no process has here.
pub(crate) enum Engine {}

impl Engine {
    pub(crate) fn plain_sum(&self, _: &mut [f32]) -> Result<()> {
        match *self {}
    }

    pub(crate) fn version(&self) -> &str {
        match *self {}
    }
}

pub(crate) fn among_several(
    _: impl FnOnce(&Rc<Ranks>, &Engine) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    Err(Error::Usage("--ranks: there is no MPI on this system".into()).into())
}
