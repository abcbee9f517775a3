//! Devices by name.

use anyhow::Context;
use candle_core::Device;
use zoo_training::Error;

use crate::output::program;
use crate::ranks;

/// The device of that name.
pub(crate) fn device(name: &str) -> anyhow::Result<Device> {
    let (kind, ordinal) = name.split_once(':').unwrap_or((name, "0"));
    let unknown = || Error::Usage(format!("--device {name}: expected cpu, cuda, cuda:N or metal"));
    let ordinal: usize = ordinal.parse().map_err(|_| unknown())?;
    let built = |with: bool, feature: &str| match with {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "--device {name}: this {} was built without it; build with --features {feature}",
            program()
        ))),
    };
    match kind {
        "cpu" if !name.contains(':') => Ok(Device::Cpu),
        "cuda" => {
            let ordinal = if name.contains(':') { ordinal } else { ranks::own_device(cuda_devices()) };
            built(candle_core::utils::cuda_is_available(), "cuda")?;
            // One stream for all threads: candle's usual ones are the threads' own, and would not wait for each other.
            let device = Device::new_cuda_with_stream(ordinal).with_context(|| format!("--device {name}"))?;
            #[cfg(feature = "cuda")]
            if let Device::Cuda(cuda) = &device {
                // SAFETY: everything that is computed on this device is on its one stream, in order.
                unsafe { cuda.disable_event_tracking() }
            }
            Ok(device)
        }
        "metal" => {
            built(candle_core::utils::metal_is_available(), "metal")?;
            Device::new_metal(ordinal).with_context(|| format!("--device {name}"))
        }
        _ => Err(unknown().into()),
    }
}

/// CUDA devices of this machine.
fn cuda_devices() -> usize {
    #[cfg(feature = "cuda")]
    let count = candle_core::cuda_backend::cudarc::driver::CudaContext::device_count().map_or(1, |n| n.max(1) as usize);
    #[cfg(not(feature = "cuda"))]
    let count = 1;
    count
}
