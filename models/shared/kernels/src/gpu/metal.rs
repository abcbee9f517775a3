//! Metal: the kernels are compiled at their first use; pipelines are kept a process.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::{DType, Error, MetalDevice, MetalStorage, Result, Storage, bail};
use candle_metal_kernels::metal::ComputePipeline;
use objc2_metal::{MTLCompileOptions, MTLMathMode, MTLSize};

use super::{Arg, Backend, DIALECT, Grid, Module, type_number};
use crate::cpu::StorageMut;

type Key = (u64, &'static str, String, DType);

fn pipeline(device: &MetalDevice, module: &Module, name: &str, dtype: DType) -> Result<ComputePipeline> {
    static PIPELINES: OnceLock<Mutex<HashMap<Key, ComputePipeline>>> = OnceLock::new();
    let metal = device.metal_device();
    let key = (metal.registry_id(), module.name, name.to_string(), dtype);
    let mut known = PIPELINES.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner());
    if let Some(pipeline) = known.get(&key) {
        return Ok(pipeline.clone());
    }
    let source = format!("#define TYPE {}\n{DIALECT}\n{}", type_number(dtype), module.source);
    let options = MTLCompileOptions::new();
    // Norms and softmax compare and divide numbers that fast math takes liberties with.
    options.setMathMode(MTLMathMode::Safe);
    let library = metal.new_library_with_source(&source, Some(&options)).map_err(Error::wrap)?;
    let function = library.get_function(name, None).map_err(Error::wrap)?;
    let pipeline = metal.new_compute_pipeline_state_with_function(&function).map_err(Error::wrap)?;
    known.insert(key, pipeline.clone());
    Ok(pipeline)
}

// SAFETY: memory is for as many elements as asked for.
unsafe impl Backend for MetalDevice {
    /// The kernels for them are CUDA's.
    fn tensor_cores(&self) -> bool {
        false
    }

    fn alloc(&self, dtype: DType, len: usize) -> Result<Storage> {
        let buffer = self.new_buffer_builder().with_size_for(len.max(1), dtype).with_label("zoo").build()?;
        Ok(Storage::Metal(MetalStorage::new(buffer, self.clone(), len, dtype)))
    }

    unsafe fn launch(&self, module: &Module, name: &str, dtype: DType, grid: Grid, args: &mut [Arg]) -> Result<()> {
        let pipeline = pipeline(self, module, name, dtype)?;
        let guard = self.command_encoder()?;
        let encoder: &candle_metal_kernels::metal::ComputeCommandEncoder = guard.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        let mut at = 0;
        for arg in args.iter_mut() {
            // Barriers are derived from what is said to be an input or an output.
            match arg {
                Arg::Read(slice) => {
                    let Storage::Metal(storage) = slice.storage else { bail!("{name}: expected an array on Metal") };
                    let offset = slice.start * storage.dtype().size_in_bytes();
                    encoder.set_input_buffer(at, Some(storage.buffer()), offset);
                }
                Arg::Write(array) => {
                    let Storage::Metal(storage) = &array.storage else { bail!("{name}: expected an array on Metal") };
                    encoder.set_output_buffer(at, Some(storage.buffer()), 0);
                }
                Arg::WriteFrom(array, starts) => {
                    let Storage::Metal(storage) = &array.storage else { bail!("{name}: expected an array on Metal") };
                    for (i, start) in starts.iter().enumerate() {
                        let offset = start * storage.dtype().size_in_bytes();
                        encoder.set_output_buffer(at + i, Some(storage.buffer()), offset);
                    }
                    at += starts.len() - 1;
                }
                Arg::Change(memory) => {
                    let StorageMut::Metal(storage) = &memory.storage else {
                        bail!("{name}: expected an array on Metal")
                    };
                    let offset = memory.start * storage.dtype().size_in_bytes();
                    encoder.set_output_buffer(at, Some(storage.buffer()), offset);
                }
                Arg::Count(n) => encoder.set_bytes(at, &(*n as u32)),
                Arg::Word(w) => encoder.set_bytes(at, w),
                Arg::Float(f) => encoder.set_bytes(at, &(*f as f32)),
                Arg::Fields(words) => encoder.set_bytes_directly(at, 4 * words.len(), words.as_ptr().cast()),
            }
            at += 1;
        }
        let size = |width, height| MTLSize { width, height, depth: 1 };
        encoder.dispatch_thread_groups(size(grid.groups[0], grid.groups[1]), size(grid.threads, 1));
        Ok(())
    }
}
