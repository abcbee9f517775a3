//! CUDA: the kernels' PTX is made by nvcc when this crate is built, and loaded once a device.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Result, Storage, bail};
use half::{bf16, f16};

use super::{Arg, Backend, Grid, Module};
use crate::cpu::{Memory, StorageMut};

// SAFETY: memory is for as many elements as asked for.
unsafe impl Backend for CudaDevice {
    fn alloc(&self, dtype: DType, len: usize) -> Result<Storage> {
        // SAFETY: kernels write every element before any is read.
        unsafe {
            Ok(Storage::Cuda(match dtype {
                DType::F32 => CudaStorage::wrap_cuda_slice(self.alloc::<f32>(len)?, self.clone()),
                DType::BF16 => CudaStorage::wrap_cuda_slice(self.alloc::<bf16>(len)?, self.clone()),
                DType::F16 => CudaStorage::wrap_cuda_slice(self.alloc::<f16>(len)?, self.clone()),
                DType::I64 => CudaStorage::wrap_cuda_slice(self.alloc::<i64>(len)?, self.clone()),
                other => bail!("no arrays of {other:?}"),
            }))
        }
    }

    unsafe fn launch(&self, module: &Module, name: &str, dtype: DType, grid: Grid, args: &mut [Arg]) -> Result<()> {
        let suffix = match dtype {
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            _ => "f32",
        };
        let full = format!("zoo_{}_{suffix}", module.name);
        let Some((_, ptx)) = module.ptx.iter().find(|(known, _)| *known == full) else { bail!("{full}: not compiled") };
        let function = self.get_or_load_custom_func(name, &full, ptx)?;
        let stream = self.cuda_stream();
        let at = |storage: &CudaStorage, start: usize| -> Result<u64> {
            // What one thread does, or all of them on a device made with a stream, is in order: no event has to be waited for.
            let of = |pointer: u64, size: usize| pointer + (start * size) as u64;
            Ok(match &storage.slice {
                CudaStorageSlice::F32(s) => of(s.device_ptr(&stream).0, 4),
                CudaStorageSlice::BF16(s) => of(s.device_ptr(&stream).0, 2),
                CudaStorageSlice::F16(s) => of(s.device_ptr(&stream).0, 2),
                CudaStorageSlice::I64(s) => of(s.device_ptr(&stream).0, 8),
                _ => bail!("{name}: no kernel takes {:?}", storage.dtype()),
            })
        };
        let address = |storage: &Storage, start: usize| match storage {
            Storage::Cuda(storage) => at(storage, start),
            _ => bail!("{name}: expected an array on CUDA"),
        };
        enum Value<'a> {
            Pointer(u64),
            Word(u32),
            Float(f32),
            Fields(&'a [u32]),
        }
        let mut values = vec![];
        for arg in args.iter_mut() {
            let value = match arg {
                Arg::Read(slice) => Value::Pointer(address(slice.storage, slice.start)?),
                Arg::Write(array) => Value::Pointer(address(&array.storage, 0)?),
                Arg::WriteFrom(array, starts) => {
                    for start in starts.iter() {
                        values.push(Value::Pointer(address(&array.storage, *start)?));
                    }
                    continue;
                }
                Arg::Change(Memory { storage: StorageMut::Cuda(storage), start, .. }) => {
                    Value::Pointer(at(storage, *start)?)
                }
                Arg::Change(_) => bail!("{name}: expected an array on CUDA"),
                Arg::Count(n) => Value::Word(*n as u32),
                Arg::Word(w) => Value::Word(*w),
                Arg::Float(f) => Value::Float(*f as f32),
                Arg::Fields(words) => Value::Fields(words),
            };
            values.push(value);
        }

        let mut builder = function.builder();
        for value in &values {
            match value {
                Value::Pointer(p) => builder.arg(p),
                Value::Word(w) => builder.arg(w),
                Value::Float(f) => builder.arg(f),
                // The driver reads as many bytes as the struct has.
                Value::Fields(words) => builder.arg(&words[0]),
            };
        }
        let config = LaunchConfig {
            grid_dim: (grid.groups[0] as u32, grid.groups[1] as u32, 1),
            block_dim: (grid.threads as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are those of the kernel's parameters, as the caller promises.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}
